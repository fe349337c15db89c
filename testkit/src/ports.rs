//! Free TCP ports on 127.0.0.1.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use crate::TestkitError;

static HANDED_OUT: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port that nobody listens on and that this process has not handed out before.
///
/// Another process may still take it before it is bound; servers of this crate then try the next one.
///
/// # Errors
/// [`TestkitError::Spawn`] when no socket can be bound at all.
pub fn free_port() -> Result<u16, TestkitError> {
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    let handed_out = handed_out.get_or_insert_default();
    // Listeners stay open until one port is new: otherwise the kernel may offer the same one again.
    let mut tried = Vec::new();
    loop {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| Ok((l.local_addr()?.port(), l)));
        let (port, listener) = bound
            .map_err(|source| TestkitError::Spawn { what: "a listener on 127.0.0.1:0".into(), source })?;
        if handed_out.insert(port) {
            return Ok(port);
        }
        tried.push(listener);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_handed_out_twice() {
        let ports: Vec<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), ports.len());
    }
}
