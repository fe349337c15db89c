//! Which files a filter consists of: its own, its `.local` copies, what they
//! include, in the order in which they go on top of each other.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    error::FilterError,
    ini::{self, Ini},
};

/// Files of one filter; more are a loop.
const MAX_FILES: usize = 64;
/// A rule file larger than that is none, bytes.
const MAX_FILE: u64 = 4 << 20;

/// Reads a filter from `directory` or its `filter.d`, with everything it includes.
pub(super) fn load(directory: &Path, name: &str) -> Result<Ini, FilterError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        return Err(FilterError::Name(name.to_owned()));
    }
    let name = name.strip_suffix(".conf").unwrap_or(name);
    let here = directory.join(format!("{name}.conf"));
    let below = directory.join("filter.d").join(format!("{name}.conf"));
    let own = [&here, &below].into_iter().find(|path| path.is_file()).cloned();
    let Some(own) = own else {
        return Err(FilterError::NotFound { name: name.to_owned(), tried: [here, below] });
    };
    let drop_ins = own.with_extension("d");
    let mut files = vec![own.clone()];
    files.extend(in_directory(&drop_ins, "conf")?);
    files.push(own.with_extension("local"));
    files.extend(in_directory(&drop_ins, "local")?);
    let mut ini = Ini::default();
    let mut count = 0;
    for file in files.iter().filter(|path| path.is_file()) {
        // Copies are on the list already.
        add(file, &mut Vec::new(), &mut ini, &mut count)?;
    }
    Ok(ini)
}

fn in_directory(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, FilterError> {
    let read = |source| FilterError::Read { path: directory.to_owned(), source };
    let mut files = Vec::new();
    match fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(read)?.path();
                if path.extension().is_some_and(|have| have == extension) {
                    files.push(path);
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(read(error)),
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Ini, FilterError> {
    let fail = |source| FilterError::Read { path: path.to_owned(), source };
    let size = fs::metadata(path).map_err(fail)?.len();
    if size > MAX_FILE {
        return Err(fail(io::Error::other("the file is larger than 4 MiB")));
    }
    let bytes = fs::read(path).map_err(fail)?;
    let text = String::from_utf8(bytes).map_err(|_| fail(io::Error::other("it is not UTF-8")))?;
    ini::parse(&text, path)
}

/// What is included before, the file, what is included after; each with its `.local` copy.
fn add(path: &Path, above: &mut Vec<PathBuf>, ini: &mut Ini, count: &mut usize) -> Result<(), FilterError> {
    *count += 1;
    if *count > MAX_FILES {
        return Err(FilterError::Read {
            path: path.to_owned(),
            source: io::Error::other("more than 64 files are included"),
        });
    }
    let own = read(path)?;
    let included = |which: &str| -> Vec<PathBuf> {
        let section = own.sections.get("INCLUDES");
        let list = section.and_then(|section| section.get(which)).map_or("", String::as_str);
        let folder = path.parent().unwrap_or(Path::new("."));
        let named = list.split('\n').map(str::trim).filter(|name| !name.is_empty());
        named.map(|name| folder.join(name)).collect()
    };
    let (before, after) = (included("before"), included("after"));
    above.push(path.to_owned());
    add_all(&before, above, ini, count)?;
    ini.merge(own);
    add_all(&after, above, ini, count)?;
    above.pop();
    Ok(())
}

fn add_all(
    paths: &[PathBuf],
    above: &mut Vec<PathBuf>,
    ini: &mut Ini,
    count: &mut usize,
) -> Result<(), FilterError> {
    for path in paths {
        for path in [path.clone(), path.with_extension("local")] {
            // What is not there was not meant for this machine: distributions include such copies.
            if path.is_file() && !above.contains(&path) {
                add(&path, above, ini, count)?;
            }
        }
    }
    Ok(())
}
