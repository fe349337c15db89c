//! Who may call: a file of token hashes, read at start and again on SIGHUP.
//!
//! One token a line: `sha256:<hex of token> tenant:<uuid>|admin [user:<uuid>]
//! [name]`. The tokens themselves are nowhere; the file must be its owner's alone
//! all the same, since whoever can write it makes tokens.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use super::auth::{Caller, Scope};
use crate::exit::{Exit, Failed};

/// Longest file that is read, bytes: some ten thousand tokens.
const FILE_MAX: u64 = 2 * 1024 * 1024;
/// Longest name of a token, characters.
const NAME_MAX: usize = 100;

/// A token by its hash.
#[derive(Clone)]
struct Token {
    hash: [u8; 32],
    caller: Caller,
}

/// The token file cannot be used. The text quotes no line of it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is not there, or not readable.
    #[error("token file {path}: {source}; name it by --tokens, see `mpanel-worker api --help`")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no plain file of a sensible size.
    #[error("token file {path} {problem}")]
    Odd {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// Others than its owner have rights to it.
    #[error("token file {path} has mode {mode:04o}: others could read or write it; `chmod 600 {path}`")]
    Mode {
        /// The file.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// Lines are wrong; all of them are named.
    #[error("token file {path}: {}; a line is `sha256:<hex of token> tenant:<uuid>|admin [user:<uuid>] [name]`",
        .lines.iter().map(|(line, problem)| format!("line {line} {problem}")).collect::<Vec<_>>().join(", "))]
    Lines {
        /// The file.
        path: String,
        /// Line and what is wrong with it.
        lines: Vec<(usize, String)>,
    },
}

impl From<TokenError> for Failed {
    fn from(error: TokenError) -> Self {
        let exit = match &error {
            TokenError::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Exit::Permission
            }
            _ => Exit::Configuration,
        };
        Self::new(exit, error.to_string())
    }
}

/// The tokens that count now.
pub struct Tokens {
    path: PathBuf,
    current: RwLock<Arc<Vec<Token>>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("path", &self.path).field("count", &self.count()).finish()
    }
}

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let tokens = read(path)?;
        Ok(Self { path: path.to_owned(), current: RwLock::new(Arc::new(tokens)) })
    }

    /// Reads the file again; answers how many tokens there are. When it cannot be
    /// used, those of before go on to count.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn reload(&self) -> Result<usize, TokenError> {
        let tokens = read(&self.path)?;
        let count = tokens.len();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
        Ok(count)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.current.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whose token it is. Every hash is compared in full, so that the time tells nothing.
    #[must_use]
    pub fn caller(&self, token: &str) -> Option<Caller> {
        let tokens = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = None;
        for token in tokens.iter() {
            if bool::from(token.hash.ct_eq(&hash)) {
                found = Some(&token.caller);
            }
        }
        found.cloned()
    }
}

fn read(path: &Path) -> Result<Vec<Token>, TokenError> {
    let shown = path.display().to_string();
    let unreadable = |source| TokenError::Unreadable { path: shown.clone(), source };
    let odd = |problem: String| TokenError::Odd { path: shown.clone(), problem };
    let file = File::open(path).map_err(unreadable)?;
    // Of what was opened, not of what the name leads to a moment later.
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(odd("is no plain file".to_owned()));
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(TokenError::Mode { path: shown, mode });
    }
    if meta.len() > FILE_MAX {
        return Err(odd(format!("is larger than {FILE_MAX} bytes")));
    }
    let mut text = String::new();
    file.take(FILE_MAX).read_to_string(&mut text).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => odd("is no UTF-8 text".to_owned()),
        _ => unreadable(source),
    })?;
    parse(&text).map_err(|lines| TokenError::Lines { path: shown, lines })
}

/// The tokens of a text, or every line that is wrong.
fn parse(text: &str) -> Result<Vec<Token>, Vec<(usize, String)>> {
    let (mut tokens, mut wrong): (Vec<Token>, Vec<(usize, String)>) = (Vec::new(), Vec::new());
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        match token(text) {
            Ok(token) if tokens.iter().any(|known| known.hash == token.hash) => {
                wrong.push((line, "has the token of an earlier line".to_owned()));
            }
            Ok(token) => tokens.push(token),
            Err(problem) => wrong.push((line, problem.to_owned())),
        }
    }
    if wrong.is_empty() { Ok(tokens) } else { Err(wrong) }
}

fn token(line: &str) -> Result<Token, &'static str> {
    let mut words = line.split_whitespace().peekable();
    let hash = words.next().and_then(|word| word.strip_prefix("sha256:")).and_then(bytes);
    let hash = hash.ok_or("does not begin with sha256: and 64 hexadecimal digits")?;
    let scope = match words.next().ok_or("names neither tenant:<uuid> nor admin")? {
        "admin" => Scope::Admin,
        word => {
            let id = word.strip_prefix("tenant:").ok_or("names neither tenant:<uuid> nor admin")?;
            Scope::Tenant(Uuid::parse_str(id).map_err(|_| "has a tenant that is no UUID")?)
        }
    };
    let user = match words.peek().and_then(|word| word.strip_prefix("user:")) {
        Some(id) => {
            words.next();
            Some(Uuid::parse_str(id).map_err(|_| "has a user that is no UUID")?)
        }
        None => None,
    };
    let name = words.collect::<Vec<_>>().join(" ");
    if name.chars().count() > NAME_MAX || name.chars().any(char::is_control) {
        return Err("has a name of more than 100 characters, or with control characters");
    }
    let name = (!name.is_empty()).then_some(name);
    Ok(Token { hash, caller: Caller { scope, user, name } })
}

fn bytes(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()?;
    }
    // `from_str_radix` takes a sign, too.
    hex.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11";

    fn hash(token: &str) -> String {
        Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn lines_say_who_calls_and_comments_say_nothing() {
        let text = format!(
            "# ours\n\nsha256:{} tenant:{TENANT} user:{TENANT} the shop's panel\n sha256:{} admin\n",
            hash("a"),
            hash("b").to_uppercase()
        );
        let tokens = parse(&text).unwrap_or_default();
        let tenant: Uuid = TENANT.parse().unwrap();
        assert_eq!(tokens.len(), 2);
        assert_eq!(tokens[0].caller.scope, Scope::Tenant(tenant));
        assert_eq!((tokens[0].caller.user, tokens[0].caller.name.as_deref()), (Some(tenant), Some("the shop's panel")));
        assert_eq!((tokens[1].caller.scope, tokens[1].caller.user), (Scope::Admin, None));
    }

    #[test]
    fn every_wrong_line_is_named_and_none_is_quoted() {
        let good = hash("a");
        let text = format!(
            "sha256:{good} admin\nsha256:{good} admin\nsecret admin\nsha256:+{} admin\nsha256:{} tenant:x\nsha256:{} root\n\
             sha256:{}\nsha256:{} admin user:me\nsha256:{} admin {}",
            &good[1..], hash("b"), hash("c"), hash("d"), hash("e"), hash("f"), "n".repeat(101)
        );
        let wrong = parse(&text).err().unwrap_or_default();
        assert_eq!(wrong.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(wrong.iter().all(|(_, problem)| !problem.contains("secret") && !problem.contains(&good)));
    }
}
