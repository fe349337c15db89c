//! Why a job was not enqueued, and what to do.

use std::time::Duration;

use mpanel_connect::{ConnectError, is_broken};
use mpanel_protocol::{
    ids::NameError, outcome::Refusal, schedule::ScheduleError, script::ScriptError, seal::SealError,
    unique::UniqueError,
};

use crate::enqueued::Enqueued;

/// A job was not enqueued, or perhaps was, or not as safely as was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EnqueueError {
    /// A queue name or job id breaks the rules.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A name or id is longer than any that is meant.
    #[error("the {what} has {bytes} bytes, the limit is {limit}: put long values into the payload")]
    NameTooLong {
        /// Which name.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// An option has a value that BullMQ refuses.
    #[error("option `{option}` is not valid: {why}")]
    Option {
        /// The option, under its Node name.
        option: &'static str,
        /// What is wrong and what is allowed.
        why: String,
    },
    /// A schedule cannot be.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
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
    /// No uniqueness can be had for the payload.
    #[error(transparent)]
    Unique(#[from] UniqueError),
    /// A field cannot be sealed.
    #[error("nothing was stored: {0}")]
    Seal(#[from] SealError),
    /// A job of a flow would wait for itself.
    #[error("the flow is circular: job `{id}` in queue `{queue}` would wait for itself; nothing was stored")]
    Circular {
        /// The queue.
        queue: String,
        /// The job.
        id: String,
    },
    /// Jobs that must be stored in one step live in different slots of a Cluster.
    #[error(
        "`{first}` and `{second}` are in different slots of the Redis Cluster, and a flow is stored in one step: \
         use one prefix with a hash tag, such as {{bull}}; nothing was stored"
    )]
    AcrossSlots {
        /// One queue, with prefix.
        first: String,
        /// The other.
        second: String,
    },
    /// The queue holds as many waiting jobs as this producer allows.
    #[error("queue `{queue}` is full: {limit} jobs or more are waiting; nothing was stored, try again later")]
    QueueFull {
        /// The queue.
        queue: String,
        /// What this producer allows.
        limit: u64,
    },
    /// The queue has no partitions; nothing was stored.
    #[error(
        "nobody has said how many partitions queue `{queue}` has: `engine.partitions(\"{queue}\")?.ensure(N)` does, \
         see docs/guide/partitions.md; nothing was stored"
    )]
    NotPartitioned {
        /// The queue.
        queue: String,
    },
    /// Redis was not to be reached; nothing was stored.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Redis refused the call; nothing was stored.
    #[error("Redis refused the job, nothing was stored: {0}")]
    Refused(String),
    /// The Redis user lacks permissions that enqueueing needs. Trying again does not
    /// help; nothing was stored.
    #[error(
        "the Redis user may not enqueue here: {0}; a producer needs its commands on the queue's keys, \
         see docs/guide/topologies.md for the ACL; nothing was stored"
    )]
    Forbidden(String),
    /// The script refused the job; nothing was stored.
    #[error("the job was refused, nothing was stored: {0}")]
    Rejected(Refusal),
    /// The jobs ARE stored on the primary, but fewer replicas than asked for have
    /// them: they are lost if the primary is lost now. Enqueueing them again under
    /// ids of your own stores nothing twice and asks the replicas again.
    #[error(
        "the job is stored on the primary, but {got} of {wanted} replicas had it after {} ms{}",
        within.as_millis(), trouble.as_ref().map(|t| format!(" ({t})")).unwrap_or_default()
    )]
    NotReplicated {
        /// What was stored.
        jobs: Vec<Enqueued>,
        /// How many replicas were asked for.
        wanted: u32,
        /// How many have it.
        got: u32,
        /// How long was waited.
        within: Duration,
        /// Why the replicas could not be counted, if that was it.
        trouble: Option<String>,
    },
    /// The connection broke while the call was under way.
    #[error("it is not known whether the job was stored ({0}); with a job id of your own, enqueue it again")]
    Unknown(String),
    /// The script failed on what it found in Redis, such as a key of another type.
    /// The same call will fail again until that is mended.
    #[error("the queue in Redis is damaged, it is not known whether the job was stored: {0}")]
    Broken(String),
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
            Self::Refused(_) | Self::Unknown(_) | Self::QueueFull { .. } => true,
            Self::Name(_)
            | Self::NameTooLong { .. }
            | Self::Option { .. }
            | Self::Schedule(_)
            | Self::Payload(_)
            | Self::TooLarge { .. }
            | Self::Unique(_)
            | Self::Seal(_)
            | Self::Circular { .. }
            | Self::AcrossSlots { .. }
            | Self::Rejected(_)
            | Self::Forbidden(_)
            | Self::NotPartitioned { .. }
            | Self::NotReplicated { .. }
            | Self::Broken(_)
            | Self::Closed => false,
        }
    }

    /// Whether surely nothing was stored: it can be enqueued again also without an id
    /// of its own.
    #[must_use]
    pub fn is_not_stored(&self) -> bool {
        !matches!(self, Self::Unknown(_) | Self::Broken(_) | Self::NotReplicated { .. } | Self::Closed)
    }

    pub(crate) fn option(option: &'static str, why: impl Into<String>) -> Self {
        Self::Option { option, why: why.into() }
    }

    /// Of a call that was made before the job was sent, whatever became of that call.
    pub(crate) fn before_sending(error: &ScriptError) -> Self {
        let parts = error.redis().and_then(|source| source.clone().into_server_errors());
        if parts.is_some_and(|all| all.iter().any(|(_, one)| one.code() == "NOPERM")) {
            return Self::Forbidden(error.to_string());
        }
        Self::Refused(error.to_string())
    }

    pub(crate) fn from_script(error: &ScriptError) -> Self {
        match error {
            ScriptError::Encoding(why) => Self::Payload(why.clone()),
            // Refused before it ran; within a script it has another code.
            ScriptError::Redis { source, .. } if source.code() == Some("NOPERM") => {
                Self::Forbidden(source.to_string())
            }
            _ if error.is_not_done() => Self::Refused(error.to_string()),
            ScriptError::Redis { source, .. } if is_broken(source) || source.code().is_none() => {
                Self::Unknown(error.to_string())
            }
            _ => Self::Broken(error.to_string()),
        }
    }
}
