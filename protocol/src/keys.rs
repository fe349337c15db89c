//! Every key name of a queue, built in one place.
//!
//! `P` below is `<prefix>:<queue>:`; see `bullmq-protocol.md` section 1 for what
//! each key holds. Performs no I/O.

use crate::ids::{JobId, Prefix, QueueName};

/// The keys of one queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QueueKeys {
    queue: QueueName,
    base: String,
    meta: String,
}

macro_rules! structural {
    ($($(#[$doc:meta])* $method:ident = $suffix:literal;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $method(&self) -> String {
            format!(concat!("{}", $suffix), self.base)
        })*
    };
}

impl QueueKeys {
    /// The keys of `queue` under `prefix`.
    #[must_use]
    pub fn new(prefix: &Prefix, queue: &QueueName) -> Self {
        let base = format!("{prefix}:{queue}:");
        let meta = format!("{base}meta");
        Self { queue: queue.clone(), base, meta }
    }

    /// The queue's name.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        &self.queue
    }

    /// `P`, with its final colon.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `P` without its final colon, as BullMQ writes it into `parent.queueKey`.
    #[must_use]
    pub fn qualified_name(&self) -> &str {
        &self.base[..self.base.len() - 1]
    }

    /// Hash of queue-wide settings. Every script is routed by this key.
    #[must_use]
    pub fn meta(&self) -> &str {
        &self.meta
    }

    structural! {
        /// List of waiting jobs; the tail is next.
        wait = "wait";
        /// List of jobs while a 5.x writer has paused the queue.
        paused = "paused";
        /// List of jobs being worked on.
        active = "active";
        /// Sorted set of jobs with a priority.
        prioritized = "prioritized";
        /// Sorted set of delayed jobs.
        delayed = "delayed";
        /// Sorted set of completed jobs.
        completed = "completed";
        /// Sorted set of failed jobs.
        failed = "failed";
        /// Sorted set of parents that wait for children.
        waiting_children = "waiting-children";
        /// Stream of events.
        events = "events";
        /// Sorted set that wakes idle workers.
        marker = "marker";
        /// Counter of the rate limit's window.
        limiter = "limiter";
        /// Throttle of the stalled check.
        stalled_check = "stalled-check";
        /// Sorted set of schedulers and repeatables by their next run.
        repeat = "repeat";
        /// Last id the queue gave.
        id = "id";
    }

    /// Hash of one job.
    #[must_use]
    pub fn job(&self, id: &JobId) -> String {
        format!("{}{id}", self.base)
    }

    /// Lock of one job.
    #[must_use]
    pub fn lock(&self, id: &JobId) -> String {
        format!("{}{id}:lock", self.base)
    }

    /// Log lines of one job.
    #[must_use]
    pub fn logs(&self, id: &JobId) -> String {
        format!("{}{id}:logs", self.base)
    }

    /// Hash of one scheduler or repeatable.
    #[must_use]
    pub fn schedule(&self, key: &str) -> String {
        format!("{}repeat:{key}", self.base)
    }

    /// The deduplication key of `dedup_id`.
    #[must_use]
    pub fn dedup(&self, dedup_id: &str) -> String {
        format!("{}de:{dedup_id}", self.base)
    }
}

/// The slot of a Redis Cluster that a key lives in: CRC16 (XMODEM) of its hash tag,
/// or of the whole key when it has none.
#[must_use]
pub fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let crc = hashed.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_rediss() {
        // CLUSTER KEYSLOT of Redis 7.0.15.
        for (key, expected) in [("123456789", 12739), ("{bull}:q:meta", 9263), ("a{}b", 13694), ("", 0)] {
            assert_eq!(slot(key), expected, "{key}");
        }
        assert_eq!(slot("{user1000}.following"), slot("{user1000}.followers"));
    }

    #[test]
    fn keys_carry_prefix_and_queue() {
        let keys = QueueKeys::new(&Prefix::default(), &QueueName::new("cloudpods-create").unwrap());
        assert_eq!(keys.meta(), "bull:cloudpods-create:meta");
        assert_eq!(keys.waiting_children(), "bull:cloudpods-create:waiting-children");
        assert_eq!(keys.qualified_name(), "bull:cloudpods-create");
        assert_eq!(keys.lock(&JobId::stored("7")), "bull:cloudpods-create:7:lock");
        let tagged = QueueKeys::new(&Prefix::new("{bull}").unwrap(), &QueueName::new("q").unwrap());
        assert_eq!(tagged.job(&JobId::stored("1")), "{bull}:q:1");
    }
}
