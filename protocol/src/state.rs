//! The states of a job and the moves between them.
//!
//! The authority is the scripts in Redis; this table is the specification they
//! are tested against, and what `ARCHITECTURE.md` draws.

use serde::{Deserialize, Serialize};

/// Where a job is. Wire names are BullMQ's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// In line; the next fetch takes the oldest.
    Waiting,
    /// In line while the queue is paused.
    Paused,
    /// In line by priority.
    Prioritized,
    /// Waits for a time: a delay, or the pause before a retry.
    Delayed,
    /// A worker has it and holds its lock.
    Active,
    /// A parent that waits for its children.
    WaitingChildren,
    /// Done, with a return value.
    Completed,
    /// Given up, with a reason.
    Failed,
}

/// What happens to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobEvent {
    /// A worker fetched it.
    Fetched,
    /// Its time came, or an operator promoted it.
    Promoted,
    /// The handler succeeded.
    Completed,
    /// The attempt failed; another one follows at once.
    RetriedNow,
    /// The attempt failed or was snoozed; another one follows later.
    RetriedLater,
    /// No attempt is left, or the failure is final.
    FailedForGood,
    /// The worker gave it back, or its lock expired.
    Released,
    /// The handler waits for children.
    AwaitsChildren,
    /// All children are done, or one failed for its parent too.
    ChildrenDone,
    /// An operator runs it again.
    Reprocessed,
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Waiting,
        Self::Paused,
        Self::Prioritized,
        Self::Delayed,
        Self::Active,
        Self::WaitingChildren,
        Self::Completed,
        Self::Failed,
    ];

    /// BullMQ's word for it, as `job.getState()` answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Prioritized => "prioritized",
            Self::Delayed => "delayed",
            Self::Active => "active",
            Self::WaitingChildren => "waiting-children",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// The state with that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }

    /// Whether the job will not run again by itself.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }

    /// The state after `event`; `None` when the move is illegal and the script
    /// refuses it. A job with a priority goes in line as [`JobState::Prioritized`],
    /// one of a paused queue as [`JobState::Paused`].
    #[must_use]
    pub fn next(self, event: JobEvent, has_priority: bool, queue_paused: bool) -> Option<Self> {
        let in_line = if has_priority {
            Self::Prioritized
        } else if queue_paused {
            Self::Paused
        } else {
            Self::Waiting
        };
        match (self, event) {
            (Self::Waiting | Self::Prioritized, JobEvent::Fetched) if !queue_paused => Some(Self::Active),
            (Self::Delayed, JobEvent::Promoted) => Some(in_line),
            (Self::Active, JobEvent::Completed) => Some(Self::Completed),
            (Self::Active, JobEvent::FailedForGood) => Some(Self::Failed),
            (Self::Active, JobEvent::RetriedNow | JobEvent::Released) => Some(in_line),
            (Self::Active, JobEvent::RetriedLater) => Some(Self::Delayed),
            (Self::Active, JobEvent::AwaitsChildren) => Some(Self::WaitingChildren),
            (Self::WaitingChildren, JobEvent::ChildrenDone) => Some(in_line),
            (Self::Completed | Self::Failed, JobEvent::Reprocessed) => {
                Some(if queue_paused { Self::Paused } else { Self::Waiting })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for state in JobState::ALL {
            assert_eq!(JobState::from_word(state.as_str()), Some(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        assert_eq!(JobState::from_word("nowhere"), None);
    }

    #[test]
    fn only_active_jobs_end_an_attempt() {
        let ends = [
            JobEvent::Completed,
            JobEvent::FailedForGood,
            JobEvent::RetriedNow,
            JobEvent::RetriedLater,
            JobEvent::Released,
            JobEvent::AwaitsChildren,
        ];
        for state in JobState::ALL {
            for event in ends {
                assert_eq!(
                    state.next(event, false, false).is_some(),
                    state == JobState::Active,
                    "{state:?} {event:?}"
                );
            }
        }
    }

    #[test]
    fn a_paused_queue_starts_nothing() {
        for state in JobState::ALL {
            assert_eq!(state.next(JobEvent::Fetched, false, true), None);
        }
        assert_eq!(JobState::Delayed.next(JobEvent::Promoted, false, true), Some(JobState::Paused));
        assert_eq!(JobState::Delayed.next(JobEvent::Promoted, true, true), Some(JobState::Prioritized));
    }

    #[test]
    fn final_states_move_only_by_hand() {
        for state in [JobState::Completed, JobState::Failed] {
            assert!(state.is_final());
            assert_eq!(state.next(JobEvent::Fetched, false, false), None);
            assert_eq!(state.next(JobEvent::Reprocessed, true, false), Some(JobState::Waiting));
        }
    }
}
