//! Starting an adapter and reading its answer. An adapter ends with this process,
//! even when that is killed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use mpanel_testkit::{
    WorkerProcess,
    process::{Stream, WorkerProcessBuilder},
};

use crate::{
    BoxError,
    contract::Answer,
    sides::{Side, Start},
};

/// Longest run of one verb.
const PATIENCE: Duration = Duration::from_secs(900);
/// Longest start of a process that serves.
const STARTING: Duration = Duration::from_secs(60);

/// First argument by which the benchmark's own program becomes an adapter: ours, or the
/// ceiling's. `cargo run` builds no other.
pub const AS_ADAPTER: &str = "adapter";
/// See [`AS_ADAPTER`].
pub const AS_CEILING: &str = "ceiling";

/// The queue of every run; several are `bench-0`, `bench-1`, …
pub const QUEUE: &str = "bench";

/// One executable that keeps the contract.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Whose.
    pub side: &'static Side,
    /// Name and version as it gives them itself.
    pub name: String,
    program: PathBuf,
    first: Vec<String>,
    env: Vec<(String, String)>,
}

impl Adapter {
    /// The adapter of one side.
    ///
    /// # Errors
    /// Without what it needs; the text says what to run.
    pub async fn open(side: &'static Side, redis_url: &str) -> Result<Self, BoxError> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let key = side.key;
        let (program, first) = match side.start {
            Start::Own(first) => (std::env::current_exe()?, vec![first.to_owned()]),
            Start::Node => {
                if !here.join("../testkit/node/node_modules").join(key).is_dir() {
                    let why = format!("{key} is not installed in testkit/node; run: make setup");
                    return Err(why.into());
                }
                let node = on_path("node").ok_or("node is missing; install Node 20 or newer, with npm")?;
                (node, vec![here.join("node/adapter.mjs").display().to_string()])
            }
            Start::Crate => {
                let program = here.join("peers/target/release").join(key);
                if !program.is_file() {
                    let why = format!("{key} is not built; run: make bench (it builds bench/peers)");
                    return Err(why.into());
                }
                (program, Vec::new())
            }
        };
        let env = [("REDIS_URL", redis_url), ("BENCH_QUEUE", QUEUE), ("BENCH_BULLMQ", key)];
        let env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        let mut adapter = Self { side, name: String::new(), program, first, env };
        adapter.name = adapter.run("version", 0, &[]).await?.adapter;
        Ok(adapter)
    }

    fn builder(&self, verb: &str, n: u64, options: &[String]) -> WorkerProcessBuilder {
        let mut builder = WorkerProcess::builder(&self.program).args(self.first.clone());
        builder = builder.arg(verb).arg(n.to_string()).args(options.to_vec());
        for (name, value) in &self.env {
            builder = builder.env(name, value);
        }
        builder
    }

    /// Runs one verb to its end.
    ///
    /// # Errors
    /// When it fails, or answers in another form than the contract's.
    pub async fn run(&self, verb: &str, n: u64, options: &[String]) -> Result<Answer, BoxError> {
        let process = self.builder(verb, n, options).start()?;
        let call = format!("{} {verb} {n} {}", self.side.key, options.join(" "));
        answer(&process, &call, PATIENCE).await
    }

    /// A process with the verb `serve`, connected and ready to begin.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn serve(&self, options: &[String]) -> Result<Served, BoxError> {
        let process = self.builder("serve", 0, options).start()?;
        let call = format!("{} serve {}", self.side.key, options.join(" "));
        process.wait_line("\"ready\"", STARTING).await.map_err(|e| format!("{call}: {e}"))?;
        Ok(Served { process, call })
    }
}

/// A worker process that is steered.
#[derive(Debug)]
pub struct Served {
    process: WorkerProcess,
    call: String,
}

impl Served {
    /// Begins.
    ///
    /// # Errors
    /// When it has ended.
    pub fn go(&self) -> Result<(), BoxError> {
        Ok(self.process.signal("USR2")?)
    }

    /// Orders it to end.
    ///
    /// # Errors
    /// When it has ended.
    pub fn end(&self) -> Result<(), BoxError> {
        Ok(self.process.sigterm()?)
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.exited().is_none()
    }

    /// What it says at its end.
    ///
    /// # Errors
    /// When it fails, or answers in another form than the contract's.
    pub async fn answer(&self) -> Result<Answer, BoxError> {
        answer(&self.process, &self.call, STARTING).await
    }
}

async fn answer(process: &WorkerProcess, call: &str, within: Duration) -> Result<Answer, BoxError> {
    // The answer comes last, so it ends the wait sooner than polling for the end would.
    let line = process.wait_line("\"adapter\"", within).await.map_err(|e| format!("{call}: {e}"))?;
    let status = process.wait(STARTING).await?;
    if !status.success() {
        return Err(format!("{call}: {status}").into());
    }
    for complaint in process.lines().iter().filter(|l| l.stream == Stream::Err).take(5) {
        crate::report::progress(&format!("{call}: {}", complaint.text));
    }
    Ok(serde_json::from_str(&line).map_err(|e| format!("{call}: {e}: {line}"))?)
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
