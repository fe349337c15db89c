//! What a user of the engine writes: a [`Handler`], from a typed payload and a
//! [`JobContext`] to a typed result or a [`JobError`].
//!
//! Knows nothing of Redis; the executor turns the outcome into a transition.

use std::{
    borrow::Cow,
    error::Error as StdError,
    fmt,
    future::Future,
    time::{Duration, SystemTime},
};

use mpanel_protocol::job_kind::JobKind;
use serde::{Serialize, de::DeserializeOwned};

use crate::context::{ContextError, JobContext};

/// A boxed cause of a [`JobError`].
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// Why an attempt did not complete. The reason ends in the job's
/// `failedReason` and is read by operators: no secrets, no debug dumps.
///
/// Not every one is a failure: what [`JobError::snooze`] and its like make ends
/// the attempt without using one, see [`Yield`].
#[derive(Debug)]
pub struct JobError {
    kind: ErrorKind,
    reason: Cow<'static, str>,
    source: Option<BoxError>,
}

/// What follows a [`JobError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Another attempt after the job's own backoff, while attempts are left.
    Retry,
    /// Another attempt after this pause instead, while attempts are left.
    RetryAfter(Duration),
    /// None (BullMQ's `UnrecoverableError`): the input is wrong or the target is
    /// gone for good.
    Never,
    /// None: the payload is not what the handler takes.
    BadPayload,
    /// The handler panicked; as [`ErrorKind::Retry`]. Made by the engine.
    Panicked,
    /// No failure: the job goes elsewhere, and no attempt is used.
    Yield(Yield),
}

