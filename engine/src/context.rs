//! What a handler knows of the attempt it runs, and what it may do to its job
//! while running: progress, log lines, cancellation.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use mpanel_connect::{ConnectError, Redis};
use mpanel_protocol::{
    calls::manage::{Update, update_job},
    ids::{JobId, LockToken, QueueName},
    keys::QueueKeys,
    outcome::JobOpError,
    trace::TraceContext,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::trace::AttemptTrace;

/// The attempt that a handler runs. Cheap to clone.
#[derive(Clone)]
pub struct JobContext {
    inner: Arc<Attempt>,
}

impl std::fmt::Debug for JobContext {
    /// Without the payload: it may hold what was sealed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobContext")
            .field("queue", &self.inner.queue)
            .field("id", &self.inner.id)
            .field("name", &self.inner.name)
            .field("attempt", &self.inner.attempt)
            .finish_non_exhaustive()
    }
}

pub(crate) struct Attempt {
    pub(crate) queue: QueueName,
    pub(crate) id: JobId,
    pub(crate) name: String,
    pub(crate) data_json: String,
    pub(crate) attempt: u32,
    pub(crate) attempts_made: u32,
    pub(crate) max_attempts: u32,
    pub(crate) enqueued_at_ms: i64,
    pub(crate) keep_logs: Option<u32>,
    pub(crate) token: LockToken,
    pub(crate) trace: AttemptTrace,
    pub(crate) cancelled: CancellationToken,
    pub(crate) lock_lost: Arc<AtomicBool>,
    /// Where progress and log lines go; a detached context has nowhere.
    pub(crate) store: Option<(Redis, QueueKeys)>,
}

/// Progress or a log line could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// There is no connection.
    #[error("job {id}: {source}")]
    Connect {
        /// The job.
        id: JobId,
        /// The cause.
        #[source]
        source: ConnectError,
    },
    /// Redis refused it.
    #[error(transparent)]
    Refused(#[from] JobOpError),
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
    pub(crate) fn new(attempt: Attempt) -> Self {
        Self { inner: Arc::new(attempt) }
    }

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
        Self::new(Attempt {
            queue,
            id,
            name: name.to_owned(),
            data_json: data_json.to_owned(),
            attempt,
            attempts_made: attempt.saturating_sub(1),
            max_attempts,
            enqueued_at_ms: 0,
            keep_logs: None,
            token: LockToken::new("detached"),
            trace: AttemptTrace::of(""),
            cancelled: CancellationToken::new(),
            lock_lost: Arc::default(),
            store: None,
        })
    }

    /// The queue the job came from.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        &self.inner.queue
    }

    /// The job's id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        &self.inner.id
    }

    /// The job's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The payload as stored.
    #[must_use]
    pub fn data_json(&self) -> &str {
        &self.inner.data_json
    }

    /// Which start of the job this is, from 1 (BullMQ's `attemptsStarted`; a
    /// stalled run counts).
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.inner.attempt
    }

    /// How many attempts have failed so far (BullMQ's `attemptsMade`).
    #[must_use]
    pub fn attempts_made(&self) -> u32 {
        self.inner.attempts_made
    }

    /// How many attempts the producer allowed; at least 1.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.inner.max_attempts
    }

    /// Whether a failure of this attempt is final.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.inner.attempts_made + 1 >= self.inner.max_attempts
    }

    /// When the job was enqueued, epoch milliseconds (the producer's clock).
    #[must_use]
    pub fn enqueued_at_ms(&self) -> i64 {
        self.inner.enqueued_at_ms
    }

    /// A token that no other attempt of this job has. Compare it for equality;
    /// it has no order. Every Redis write of the attempt is fenced by it.
    #[must_use]
    pub fn fencing_token(&self) -> &LockToken {
        &self.inner.token
    }

    /// The attempt's own place in its trace: a child of the context that the job
    /// carries, else the root of a new trace. A job enqueued with it
    /// (`EnqueueOptions::trace` of the producer) belongs to the same trace.
    #[must_use]
    pub fn trace(&self) -> &TraceContext {
        self.inner.trace.context()
    }

    /// The telemetry metadata as the job carries it, also where it is not W3C's.
    #[must_use]
    pub fn telemetry(&self) -> Option<&str> {
        self.inner.trace.carried()
    }

    /// Fires when the attempt must end: its lock was lost, or the worker stops
    /// hard. After a lost lock nothing the attempt returns is written.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.inner.cancelled
    }

    /// Whether the lock is known to be lost: another worker may run the job now.
    #[must_use]
    pub fn lock_lost(&self) -> bool {
        self.inner.lock_lost.load(Ordering::Relaxed)
    }

    /// Sets the job's progress (any JSON value), visible in Node as `job.progress`
    /// and as event `progress`.
    ///
    /// # Errors
    /// [`ContextError`]; safe to ignore or to call again.
    pub async fn progress<P: Serialize + Sync + ?Sized>(&self, progress: &P) -> Result<(), ContextError> {
        let json = serde_json::to_string(progress)
            .map_err(|source| ContextError::NotJson { id: self.inner.id.clone(), source })?;
        self.update(Update::Progress(&json)).await
    }

    /// Appends a line to the job's log (`queue.getJobLogs` in Node).
    ///
    /// # Errors
    /// [`ContextError`]; safe to ignore or to call again.
    pub async fn log(&self, line: &str) -> Result<(), ContextError> {
        self.update(Update::Log { line, keep: self.inner.keep_logs }).await
    }

    async fn update(&self, update: Update<'_>) -> Result<(), ContextError> {
        let Some((redis, keys)) = &self.inner.store else { return Ok(()) };
        let id = &self.inner.id;
        let mut shared = redis
            .shared_for(keys.meta())
            .await
            .map_err(|source| ContextError::Connect { id: id.clone(), source })?;
        match update_job(&mut shared.conn, keys, id, update).await {
            Ok(_) => Ok(()),
            Err(error) => {
                if let JobOpError::Script(script) = &error
                    && let Some(source) = script.redis()
                {
                    redis.report(&shared, source).await;
                }
                Err(error.into())
            }
        }
    }
}
