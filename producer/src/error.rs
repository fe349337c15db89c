//! Why a job was not enqueued, and what to do.

use mpanel_connect::ConnectError;
use mpanel_protocol::{ids::NameError, outcome::Refusal, script::ScriptError};

/// A job was not enqueued, or perhaps was.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EnqueueError {
    /// A queue name or job id breaks the rules.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An option has a value that BullMQ refuses.
    #[error("option `{option}` is not valid: {why}")]
    Option {
        /// The option, under its Node name.
        option: &'static str,
        /// What is wrong and what is allowed.
        why: String,
    },
    /// The payload is no JSON.
    #[error("the payload cannot be written as JSON: {0}")]
    Payload(String),
    /// The payload is larger than allowed.
    #[error(
        "the payload has {bytes} bytes, the limit is {limit}; store it elsewhere and enqueue a reference"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Redis was not to be reached; nothing was stored.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Redis refused the call; nothing was stored.
    #[error("Redis refused the job, nothing was stored: {0}")]
    Refused(String),
    /// The script refused the job; nothing was stored.
    #[error("the job was refused, nothing was stored: {0}")]
    Rejected(Refusal),
    /// The connection broke while the call was under way.
    #[error("it is not known whether the job was stored ({0}); with a job id of your own, enqueue it again")]
    Unknown(String),
    /// The producer was shut down.
    #[error("the producer is closed")]
    Closed,
}

impl EnqueueError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(e) => e.is_retryable(),
            Self::Refused(_) | Self::Unknown(_) => true,
            Self::Name(_)
            | Self::Option { .. }
            | Self::Payload(_)
            | Self::TooLarge { .. }
            | Self::Rejected(_)
            | Self::Closed => false,
        }
    }

    pub(crate) fn from_script(error: &ScriptError) -> Self {
        match error {
            ScriptError::Encoding(why) => Self::Payload(why.clone()),
            _ if error.is_not_done() => Self::Refused(error.to_string()),
            _ => Self::Unknown(error.to_string()),
        }
    }
}
