//! What is said of the runs: two tables, and one line a case.

use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::{adapter::Side, cases::Case, runner::Run};

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
    /// Of these values; zeros without any.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first().copied(), values.last().copied()) else {
            return Self { median: 0.0, min: 0.0, max: 0.0 };
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Self { median, min, max }
    }

    fn ratio(self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median, self.min, self.max)
    }
}

/// A figure of a run, and whether more of it is better.
struct Figure {
    name: &'static str,
    of: fn(&Run) -> f64,
    more_is_better: bool,
}

const RATE: Figure = Figure { name: "jobs/s", of: Run::rate, more_is_better: true };
const REDIS: Figure = Figure { name: "Redis CPU", of: Run::redis_micros, more_is_better: false };
const CLIENT: Figure = Figure { name: "client CPU", of: Run::client_micros, more_is_better: false };
#[expect(clippy::cast_precision_loss, reason = "kB")]
const RSS: Figure = Figure { name: "memory", of: |run| run.answer.rss_kb as f64, more_is_better: false };
const P50: Figure = Figure { name: "p50", of: |run| run.answer.p50_ms.unwrap_or(0.0), more_is_better: false };
const P99: Figure = Figure { name: "p99", of: |run| run.answer.p99_ms.unwrap_or(0.0), more_is_better: false };

/// The runs of one case.
struct CaseRuns<'a> {
    case: &'a Case,
    node: Vec<&'a Run>,
    fleet: Vec<&'a Run>,
}

impl<'a> CaseRuns<'a> {
    fn new(case: &'a Case, runs: &'a [Run]) -> Self {
        let of = |side| runs.iter().filter(|r| r.case == case.name && r.side == side).collect();
        Self { case, node: of(Side::Node), fleet: of(Side::Fleet) }
    }

    fn node(&self, of: fn(&Run) -> f64) -> f64 {
        Spread::of(self.node.iter().map(|r| of(r)).collect()).median
    }

    fn fleet(&self, of: fn(&Run) -> f64) -> f64 {
        Spread::of(self.fleet.iter().map(|r| of(r)).collect()).median
    }

    /// Ours over Node's, repetition by repetition.
    fn ratio(&self, of: fn(&Run) -> f64) -> Spread {
        let pairs = self.node.iter().filter_map(|node| {
            let fleet = self.fleet.iter().find(|fleet| fleet.repetition == node.repetition)?;
            let base = of(node);
            (base > 0.0).then(|| of(fleet) / base)
        });
        Spread::of(pairs.collect())
    }

    fn figures(&self) -> Vec<&'static Figure> {
        // At a fixed low rate the rate says nothing.
        if self.case.is_latency() {
            vec![&P50, &P99, &REDIS, &CLIENT, &RSS]
        } else {
            vec![&RATE, &REDIS, &CLIENT, &RSS]
        }
    }

    fn slower_at(&self) -> Vec<String> {
        let figures = self.figures().into_iter().filter_map(|figure| {
            let median = self.ratio(figure.of).median;
            let worse = if figure.more_is_better { median < 1.0 } else { median > 1.0 };
            worse.then(|| format!("{} {median:.2}x", figure.name))
        });
        figures.collect()
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header.to_vec());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// All that is said, and whether we are worse than Node at anything.
#[must_use]
pub fn render(cases: &[Case], runs: &[Run], names: [&str; 2]) -> (String, bool) {
    let cases: Vec<CaseRuns<'_>> = cases.iter().map(|case| CaseRuns::new(case, runs)).collect();
    let [node, fleet] = names;
    let mut speed = table(&[
        "case",
        "jobs",
        "Node jobs/s",
        "fleet jobs/s",
        "ratio (min-max)",
        "Node Redis µs/job",
        "fleet",
        "ratio (min-max)",
    ]);
    let mut waits = table(&["case", "Node p50", "fleet p50", "ratio", "Node p99", "fleet p99", "ratio"]);
    let mut cost = table(&[
        "case",
        "Node client µs/job",
        "fleet",
        "ratio",
        "Node cmds/job",
        "fleet",
        "Node jobs/script",
        "fleet",
        "Node RSS MB",
        "fleet",
    ]);
    for c in &cases {
        if c.case.is_latency() {
            waits.add_row([
                c.case.what.to_owned(),
                format!("{:.2} ms", c.node(P50.of)),
                format!("{:.2} ms", c.fleet(P50.of)),
                c.ratio(P50.of).ratio(),
                format!("{:.2} ms", c.node(P99.of)),
                format!("{:.2} ms", c.fleet(P99.of)),
                c.ratio(P99.of).ratio(),
            ]);
        } else {
            speed.add_row([
                c.case.what.to_owned(),
                c.case.n.to_string(),
                format!("{:.0}", c.node(RATE.of)),
                format!("{:.0}", c.fleet(RATE.of)),
                c.ratio(RATE.of).ratio(),
                format!("{:.1}", c.node(REDIS.of)),
                format!("{:.1}", c.fleet(REDIS.of)),
                c.ratio(REDIS.of).ratio(),
            ]);
        }
        let per_script =
            |calls: f64| if calls > 0.0 { format!("{:.1}", 1.0 / calls) } else { "-".to_owned() };
        cost.add_row([
            c.case.what.to_owned(),
            format!("{:.1}", c.node(CLIENT.of)),
            format!("{:.1}", c.fleet(CLIENT.of)),
            format!("{:.2}", c.ratio(CLIENT.of).median),
            format!("{:.1}", c.node(Run::commands)),
            format!("{:.1}", c.fleet(Run::commands)),
            per_script(c.node(Run::script_calls)),
            per_script(c.fleet(Run::script_calls)),
            format!("{:.0}", c.node(RSS.of) / 1024.0),
            format!("{:.0}", c.fleet(RSS.of) / 1024.0),
        ]);
    }
    let mut lines = vec![format!(
        "Node is {node}, fleet is {fleet}; medians, ratios are fleet over Node within a repetition."
    )];
    for table in [speed, waits, cost] {
        if table.row_count() > 0 {
            lines.push(table.to_string());
        }
    }
    let mut worse = false;
    for c in &cases {
        let slower = c.slower_at();
        worse |= !slower.is_empty();
        lines.push(if slower.is_empty() {
            format!("ok      {}: not slower than Node at anything", c.case.name)
        } else {
            format!("SLOWER  {}: than Node at {}", c.case.name, slower.join(", "))
        });
    }
    lines.push(slow_scripts(runs, Side::Fleet, fleet));
    lines.push(slow_scripts(runs, Side::Node, node));
    (lines.join("\n"), worse)
}

fn slow_scripts(runs: &[Run], side: Side, name: &str) -> String {
    let own: Vec<&Run> = runs.iter().filter(|r| r.side == side).collect();
    let slow: u64 = own.iter().map(|r| r.server.slow).sum();
    let worst = own.iter().max_by(|a, b| a.server.slowest_ms.total_cmp(&b.server.slowest_ms));
    match worst {
        Some(run) if slow > 0 => format!(
            "SLOWLOG over 5 ms during the runs of {name}: {slow}, the worst {:.1} ms ({})",
            run.server.slowest_ms, run.case
        ),
        _ => format!("SLOWLOG over 5 ms during the runs of {name}: none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 4.0));
    }
}
