//! What the adapters of all peers share: options, payload, the timed window, the answer.
//! The contract is in docs/benchmarks.md.

use std::{
    collections::HashMap,
    error::Error,
    future::Future,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

/// Anything that ends a run.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The name of every job.
pub const JOB_NAME: &str = "noop";

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
}

/// The payload of every job, about 200 bytes as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Payload {
    pub i: u64,
    pub t: f64,
    pub pad: String,
}

impl Payload {
    /// Of job `i`, added now.
    pub fn new(i: u64) -> Self {
        Self { i, t: epoch_ms(), pad: "x".repeat(150) }
    }
}

/// Epoch milliseconds with fractions.
pub fn epoch_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

fn proc_self(file: &str) -> String {
    std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default()
}

/// CPU time of all threads, ms. The kernel counts it in ticks of 10 ms.
fn cpu_ms() -> f64 {
    let stat = proc_self("stat");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
    ticks.sum::<f64>() * 10.0
}

/// Resident memory, kB.
pub fn rss_kb() -> u64 {
    let status = proc_self("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// A timed window of the process.
pub struct Window {
    began: Instant,
    cpu_ms: f64,
}

impl Window {
    pub fn open() -> Self {
        Self { cpu_ms: cpu_ms(), began: Instant::now() }
    }

    pub fn close(&self, n: u64) -> Map<String, Value> {
        let wall_ms = self.began.elapsed().as_secs_f64() * 1000.0;
        let answer =
            json!({ "n": n, "wall_ms": wall_ms, "cpu_ms": cpu_ms() - self.cpu_ms, "rss_kb": rss_kb() });
        answer.as_object().cloned().unwrap_or_default()
    }
}

/// Counts completions; somebody waits for the last.
#[derive(Clone, Default)]
pub struct Finish {
    inner: Arc<(Mutex<u64>, Notify)>,
}

impl Finish {
    pub fn one(&self) {
        *self.inner.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.inner.1.notify_one();
    }

    pub async fn all(&self, n: u64) {
        loop {
            if *self.inner.0.lock().unwrap_or_else(PoisonError::into_inner) >= n {
                return;
            }
            self.inner.1.notified().await;
        }
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
    pub fn into_answer(self, mut answer: Map<String, Value>) -> Map<String, Value> {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waits.sort_by(f64::total_cmp);
        let at =
            |share: f64| waits.get(((waits.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied();
        for (name, value) in [("p50_ms", at(0.5)), ("p99_ms", at(0.99)), ("max_ms", waits.last().copied())] {
            answer.insert(name.to_owned(), json!(value));
        }
        answer
    }
}

/// Starts the producer of `latency`, this program with the verb `produce`.
pub fn spawn_producer(call: &Call) -> Result<std::process::Child, BoxError> {
    let interval = call.option::<u64>("interval-ms").unwrap_or(5).to_string();
    Ok(std::process::Command::new(std::env::current_exe()?)
        .args(["produce", &call.n.to_string(), "--interval-ms", &interval])
        .stdout(std::process::Stdio::null())
        .spawn()?)
}

/// Calls `add` for each payload at the interval asked for.
pub async fn produce<F: Future<Output = Result<(), BoxError>>>(
    call: &Call,
    mut add: impl FnMut(Payload) -> F,
) -> Result<Map<String, Value>, BoxError> {
    let window = Window::open();
    let interval = Duration::from_millis(call.option("interval-ms").unwrap_or(5).max(1));
    let mut beat = tokio::time::interval(interval);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for i in 0..call.n {
        beat.tick().await;
        add(Payload::new(i)).await?;
    }
    Ok(window.close(call.n))
}

/// Prints the answer.
pub fn answer(adapter: &str, mut answer: Map<String, Value>) {
    answer.insert("adapter".to_owned(), json!(adapter));
    println!("{}", Value::Object(answer));
}
