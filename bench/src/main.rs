//! `make bench`: mpanel-fleet beside its peers on one private Redis.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, builder::PossibleValuesParser};
use mpanel_bench::{
    BoxError,
    adapter::{AS_ADAPTER, AS_CEILING, Adapter},
    cases::{self, Case},
    ceiling, fleet,
    redis_cpu::Meter,
    report::{plot, progress, render},
    runner::{Repetitions, run_all},
    sides::{FLEET, SIDES},
};
use mpanel_testkit::RedisServer;

/// Runs mpanel-fleet and its peers in turn on a private Redis, and compares.
///
/// A run of all cases takes about 40 minutes on 2 cores and writes docs/benchmarks.svg.
/// Ends with code 0 when mpanel-fleet is not worse than npm bullmq 5.81.5 at anything, with
/// 1 when it is; the lines SLOWER say at what.
#[derive(Debug, Parser)]
#[command(name = "mpanel-bench", version)]
struct Cli {
    /// Jobs of most cases; some have a part of them, `delayed-1m` 25 times as many.
    #[arg(long, default_value_t = 40_000)]
    jobs: u64,
    /// How often every case is run.
    #[arg(long, default_value_t = 5)]
    repetitions: u32,
    /// How often the large cases are run: delayed-1m, waiting-1m, idle.
    #[arg(long, default_value_t = 1)]
    repetitions_large: u32,
    /// Only the cases whose name contains one of these (comma list).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Beside whom (comma list); without it all but bullmq-5.28 and bullmq-6.
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(peers()))]
    peers: Option<Vec<String>>,
    /// All runs as one JSON document on standard output instead of tables.
    #[arg(long)]
    json: bool,
    /// Where the plot goes; without it, docs/benchmarks.svg if all cases are run at least 5 times.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Lists the cases and who cannot run them, and runs nothing.
    #[arg(long)]
    list: bool,
}

fn peers() -> impl Iterator<Item = &'static str> {
    SIDES.iter().map(|side| side.key).filter(|key| *key != FLEET)
}

impl Cli {
    fn cases(&self) -> Result<Vec<Case>, BoxError> {
        let wanted =
            |name: &str| self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()));
        let cases: Vec<_> =
            cases::all(self.jobs.max(1000)).into_iter().filter(|case| wanted(case.name)).collect();
        if cases.is_empty() {
            let names: Vec<_> = cases::all(1000).iter().map(|case| case.name).collect();
            return Err(format!("no case has such a name; there are {}", names.join(", ")).into());
        }
        Ok(cases)
    }

    fn has_peer(&self, key: &str, by_default: bool) -> bool {
        self.peers.as_ref().map_or(by_default, |peers| peers.iter().any(|peer| peer == key))
    }

    /// Where the plot goes, if there is one.
    fn plot(&self) -> Option<PathBuf> {
        let is_complete = self.only.is_empty() && self.peers.is_none() && self.repetitions >= 5;
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.svg");
        self.plot.clone().or_else(|| is_complete.then_some(docs))
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let first = std::env::args().nth(1).unwrap_or_default();
    if first == AS_ADAPTER || first == AS_CEILING {
        let cli = fleet::Cli::parse_from(std::env::args().skip(1));
        let answer =
            if first == AS_ADAPTER { Box::pin(fleet::run(cli)).await? } else { ceiling::run(cli).await? };
        say(&serde_json::to_string(&answer)?);
        return Ok(ExitCode::SUCCESS);
    }
    let cli = Cli::parse();
    if cli.list {
        say(&list(&cli.cases()?));
        return Ok(ExitCode::SUCCESS);
    }
    Box::pin(bench(cli)).await
}

fn list(cases: &[Case]) -> String {
    let mut lines = Vec::new();
    for case in cases {
        lines.push(format!("{:<18} {}, {}", case.name, case.what, case.n));
        for side in &SIDES {
            lines.extend(side.refusal(case.name).map(|why| format!("    {} cannot: {why}", side.key)));
        }
    }
    lines.join("\n")
}

async fn bench(cli: Cli) -> Result<ExitCode, BoxError> {
    let cases = cli.cases()?;
    let repetitions = Repetitions { most: cli.repetitions.max(1), large: cli.repetitions_large.max(1) };
    let business = business().await;
    let redis = RedisServer::builder().appendonly(false).start().await?;
    // Emptying a server with many jobs takes its time.
    let conn =
        mpanel_connect::Redis::open(&redis.url())?.dedicated("bench", None, Duration::from_secs(60)).await?;
    let mut meter = Meter::new(conn).await?;
    let mut sides = Vec::new();
    for side in SIDES.iter().filter(|side| side.key == FLEET || cli.has_peer(side.key, side.by_default)) {
        sides.push(Adapter::open(side, &redis.url()).await?);
    }
    let names: Vec<_> = sides.iter().map(|side| side.name.as_str()).collect();
    let how = format!("{} jobs, {} repetitions, {business}", cli.jobs, repetitions.most);
    progress(&format!("{} cases, {how}: {}", cases.len(), names.join(", ")));
    let (runs, failures) = run_all(&cases, &sides, repetitions, &mut meter).await?;
    let (text, worse) = render(&cases, &runs, &sides);
    if cli.json {
        say(&serde_json::to_string(&runs)?);
    } else {
        say(&format!("{how}\n{text}"));
        for failure in failures {
            say(&format!("FAILED  {failure}; left out of the figures"));
        }
    }
    if let Some(file) = cli.plot() {
        let subtitle =
            format!("median of ratios within a repetition, whiskers from smallest to largest; {how}");
        std::fs::write(&file, plot(&cases, &runs, &sides, subtitle).svg())?;
        progress(&format!("the plot is in {}", file.display()));
    }
    Ok(if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// How busy other work kept the machine before the benchmark, in words.
async fn business() -> String {
    let before = processor_ticks();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (Some((busy, all)), Some((busy_then, all_then))) = (processor_ticks(), before) else {
        return "nobody knows how quiet the machine was".to_owned();
    };
    let percent = (busy - busy_then) * 100.0 / (all - all_then).max(1.0);
    let how = if percent > 10.0 { "MACHINE BUSY WITH OTHER WORK" } else { "quiet machine" };
    format!("{how} ({percent:.0} % CPU before)")
}

/// Ticks of all processors since boot: busy ones, and all.
fn processor_ticks() -> Option<(f64, f64)> {
    // cpu user nice system idle iowait irq softirq steal …; the guests' ticks are in user.
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> =
        text.lines().next()?.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let all: f64 = ticks.iter().sum();
    Some((all - ticks.get(3)? - ticks.get(4)?, all))
}

#[expect(clippy::print_stdout, reason = "the result of the program")]
fn say(text: &str) {
    println!("{text}");
}
