//! Why a connection was not to be had, and which errors mean that one is broken.

use redis::{ErrorKind, RedisError};

/// No connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The URL cannot be used.
    #[error("Redis URL `{url}` is not usable: {why}; expected for example redis://:password@host:6379/0")]
    Url {
        /// The URL, without its password.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answers.
    #[error("Redis at {endpoint} does not answer: {source}")]
    Unreachable {
        /// Host and port.
        endpoint: String,
        /// The cause.
        #[source]
        source: RedisError,
    },
    /// Somebody answers, but there is no server that takes writes: a fail-over is
    /// under way, or the topology is not what the URL says.
    #[error("{endpoint}: no primary to be had: {why}")]
    NoPrimary {
        /// What the URL leads to.
        endpoint: String,
        /// What each that was asked answered.
        why: String,
    },
    /// The server answers, but refuses us. Trying again does not help.
    #[error(
        "Redis at {endpoint} refuses the credentials: {source}; check REDIS_PASSWORD or the user in REDIS_URL"
    )]
    Refused {
        /// Host and port.
        endpoint: String,
        /// The cause.
        #[source]
        source: RedisError,
    },
}

impl ConnectError {
    /// Whether trying again later may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NoPrimary { .. })
    }

    pub(crate) fn from_redis(endpoint: &str, source: RedisError) -> Self {
        let endpoint = endpoint.to_owned();
        let refused = source.kind() == ErrorKind::AuthenticationFailed
            || matches!(source.code(), Some("WRONGPASS" | "NOAUTH" | "NOPERM"));
        if refused { Self::Refused { endpoint, source } } else { Self::Unreachable { endpoint, source } }
    }
}

/// Whether an error means that the connection it came from must not be used again:
/// it was cut, timed out (a late reply may still arrive), or leads to a server
/// that does not take writes now, or not for this key. The next connection is
/// made to whoever is the primary then.
#[must_use]
pub fn is_broken(error: &RedisError) -> bool {
    let elsewhere = |code: &str| {
        matches!(
            code,
            "READONLY"
                | "MASTERDOWN"
                | "UNBLOCKED"
                | "LOADING"
                | "NOREPLICAS"
                | "CLUSTERDOWN"
                | "MOVED"
                | "ASK"
        )
    };
    error.is_connection_dropped()
        || error.is_timeout()
        || error.is_io_error()
        || error.is_unrecoverable_error()
        || error.code().is_some_and(elsewhere)
        // Of commands that travelled together each has an answer of its own.
        || error.clone().into_server_errors().is_some_and(|all| all.iter().any(|(_, one)| elsewhere(one.code())))
}

#[cfg(test)]
mod tests {
    use redis::{ServerError, Value};

    use super::*;

    fn server(line: &str) -> RedisError {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()) {
            Ok(Value::ServerError(error)) => ServerError::into(error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_that_is_not_the_one_to_write_to_costs_its_connection() {
        for line in [
            "READONLY You can't write against a read only replica.",
            "MASTERDOWN Link with MASTER is down",
            "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
            "LOADING Redis is loading the dataset in memory",
            "NOREPLICAS Not enough good replicas to write.",
            "CLUSTERDOWN The cluster is down",
            "MOVED 1 127.0.0.1:1",
            "ASK 1 127.0.0.1:1",
        ] {
            assert!(is_broken(&server(line)), "{line}");
        }
        for line in [
            "ERR unknown command",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "NOSCRIPT No matching script",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "BUSY Redis is busy running a script.",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "MISCONF Redis is configured to save RDB snapshots",
            "NOPERM this user has no permissions",
        ] {
            assert!(!is_broken(&server(line)), "{line}");
        }
        for kind in [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::TimedOut] {
            assert!(is_broken(&std::io::Error::new(kind, "x").into()));
        }
    }
}
