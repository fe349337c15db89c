//! Figures of runs and what many of them say together. Nothing here knows how they
//! are shown.

use crate::{cases::Case, runner::Run, sides::FLEET};

/// Median, smallest, largest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Of how many values.
    pub count: usize,
}

impl Spread {
    /// Of these values; none without any.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (values.first().copied()?, values.last().copied()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max, count: values.len() })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median, self.min, self.max)
    }
}

/// A figure of a run, and whether more of it is better.
#[derive(Debug)]
pub struct Figure {
    /// What it is called.
    pub name: &'static str,
    /// Read from a run.
    pub of: fn(&Run) -> f64,
    /// Else less is.
    pub more_is_better: bool,
}

const fn less(name: &'static str, of: fn(&Run) -> f64) -> Figure {
    Figure { name, of, more_is_better: false }
}

/// Jobs a second.
pub const RATE: Figure = Figure { name: "jobs/s", of: Run::rate, more_is_better: true };
/// The server's CPU time a job.
pub const REDIS: Figure = less("Redis CPU", Run::redis_micros);
/// The client's CPU time a job.
pub const CLIENT: Figure = less("client CPU", Run::client_micros);
/// The client's memory.
#[expect(clippy::cast_precision_loss, reason = "kB")]
pub const RSS: Figure = less("MB of memory", |run| run.answer.rss_kb as f64 / 1024.0);
/// The middle wait.
pub const P50: Figure = less("p50", |run| run.answer.p50_ms.unwrap_or(0.0));
/// The wait that one in a hundred exceeds.
pub const P99: Figure = less("p99", |run| run.answer.p99_ms.unwrap_or(0.0));
/// The wait that one in a thousand exceeds.
pub const P999: Figure = less("p99.9", |run| run.answer.p999_ms.unwrap_or(0.0));
/// The longest script.
pub const SLOWEST: Figure = less("longest script, ms", |run| run.server.slowest_ms);
/// What an idle queue costs.
pub const IDLE: Figure = less("commands/s", Run::idle_commands);

/// The runs of one case.
#[derive(Debug)]
pub struct CaseRuns<'a> {
    /// The case.
    pub case: &'a Case,
    runs: Vec<&'a Run>,
}

impl<'a> CaseRuns<'a> {
    /// Those of `runs` that are of this case.
    #[must_use]
    pub fn new(case: &'a Case, runs: &'a [Run]) -> Self {
        Self { case, runs: runs.iter().filter(|run| run.case == case.name).collect() }
    }

    /// Those of one side.
    pub fn of(&self, side: &str) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().copied().filter(move |run| run.side == side)
    }

    /// A figure of one side.
    #[must_use]
    pub fn spread(&self, side: &str, figure: fn(&Run) -> f64) -> Option<Spread> {
        Spread::of(self.of(side).map(figure).collect())
    }

    /// The middle of a figure of one side.
    #[must_use]
    pub fn median(&self, side: &str, figure: fn(&Run) -> f64) -> Option<f64> {
        self.spread(side, figure).map(|spread| spread.median)
    }

    /// Ours over the peer's, repetition by repetition.
    #[must_use]
    pub fn ratio(&self, peer: &str, figure: fn(&Run) -> f64) -> Option<Spread> {
        self.over(self, peer, figure)
    }

    /// Ours in this case over a side's in another, repetition by repetition.
    #[must_use]
    pub fn over(&self, other: &Self, side: &str, figure: fn(&Run) -> f64) -> Option<Spread> {
        let pairs = other.of(side).filter_map(|theirs| {
            let ours = self.of(FLEET).find(|ours| ours.repetition == theirs.repetition)?;
            let base = figure(theirs);
            (base > 0.0).then(|| figure(ours) / base)
        });
        Spread::of(pairs.collect())
    }

    /// The figures of merit.
    #[must_use]
    pub fn figures(&self) -> &'static [&'static Figure] {
        // At a fixed low rate the rate says nothing, and an idle process has no jobs.
        if self.case.is_latency() {
            &[&P50, &P99, &REDIS, &CLIENT, &RSS]
        } else if self.case.is_idle() {
            &[&IDLE, &RSS]
        } else {
            &[&RATE, &REDIS, &CLIENT, &RSS]
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{contract::Answer, redis_cpu::ServerCost};

    /// A run of 1000 jobs at this rate, with this much of the server's CPU a job.
    pub(crate) fn run(case: &'static str, side: &str, repetition: u32, rate: f64, redis: f64) -> Run {
        let answer =
            Answer { n: 1000, wall_ms: 1e6 / rate, cpu_ms: 10.0, rss_kb: 20_480, ..Answer::default() };
        let server = ServerCost { cpu_micros: redis * 1000.0, ..ServerCost::default() };
        Run { case, repetition, side: side.to_owned(), answer, server }
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max, spread.count), (2.5, 1.0, 4.0, 4));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn ratios_are_taken_within_a_repetition() {
        let cases = crate::cases::all(1000);
        let case = cases.iter().find(|case| case.name == "drain-1").unwrap();
        let runs = [
            run("drain-1", FLEET, 1, 300.0, 1.0),
            run("drain-1", "bullmq-5", 1, 100.0, 1.0),
            run("drain-1", FLEET, 2, 800.0, 1.0),
            run("drain-1", "bullmq-5", 2, 200.0, 1.0),
            run("drain-1", "bullmq-5", 3, 1.0, 1.0),
            run("retry", FLEET, 1, 9.0, 1.0),
        ];
        let spread = CaseRuns::new(case, &runs).ratio("bullmq-5", RATE.of).unwrap();
        assert_eq!(spread.count, 2);
        assert!((spread.min - 3.0).abs() < 1e-9 && (spread.max - 4.0).abs() < 1e-9);
        assert_eq!(CaseRuns::new(case, &runs).ratio("oxana", RATE.of), None);
    }
}
