//! Random scenarios through npm bullmq and through our crates:
//! `differential --seed 1 --count 2000 --steps 30`.

use std::process::ExitCode;

use clap::Parser;
use mpanel_testkit::{TestkitError, conformance::differential::Arena};

const VERSIONS: [&str; 2] = ["bullmq-5", "bullmq-6"];

/// Run random scenarios through npm bullmq and through mpanel-fleet's crates and
/// compare results and keys. Each difference is made small and printed.
/// Exit code 1 when there is one.
#[derive(Debug, Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, for each version.
    #[arg(long, default_value_t = 200)]
    count: u64,
    /// Steps of a scenario.
    #[arg(long, default_value_t = 30)]
    steps: usize,
    /// Only this version.
    #[arg(long, value_parser = VERSIONS)]
    version: Option<String>,
    /// Make at most so many differences small and print them.
    #[arg(long, default_value_t = 5)]
    show: usize,
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
async fn run_all(args: &Args) -> Result<bool, TestkitError> {
    let arena = Arena::start().await?;
    let mut failed = 0;
    let mut total = 0;
    for version in VERSIONS.into_iter().filter(|v| args.version.as_deref().is_none_or(|only| only == *v)) {
        let findings = arena.explore(version, args.seed..args.seed + args.count, args.steps).await?;
        total += args.count;
        failed += findings.len() as u64;
        for (i, finding) in findings.into_iter().enumerate() {
            println!("FAIL {version} {}: {}", finding.scenario["name"], finding.difference);
            if i < args.show {
                let small = arena.shrink(version, finding).await?;
                println!("  smallest: {}\n  {}", small.difference, small.scenario);
            }
        }
    }
    println!("{} passed, {failed} failed", total - failed);
    Ok(failed == 0)
}

#[tokio::main]
async fn main() -> ExitCode {
    match run_all(&Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the program's error channel")]
            {
                eprintln!("differential: {error}");
            }
            ExitCode::FAILURE
        }
    }
}
