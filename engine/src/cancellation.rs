//! The signal that an attempt must end before its handler returned, and why.
//!
//! Knows no job and no Redis. Two signals, one inside the other: an attempt whose
//! time is over must stop working, but may still record that it failed; one whose
//! lock is lost, or whose worker leaves, may do neither.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

/// Why an attempt is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelCause {
    /// Another worker may run the job now; nothing the attempt returns is written.
    LockLost,
    /// The worker stops and its grace period is over; the job goes back in line.
    Stopping,
    /// The attempt took longer than it may; a failure counts as an attempt.
    TimeLimit(Duration),
    /// Somebody cancelled the job. The text becomes its `failedReason`; whatever
    /// the handler returns, the job is not tried again.
    Requested(String),
}

/// One attempt's signal. Clones are the same signal.
#[derive(Debug, Clone)]
pub(crate) struct Cancellation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Fires when nothing may be done any more.
    hard: CancellationToken,
    /// Fires when the handler must end; also when `hard` does.
    attempt: CancellationToken,
    lock_lost: AtomicBool,
    cause: OnceLock<CancelCause>,
}

impl Cancellation {
    /// A signal that also fires with `worker`, the worker's own.
    pub(crate) fn under(worker: &CancellationToken) -> Self {
        let hard = worker.child_token();
        let attempt = hard.child_token();
        Self(Arc::new(Inner { hard, attempt, lock_lost: AtomicBool::new(false), cause: OnceLock::new() }))
    }

    /// A signal for attempts without a worker.
    pub(crate) fn detached() -> Self {
        Self::under(&CancellationToken::new())
    }

    /// Ends the handler; the first cause counts.
    pub(crate) fn cancel(&self, cause: CancelCause) {
        let hard = matches!(cause, CancelCause::LockLost | CancelCause::Stopping);
        // Set before the signal, so that who is woken by it finds it.
        let _ = self.0.cause.set(cause);
        if hard { self.0.hard.cancel() } else { self.0.attempt.cancel() }
    }

    /// The lock is lost.
    pub(crate) fn lose_lock(&self) {
        self.0.lock_lost.store(true, Ordering::Relaxed);
        self.cancel(CancelCause::LockLost);
    }

    pub(crate) fn lock_lost(&self) -> bool {
        self.0.lock_lost.load(Ordering::Relaxed)
    }

    /// Whether nothing may be done any more.
    pub(crate) fn is_hard(&self) -> bool {
        self.0.hard.is_cancelled()
    }

    /// Why it fired; a lost lock outweighs what came before it.
    pub(crate) fn cause(&self) -> Option<CancelCause> {
        if self.lock_lost() {
            return Some(CancelCause::LockLost);
        }
        if !self.0.attempt.is_cancelled() {
            return None;
        }
        Some(self.0.cause.get().cloned().unwrap_or(CancelCause::Stopping))
    }

    /// For the handler.
    pub(crate) fn attempt(&self) -> &CancellationToken {
        &self.0.attempt
    }

    /// For what is done after the handler.
    pub(crate) fn hard(&self) -> &CancellationToken {
        &self.0.hard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_leaves_room_to_record_the_failure_a_lost_lock_does_not() {
        let worker = CancellationToken::new();
        let signal = Cancellation::under(&worker);
        assert_eq!(signal.cause(), None);
        let limit = CancelCause::TimeLimit(Duration::from_secs(1));
        signal.cancel(limit.clone());
        assert!(signal.attempt().is_cancelled() && !signal.is_hard());
        signal.cancel(CancelCause::Requested("late".into()));
        assert_eq!(signal.cause(), Some(limit));
        signal.lose_lock();
        assert!(signal.is_hard());
        assert_eq!(signal.cause(), Some(CancelCause::LockLost));
    }

    #[test]
    fn a_worker_that_leaves_ends_its_attempts() {
        let worker = CancellationToken::new();
        let signal = Cancellation::under(&worker);
        worker.cancel();
        assert_eq!(signal.cause(), Some(CancelCause::Stopping));
        assert!(signal.is_hard() && !signal.lock_lost());
    }
}
