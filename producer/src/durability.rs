//! How safely a job must be stored before its enqueue counts as done.

use std::time::Duration;

use mpanel_connect::Conn;

use crate::{enqueued::Enqueued, error::EnqueueError};

/// How safely a job must be stored before its enqueue counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Durability {
    /// The primary has it. A fail-over right after may lose it.
    #[default]
    Primary,
    /// So many replicas have it too (Redis's WAIT).
    Replicated {
        /// How many; at least 1.
        replicas: u32,
        /// How long they are waited for.
        within: Duration,
    },
}

impl Durability {
    /// `replicas` replicas must have the job `within` this time.
    #[must_use]
    pub fn replicated(replicas: u32, within: Duration) -> Self {
        Self::Replicated { replicas, within }
    }

    /// Refuses what WAIT takes for something else: no replica, or waiting for ever.
    pub(crate) fn check(self) -> Result<(), EnqueueError> {
        match self {
            Self::Replicated { replicas: 0, .. } => {
                Err(EnqueueError::option("durability", "it must ask for at least one replica"))
            }
            Self::Replicated { within, .. } if within < Duration::from_millis(1) => {
                Err(EnqueueError::option("durability", "it must wait for at least a millisecond"))
            }
            _ => Ok(()),
        }
    }
}

/// How many replicas have all that was written over a connection.
#[derive(Debug, Clone)]
pub(crate) struct Replication {
    pub(crate) wanted: u32,
    pub(crate) got: u32,
    pub(crate) within: Duration,
    pub(crate) trouble: Option<String>,
}

impl Replication {
    /// Waits for the replicas of what was written over `conn`. Blocks the
    /// connection: it must be one of its own.
    pub(crate) async fn wait(conn: &mut Conn, wanted: u32, within: Duration) -> Self {
        let ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1);
        let answer = redis::cmd("WAIT").arg(wanted).arg(ms).query_async::<u32>(conn).await;
        let (got, trouble) = match answer {
            Ok(got) => (got, None),
            Err(error) => (0, Some(format!("they could not be counted: {error}"))),
        };
        Self { wanted, got, within, trouble }
    }

    /// What callers are told of their jobs.
    pub(crate) fn judge(self, mut jobs: Vec<Enqueued>) -> Result<Vec<Enqueued>, EnqueueError> {
        for job in &mut jobs {
            job.replicas = Some(self.got);
        }
        if self.got >= self.wanted {
            return Ok(jobs);
        }
        let Self { wanted, got, within, trouble } = self;
        Err(EnqueueError::NotReplicated { jobs, wanted, got, within, trouble })
    }
}
