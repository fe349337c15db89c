//! What the adapters of all peers share. The contract is in docs/benchmarks.md, and its
//! types, payload and measures are our own adapter's.

#[path = "../../src/contract.rs"]
pub mod contract;
#[path = "../../src/serve.rs"]
pub mod serve;

use std::{
    collections::HashMap,
    error::Error,
    future::Future,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use contract::{Answer, Payload, Window, epoch_ms};

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

    /// How jobs are put into calls.
    pub fn mode(&self) -> Mode {
        match self.option::<String>("mode").as_deref() {
            Some("single") => Mode::Single,
            Some("pipelined") => Mode::Pipelined,
            _ => Mode::Bulk,
        }
    }

    /// Callers of `--mode single`.
    fn window(&self) -> u64 {
        self.option("window").unwrap_or(200)
    }

    /// Jobs of a bulk, calls of a burst.
    pub fn batch(&self) -> u64 {
        self.option("batch").unwrap_or(1000)
    }

    /// Whether nothing is measured: the jobs need only be ready to be taken.
    pub fn is_preload(&self) -> bool {
        self.option::<u8>("preload") == Some(1)
    }

    /// The queues of `--queues`.
    pub fn queues(&self) -> Vec<String> {
        match self.option::<u64>("queues") {
            None => vec![self.queue.clone()],
            Some(count) => (0..count).map(|i| format!("{}-{i}", self.queue)).collect(),
        }
    }

    /// Pause between two jobs of `latency`, ms.
    fn interval_ms(&self) -> u64 {
        self.option("interval-ms").unwrap_or(5)
    }
}

/// How `enqueue` puts jobs into calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Many jobs a call.
    Bulk,
    /// One call a job, from many callers.
    Single,
    /// One call a job; many calls are started together and awaited together.
    Pipelined,
}

/// The indices of the `n` jobs, in batches.
pub fn batches(n: u64, batch: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    let batch = batch.max(1);
    (0..n.div_ceil(batch)).map(move |k| k * batch..n.min((k + 1) * batch))
}

/// Adds all jobs by one call each, as the mode wants it; `add` is given the job's number.
pub async fn add_each<F: Future<Output = Result<(), BoxError>>>(
    call: &Call,
    add: impl Fn(u64) -> F,
) -> Result<(), BoxError> {
    let add = &add;
    if call.mode() == Mode::Pipelined {
        for batch in batches(call.n, call.batch()) {
            futures_util::future::try_join_all(batch.map(add)).await?;
        }
        return Ok(());
    }
    let next = &AtomicU64::new(0);
    let callers = (0..call.window().max(1)).map(|_| async move {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= call.n {
                return Ok::<_, BoxError>(());
            }
            add(i).await?;
        }
    });
    futures_util::future::try_join_all(callers).await.map(drop)
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
        let waits = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        answer.with_waits(waits)
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
