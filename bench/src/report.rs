//! What is said of the runs: a table a case with all sides, what is aimed at, and
//! where we are worse than Node.

use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::{
    adapter::{Adapter, FLEET, NODE},
    cases::Case,
    runner::Run,
    targets::TARGETS,
};

/// A line while it runs, on standard error.
pub fn progress(line: &str) {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let seconds = BEGAN.get_or_init(Instant::now).elapsed().as_secs();
    eprintln!("{seconds:>4} s  {line}");
}

/// Median, smallest, largest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
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
        Some(Self { median, min, max })
    }

    fn ratio(self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median, self.min, self.max)
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

/// Jobs a second.
pub const RATE: Figure = Figure { name: "jobs/s", of: Run::rate, more_is_better: true };
/// The server's CPU time a job.
pub const REDIS: Figure = Figure { name: "Redis CPU", of: Run::redis_micros, more_is_better: false };
/// The client's CPU time a job.
pub const CLIENT: Figure = Figure { name: "client CPU", of: Run::client_micros, more_is_better: false };
/// The client's memory.
#[expect(clippy::cast_precision_loss, reason = "kB")]
pub const RSS: Figure = Figure { name: "memory", of: |run| run.answer.rss_kb as f64, more_is_better: false };
/// The middle wait.
pub const P50: Figure =
    Figure { name: "p50", of: |run| run.answer.p50_ms.unwrap_or(0.0), more_is_better: false };
/// The wait that one in a hundred exceeds.
pub const P99: Figure =
    Figure { name: "p99", of: |run| run.answer.p99_ms.unwrap_or(0.0), more_is_better: false };

/// The runs of one case.
struct CaseRuns<'a> {
    case: &'a Case,
    runs: Vec<&'a Run>,
}

impl<'a> CaseRuns<'a> {
    fn new(case: &'a Case, runs: &'a [Run]) -> Self {
        Self { case, runs: runs.iter().filter(|run| run.case == case.name).collect() }
    }

    fn of(&self, side: &str) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().copied().filter(move |run| run.side == side)
    }

    fn median(&self, side: &str, figure: fn(&Run) -> f64) -> Option<f64> {
        Spread::of(self.of(side).map(figure).collect()).map(|spread| spread.median)
    }

    /// Ours over the peer's, repetition by repetition.
    fn ratio(&self, peer: &str, figure: fn(&Run) -> f64) -> Option<Spread> {
        let pairs = self.of(peer).filter_map(|theirs| {
            let ours = self.of(FLEET).find(|ours| ours.repetition == theirs.repetition)?;
            let base = figure(theirs);
            (base > 0.0).then(|| figure(ours) / base)
        });
        Spread::of(pairs.collect())
    }

    fn figures(&self) -> &'static [&'static Figure] {
        // At a fixed low rate the rate says nothing.
        if self.case.is_latency() {
            &[&P50, &P99, &REDIS, &CLIENT, &RSS]
        } else {
            &[&RATE, &REDIS, &CLIENT, &RSS]
        }
    }

    fn slower_at(&self) -> Vec<String> {
        let figures = self.figures().iter().filter_map(|figure| {
            let median = self.ratio(NODE, figure.of)?.median;
            let worse = if figure.more_is_better { median < 1.0 } else { median > 1.0 };
            worse.then(|| format!("{} {median:.2}x", figure.name))
        });
        figures.collect()
    }

    fn table(&self, sides: &[Adapter]) -> Table {
        let mut table = Table::new();
        let own = if self.case.is_latency() { ["p50 ms", "p99 ms"] } else { ["jobs/s", "fleet is"] };
        table.load_style(UTF8_FULL_CONDENSED).set_header([
            "",
            own[0],
            own[1],
            "Redis µs/job",
            "fleet is",
            "client µs/job",
            "fleet is",
            "cmds/job",
            "jobs/script",
            "RSS MB",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let shown = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        for side in sides.iter().filter(|side| self.of(&side.key).next().is_some()) {
            let key = side.key.as_str();
            let ratio = |figure: &Figure| match self.ratio(key, figure.of) {
                Some(spread) if key != FLEET => spread.ratio(),
                _ => String::new(),
            };
            let (first, second) = if self.case.is_latency() {
                let with_ratio = |figure: &Figure| {
                    format!("{} {}", shown(self.median(key, figure.of), 2), ratio(figure)).trim().to_owned()
                };
                (with_ratio(&P50), with_ratio(&P99))
            } else {
                (shown(self.median(key, RATE.of), 0), ratio(&RATE))
            };
            let per_script = self.median(key, Run::script_calls).filter(|calls| *calls > 0.0);
            table.add_row([
                side.name.clone(),
                first,
                second,
                shown(self.median(key, REDIS.of), 1),
                ratio(&REDIS),
                shown(self.median(key, CLIENT.of), 1),
                ratio(&CLIENT),
                shown(self.median(key, Run::commands), 1),
                shown(per_script.map(|calls| 1.0 / calls), 1),
                shown(self.median(key, RSS.of).map(|kb| kb / 1024.0), 0),
            ]);
        }
        table
    }
}

/// All that is said, and whether we are worse than Node at anything.
#[must_use]
pub fn render(cases: &[Case], runs: &[Run], sides: &[Adapter]) -> (String, bool) {
    let cases: Vec<CaseRuns<'_>> = cases.iter().map(|case| CaseRuns::new(case, runs)).collect();
    let mut lines = vec![
        "Medians; \"fleet is\": fleet over that side within a repetition, median (smallest-largest)."
            .to_owned(),
    ];
    for c in &cases {
        lines.push(format!("\n{}: {}, {} jobs", c.case.name, c.case.what, c.case.n));
        lines.push(c.table(sides).to_string());
    }
    lines.push("\nWhat is aimed at (design, performance.md section 3):".to_owned());
    for target in TARGETS {
        for c in cases.iter().filter(|c| target.cases.contains(&c.case.name)) {
            let Some(spread) = c.ratio(target.peer, target.figure.of) else { continue };
            let reached = if target.figure.more_is_better {
                spread.median >= target.ratio
            } else {
                spread.median <= target.ratio
            };
            lines.push(format!(
                "{} {:<17} {:<10} over {:<16} {:>5.2} wanted, {} measured",
                if reached { "reached" } else { "MISSED " },
                c.case.name,
                target.figure.name,
                target.peer,
                target.ratio,
                spread.ratio()
            ));
        }
    }
    let mut worse = false;
    lines.push(String::new());
    for c in &cases {
        let slower = c.slower_at();
        worse |= !slower.is_empty();
        if !slower.is_empty() {
            lines.push(format!("SLOWER  {}: than Node at {}", c.case.name, slower.join(", ")));
        }
    }
    if !worse && sides.iter().any(|side| side.key == NODE) {
        lines.push("Not slower than Node at anything.".to_owned());
    }
    lines.extend(sides.iter().map(|side| slow_scripts(runs, side)));
    (lines.join("\n"), worse)
}

fn slow_scripts(runs: &[Run], side: &Adapter) -> String {
    let own: Vec<&Run> = runs.iter().filter(|r| r.side == side.key).collect();
    let slow: u64 = own.iter().map(|r| r.server.slow).sum();
    let worst = own.iter().max_by(|a, b| a.server.slowest_ms.total_cmp(&b.server.slowest_ms));
    match worst {
        Some(run) if slow > 0 => format!(
            "SLOWLOG over 5 ms during the runs of {}: {slow}, the worst {:.1} ms ({})",
            side.name, run.server.slowest_ms, run.case
        ),
        _ => format!("SLOWLOG over 5 ms during the runs of {}: none", side.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
