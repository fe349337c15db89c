//! Random scenarios through npm bullmq and through our crates:
//! `differential --seed 1 --count 2000 --steps 30`.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use mpanel_testkit::{
    TestkitError,
    conformance::differential::{Arena, Finding},
};

const VERSIONS: [&str; 2] = ["bullmq-5", "bullmq-6"];
/// After so many scenarios a line says how far it is.
const PROGRESS_EVERY: u64 = 500;

/// Run random scenarios through npm bullmq and through mpanel-fleet's crates and
/// compare results and keys. Each difference is made small, written as a scenario
/// file and printed with the line that repeats it. Exit code 1 when there is one.
#[derive(Debug, Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, for each version.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Steps of a scenario.
    #[arg(long, default_value_t = 30)]
    steps: usize,
    /// Only this version.
    #[arg(long, value_parser = VERSIONS)]
    version: Option<String>,
    /// Make at most so many differences small.
    #[arg(long, default_value_t = 5)]
    show: usize,
    /// Where the small scenarios go; the system's folder for temporary files when absent.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
async fn run_all(args: &Args) -> Result<bool, TestkitError> {
    let mut failed = 0;
    let mut total = 0;
    for version in VERSIONS.into_iter().filter(|v| args.version.as_deref().is_none_or(|only| only == *v)) {
        let arena = Arena::start(version).await?;
        let began = Instant::now();
        let progress = |done: u64, differ: usize| {
            if done.is_multiple_of(PROGRESS_EVERY) || done == args.count {
                println!(
                    "{version}: {done} of {}, {differ} differ, {:.1} s",
                    args.count,
                    began.elapsed().as_secs_f64()
                );
            }
        };
        let findings = arena.explore(args.seed..args.seed + args.count, args.steps, progress).await?;
        let given_up = arena.given_up().await;
        if given_up > 0 {
            println!("{version}: nothing to compare with in {given_up}, npm bullmq gives up there");
        }
        total += args.count;
        failed += findings.len() as u64;
        for (i, finding) in findings.into_iter().enumerate() {
            println!("FAIL {version} seed {}: {}", finding.seed, finding.difference);
            println!(
                "  again: make differential SEED={} COUNT=1 VERSION={version} STEPS={}",
                finding.seed, args.steps
            );
            if i < args.show {
                let small = arena.shrink(finding).await?;
                println!("  smallest: {}", small.difference);
                println!("  scenario: {}", write(args, version, &small)?.display());
            }
        }
    }
    println!("{} passed, {failed} failed", total - failed);
    Ok(failed == 0)
}

/// Writes a finding as a scenario file.
fn write(args: &Args, version: &str, finding: &Finding) -> Result<PathBuf, TestkitError> {
    let folder = args.out.clone().unwrap_or_else(std::env::temp_dir);
    let path = folder.join(format!("differential-{version}-{}.json", finding.seed));
    let failed = |e: std::io::Error| TestkitError::failed(format!("write {}", path.display()), e.to_string());
    std::fs::create_dir_all(&folder).map_err(failed)?;
    std::fs::write(&path, format!("{:#}\n", finding.scenario)).map_err(failed)?;
    Ok(path)
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
