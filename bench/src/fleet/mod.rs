//! Our side of the contract: the verbs, on the producer and engine crates as any
//! user of them would.

mod consume;
mod enqueue;
mod latency;

use std::time::Instant;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    BoxError,
    contract::{Answer, own_cpu_ms, own_rss_kb},
};

/// The mpanel-fleet side of the peer benchmark.
#[derive(Debug, Parser)]
#[command(name = "fleet-adapter", version)]
pub struct Cli {
    /// The server.
    #[arg(
        long,
        env = "REDIS_URL",
        default_value = "redis://127.0.0.1:6379",
        hide_env_values = true,
        global = true
    )]
    pub redis_url: String,
    /// The queue.
    #[arg(long, env = "BENCH_QUEUE", default_value = "bench", global = true)]
    pub queue: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Who this is.
    Version {
        /// Ignored; the contract gives every verb a number.
        n: Option<u64>,
    },
    /// Puts N jobs into the queue.
    Enqueue(Enqueue),
    /// Completes N jobs that are there.
    Drain(Drain),
    /// Completes N jobs that are there, each on its second attempt.
    Retry(Drain),
    /// Measures N jobs from add to the handler's start.
    Latency(Latency),
    /// The producer of `latency`, in a process of its own.
    #[command(hide = true)]
    Produce(Produce),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Single,
    Bulk,
}

#[derive(Debug, Args)]
struct Enqueue {
    n: u64,
    /// One call a job, or many jobs a call.
    #[arg(long, value_enum, default_value = "bulk")]
    mode: Mode,
    /// Jobs of a bulk call.
    #[arg(long, default_value_t = 1000)]
    batch: u64,
    /// Calls in flight with `--mode single`.
    #[arg(long, default_value_t = 200)]
    window: u64,
    /// The jobs say how many completed ones stay.
    #[arg(long)]
    keep: Option<i64>,
    /// Attempts of each job.
    #[arg(long)]
    attempts: Option<u32>,
    /// Fixed backoff, ms.
    #[arg(long)]
    backoff: Option<u32>,
}

#[derive(Debug, Args)]
struct Drain {
    n: u64,
    /// Jobs at once.
    #[arg(long, default_value_t = 50)]
    concurrency: usize,
    /// The worker says how many completed jobs stay.
    #[arg(long, default_value_t = 0)]
    keep: i64,
}

#[derive(Debug, Args)]
struct Latency {
    n: u64,
    /// Pause between two jobs.
    #[arg(long, default_value_t = 5)]
    interval_ms: u64,
    /// Jobs at once.
    #[arg(long, default_value_t = 50)]
    concurrency: usize,
}

#[derive(Debug, Args)]
struct Produce {
    n: u64,
    #[arg(long, default_value_t = 5)]
    interval_ms: u64,
}

/// Runs one verb.
///
/// # Errors
/// What went wrong, as text for the user.
pub async fn run(cli: Cli) -> Result<Answer, BoxError> {
    let mut answer = match &cli.verb {
        Verb::Version { .. } => Answer::default(),
        Verb::Enqueue(options) => enqueue::enqueue(&cli, options).await?,
        Verb::Drain(options) => consume::consume(&cli, options, consume::Failing::Never).await?,
        Verb::Retry(options) => consume::consume(&cli, options, consume::Failing::FirstAttempt).await?,
        Verb::Latency(options) => latency::latency(&cli, options).await?,
        Verb::Produce(options) => latency::produce(&cli, options).await?,
    };
    answer.adapter = concat!("mpanel-fleet ", env!("CARGO_PKG_VERSION")).to_owned();
    Ok(answer)
}

/// A timed window of the process.
struct Window {
    began: Instant,
    cpu_ms: f64,
}

impl Window {
    fn open() -> std::io::Result<Self> {
        Ok(Self { cpu_ms: own_cpu_ms()?, began: Instant::now() })
    }

    fn close(&self, n: u64) -> std::io::Result<Answer> {
        let wall_ms = self.began.elapsed().as_secs_f64() * 1000.0;
        let cpu_ms = own_cpu_ms()? - self.cpu_ms;
        Ok(Answer { n, wall_ms, cpu_ms, rss_kb: own_rss_kb()?, ..Answer::default() })
    }
}
