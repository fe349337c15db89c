//! Runs scenario files through our crates: `conformance --scenarios DIR --golden DIR`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use mpanel_connect::Redis;
use mpanel_protocol::peer::Peer;
use mpanel_testkit::{
    RedisServer, TestkitError,
    conformance::{
        reading,
        rules::{Difference, compare, parting},
        run::run,
        scenario::{Golden, Scenario},
    },
};

const VERSIONS: [&str; 3] = ["bullmq-5.28", "bullmq-5", "bullmq-6"];

/// Run BullMQ conformance scenarios through mpanel-fleet's crates and compare
/// what is left in Redis, key by key, with what npm bullmq left.
///
/// One line a scenario: `ok` or `FAIL`, the version, the name and the first
/// difference. Exit code 1 when one fails.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of scenario files.
    #[arg(long, value_name = "DIR")]
    scenarios: PathBuf,
    /// Goldens: one version's folder with --version, else the folder of all three.
    #[arg(long, value_name = "DIR")]
    golden: PathBuf,
    /// Only this version: bullmq-5.28 (reading test), bullmq-5 or bullmq-6.
    #[arg(long, value_parser = VERSIONS)]
    version: Option<String>,
    /// A Redis to use instead of a private one; keys `conf:*` there are deleted.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
}

async fn difference(
    redis: &Redis,
    version: &str,
    scenario: &Scenario,
    golden: &Golden,
) -> Result<Option<Difference>, TestkitError> {
    let peer = match version {
        "bullmq-5.28" => return reading::check(redis, golden).await,
        "bullmq-6" => Peer::V6,
        _ => Peer::V5,
    };
    let outcome = run(redis, scenario, peer).await?;
    if let Some((at, why)) = parting(golden, &outcome) {
        #[expect(clippy::print_stderr, reason = "beside the lines that are counted")]
        {
            eprintln!("note: {version} {} need not be equal from step {at} on: {why}", scenario.name);
        }
    }
    Ok(compare(golden, &outcome))
}

/// What is wrong with a scenario; `None` when nothing is. Whatever cannot be read or
/// run is that scenario's own failure.
async fn verdict(redis: &Redis, version: &str, scenario: &Scenario, folder: &Path) -> Option<String> {
    let name = &scenario.name;
    match Golden::load(folder, name) {
        Ok(None) => Some(format!("no golden {}", folder.join(format!("{name}.json")).display())),
        Ok(Some(golden)) => match difference(redis, version, scenario, &golden).await {
            Ok(difference) => difference.map(|d| d.to_string()),
            Err(error) => Some(error.to_string()),
        },
        Err(error) => Some(error.to_string()),
    }
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
async fn run_all(args: &Args) -> Result<bool, TestkitError> {
    let server = match &args.redis {
        Some(_) => None,
        None => Some(RedisServer::start().await?),
    };
    let url = args.redis.clone().or_else(|| server.as_ref().map(RedisServer::url)).unwrap_or_default();
    let redis = Redis::open(&url).map_err(|e| TestkitError::failed("connect", e.to_string()))?;
    let scenarios = Scenario::load_each(&args.scenarios)?;
    let (mut passed, mut failed) = (0, 0);
    for version in VERSIONS {
        if args.version.as_ref().is_some_and(|v| v != version) {
            continue;
        }
        let folder = if args.version.is_some() { args.golden.clone() } else { args.golden.join(version) };
        for scenario in &scenarios {
            let (name, verdict) = match scenario {
                Ok(scenario) if !scenario.is_for(version) => continue,
                Ok(scenario) => (&scenario.name, verdict(&redis, version, scenario, &folder).await),
                Err((name, error)) => (name, Some(error.to_string())),
            };
            match verdict {
                None => {
                    passed += 1;
                    println!("ok {version} {name}");
                }
                Some(what) => {
                    failed += 1;
                    println!("FAIL {version} {name}: {what}");
                }
            }
        }
    }
    println!("{passed} passed, {failed} failed");
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
                eprintln!("conformance: {error}");
            }
            ExitCode::FAILURE
        }
    }
}
