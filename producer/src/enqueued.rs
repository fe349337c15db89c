//! What an acknowledged enqueue did.

use mpanel_protocol::{calls::add::Added, ids::JobId, outcome::Refusal};

/// What an acknowledged enqueue did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enqueued {
    id: JobId,
    outcome: Outcome,
    pub(crate) replicas: Option<u32>,
}

/// Whether a job was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The job is in the queue.
    Stored,
    /// A job with the same id exists; nothing was stored.
    Duplicate,
    /// A job with the same deduplication id stands for it; nothing was stored.
    Deduplicated,
}

impl Enqueued {
    pub(crate) fn from_added(added: Added) -> Result<Self, Refusal> {
        let (id, outcome) = match added {
            Added::Stored(id) => (id, Outcome::Stored),
            Added::Duplicate(id) => (id, Outcome::Duplicate),
            Added::Deduplicated(id) => (id, Outcome::Deduplicated),
            Added::Refused(refusal) => return Err(refusal),
        };
        Ok(Self { id, outcome, replicas: None })
    }

    /// The id of the job that runs: this one, or the one that stands for it.
    /// Whoever wants its result waits for it by this id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// What happened.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether a new job was stored.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.outcome == Outcome::Stored
    }

    /// How many replicas have the job, when [`crate::Durability`] asked for it.
    #[must_use]
    pub fn replicas(&self) -> Option<u32> {
        self.replicas
    }
}
