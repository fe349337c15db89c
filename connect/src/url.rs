//! The URL forms of decision 22. This version takes a single server; the forms
//! for Sentinel and Cluster are refused by name.

use std::{fmt, str::FromStr};

use redis::{ConnectionInfo, IntoConnectionInfo};

use crate::ConnectError;

/// A parsed Redis URL. Its text form never shows a password.
#[derive(Clone)]
pub struct RedisUrl {
    pub(crate) info: ConnectionInfo,
    endpoint: String,
}

impl RedisUrl {
    /// Host and port (or socket path), for messages.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// The URL with user and password taken out.
fn redacted(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme + 3 => format!("{}***{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    }
}

impl FromStr for RedisUrl {
    type Err = ConnectError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let bad = |why: String| ConnectError::Url { url: redacted(url), why };
        let scheme = url.split("://").next().unwrap_or_default();
        if scheme.contains('+') && !scheme.ends_with("unix") {
            return Err(bad(format!("this version serves a single Redis server, not `{scheme}`")));
        }
        let info = url.into_connection_info().map_err(|e| bad(e.to_string()))?;
        let endpoint = info.addr().to_string();
        Ok(Self { info, endpoint })
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisUrl").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let url: RedisUrl = "redis://:hunter2@localhost:6380/3".parse().unwrap();
        assert_eq!(url.endpoint(), "localhost:6380");
        assert!(!format!("{url:?} {url}").contains("hunter2"));
        let err = "redis+cluster://user:hunter2@h:1".parse::<RedisUrl>().unwrap_err().to_string();
        assert!(!err.contains("hunter2") && err.contains("redis+cluster"), "{err}");
        assert!("http://x".parse::<RedisUrl>().is_err());
    }
}
