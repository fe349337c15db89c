//! What stands around every handler of a worker: timing, error reports, whatever
//! concerns all kinds of jobs alike.
//!
//! The order is fixed: the first registered is the outermost. A middleware sees
//! payloads that do not decode and handlers that panic as errors like others. It
//! does not see jobs that no handler is asked about (unknown names, deferred
//! failures), and it is cancelled and limited in time together with the handler.
//!
//! ```
//! use mpanel_engine::{JobContext, JobError, middleware::{Middleware, Next, ReturnValue}};
//!
//! /// Refuses to work while the office is closed.
//! struct OfficeHours;
//!
//! impl Middleware for OfficeHours {
//!     async fn around(&self, ctx: &JobContext, next: Next) -> Result<ReturnValue, JobError> {
//!         if is_closed() {
//!             return Err(JobError::snooze(std::time::Duration::from_secs(600)));
//!         }
//!         next.run(ctx).await
//!     }
//! }
//! # fn is_closed() -> bool { true }
//! ```

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    context::JobContext,
    handler::{ErrorKind, JobError},
    router::{AnyHandler, BoxFuture, Ran},
};

/// What a handler returned, as JSON text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnValue(String);

impl ReturnValue {
    /// Writes a value as JSON.
    ///
    /// # Errors
    /// [`JobError::never`] for a value that JSON cannot hold.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, JobError> {
        serde_json::to_string(value)
            .map(Self)
            .map_err(|error| JobError::never(format!("the result cannot be written as JSON: {error}")))
    }

    /// The JSON text.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.0
    }

    pub(crate) fn into_json(self) -> String {
        self.0
    }
}

/// Something around every handler of a worker; see the module.
pub trait Middleware: Send + Sync + 'static {
    /// Runs the attempt by `next`, or answers in its place.
    fn around(
        &self,
        ctx: &JobContext,
        next: Next,
    ) -> impl Future<Output = Result<ReturnValue, JobError>> + Send;
}

/// A [`Middleware`] without its type.
pub(crate) trait AnyMiddleware: Send + Sync {
    fn around(self: Arc<Self>, ctx: JobContext, next: Next) -> BoxFuture<'static, Ran>;
}

impl<M: Middleware> AnyMiddleware for M {
    fn around(self: Arc<Self>, ctx: JobContext, next: Next) -> BoxFuture<'static, Ran> {
        Box::pin(async move { Middleware::around(&*self, &ctx, next).await })
    }
}

/// What a middleware stands around: the next one, or the handler.
pub struct Next {
    chain: Arc<[Arc<dyn AnyMiddleware>]>,
    at: usize,
    handler: Arc<dyn AnyHandler>,
}

impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Next({} of {})", self.at, self.chain.len())
    }
}

impl Next {
    pub(crate) fn new(chain: Arc<[Arc<dyn AnyMiddleware>]>, handler: Arc<dyn AnyHandler>) -> Self {
        Self { chain, at: 0, handler }
    }

    pub(crate) fn start(self, ctx: JobContext) -> BoxFuture<'static, Ran> {
        match self.chain.get(self.at).cloned() {
            Some(middleware) => middleware.around(ctx, Self { at: self.at + 1, ..self }),
            None => self.handler.run(ctx),
        }
    }

    /// Runs the rest of the chain and the handler.
    ///
    /// # Errors
    /// What the handler, or a middleware further in, answers.
    pub async fn run(self, ctx: &JobContext) -> Result<ReturnValue, JobError> {
        self.start(ctx.clone()).await
    }
}

/// Measures how long each attempt takes and logs it, or gives it to a function of
/// yours.
#[derive(Clone, Copy)]
pub struct Timing<F = fn(&JobContext, Duration, bool)> {
    report: F,
}

impl<F> fmt::Debug for Timing<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timing")
    }
}

impl Timing {
    /// A line for each attempt, at debug level.
    #[must_use]
    pub fn logged() -> Self {
        Self {
            report: |_, took, ok| tracing::debug!(took_ms = took.as_secs_f64() * 1000.0, ok, "attempt ended"),
        }
    }
}

impl<F: Fn(&JobContext, Duration, bool) + Send + Sync + 'static> Timing<F> {
    /// Calls `report` after each attempt with what it took and whether it succeeded.
    pub fn told(report: F) -> Self {
        Self { report }
    }
}

impl<F: Fn(&JobContext, Duration, bool) + Send + Sync + 'static> Middleware for Timing<F> {
    async fn around(&self, ctx: &JobContext, next: Next) -> Result<ReturnValue, JobError> {
        let started = Instant::now();
        let ran = next.run(ctx).await;
        (self.report)(ctx, started.elapsed(), ran.is_ok());
        ran
    }
}

/// Tells a function of yours of every attempt that failed, before anything is
/// written of it: for Sentry and its like. What yields is no failure.
#[derive(Clone, Copy)]
pub struct ErrorReporter<F> {
    report: F,
}

impl<F> fmt::Debug for ErrorReporter<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ErrorReporter")
    }
}

impl<F: Fn(&JobContext, &JobError) + Send + Sync + 'static> ErrorReporter<F> {
    /// Calls `report` with each failure; its causes are at [`std::error::Error::source`].
    pub fn new(report: F) -> Self {
        Self { report }
    }
}

impl<F: Fn(&JobContext, &JobError) + Send + Sync + 'static> Middleware for ErrorReporter<F> {
    async fn around(&self, ctx: &JobContext, next: Next) -> Result<ReturnValue, JobError> {
        let ran = next.run(ctx).await;
        if let Err(error) = &ran
            && !matches!(error.kind(), ErrorKind::Yield(_))
        {
            (self.report)(ctx, error);
        }
        ran
    }
}
