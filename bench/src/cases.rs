//! What is measured.

use crate::contract::Answer;

/// One case: how the queue is filled, and the verb that is measured on it.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name for the table and `--only`.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    /// Verb and options measured.
    pub verb: &'static str,
    /// Options of the verb.
    pub options: Vec<String>,
    /// Options of the `enqueue` that fills the queue before; none: it stays empty.
    pub preload: Option<Vec<String>>,
    /// How many jobs.
    pub n: u64,
    /// What must be there afterwards.
    pub leaves: Leaves,
}

/// What a case leaves in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    /// All jobs, waiting.
    Waiting,
    /// So many completed jobs, nothing else.
    Completed(u64),
}

impl Case {
    /// Whether the figures of merit are waits, not rates.
    #[must_use]
    pub fn is_latency(&self) -> bool {
        self.verb == "latency"
    }

    /// Jobs a second of one run.
    #[must_use]
    pub fn rate(answer: &Answer) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a count of jobs")]
        let n = answer.n as f64;
        n / (answer.wall_ms / 1000.0)
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// All cases; `jobs` is the size of the large ones.
#[must_use]
pub fn all(jobs: u64) -> Vec<Case> {
    let small = (jobs / 5).max(100);
    let case = |name, what, verb, options: &str, preload: Option<&str>, n, leaves| Case {
        name,
        what,
        verb,
        options: words(options),
        preload: preload.map(words),
        n,
        leaves,
    };
    let bulk = Some("--mode bulk --batch 1000");
    vec![
        case(
            "enqueue-bulk",
            "enqueue in bulks of 1000",
            "enqueue",
            "--mode bulk --batch 1000",
            None,
            jobs,
            Leaves::Waiting,
        ),
        case(
            "enqueue-single",
            "enqueue one by one, 200 in flight",
            "enqueue",
            "--mode single --window 200",
            None,
            jobs,
            Leaves::Waiting,
        ),
        case(
            "drain-50-remove",
            "drain, concurrency 50, remove",
            "drain",
            "--concurrency 50 --keep 0",
            bulk,
            jobs,
            Leaves::Completed(0),
        ),
        case(
            "drain-50-keep",
            "drain, concurrency 50, keep 1000",
            "drain",
            "--concurrency 50 --keep 1000",
            bulk,
            jobs,
            Leaves::Completed(jobs.min(1000)),
        ),
        case(
            "drain-200-remove",
            "drain, concurrency 200, remove",
            "drain",
            "--concurrency 200 --keep 0",
            bulk,
            jobs,
            Leaves::Completed(0),
        ),
        case(
            "drain-200-keep",
            "drain, concurrency 200, keep 1000",
            "drain",
            "--concurrency 200 --keep 1000",
            bulk,
            jobs,
            Leaves::Completed(jobs.min(1000)),
        ),
        case(
            "drain-1",
            "drain, concurrency 1, remove",
            "drain",
            "--concurrency 1 --keep 0",
            bulk,
            small,
            Leaves::Completed(0),
        ),
        case(
            "retry",
            "each job fails once, no backoff",
            "retry",
            "--concurrency 50",
            Some("--mode bulk --batch 1000 --attempts 2"),
            small,
            Leaves::Completed(0),
        ),
        case(
            "retry-backoff",
            "each job fails once, backoff 1 ms",
            "retry",
            "--concurrency 50",
            Some("--mode bulk --batch 1000 --attempts 2 --backoff 1"),
            small,
            Leaves::Completed(0),
        ),
        case(
            "latency",
            "one job every 5 ms, add to handler start",
            "latency",
            "--interval-ms 5 --concurrency 50",
            None,
            (jobs / 100).clamp(100, 1000),
            Leaves::Completed(0),
        ),
    ]
}
