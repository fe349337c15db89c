//! `make bench`: mpanel-fleet beside its peers on one private Redis.

use std::{process::ExitCode, time::Duration};

use clap::{Parser, builder::PossibleValuesParser};
use mpanel_bench::{
    BoxError,
    adapter::{AS_ADAPTER, AS_CEILING, Adapter, CEILING, FLEET, NODE, OFFICIAL, SIDES},
    cases, ceiling, fleet,
    redis_cpu::Meter,
    report::{progress, render},
    runner::run_all,
};
use mpanel_testkit::RedisServer;

/// Enqueues and drains no-op jobs by mpanel-fleet and its peers, in turn, and compares.
/// Ends with code 1 when mpanel-fleet is worse than npm bullmq 5.81.5 at anything.
#[derive(Debug, Parser)]
#[command(name = "mpanel-bench", version)]
struct Cli {
    /// Jobs of the large cases; the others have a part of them.
    #[arg(long, default_value_t = 100_000)]
    jobs: u64,
    /// How often every case is run.
    #[arg(long, default_value_t = 3)]
    repetitions: u32,
    /// Only the cases whose name contains one of these (comma list).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Beside whom (comma list).
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(&SIDES[1..]),
        default_values = DEFAULT_PEERS)]
    peers: Vec<String>,
    /// All runs as one JSON document on standard output instead of tables.
    #[arg(long)]
    json: bool,
}

const DEFAULT_PEERS: [&str; 3] = [CEILING, NODE, OFFICIAL];

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
    Box::pin(bench(Cli::parse())).await
}

async fn bench(cli: Cli) -> Result<ExitCode, BoxError> {
    let wanted = |name: &str| cli.only.is_empty() || cli.only.iter().any(|part| name.contains(part.as_str()));
    let cases: Vec<_> = cases::all(cli.jobs.max(1000)).into_iter().filter(|c| wanted(c.name)).collect();
    if cases.is_empty() {
        let names: Vec<_> = cases::all(1000).iter().map(|c| c.name).collect();
        return Err(format!("no case has such a name; there are {}", names.join(", ")).into());
    }
    let redis = RedisServer::builder().appendonly(false).start().await?;
    // Emptying a server with many jobs takes its time.
    let conn =
        mpanel_connect::Redis::open(&redis.url())?.dedicated("bench", None, Duration::from_secs(60)).await?;
    let mut meter = Meter::new(conn).await?;
    let mut sides = Vec::new();
    for key in SIDES.iter().filter(|key| **key == FLEET || cli.peers.iter().any(|peer| peer == *key)) {
        sides.push(Adapter::open(key, &redis.url()).await?);
    }
    let names: Vec<_> = sides.iter().map(|side| side.name.as_str()).collect();
    progress(&format!(
        "{} cases, {} repetitions on a private Redis: {}",
        cases.len(),
        cli.repetitions,
        names.join(", ")
    ));
    let runs = run_all(&cases, &sides, cli.repetitions.max(1), &mut meter).await?;
    let (text, worse) = render(&cases, &runs, &sides);
    if cli.json {
        say(&serde_json::to_string(&runs)?);
    } else {
        say(&text);
    }
    Ok(if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[expect(clippy::print_stdout, reason = "the result of the program")]
fn say(text: &str) {
    println!("{text}");
}
