//! Time on the wire: epoch milliseconds and millisecond spans. The crate never
//! reads a clock; callers pass the time in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Epoch milliseconds, as BullMQ stores times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimestampMs(pub i64);

impl TimestampMs {
    /// This time plus a span, saturating.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }

    /// How long until `later`; zero when it has passed.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }
}

/// Where the time comes from. The crate only names it; who calls scripts passes
/// one in, so that tests can move time and servers an hour apart agree.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The time now.
    fn now(&self) -> TimestampMs;
}

/// A span in whole milliseconds, saturating.
#[must_use]
pub fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}
