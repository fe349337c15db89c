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
    error.is_connection_dropped()
        || error.is_timeout()
        || error.is_io_error()
        || error.is_unrecoverable_error()
        || matches!(
            error.code(),
            Some(
                "READONLY"
                    | "MASTERDOWN"
                    | "UNBLOCKED"
                    | "LOADING"
                    | "NOREPLICAS"
                    | "CLUSTERDOWN"
                    | "MOVED"
                    | "ASK"
            )
        )
}
