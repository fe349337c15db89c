//! Where this machine keeps Postgres, and the account that may run it.

use std::path::{Path, PathBuf};

use crate::TestkitError;
use crate::child::{Account, is_root};

/// Where Debian's packages put each major version; none of it is on PATH.
const VERSIONS: &str = "/usr/lib/postgresql";
const REMEDY: &str = "run `make setup` or `apt-get install postgresql`";

/// The programs of one major version and the account they run under.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    pub(crate) bin: PathBuf,
    pub(crate) account: Option<Account>,
}

impl Installation {
    /// The highest version that has initdb.
    pub(crate) fn find() -> Result<Self, TestkitError> {
        let entries = std::fs::read_dir(VERSIONS).into_iter().flatten().flatten();
        let bin = highest(entries.map(|entry| entry.path()), |version| version.join("bin/initdb").is_file())
            .map(|version| version.join("bin"));
        let Some(bin) = bin else {
            return Err(TestkitError::Missing {
                what: "initdb of Postgres".into(),
                looked: format!("{VERSIONS}/*/bin"),
                remedy: REMEDY,
            });
        };
        // Postgres refuses to run as root.
        let account = if is_root() { Some(Account::postgres()?) } else { None };
        Ok(Self { bin, account })
    }
}

impl Account {
    fn postgres() -> Result<Self, TestkitError> {
        let table = Path::new("/etc/passwd");
        let text = std::fs::read_to_string(table).map_err(TestkitError::file("read", table))?;
        parse_account(&text, "postgres").ok_or_else(|| TestkitError::Missing {
            what: "the account `postgres` (Postgres does not run as root)".into(),
            looked: table.display().to_string(),
            remedy: REMEDY,
        })
    }
}

fn parse_account(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(Account { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

/// The usable directory with the highest number as its name; `9` is below `15`.
fn highest(dirs: impl Iterator<Item = PathBuf>, usable: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    dirs.filter(|dir| usable(dir))
        .filter_map(|dir| Some((dir.file_name()?.to_str()?.parse::<u32>().ok()?, dir)))
        .max_by_key(|(version, _)| *version)
        .map(|(_, dir)| dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let dirs = ["/p/9", "/p/15", "/p/17", "/p/doc"].map(PathBuf::from);
        assert_eq!(highest(dirs.into_iter(), |dir| !dir.ends_with("17")), Some(PathBuf::from("/p/15")));
    }

    #[test]
    fn the_account_is_found_by_its_whole_name() {
        let table =
            "postgresql:x:5:6::/:/bin/sh\npostgres:x:101:104:PostgreSQL:/var/lib/postgresql:/bin/bash\n";
        let account = parse_account(table, "postgres").unwrap();
        assert_eq!((account.uid, account.gid), (101, 104));
        assert!(parse_account(table, "post").is_none());
    }
}
