//! What the adapters of all peers share. The contract is in docs/benchmarks.md, and its
//! types, payload and measures are our own adapter's.

#[path = "../../src/contract.rs"]
pub mod contract;

use std::{
    collections::HashMap,
    error::Error,
    future::Future,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use contract::{Answer, Payload, Window, epoch_ms, percentile};

/// Anything that ends a run.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// `adapter VERB N [--option value]…`.
pub struct Call {
    pub verb: String,
    pub n: u64,
    options: HashMap<String, String>,
    pub redis_url: String,
    pub queue: String,
}

impl Call {
    /// Reads arguments and environment.
    pub fn read() -> Self {
        let mut arguments = std::env::args().skip(1);
        let verb = arguments.next().unwrap_or_default();
        let n = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut options = HashMap::new();
        while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
            options.insert(name.trim_start_matches("--").to_owned(), value);
        }
        let var = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let redis_url = var("REDIS_URL", "redis://127.0.0.1:6379");
        Self { verb, n, options, redis_url, queue: var("BENCH_QUEUE", "bench") }
    }

    /// An option, if it was given and can be read.
    pub fn option<T: FromStr>(&self, name: &str) -> Option<T> {
        self.options.get(name)?.parse().ok()
    }

    /// Jobs at once.
    pub fn concurrency(&self) -> usize {
        self.option("concurrency").unwrap_or(50)
    }

    /// Whether each job is a call of its own.
    pub fn is_single(&self) -> bool {
        self.option::<String>("mode").is_some_and(|mode| mode == "single")
    }

    /// Pause between two jobs of `latency`, ms.
    fn interval_ms(&self) -> u64 {
        self.option("interval-ms").unwrap_or(5)
    }
}

/// How long jobs waited, ms.
#[derive(Clone, Default)]
pub struct Waits(Arc<Mutex<Vec<f64>>>);

impl Waits {
    pub fn note(&self, added_at: f64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(epoch_ms() - added_at);
    }

    /// Adds them to an answer.
    pub fn into_answer(self, answer: Answer) -> Answer {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waits.sort_by(f64::total_cmp);
        let at = |share: f64| percentile(&waits, share);
        Answer { p50_ms: at(0.5), p99_ms: at(0.99), max_ms: waits.last().copied(), ..answer }
    }
}

/// Starts the producer of `latency`, this program with the verb `produce`.
pub fn spawn_producer(call: &Call) -> Result<std::process::Child, BoxError> {
    Ok(std::process::Command::new(std::env::current_exe()?)
        .args(["produce", &call.n.to_string(), "--interval-ms", &call.interval_ms().to_string()])
        .stdout(std::process::Stdio::null())
        .spawn()?)
}

/// Calls `add` for each payload at the interval asked for.
pub async fn produce<F: Future<Output = Result<(), BoxError>>>(
    call: &Call,
    mut add: impl FnMut(Payload) -> F,
) -> Result<Answer, BoxError> {
    let window = Window::open()?;
    let mut beat = tokio::time::interval(Duration::from_millis(call.interval_ms().max(1)));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for i in 0..call.n {
        beat.tick().await;
        add(Payload::new(i)).await?;
    }
    Ok(window.close(call.n)?)
}

/// Prints the answer.
pub fn answer(adapter: &str, answer: Answer) -> Result<(), BoxError> {
    println!("{}", serde_json::to_string(&Answer { adapter: adapter.to_owned(), ..answer })?);
    Ok(())
}
