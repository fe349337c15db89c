//! Operations on many jobs: a chunk at a time, with progress, cancellable.

use std::{fmt, future::IntoFuture, pin::Pin};

use tokio_util::sync::CancellationToken;

use super::{AdminError, QueueAdmin};

/// How far a [`Bulk`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Jobs handled so far.
    pub done: u64,
    /// Calls made so far.
    pub calls: u64,
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One chunk of a long operation.
pub trait Chunked: Send {
    /// What the whole gives.
    type Output: Send;

    /// Does a chunk, adds what it handled to `done`, and gives the output when
    /// it was the last.
    fn chunk<'a>(
        &'a mut self,
        admin: &'a QueueAdmin,
        done: &'a mut u64,
    ) -> Boxed<'a, Result<Option<Self::Output>, AdminError>>;
}

/// A long operation that has not begun. Awaited, it runs to the end; each chunk is
/// one short call, so that workers are served in between. Dropped half way or
/// cancelled, what was done stays done; the same call again does the rest.
#[must_use = "nothing happens until it is awaited"]
pub struct Bulk<'a, C> {
    admin: &'a QueueAdmin,
    work: C,
    cancel: CancellationToken,
    report: Option<Box<dyn FnMut(Progress) + Send + 'a>>,
}

impl<C: fmt::Debug> fmt::Debug for Bulk<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulk").field("work", &self.work).finish_non_exhaustive()
    }
}

impl<'a, C: Chunked> Bulk<'a, C> {
    pub(super) fn new(admin: &'a QueueAdmin, work: C) -> Self {
        Self { admin, work, cancel: CancellationToken::new(), report: None }
    }

    /// Called after each chunk.
    pub fn on_progress(mut self, report: impl FnMut(Progress) + Send + 'a) -> Self {
        self.report = Some(Box::new(report));
        self
    }

    /// Ends between two chunks when `token` is cancelled, with
    /// [`AdminError::Cancelled`].
    pub fn cancelled_by(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    async fn run(mut self) -> Result<C::Output, AdminError> {
        let mut progress = Progress { done: 0, calls: 0 };
        loop {
            if self.cancel.is_cancelled() {
                return Err(AdminError::Cancelled { done: progress.done });
            }
            let output = self.work.chunk(self.admin, &mut progress.done).await?;
            progress.calls += 1;
            if let Some(report) = &mut self.report {
                report(progress);
            }
            if let Some(output) = output {
                return Ok(output);
            }
        }
    }
}

impl<'a, C: Chunked + 'a> IntoFuture for Bulk<'a, C> {
    type Output = Result<C::Output, AdminError>;
    type IntoFuture = Boxed<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
