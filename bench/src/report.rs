//! What is said of the runs: a table a case with all sides, what is aimed at, and
//! where we are worse than Node.

use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::{
    adapter::Adapter,
    cases::{Case, Who},
    plot::{Group, Plot},
    runner::Run,
    sides::{FLEET, NODE},
    stats::{CLIENT, CaseRuns, Figure, IDLE, P50, P99, P999, RATE, REDIS, RSS},
    targets::{Verdict, judge},
};

/// A line while it runs, on standard error.
pub fn progress(line: &str) {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let seconds = BEGAN.get_or_init(Instant::now).elapsed().as_secs();
    eprintln!("{seconds:>4} s  {line}");
}

/// One column: its head, and what stands in it for a side.
struct Column {
    head: &'static str,
    cell: fn(&CaseRuns<'_>, &str) -> String,
}

/// A figure of the side, to so many digits.
fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Ours over the side's.
fn ratio(runs: &CaseRuns<'_>, side: &str, figure: &Figure) -> String {
    let spread = if side == FLEET { None } else { runs.ratio(side, figure.of) };
    spread.map_or_else(String::new, |spread| spread.to_string())
}

/// A wait and ours over it.
fn wait(runs: &CaseRuns<'_>, side: &str, figure: &Figure) -> String {
    format!("{} {}", shown(runs.median(side, figure.of), 2), ratio(runs, side, figure)).trim().to_owned()
}

const RATES: &[Column] = &[
    Column { head: "jobs/s", cell: |runs, side| shown(runs.median(side, RATE.of), 0) },
    Column { head: "fleet is", cell: |runs, side| ratio(runs, side, &RATE) },
];
const WAITS: &[Column] = &[
    Column { head: "p50 ms", cell: |runs, side| wait(runs, side, &P50) },
    Column { head: "p99 ms", cell: |runs, side| wait(runs, side, &P99) },
    Column { head: "p99.9 ms", cell: |runs, side| wait(runs, side, &P999) },
];
const IDLES: &[Column] = &[
    Column { head: "commands/s a queue", cell: |runs, side| shown(runs.median(side, IDLE.of), 2) },
    Column { head: "fleet is", cell: |runs, side| ratio(runs, side, &IDLE) },
];
const COSTS: &[Column] = &[
    Column { head: "Redis µs/job", cell: |runs, side| shown(runs.median(side, REDIS.of), 1) },
    Column { head: "fleet is", cell: |runs, side| ratio(runs, side, &REDIS) },
    Column { head: "client µs/job", cell: |runs, side| shown(runs.median(side, CLIENT.of), 1) },
    Column { head: "fleet is", cell: |runs, side| ratio(runs, side, &CLIENT) },
    Column { head: "cmds/job", cell: |runs, side| shown(runs.median(side, Run::commands), 1) },
    Column {
        head: "jobs/script",
        cell: |runs, side| {
            let calls = runs.median(side, Run::script_calls).filter(|calls| *calls > 0.0);
            shown(calls.map(|calls| 1.0 / calls), 1)
        },
    },
];
const MEMORY: &[Column] = &[
    Column { head: "RSS MB", cell: |runs, side| shown(runs.median(side, RSS.of), 0) },
    Column { head: "fleet is", cell: |runs, side| ratio(runs, side, &RSS) },
];

fn table(runs: &CaseRuns<'_>, sides: &[Adapter]) -> Table {
    let parts: &[&[Column]] = if runs.case.is_idle() {
        &[IDLES, MEMORY]
    } else if runs.case.is_latency() {
        &[WAITS, COSTS, MEMORY]
    } else {
        &[RATES, COSTS, MEMORY]
    };
    let columns: Vec<&Column> = parts.iter().copied().flatten().collect();
    let mut table = Table::new();
    let head = std::iter::once("").chain(columns.iter().map(|column| column.head));
    table.load_style(UTF8_FULL_CONDENSED).set_header(head);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for side in sides.iter().filter(|side| runs.of(side.side.key).next().is_some()) {
        let cells = columns.iter().map(|column| (column.cell)(runs, side.side.key));
        table.add_row(std::iter::once(side.name.clone()).chain(cells));
    }
    table
}

/// Who was not measured in a case, and why.
fn refusals(case: &Case, sides: &[Adapter]) -> Vec<String> {
    if case.who == Who::Fleet {
        return Vec::new();
    }
    let refusal = |side: &Adapter| {
        let why = side.side.refusal(case.name)?;
        Some(format!("  {} cannot: {why}", side.name))
    };
    sides.iter().filter_map(refusal).collect()
}

/// Where we are worse than Node.
fn worse_at(runs: &CaseRuns<'_>) -> Vec<String> {
    let figures = runs.figures().iter().filter_map(|figure| {
        let median = runs.ratio(NODE, figure.of)?.median;
        let worse = if figure.more_is_better { median < 1.0 } else { median > 1.0 };
        worse.then(|| format!("{} {median:.2}x", figure.name))
    });
    figures.collect()
}

fn verdict(verdict: &Verdict) -> Option<String> {
    let spread = verdict.measured?;
    let target = verdict.target;
    Some(format!(
        "{} {:<17} {:<19} {:<24} {:>9} wanted, {spread} measured in {} repetitions",
        if verdict.is_reached() { "reached" } else { "MISSED " },
        verdict.case,
        target.figure.name,
        target.beside.to_string(),
        target.wanted.to_string(),
        spread.count
    ))
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
        let unit = if c.case.is_idle() { "queues" } else { "jobs" };
        let alone = if c.case.who == Who::Fleet { "; fleet alone, for growth" } else { "" };
        lines.push(format!("\n{}: {}, {} {unit}{alone}", c.case.name, c.case.what, c.case.n));
        lines.push(table(c, sides).to_string());
        lines.extend(refusals(c.case, sides));
    }
    lines.push("\nWhat is aimed at (design, performance.md section 3):".to_owned());
    let verdicts = judge(&cases);
    lines.extend(verdicts.iter().filter_map(verdict));
    let (judged, reached) = (
        verdicts.iter().filter(|v| v.measured.is_some()).count(),
        verdicts.iter().filter(|v| v.is_reached()).count(),
    );
    lines.push(format!("{reached} of {judged} reached; {} not measured", verdicts.len() - judged));
    let mut worse = false;
    lines.push(String::new());
    for c in &cases {
        let slower = worse_at(c);
        worse |= !slower.is_empty();
        if !slower.is_empty() {
            lines.push(format!("SLOWER  {}: than Node at {}", c.case.name, slower.join(", ")));
        }
    }
    if !worse && sides.iter().any(|side| side.side.key == NODE) {
        lines.push("Not slower than Node at anything.".to_owned());
    }
    lines.extend(sides.iter().flat_map(|side| slow(runs, side)));
    (lines.join("\n"), worse)
}

