//! How sorted sets order jobs (`bullmq-protocol.md` 1.1). The scripts compute
//! these scores; readers and tests use them here.

use crate::time::TimestampMs;

/// Places within one millisecond of `delayed`.
const PLACES: i64 = 4096;
/// Places within one priority of `prioritized`.
const PRIORITY_STEP: i64 = 1 << 32;

/// Score in `delayed` of the job that arrives as number `place` (from 0) for this
/// time; places beyond 4095 share the last one.
#[must_use]
pub fn delayed(due: TimestampMs, place: u32) -> i64 {
    due.0.saturating_mul(PLACES).saturating_add(i64::from(place).min(PLACES - 1))
}

/// When a job with this score in `delayed` is due.
#[must_use]
pub fn due_of(score: i64) -> TimestampMs {
    TimestampMs(score.div_euclid(PLACES))
}

/// Highest score in `delayed` that is due at `now`: every place of that millisecond.
#[must_use]
pub fn due_until(now: TimestampMs) -> i64 {
    now.0.saturating_add(1).saturating_mul(PLACES).saturating_sub(1)
}

/// Score in `prioritized`: the lower the sooner; `counter` keeps the order of arrival.
#[must_use]
pub fn prioritized(priority: u32, counter: u64) -> i64 {
    let place = i64::try_from(counter % (1 << 32)).unwrap_or(0);
    i64::from(priority).saturating_mul(PRIORITY_STEP).saturating_add(place)
}

/// The priority behind a score in `prioritized`.
#[must_use]
pub fn priority_of(score: i64) -> u32 {
    u32::try_from(score.div_euclid(PRIORITY_STEP)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that npm bullmq 5.81.5 left (conformance goldens add-delayed, add-prioritized).
    #[test]
    fn scores_are_those_of_the_goldens() {
        assert_eq!(delayed(TimestampMs(1_700_000_005_000), 0), 6_963_200_020_480_000);
        assert_eq!(delayed(TimestampMs(1_700_000_005_000), 1), 6_963_200_020_480_001);
        assert_eq!(prioritized(3, 0), 12_884_901_888);
        assert_eq!(prioritized(2, 3), 8_589_934_595);
    }

    #[test]
    fn scores_are_read_back() {
        for place in [0, 1, 4095, 9999] {
            assert_eq!(
                due_of(delayed(TimestampMs(1_700_000_000_123), place)),
                TimestampMs(1_700_000_000_123)
            );
        }
        assert!(delayed(TimestampMs(4), 4095) <= due_until(TimestampMs(4)));
        assert!(delayed(TimestampMs(5), 0) > due_until(TimestampMs(4)));
        assert_eq!(priority_of(prioritized(2_097_151, u64::MAX)), 2_097_151);
    }
}
