//! Our side of the contract: the verbs, on the producer and engine crates as any
//! user of them would.

mod consume;
mod enqueue;
mod latency;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{BoxError, contract::Answer};

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
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What an adapter can be asked to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
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

/// How jobs are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One call a job.
    Single,
    /// Many jobs a call.
    Bulk,
}

/// Options of `enqueue`.
#[derive(Debug, Args)]
pub struct Enqueue {
    /// How many jobs.
    pub n: u64,
    /// One call a job, or many jobs a call.
    #[arg(long, value_enum, default_value = "bulk")]
    pub mode: Mode,
    /// Jobs of a bulk call.
    #[arg(long, default_value_t = 1000)]
    pub batch: u64,
    /// Calls in flight with `--mode single`.
    #[arg(long, default_value_t = 200)]
    pub window: u64,
    /// The jobs say how many completed ones stay.
    #[arg(long)]
    pub keep: Option<i64>,
    /// Attempts of each job.
    #[arg(long)]
    pub attempts: Option<u32>,
    /// Fixed backoff, ms.
    #[arg(long)]
    pub backoff: Option<u32>,
}

/// Options of `drain` and `retry`.
#[derive(Debug, Args)]
pub struct Drain {
    /// How many jobs.
    pub n: u64,
    /// Jobs at once.
    #[arg(long, default_value_t = 50)]
    pub concurrency: usize,
    /// The worker says how many completed jobs stay.
    #[arg(long, default_value_t = 0)]
    pub keep: i64,
}

/// Options of `latency`.
#[derive(Debug, Args)]
pub struct Latency {
    /// How many jobs.
    pub n: u64,
    /// Pause between two jobs.
    #[arg(long, default_value_t = 5)]
    pub interval_ms: u64,
    /// Jobs at once.
    #[arg(long, default_value_t = 50)]
    pub concurrency: usize,
}

/// Options of `produce`.
#[derive(Debug, Args)]
pub struct Produce {
    /// How many jobs.
    pub n: u64,
    /// Pause between two jobs.
    #[arg(long, default_value_t = 5)]
    pub interval_ms: u64,
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
