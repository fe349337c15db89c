//! Our side of the contract: the verbs, on the producer and engine crates as any
//! user of them would.

mod consume;
mod enqueue;
mod latency;
mod serve;

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
    /// Works from SIGUSR2 to SIGTERM; one of several processes. N is ignored.
    Serve(Drain),
    /// Measures N jobs from add to the handler's start.
    Latency(Latency),
    /// The producer of `latency`, in a process of its own.
    #[command(hide = true)]
    Produce(Produce),
}

/// How jobs are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One call a job, so many callers as the window is wide.
    Single,
    /// One call a job, so many as a batch has are started together and awaited together.
    Pipelined,
    /// Many jobs a call.
    Bulk,
}

/// Options of `enqueue`.
#[derive(Debug, Args)]
pub struct Enqueue {
    /// How many jobs.
    pub n: u64,
    /// How jobs are put into calls.
    #[arg(long, value_enum, default_value = "bulk")]
    pub mode: Mode,
    /// Jobs of a bulk call, or calls started together.
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
    /// Jobs are delayed by this time, ms.
    #[arg(long)]
    pub delay: Option<u64>,
    /// Job i has priority 1 + i modulo this number.
    #[arg(long)]
    pub priorities: Option<u32>,
    /// The jobs are flows: each parent with so many children, all in one queue.
    #[arg(long)]
    pub children: Option<u64>,
    /// Batches go to so many queues in turn, `NAME-0`, `NAME-1`, …; without it to `NAME`.
    #[arg(long)]
    pub queues: Option<u64>,
    /// 1: nothing is measured, the jobs need only be ready to be taken.
    #[arg(long, default_value_t = 0)]
    pub preload: u8,
}

/// Options of `drain`, `retry` and `serve`.
#[derive(Debug, Args)]
pub struct Drain {
    /// How many jobs.
    pub n: u64,
    /// Jobs at once, of each queue.
    #[arg(long, default_value_t = 50)]
    pub concurrency: usize,
    /// The worker says how many completed jobs stay.
    #[arg(long, default_value_t = 0)]
    pub keep: i64,
    /// Minutes of metrics that are kept.
    #[arg(long)]
    pub metrics: Option<u32>,
    /// Rate limit: so many starts a second.
    #[arg(long)]
    pub limit: Option<u32>,
    /// `serve`: so many queues, `NAME-0`, `NAME-1`, …; without it `NAME`.
    #[arg(long)]
    pub queues: Option<u64>,
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

/// The queues of `--queues`.
fn queue_names(cli: &Cli, queues: Option<u64>) -> Vec<String> {
    match queues {
        None => vec![cli.queue.clone()],
        Some(count) => (0..count).map(|i| format!("{}-{i}", cli.queue)).collect(),
    }
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
        Verb::Serve(options) => serve::serve(&cli, options).await?,
        Verb::Latency(options) => latency::latency(&cli, options).await?,
        Verb::Produce(options) => latency::produce(&cli, options).await?,
    };
    answer.adapter = concat!("mpanel-fleet ", env!("CARGO_PKG_VERSION")).to_owned();
    Ok(answer)
}
