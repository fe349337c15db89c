//! What scripts answer when they refuse: negative codes, turned into typed
//! errors in this one place (`bullmq-protocol.md` 3.14).

use crate::{ids::JobId, script::ScriptError};

/// A script looked at the job and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// -1
    #[error("the job is gone: its hash is missing")]
    MissingJob,
    /// -2
    #[error("the lock is gone: it expired, or the job was already finished")]
    MissingLock,
    /// -3
    #[error("the job is not in the expected state")]
    NotInState,
    /// -4
    #[error("children of the job are still pending")]
    PendingChildren,
    /// -5
    #[error("the parent job is missing")]
    MissingParent,
    /// -6
    #[error("another worker holds the lock")]
    LockMismatch,
    /// -7
    #[error("the job has another parent already")]
    ParentTaken,
    /// -8
    #[error("the job belongs to a job scheduler; remove the scheduler instead")]
    OwnedByScheduler,
    /// -9
    #[error("a child of the job failed")]
    FailedChild,
    /// -20, ours: the producer set a limit, and the queue has reached it.
    #[error("the queue is full: it holds as many waiting jobs as the producer allows")]
    QueueFull,
    /// -10
    #[error("a job with the id of the scheduler's next run exists already")]
    IterationExists,
    /// -11
    #[error("the scheduler's next slots all have jobs already; clean finished runs or choose another id")]
    SlotsBusy,
    /// A code no script of ours gives.
    #[error("unknown code {0}")]
    Unknown(i64),
}

impl Refusal {
    /// The refusal behind a code; `None` for codes that are none.
    #[must_use]
    pub fn from_code(code: i64) -> Option<Self> {
        Some(match code {
            0.. => return None,
            -1 => Self::MissingJob,
            -2 => Self::MissingLock,
            -3 => Self::NotInState,
            -4 => Self::PendingChildren,
            -5 => Self::MissingParent,
            -6 => Self::LockMismatch,
            -7 => Self::ParentTaken,
            -8 => Self::OwnedByScheduler,
            -9 => Self::FailedChild,
            -20 => Self::QueueFull,
            -10 => Self::IterationExists,
            -11 => Self::SlotsBusy,
            other => Self::Unknown(other),
        })
    }

    /// BullMQ's number for it.
    #[must_use]
    pub fn code(self) -> i64 {
        match self {
            Self::MissingJob => -1,
            Self::MissingLock => -2,
            Self::NotInState => -3,
            Self::PendingChildren => -4,
            Self::MissingParent => -5,
            Self::LockMismatch => -6,
            Self::ParentTaken => -7,
            Self::OwnedByScheduler => -8,
            Self::FailedChild => -9,
            Self::QueueFull => -20,
            Self::IterationExists => -10,
            Self::SlotsBusy => -11,
            Self::Unknown(code) => code,
        }
    }
}

/// An operation on one job did not happen.
#[derive(Debug, thiserror::Error)]
pub enum JobOpError {
    /// The script refused.
    #[error("job {id}: {refusal}")]
    Refused {
        /// The job.
        id: JobId,
        /// Why.
        refusal: Refusal,
    },
    /// The call failed.
    #[error(transparent)]
    Script(#[from] ScriptError),
}

/// Turns a code into a result; `Ok` carries what is not negative.
pub(crate) fn check(id: &JobId, code: i64) -> Result<i64, JobOpError> {
    match Refusal::from_code(code) {
        Some(refusal) => Err(JobOpError::Refused { id: id.clone(), refusal }),
        None => Ok(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for code in -21..0 {
            assert_eq!(Refusal::from_code(code).map(Refusal::code), Some(code));
        }
        assert_eq!(Refusal::from_code(0), None);
        assert_eq!(Refusal::from_code(3), None);
    }
}
