//! The contract of peer adapters: `adapter VERB N [--option value]…`, `REDIS_URL`
//! and `BENCH_QUEUE` in the environment, one JSON line last, exit 0.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The last line an adapter prints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Who answers, with the version.
    pub adapter: String,
    /// Jobs enqueued, completed or measured.
    pub n: u64,
    /// From the start of the work to the last completion the client saw.
    pub wall_ms: f64,
    /// CPU time of the adapter's own process in that window.
    pub cpu_ms: f64,
    /// Resident memory at the end.
    pub rss_kb: u64,
    /// `drain`: resident memory connected and idle, before consuming.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_idle_kb: Option<u64>,
    /// `latency`: from add to the handler's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// `latency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// `latency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p999_ms: Option<f64>,
    /// `latency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ms: Option<f64>,
    /// `serve`: epoch ms at the start of consuming.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began_ms: Option<f64>,
    /// `serve`: epoch ms of the last completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<f64>,
}

impl Answer {
    /// With the percentiles of these waits, ms.
    #[must_use]
    pub fn with_waits(self, mut waits: Vec<f64>) -> Self {
        waits.sort_by(f64::total_cmp);
        let at = |share: f64| percentile(&waits, share);
        Self { p50_ms: at(0.5), p99_ms: at(0.99), p999_ms: at(0.999), max_ms: waits.last().copied(), ..self }
    }
}

/// The payload of every job, about 200 bytes as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Payload {
    /// Its number.
    pub i: u64,
    /// Epoch ms at add, with fractions.
    pub t: f64,
    /// The rest of the 200 bytes.
    pub pad: String,
}

impl Payload {
    /// The payload of job `i`, added now.
    #[must_use]
    pub fn new(i: u64) -> Self {
        Self { i, t: epoch_ms(), pad: "x".repeat(150) }
    }
}

/// The name of every job.
pub const JOB_NAME: &str = "noop";

/// Epoch milliseconds with fractions.
#[must_use]
pub fn epoch_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

/// CPU time of this process so far, ms: user and system, all threads.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn own_cpu_ms() -> std::io::Result<f64> {
    // Fields after the command's closing parenthesis: 12 and 13 are utime and stime,
    // in ticks of 10 ms (USER_HZ is 100 on every Linux that we run on).
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() * 10.0)
}

/// Resident memory of this process, kB.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn own_rss_kb() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    Ok(line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0))
}

/// A timed window of the process.
#[derive(Debug)]
pub struct Window {
    began: Instant,
    cpu_ms: f64,
}

impl Window {
    /// Opens it now.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn open() -> std::io::Result<Self> {
        Ok(Self { cpu_ms: own_cpu_ms()?, began: Instant::now() })
    }

    /// What was spent since it was opened, on `n` jobs.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn close(&self, n: u64) -> std::io::Result<Answer> {
        let wall_ms = self.began.elapsed().as_secs_f64() * 1000.0;
        let cpu_ms = own_cpu_ms()? - self.cpu_ms;
        Ok(Answer { n, wall_ms, cpu_ms, rss_kb: own_rss_kb()?, ..Answer::default() })
    }
}

/// The value at `share` of sorted values.
#[must_use]
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
    sorted.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_about_200_bytes() {
        let bytes = serde_json::to_string(&Payload::new(12_345)).unwrap().len();
        assert!((190..=210).contains(&bytes), "{bytes}");
    }

    #[test]
    fn the_process_has_memory_and_time() {
        assert!(own_rss_kb().unwrap() > 500);
        assert!(own_cpu_ms().unwrap() >= 0.0);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(percentile(&values, 0.5), Some(2.0));
        assert_eq!(percentile(&values, 0.99), Some(4.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
