//! When what is collected: the collectors, their ticks, and how ticks are
//! spread. Pure.
//!
//! A tick is a job of a job scheduler; its time is in its id, so that all
//! workers that get the job, for whatever reason, mean the same tick.

use std::{fmt, time::Duration};

use sha2::{Digest as _, Sha256};

/// Longest time by which targets are spread.
const SPREAD_MAX: Duration = Duration::from_secs(10);

/// A collector; its word is the id of its job scheduler and the name of its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Collector {
    /// Pages and ports.
    Health,
    /// Postgres and its slow statements.
    Pg,
    /// Redis.
    Redis,
    /// BullMQ's queues.
    Queues,
    /// Proxmox nodes and pods.
    Pods,
}

impl Collector {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Health, Self::Pg, Self::Redis, Self::Queues, Self::Pods];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Pg => "pg",
            Self::Redis => "redis",
            Self::Queues => "queues",
            Self::Pods => "pods",
        }
    }

    /// The collector of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|collector| collector.as_str() == word)
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One tick of a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// Whose.
    pub collector: Collector,
    /// When it was due, epoch ms.
    pub due_ms: i64,
}

impl Tick {
    /// The tick of a job: by the time in its id `repeat:<scheduler>:<ms>`, or for
    /// one that somebody added by hand, by the time of that.
    #[must_use]
    pub fn of_job(collector: Collector, job_id: &str, enqueued_at_ms: i64) -> Self {
        let slot = job_id.strip_prefix("repeat:").and_then(|rest| rest.rsplit(':').next()?.parse().ok());
        Self { collector, due_ms: slot.unwrap_or(enqueued_at_ms) }
    }

    /// Whether so much time has passed that the next tick is due, and this one
    /// would only make it late.
    #[must_use]
    pub fn is_late(&self, now_ms: i64, interval: Duration) -> bool {
        let late_ms = now_ms.saturating_sub(self.due_ms);
        u128::try_from(late_ms).is_ok_and(|late| late > interval.as_millis())
    }
}

/// How long a tick may take: it ends before the next begins.
#[must_use]
pub fn budget(interval: Duration) -> Duration {
    interval - (interval / 10).min(Duration::from_secs(1))
}

/// How much later than the tick this target is looked at: always the same, so
/// that its series is even, and different for each, so that not all are looked
/// at in one moment.
#[must_use]
pub fn offset(name: &str, interval: Duration) -> Duration {
    spread(name, (interval / 2).min(SPREAD_MAX))
}

/// How much later a collector begins than its tick.
#[must_use]
pub fn start_offset(collector: Collector, interval: Duration) -> Duration {
    match collector {
        // Its targets are spread one by one.
        Collector::Health => Duration::ZERO,
        other => spread(other.as_str(), (interval / 10).min(Duration::from_secs(1))),
    }
}

fn spread(name: &str, within: Duration) -> Duration {
    let hash = Sha256::digest(name.as_bytes());
    let number = hash.iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(number % within_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    #[test]
    fn the_time_of_a_tick_is_in_the_jobs_id() {
        let tick = |id| Tick::of_job(Collector::Health, id, 7).due_ms;
        assert_eq!(tick("repeat:health:1732000000000"), 1_732_000_000_000);
        assert_eq!(tick("by-hand"), 7);
        assert_eq!(tick("repeat:health:x"), 7);
    }

    #[test]
    fn a_tick_is_late_when_the_next_is_due_and_a_clock_that_goes_back_makes_none_late() {
        let tick = Tick { collector: Collector::Pg, due_ms: 100_000 };
        assert!(!tick.is_late(130_000, INTERVAL));
        assert!(tick.is_late(130_001, INTERVAL));
        assert!(!tick.is_late(0, INTERVAL));
    }

    #[test]
    fn targets_are_spread_evenly_and_always_the_same() {
        let offsets: Vec<Duration> = (0..200).map(|n| offset(&format!("target-{n}"), INTERVAL)).collect();
        assert_eq!(offset("target-7", INTERVAL), offsets[7]);
        assert!(offsets.iter().all(|offset| *offset < Duration::from_secs(10)));
        for second in 0..10 {
            let inside = offsets.iter().filter(|offset| offset.as_secs() == second).count();
            assert!((5..=40).contains(&inside), "{inside} of 200 in second {second}");
        }
    }

    #[test]
    fn a_tick_ends_before_the_next_begins() {
        assert_eq!(budget(INTERVAL), Duration::from_secs(29));
        assert_eq!(budget(Duration::from_secs(1)), Duration::from_millis(900));
    }
}