/// Where a job goes whose handler ends without having failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Yield {
    /// To `delayed` (BullMQ's `moveToDelayed` and `DelayedError`).
    Snooze(Duration),
    /// Back, next in line (BullMQ's `moveToWait` and `WaitingError`).
    BackInLine,
    /// Back, next in line, and the queue starts nothing for this long (BullMQ's
    /// `rateLimit` and `RateLimitError`).
    RateLimited(Duration),
    /// To `waiting-children`, where it is already; see [`JobContext::wait_for_children`].
    WaitsForChildren,
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl StdError for JobError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl JobError {
    fn new(kind: ErrorKind, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, reason: reason.into(), source: None }
    }

    /// Retry with the job's backoff.
    pub fn retry(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Retry, reason)
    }

    /// Retry with the job's backoff, for the reason that an error gives; for `map_err`.
    /// What the error says becomes the job's `failedReason`.
    pub fn caused_by(error: impl Into<BoxError>) -> Self {
        let error = error.into();
        Self::retry(error.to_string()).because(error)
    }

    /// Retry after `delay`.
    pub fn retry_after(delay: Duration, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::RetryAfter(delay), reason)
    }

    /// Fail for good.
    pub fn never(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Never, reason)
    }

    /// Fail for good: the payload decodes, but makes no sense.
    pub fn bad_payload(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::BadPayload, reason)
    }

    pub(crate) fn panicked(message: &str) -> Self {
        Self::new(ErrorKind::Panicked, format!("handler panicked: {message}"))
    }

    fn yielded(to: Yield, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Yield(to), reason)
    }

    /// Run the job again after `delay`; no attempt is used.
    #[must_use]
    pub fn snooze(delay: Duration) -> Self {
        Self::yielded(Yield::Snooze(delay), format!("put off for {delay:?}"))
    }

    /// Run the job again at `time` by this machine's clock; no attempt is used.
    #[must_use]
    pub fn snooze_until(time: SystemTime) -> Self {
        Self::snooze(time.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// Put the job back, next in line; no attempt is used. It starts again at
    /// once, here or in another worker: something must have changed by then.
    #[must_use]
    pub fn back_in_line() -> Self {
        Self::yielded(Yield::BackInLine, "given back")
    }

    /// Put the job back, next in line, and start nothing of this queue for `pause`;
    /// no attempt is used. For services that answer "too many requests".
    ///
    /// This worker keeps to it; others of the queue do when they have a rate limit
    /// of their own, as in BullMQ ([`crate::WorkerBuilder::rate_limit`], or the
    /// queue's global one).
    #[must_use]
    pub fn rate_limited(pause: Duration) -> Self {
        Self::yielded(Yield::RateLimited(pause), format!("the queue is limited for {pause:?}"))
    }

    pub(crate) fn waits_for_children() -> Self {
        Self::yielded(Yield::WaitsForChildren, "waits for children")
    }

    /// Adds the cause. It is logged and goes into the stack trace, not into the reason.
    #[must_use]
    pub fn because(mut self, cause: impl Into<BoxError>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// The reason alone.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What follows.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// What could not be done to the job's keys may work the next time.
impl From<ContextError> for JobError {
    fn from(error: ContextError) -> Self {
        Self::caused_by(error)
    }
}

/// Why a job is about to be failed for good; see [`Handler::on_failed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalCause {
    /// The payload could not be decoded into the handler's type, or it refused it.
    BadPayload,
    /// The handler answered [`JobError::never`].
    NeverRetry,
    /// The last attempt failed.
    Exhausted,
    /// The job was failed from outside before this attempt ran: it stalled too
    /// often, or a child of its flow failed (`defa` in the job hash).
    Deferred,
    /// Somebody cancelled it ([`crate::admin::QueueAdmin::cancel`]), before this
    /// attempt or while it ran.
    Cancelled,
}

/// One kind of job. A handler may run twice for one job (at-least-once): guard
/// every effect by an idempotency key or a look before acting.
pub trait Handler: Send + Sync + 'static {
    /// The payload, decoded from the job's `data`. A payload that does not
    /// decode fails the job for good without calling [`Handler::run`].
    type Data: DeserializeOwned + Send;
    /// The result, stored as the job's `returnvalue`.
    type Output: Serialize + Send;

    /// Runs one attempt.
    ///
    /// # Cancel safety
    /// The future is dropped when [`JobContext::cancelled`] has fired and was
    /// ignored for the worker's cancel grace, or when the worker stops hard.
    fn run(
        &self,
        ctx: &JobContext,
        data: Self::Data,
    ) -> impl Future<Output = Result<Self::Output, JobError>> + Send;

    /// How long an attempt of this job may take; default: the worker's
    /// ([`crate::WorkerBuilder::time_limit`]).
    fn time_limit(&self, ctx: &JobContext) -> Option<Duration> {
        let _ = ctx;
        None
    }

    /// Called before the job is failed for good, also when [`Handler::run`]
    /// never saw it (bad payload, deferred failure): undo here, and record the
    /// failure where the domain keeps its rows. It may run twice. With an error
    /// the job is not failed yet: it is put off for five seconds without using an
    /// attempt, runs again, and if it fails again this is called again.
    fn on_failed(
        &self,
        ctx: &JobContext,
        cause: FinalCause,
        reason: &str,
    ) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = (ctx, cause, reason);
        async { Ok(()) }
    }
}

/// A handler whose jobs are a [`JobKind`]: queue, name and types come from there,
/// so that producer and worker cannot disagree.
///
/// ```no_run
/// # use mpanel_engine::{Engine, Handler, JobContext, JobError};
/// # use mpanel_protocol::job_kind::JobKind;
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize)]
/// struct Welcome {
///     to: String,
/// }
///
/// impl JobKind for Welcome {
///     const QUEUE: &'static str = "mails";
///     const NAME: &'static str = "welcome";
///     type Output = String;
/// }
///
/// struct SendWelcome;
///
/// impl Handler for SendWelcome {
///     type Data = Welcome;
///     type Output = String;
///
///     async fn run(&self, _: &JobContext, mail: Welcome) -> Result<String, JobError> {
///         Ok(format!("sent to {}", mail.to))
///     }
/// }
///
/// # fn start(engine: &Engine) -> Result<(), mpanel_engine::EngineError> {
/// let worker = engine.worker_of::<Welcome, _>(SendWelcome)?.concurrency(4).start()?;
/// # Ok(()) }
/// ```
pub trait KindHandler<K: JobKind>: Handler<Data = K, Output = K::Output> {}

impl<K: JobKind, H: Handler<Data = K, Output = K::Output>> KindHandler<K> for H {}
