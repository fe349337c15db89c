//! One server's address, and its text forms. Knows nothing of topologies.

use std::fmt;

/// Host and port of one server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeAddr {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl NodeAddr {
    /// Reads `host`, `host:port`, `[v6]` or `[v6]:port`; also a bare IPv6 address,
    /// as servers announce it, with its port behind the last colon.
    pub(crate) fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        let port_of = |port: &str| {
            port.parse::<u16>().ok().filter(|port| *port != 0).ok_or(format!("`{port}` is not a port"))
        };
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or(format!("`{text}` lacks a `]`"))?;
                match after.strip_prefix(':') {
                    Some(port) => (host, port_of(port)?),
                    None if after.is_empty() => (host, default_port),
                    None => return Err(format!("`{text}` is not a host and port")),
                }
            }
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, port_of(port)?),
                None => (text, default_port),
            },
        };
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(format!("`{text}` names no host"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for NodeAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