/// The ratios of jobs/s to all peers, to be drawn.
#[must_use]
pub fn plot(cases: &[Case], runs: &[Run], sides: &[Adapter], subtitle: String) -> Plot {
    let peers: Vec<&Adapter> = sides.iter().filter(|side| side.side.key != FLEET).collect();
    let group = |case: &Case| {
        let runs = CaseRuns::new(case, runs);
        let bars = peers.iter().enumerate();
        let bars = bars.filter_map(|(place, peer)| Some((place, runs.ratio(peer.side.key, RATE.of)?)));
        Group { label: case.what.to_owned(), bars: bars.collect() }
    };
    let rates = cases.iter().filter(|case| !case.is_latency() && !case.is_idle());
    Plot {
        title: "Jobs a second: mpanel-fleet over each peer (right of 1x: fleet is faster)".to_owned(),
        subtitle,
        peers: peers.iter().map(|peer| peer.name.clone()).collect(),
        groups: rates.map(group).filter(|group| !group.bars.is_empty()).collect(),
    }
}

/// What SLOWLOG and LATENCY say of a side.
fn slow(runs: &[Run], side: &Adapter) -> [String; 2] {
    let own: Vec<&Run> = runs.iter().filter(|run| run.side == side.side.key).collect();
    let slow: u64 = own.iter().map(|run| run.server.slow).sum();
    let worst = own.iter().max_by(|a, b| a.server.slowest_ms.total_cmp(&b.server.slowest_ms));
    let scripts = match worst {
        Some(run) if slow > 0 => {
            format!("{slow}, the longest {:.1} ms ({})", run.server.slowest_ms, run.case)
        }
        _ => "none".to_owned(),
    };
    let mut events = std::collections::BTreeMap::<&str, u64>::new();
    for (event, ms) in own.iter().flat_map(|run| &run.server.latency) {
        let worst = events.entry(event).or_default();
        *worst = (*ms).max(*worst);
    }
    let events: Vec<String> = events.iter().map(|(event, ms)| format!("{event} {ms} ms")).collect();
    let events = if events.is_empty() { "none".to_owned() } else { events.join(", ") };
    [
        format!("SLOWLOG, scripts over 5 ms, {}: {scripts}", side.name),
        format!("LATENCY, longest events over 5 ms, {}: {events}", side.name),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::tests::run;

    #[test]
    fn worse_than_node_is_said_of_each_figure() {
        let cases = crate::cases::all(1000);
        let case = cases.iter().find(|case| case.name == "retry").unwrap();
        let runs = [run("retry", FLEET, 1, 90.0, 5.0), run("retry", NODE, 1, 100.0, 10.0)];
        assert_eq!(worse_at(&CaseRuns::new(case, &runs)), ["jobs/s 0.90x"]);
    }
}
