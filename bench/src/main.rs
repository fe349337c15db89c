//! `make bench`: mpanel-fleet beside npm bullmq on one private Redis.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use mpanel_bench::{
    BoxError,
    adapter::{AS_ADAPTER, Adapter},
    cases, fleet,
    redis_cpu::Meter,
    report::{progress, render},
    runner::run_all,
};
use mpanel_testkit::RedisServer;

/// Enqueues and drains no-op jobs by npm bullmq and by mpanel-fleet, in turn, and
/// compares. Ends with code 1 when mpanel-fleet is worse than Node at anything.
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
    /// Which npm bullmq: bullmq-5 (5.81.5), bullmq-5.28 or bullmq-6.
    #[arg(long, default_value = "bullmq-5")]
    bullmq: String,
    /// All runs as one JSON document on standard output instead of tables.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    if std::env::args().nth(1).as_deref() == Some(AS_ADAPTER) {
        let cli = fleet::Cli::parse_from(std::env::args().skip(1));
        say(&serde_json::to_string(&Box::pin(fleet::run(cli)).await?)?);
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
    let sides = [Adapter::node(&cli.bullmq, &redis.url()).await?, Adapter::fleet(&redis.url()).await?];
    progress(&format!(
        "{} cases, {} repetitions, {} and {} on a private Redis",
        cases.len(),
        cli.repetitions,
        sides[0].name,
        sides[1].name
    ));
    let runs = run_all(&cases, &sides, cli.repetitions.max(1), &mut meter).await?;
    let (text, worse) = render(&cases, &runs, [&sides[0].name, &sides[1].name]);
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
