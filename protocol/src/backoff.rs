//! Retry delays as BullMQ computes them (`bullmq-protocol.md` 3.5). Pure: the
//! random number is an argument.

use serde::{Deserialize, Serialize};

/// The `backoff` option as BullMQ stores it: always an object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backoff {
    /// `fixed`, `exponential`, or the name of a custom strategy.
    #[serde(rename = "type")]
    pub kind: BackoffKind,
    /// Base delay, ms.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::lenient::opt_f64")]
    pub delay: Option<f64>,
    /// Share of the delay that is random, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::lenient::opt_f64")]
    pub jitter: Option<f64>,
}

/// Which formula a [`Backoff`] uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum BackoffKind {
    /// The same delay each time.
    Fixed,
    /// Doubles with every attempt.
    Exponential,
    /// A strategy that the worker provides by name.
    Custom(String),
}

impl From<String> for BackoffKind {
    fn from(name: String) -> Self {
        match name.as_str() {
            "fixed" => Self::Fixed,
            "exponential" => Self::Exponential,
            _ => Self::Custom(name),
        }
    }
}

impl From<BackoffKind> for String {
    fn from(kind: BackoffKind) -> Self {
        match kind {
            BackoffKind::Fixed => "fixed".to_owned(),
            BackoffKind::Exponential => "exponential".to_owned(),
            BackoffKind::Custom(name) => name,
        }
    }
}

/// The longest delay a job can be given: what a JavaScript number holds exactly, ms.
const DELAY_MAX_MS: f64 = 9_007_199_254_740_991.0;

impl Backoff {
    /// A fixed delay.
    #[must_use]
    pub fn fixed(delay_ms: u32) -> Self {
        Self { kind: BackoffKind::Fixed, delay: Some(f64::from(delay_ms)), jitter: None }
    }

    /// A delay that doubles with every attempt.
    #[must_use]
    pub fn exponential(delay_ms: u32) -> Self {
        Self { kind: BackoffKind::Exponential, delay: Some(f64::from(delay_ms)), jitter: None }
    }

    /// Adds a random share, 0 to 1.
    #[must_use]
    pub fn with_jitter(mut self, share: f64) -> Self {
        self.jitter = Some(share);
        self
    }

    /// Delay in ms before the retry that follows failed attempt `attempt`
    /// (from 1); fractions and signs are as given. `random` is in [0, 1). `None` for a
    /// custom strategy.
    #[must_use]
    pub fn delay_ms(&self, attempt: u32, random: f64) -> Option<f64> {
        let delay = self.delay.unwrap_or(0.0);
        let base = match self.kind {
            BackoffKind::Fixed => delay,
            BackoffKind::Exponential => {
                let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
                // As JavaScript rounds: halves up.
                (2f64.powi(exponent) * delay + 0.5).floor()
            }
            BackoffKind::Custom(_) => return None,
        };
        let jitter = self.jitter.unwrap_or(0.0);
        let total =
            if jitter > 0.0 { (random * base * jitter + base * (1.0 - jitter)).floor() } else { base };
        Some(if total.is_nan() { 0.0 } else { total.clamp(-DELAY_MAX_MS, DELAY_MAX_MS) })
    }
}

/// A finite, non-negative, bounded number of milliseconds.
#[must_use]
pub fn saturating_ms(ms: f64) -> i64 {
    if ms.is_nan() || ms <= 0.0 {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded just above")]
    let whole = ms.min(DELAY_MAX_MS) as i64;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_doubles_from_the_base() {
        let b = Backoff::exponential(100);
        assert_eq!(
            (1..=4).map(|n| b.delay_ms(n, 0.5)).collect::<Vec<_>>(),
            [Some(100.0), Some(200.0), Some(400.0), Some(800.0)]
        );
    }

    #[test]
    fn jitter_takes_a_share_away() {
        let b = Backoff::exponential(1000).with_jitter(0.5);
        assert_eq!(b.delay_ms(1, 0.5), Some(750.0));
        assert_eq!(b.delay_ms(2, 0.0), Some(1000.0));
        assert_eq!(Backoff::fixed(10).with_jitter(1.0).delay_ms(3, 0.99), Some(9.0));
    }

    #[test]
    fn absurd_input_saturates() {
        assert_eq!(Backoff::exponential(5000).delay_ms(5000, 0.5), Some(DELAY_MAX_MS));
        let negative = Backoff { kind: BackoffKind::Fixed, delay: Some(-5.0), jitter: None };
        assert_eq!(negative.delay_ms(1, 0.5), Some(-5.0));
        let custom = Backoff { kind: BackoffKind::Custom("mine".into()), delay: None, jitter: None };
        assert_eq!(custom.delay_ms(1, 0.5), None);
    }
}
