//! The token file: who may call, one token a line. It holds hashes only.
//!
//! `sha256:<hex of the token> tenant:<uuid>|admin [user:<uuid>] [name]`

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Caller;
use crate::exit::{Exit, Failed};

/// What the token file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens(Vec<([u8; 32], Caller)>);

impl Tokens {
    /// Reads the file. It must be readable by its owner alone.
    ///
    /// # Errors
    /// Exit 78 with the line and what is wrong with it; 77 for its mode.
    pub fn read(path: &Path) -> Result<Self, Failed> {
        let shown = path.display();
        let cannot = |error: &io::Error| {
            let exit = match error.kind() {
                io::ErrorKind::PermissionDenied => Exit::Permission,
                _ => Exit::Configuration,
            };
            Failed::new(exit, format!("--tokens {shown}: {error}"))
        };
        let meta = fs::metadata(path).map_err(|error| cannot(&error))?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let text = format!("--tokens {shown} has mode {mode:04o}: others can read it; chmod 0600 it");
            return Err(Failed::new(Exit::Permission, text));
        }
        let text = fs::read_to_string(path).map_err(|error| cannot(&error))?;
        Self::parse(&text).map_err(|problem| Failed::new(Exit::Configuration, format!("--tokens {shown}: {problem}")))
    }

    /// Reads its text. Empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// The line, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (hash, caller) = entry(line).map_err(|problem| format!("line {}: {problem}", number + 1))?;
            if tokens.iter().any(|(known, _)| *known == hash) {
                return Err(format!("line {}: the same token stands above", number + 1));
            }
            tokens.push((hash, caller));
        }
        if tokens.is_empty() {
            return Err("no token: nobody could call".to_owned());
        }
        Ok(Self(tokens))
    }

    /// Whose token this is. Compares hashes without stopping at the first
    /// difference, so that time tells nothing.
    #[must_use]
    pub fn caller(&self, token: &str) -> Option<Caller> {
        let given: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = None;
        for (hash, caller) in &self.0 {
            let difference = hash.iter().zip(given).fold(0_u8, |sum, (a, b)| sum | (a ^ b));
            if difference == 0 {
                found = Some(caller.clone());
            }
        }
        found
    }
}

fn entry(line: &str) -> Result<([u8; 32], Caller), String> {
    let mut words = line.split_whitespace();
    let hash = words.next().and_then(|word| word.strip_prefix("sha256:")).ok_or("must begin with sha256:")?;
    let hash = unhex(hash).ok_or("sha256: must be followed by 64 hexadecimal digits")?;
    let whose = words.next().ok_or("says not whose token it is: tenant:<uuid> or admin")?;
    let tenant_id = match whose.strip_prefix("tenant:") {
        Some(id) => Some(uuid(id)?),
        None if whose == "admin" => None,
        None => return Err(format!("`{whose}` is neither tenant:<uuid> nor admin")),
    };
    let mut words = words.peekable();
    let user_id = match words.peek().and_then(|word| word.strip_prefix("user:")) {
        Some(id) => {
            let id = uuid(id)?;
            words.next();
            Some(id)
        }
        None => None,
    };
    let name = words.collect::<Vec<_>>().join(" ");
    Ok((hash, Caller { tenant_id, user_id, name: Some(name).filter(|name| !name.is_empty()) }))
}

fn uuid(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|_| format!("`{text}` is no UUID"))
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of `secret`.
    const HASH: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    const TENANT: &str = "5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11";

    #[test]
    fn a_line_says_whose_token_it_is() {
        let text = format!("# for the shop\n\nsha256:{HASH} tenant:{TENANT} user:{TENANT} the shop\n");
        let tokens = Tokens::parse(&text).unwrap();
        let caller = tokens.caller("secret").unwrap();
        assert_eq!(caller.tenant_id, Some(TENANT.parse().unwrap()));
        assert_eq!(caller.user_id, Some(TENANT.parse().unwrap()));
        assert_eq!(caller.name.as_deref(), Some("the shop"));
        assert_eq!(tokens.caller("Secret"), None);
        let admin = Tokens::parse(&format!("sha256:{HASH} admin")).unwrap().caller("secret").unwrap();
        assert_eq!((admin.tenant_id, admin.user_id, admin.name), (None, None, None));
    }

    #[test]
    fn what_is_wrong_is_told_by_line() {
        for (text, told) in [
            (String::new(), "no token"),
            ("admin".to_owned(), "line 1: must begin with sha256:"),
            ("sha256:abc admin".to_owned(), "line 1: sha256: must be followed"),
            (format!("\nsha256:{HASH}"), "line 2: says not whose"),
            (format!("sha256:{HASH} root"), "neither tenant:<uuid> nor admin"),
            (format!("sha256:{HASH} tenant:acme"), "`acme` is no UUID"),
            (format!("sha256:{HASH} admin\nsha256:{HASH} admin"), "line 2: the same token"),
        ] {
            let error = Tokens::parse(&text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
