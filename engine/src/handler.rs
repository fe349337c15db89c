//! What a user of the engine writes: a [`Handler`], from a typed payload and a
//! [`JobContext`] to a typed result or a [`JobError`].
//!
//! Knows nothing of Redis; the executor turns the outcome into a transition.

use std::{borrow::Cow, error::Error as StdError, future::Future, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use crate::context::JobContext;

/// A boxed cause of a [`JobError`].
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// Why an attempt did not complete. The reason ends in the job's
/// `failedReason` and is read by operators: no secrets, no debug dumps.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Try again after the job's own backoff, while attempts are left.
    #[error("{reason}")]
    Retry {
        /// What happened, for the operator.
        reason: Cow<'static, str>,
        /// The cause, if any.
        #[source]
        source: Option<BoxError>,
    },
    /// Try again after this delay instead of the job's backoff, while attempts are left.
    #[error("{reason}")]
    RetryAfter {
        /// What happened, for the operator.
        reason: Cow<'static, str>,
        /// How long to wait.
        delay: Duration,
        /// The cause, if any.
        #[source]
        source: Option<BoxError>,
    },
    /// Never try again (BullMQ's `UnrecoverableError`): the input is wrong or
    /// the target is gone for good.
    #[error("{reason}")]
    Never {
        /// What happened, for the operator.
        reason: Cow<'static, str>,
        /// The cause, if any.
        #[source]
        source: Option<BoxError>,
    },
}

impl JobError {
    /// Retry with the job's backoff.
    pub fn retry(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Retry { reason: reason.into(), source: None }
    }

    /// Retry after `delay`.
    pub fn retry_after(delay: Duration, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::RetryAfter { reason: reason.into(), delay, source: None }
    }

    /// Fail for good.
    pub fn never(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Never { reason: reason.into(), source: None }
    }

    /// Adds the cause. It is logged and goes into the stack trace, not into the reason.
    #[must_use]
    pub fn because(mut self, cause: impl Into<BoxError>) -> Self {
        let (Self::Retry { source, .. } | Self::RetryAfter { source, .. } | Self::Never { source, .. }) =
            &mut self;
        *source = Some(cause.into());
        self
    }

    /// The reason alone.
    #[must_use]
    pub fn reason(&self) -> &str {
        let (Self::Retry { reason, .. } | Self::RetryAfter { reason, .. } | Self::Never { reason, .. }) =
            self;
        reason
    }
}

/// Why a job is about to be failed for good; see [`Handler::on_failed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalCause {
    /// The payload could not be decoded into the handler's type.
    BadPayload,
    /// The handler answered [`JobError::Never`].
    NeverRetry,
    /// The last attempt failed.
    Exhausted,
    /// The job was failed from outside before this attempt ran: it stalled too
    /// often, or a child of its flow failed (`defa` in the job hash).
    Deferred,
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
    /// The future is dropped only after a hard stop or a lost lock whose
    /// cancellation token was ignored for the abort grace period.
    fn run(
        &self,
        ctx: &JobContext,
        data: Self::Data,
    ) -> impl Future<Output = Result<Self::Output, JobError>> + Send;

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
