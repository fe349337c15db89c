//! Entries of the event stream, typed.

use std::{collections::BTreeMap, fmt, str::FromStr};

use mpanel_protocol::{ids::JobId, time::TimestampMs};

/// The id of an entry: when it was written, and its number in that millisecond.
/// Ids grow; text form as Redis has it, `1700000000000-0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EventId {
    ms: u64,
    number: u64,
}

impl EventId {
    /// Before every entry.
    pub const ZERO: Self = Self { ms: 0, number: 0 };

    /// When the entry was written, by the server's clock.
    #[must_use]
    pub fn at(self) -> TimestampMs {
        TimestampMs(i64::try_from(self.ms).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.number)
    }
}

/// Not an entry's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of an event; it looks like 1700000000000-0")]
pub struct BadEventId(String);

impl FromStr for EventId {
    type Err = BadEventId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadEventId(text.to_owned());
        let (ms, number) = text.split_once('-').unwrap_or((text, "0"));
        Ok(Self { ms: ms.parse().map_err(|_| bad())?, number: number.parse().map_err(|_| bad())? })
    }
}

/// What happened. `prev` is the state the job came from, in BullMQ's words.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueEvent {
    /// A job was stored.
    Added {
        /// Its id.
        id: JobId,
        /// Its name.
        name: String,
    },
    /// A job is in line.
    Waiting {
        /// Its id.
        id: JobId,
        /// Where it was.
        prev: Option<String>,
    },
    /// A parent waits for its children.
    WaitingChildren {
        /// Its id.
        id: JobId,
        /// Where it was.
        prev: Option<String>,
    },
    /// A job waits for a time.
    Delayed {
        /// Its id.
        id: JobId,
        /// Until then.
        until: TimestampMs,
    },
    /// A worker took a job.
    Active {
        /// Its id.
        id: JobId,
        /// Where it was.
        prev: Option<String>,
    },
    /// A job reports progress.
    Progress {
        /// Its id.
        id: JobId,
        /// JSON text.
        data: String,
    },
    /// A job completed.
    Completed {
        /// Its id.
        id: JobId,
        /// JSON text of its result.
        return_value: String,
        /// Where it was.
        prev: Option<String>,
    },
    /// A job failed for good.
    Failed {
        /// Its id.
        id: JobId,
        /// Why.
        reason: String,
        /// Where it was.
        prev: Option<String>,
    },
    /// A job failed for good since no attempt is left.
    RetriesExhausted {
        /// Its id.
        id: JobId,
        /// Attempts made.
        attempts: u32,
    },
    /// The worker of a job was lost; it is in line again.
    Stalled {
        /// Its id.
        id: JobId,
    },
    /// A job was taken away.
    Removed {
        /// Its id.
        id: JobId,
        /// Where it was.
        prev: Option<String>,
    },
    /// A job with this id was there already.
    Duplicated {
        /// The id.
        id: JobId,
    },
    /// A job was not stored since another holds its deduplication id.
    Deduplicated {
        /// The holder.
        id: JobId,
        /// What they share.
        dedup_id: String,
        /// The job that was refused, or replaced (from 5.45 on).
        refused: Option<JobId>,
    },
    /// The same, as 5.x says it beside [`QueueEvent::Deduplicated`].
    Debounced {
        /// The holder.
        id: JobId,
        /// What they share.
        dedup_id: String,
    },
    /// No job is in line any more.
    Drained,
    /// The queue was paused.
    Paused,
    /// The queue was resumed.
    Resumed,
    /// Jobs were cleaned away.
    Cleaned {
        /// How many.
        count: u64,
    },
    /// Anything else: an event of a newer version, a user's own, or an entry that
    /// lacks what its kind needs.
    Other {
        /// Its name; empty when it has none.
        name: String,
        /// The other fields.
        fields: BTreeMap<String, String>,
    },
}

impl QueueEvent {
    /// Reads the fields of an entry; what does not fit is [`QueueEvent::Other`].
    #[must_use]
    pub fn from_fields(fields: BTreeMap<String, String>) -> Self {
        Self::known(&fields).unwrap_or_else(|| {
            let mut fields = fields;
            Self::Other { name: fields.remove("event").unwrap_or_default(), fields }
        })
    }

