//! What a handler knows of the attempt it runs, and what it may do to its job
//! while running: progress, log lines, new data, waiting for children, cancellation.

use std::{collections::BTreeMap, sync::Arc};

use mpanel_protocol::{
    ids::{JobId, LockToken, QueueName},
    outcome::JobOpError,
    trace::TraceContext,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{AdminError, QueueAdmin},
    cancellation::{CancelCause, Cancellation},
    children::{self, Parked},
    handler::JobError,
    testing::Diary,
    trace::AttemptTrace,
    worker::Shared,
};

/// Most values of children that are read at once.
const CHILDREN_MAX: usize = 100_000;

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

#[derive(Clone)]
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
    pub(crate) cancellation: Cancellation,
    /// What the holder of the context listens to.
    pub(crate) cancelled: CancellationToken,
    pub(crate) store: Store,
}

/// Where progress, log lines and the like go.
#[derive(Clone)]
pub(crate) enum Store {
    /// Into the job's keys.
    Redis(Arc<Shared>),
    /// Into a test's diary.
    Diary(Arc<Diary>),
}

/// Something could not be done to the running job.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Redis did not take it, or refused it.
    #[error("job {id}: {source}")]
    Redis {
        /// The job.
        id: JobId,
        /// The cause.
        #[source]
        source: AdminError,
    },
    /// The value cannot be written as JSON.
    #[error("job {id}: the value is not JSON: {source}")]
    NotJson {
        /// The job.
        id: JobId,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A child's value is not what the handler expects.
    #[error("job {id}: the value of child {child} cannot be decoded: {source}")]
    ChildValue {
        /// The job.
        id: JobId,
        /// The child's full key.
        child: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

impl ContextError {
    /// Whether the job itself is gone (removed while it ran).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        use mpanel_protocol::outcome::Refusal;
        let Self::Redis { source: AdminError::Job(JobOpError::Refused { refusal, .. }), .. } = self else {
            return false;
        };
        *refusal == Refusal::MissingJob
    }
}

impl JobContext {
    pub(crate) fn new(attempt: Attempt) -> Self {
        Self { inner: Arc::new(attempt) }
    }

    pub(crate) fn cancellation(&self) -> &Cancellation {
        &self.inner.cancellation
    }

    /// The same attempt after its handler ended: a time limit or a request to
    /// cancel does not concern what is done now.
    pub(crate) fn after_handler(&self) -> Self {
        let mut after = Attempt::clone(&self.inner);
        after.cancelled = after.cancellation.hard().clone();
        Self::new(after)
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

    /// Fires when the attempt must end: its lock was lost, its time is over, the
    /// job was cancelled, or the worker stops hard. A handler that goes on all the
    /// same is dropped after the worker's cancel grace.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.inner.cancelled
    }

    /// Why [`JobContext::cancelled`] has fired; `None` while it has not.
    #[must_use]
    pub fn cancel_cause(&self) -> Option<CancelCause> {
        self.inner.cancelled.is_cancelled().then(|| self.inner.cancellation.cause()).flatten()
    }

    /// Whether the lock is known to be lost: another worker may run the job now,
    /// and nothing the attempt returns is written.
    #[must_use]
    pub fn lock_lost(&self) -> bool {
        self.inner.cancellation.lock_lost()
    }

    /// Sets the job's progress (any JSON value), visible in Node as `job.progress`
    /// and as event `progress`.
    ///
    /// # Errors
    /// [`ContextError`]; safe to ignore or to call again.
    pub async fn progress<P: Serialize + Sync + ?Sized>(&self, progress: &P) -> Result<(), ContextError> {
        let json = self.json(progress)?;
        match &self.inner.store {
            Store::Redis(shared) => self.told(shared.admin().progress_json(self.id(), &json).await),
            Store::Diary(diary) => diary.progress(&json),
        }
    }

    /// Appends a line to the job's log (`queue.getJobLogs` in Node).
    ///
    /// # Errors
    /// [`ContextError`]; safe to ignore or to call again.
    pub async fn log(&self, line: &str) -> Result<(), ContextError> {
        match &self.inner.store {
            Store::Redis(shared) => {
                self.told(shared.admin().add_log(self.id(), line, self.inner.keep_logs).await.map(drop))
            }
            Store::Diary(diary) => diary.log(line),
        }
    }

    /// Replaces the job's payload (`job.updateData` in Node): what the next attempt
    /// is given. A job in several steps keeps here how far it came.
    ///
    /// # Errors
    /// [`ContextError`]; safe to call again.
    pub async fn update_data<D: Serialize + Sync + ?Sized>(&self, data: &D) -> Result<(), ContextError> {
        let json = self.json(data)?;
        match &self.inner.store {
            Store::Redis(shared) => self.told(shared.admin().data_json(self.id(), &json).await),
            Store::Diary(diary) => diary.data(&json),
        }
    }

    /// Leaves the handler while children of this job are pending (BullMQ's
    /// `moveToWaitingChildren`): with children pending the job goes to
    /// `waiting-children`, its slot is free, and the error ends the handler by `?`;
    /// when the last child is done the job runs again from the start. Without
    /// pending children it goes on here.
    ///
    /// ```
    /// # use mpanel_engine::{JobContext, JobError};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Serialize, Deserialize)]
    /// struct Report {
    ///     parts_ordered: bool,
    /// }
    ///
    /// async fn run(ctx: &JobContext, mut report: Report) -> Result<usize, JobError> {
    ///     if !report.parts_ordered {
    ///         // Children with EnqueueOptions::parent(ctx.queue().clone(), ctx.id().clone())
    ///         // and ids of their own: a second run adds none twice.
    ///         report.parts_ordered = true;
    ///         ctx.update_data(&report).await?;
    ///     }
    ///     ctx.wait_for_children().await?;
    ///     Ok(ctx.children_values::<String>().await?.len())
    /// }
    /// ```
    ///
    /// # Errors
    /// A [`JobError`] that ends the handler: the job waits now, a child of it
    /// failed (never tried again), or Redis cannot be reached.
    pub async fn wait_for_children(&self) -> Result<(), JobError> {
        self.park(None).await
    }

    /// The same for one child, by its full key (`prefix:queue:id`).
    ///
    /// # Errors
    /// As [`JobContext::wait_for_children`].
    pub async fn wait_for_child(&self, child_key: &str) -> Result<(), JobError> {
        self.park(Some(child_key)).await
    }

    async fn park(&self, child_key: Option<&str>) -> Result<(), JobError> {
        let parked = match &self.inner.store {
            Store::Redis(shared) => {
                children::park(shared, self.id(), &self.inner.token, child_key, self.cancelled()).await?
            }
            Store::Diary(diary) => diary.park(),
        };
        match parked {
            Parked::NothingPending => Ok(()),
            Parked::Waiting => Err(JobError::waits_for_children()),
        }
    }

    /// What the job's children returned, by their full keys (`job.getChildrenValues`
    /// in Node).
    ///
    /// # Errors
    /// [`ContextError`]; safe to call again.
    pub async fn children_values<T: DeserializeOwned>(&self) -> Result<BTreeMap<String, T>, ContextError> {
        let values = match &self.inner.store {
            Store::Redis(shared) => {
                self.told(shared.admin().children_values(self.id(), CHILDREN_MAX).await)?
            }
            Store::Diary(diary) => diary.children(),
        };
        let decoded = values.into_iter().map(|(child, json)| match serde_json::from_str(&json) {
            Ok(value) => Ok((child, value)),
            Err(source) => Err(ContextError::ChildValue { id: self.id().clone(), child, source }),
        });
        decoded.collect()
    }

    /// A handle on the job's queue, for whatever else a handler may want to know
    /// or do; `None` in tests without Redis.
    #[must_use]
    pub fn queue_admin(&self) -> Option<QueueAdmin> {
        match &self.inner.store {
            Store::Redis(shared) => Some(shared.admin().clone()),
            Store::Diary(_) => None,
        }
    }

    fn json<T: Serialize + ?Sized>(&self, value: &T) -> Result<String, ContextError> {
        serde_json::to_string(value)
            .map_err(|source| ContextError::NotJson { id: self.inner.id.clone(), source })
    }

    fn told<T>(&self, result: Result<T, AdminError>) -> Result<T, ContextError> {
        result.map_err(|source| ContextError::Redis { id: self.inner.id.clone(), source })
    }
}