    fn known(fields: &BTreeMap<String, String>) -> Option<Self> {
        let text = |name: &str| fields.get(name).cloned();
        let number = |name: &str| text(name).and_then(|n| n.trim().parse::<f64>().ok());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; a count")]
        let count = |name: &str| number(name).map(|n| n as u64);
        let id = || text("jobId").map(JobId::stored);
        let prev = text("prev");
        Some(match fields.get("event")?.as_str() {
            "added" => Self::Added { id: id()?, name: text("name")? },
            "waiting" => Self::Waiting { id: id()?, prev },
            "waiting-children" => Self::WaitingChildren { id: id()?, prev },
            "delayed" => {
                #[expect(clippy::cast_possible_truncation, reason = "saturates; a time")]
                let until = number("delay")? as i64;
                Self::Delayed { id: id()?, until: TimestampMs(until) }
            }
            "active" => Self::Active { id: id()?, prev },
            "progress" => Self::Progress { id: id()?, data: text("data")? },
            "completed" => Self::Completed { id: id()?, return_value: text("returnvalue")?, prev },
            "failed" => Self::Failed { id: id()?, reason: text("failedReason").unwrap_or_default(), prev },
            "retries-exhausted" => Self::RetriesExhausted {
                id: id()?,
                attempts: u32::try_from(count("attemptsMade")?).unwrap_or(u32::MAX),
            },
            "stalled" => Self::Stalled { id: id()? },
            "removed" => Self::Removed { id: id()?, prev },
            "duplicated" => Self::Duplicated { id: id()? },
            "deduplicated" => Self::Deduplicated {
                id: id()?,
                dedup_id: text("deduplicationId")?,
                refused: text("deduplicatedJobId").map(JobId::stored),
            },
            "debounced" => Self::Debounced { id: id()?, dedup_id: text("debounceId")? },
            "drained" => Self::Drained,
            "paused" => Self::Paused,
            "resumed" => Self::Resumed,
            "cleaned" => Self::Cleaned { count: count("count")? },
            _ => return None,
        })
    }

    /// The job it is about.
    #[must_use]
    pub fn job(&self) -> Option<&JobId> {
        match self {
            Self::Added { id, .. }
            | Self::Waiting { id, .. }
            | Self::WaitingChildren { id, .. }
            | Self::Delayed { id, .. }
            | Self::Active { id, .. }
            | Self::Progress { id, .. }
            | Self::Completed { id, .. }
            | Self::Failed { id, .. }
            | Self::RetriesExhausted { id, .. }
            | Self::Stalled { id }
            | Self::Removed { id, .. }
            | Self::Duplicated { id }
            | Self::Deduplicated { id, .. }
            | Self::Debounced { id, .. } => Some(id),
            Self::Drained | Self::Paused | Self::Resumed | Self::Cleaned { .. } | Self::Other { .. } => None,
        }
    }
}

/// An entry of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventEntry {
    /// Its id, from which reading can go on later.
    pub id: EventId,
    /// What happened.
    pub event: QueueEvent,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&str, &str)]) -> QueueEvent {
        QueueEvent::from_fields(fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn known_events_are_typed_and_others_kept() {
        let id = JobId::stored("7");
        assert_eq!(
            read(&[("event", "delayed"), ("jobId", "7"), ("delay", "1700000000000")]),
            QueueEvent::Delayed { id: id.clone(), until: TimestampMs(1_700_000_000_000) }
        );
        assert_eq!(
            read(&[("event", "completed"), ("jobId", "7"), ("returnvalue", "{}"), ("prev", "active")]),
            QueueEvent::Completed { id, return_value: "{}".into(), prev: Some("active".into()) }
        );
        for odd in [&[("event", "mine"), ("x", "1")][..], &[("event", "completed")], &[("x", "1")]] {
            let QueueEvent::Other { name, fields } = read(odd) else { panic!("{odd:?}") };
            assert_eq!(fields.len() + usize::from(!name.is_empty()), odd.len());
        }
    }

    #[test]
    fn ids_are_ordered_and_round_trip() {
        let ids: Vec<EventId> = ["5-9", "5-10", "6-0"].iter().map(|t| t.parse().unwrap()).collect();
        assert!(ids.is_sorted());
        assert_eq!(ids[1].to_string(), "5-10");
        assert!("x".parse::<EventId>().is_err() && "5-".parse::<EventId>().is_err());
        assert_eq!(ids[2].at(), TimestampMs(6));
    }
}
