//! Starting an adapter and reading its answer. An adapter ends with this process,
//! even when that is killed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use mpanel_testkit::{WorkerProcess, process::Stream};

use crate::{BoxError, cases::Case, contract::Answer};

/// Longest run of one verb.
const PATIENCE: Duration = Duration::from_secs(600);

/// First argument by which the benchmark's own program becomes an adapter: ours, or the
/// ceiling's. `cargo run` builds no other.
pub const AS_ADAPTER: &str = "adapter";
/// See [`AS_ADAPTER`].
pub const AS_CEILING: &str = "ceiling";

/// The queue of every run.
pub const QUEUE: &str = "bench";

/// Key of our side.
pub const FLEET: &str = "fleet";
/// Key of the bare ceiling.
pub const CEILING: &str = "ceiling";
/// Key of npm bullmq 5.81.5; other versions have theirs.
pub const NODE: &str = "bullmq-5";
/// Key of the crate bullmq-official.
pub const OFFICIAL: &str = "bullmq-official";

/// All sides, in the order of the tables.
pub const SIDES: [&str; 6] = [FLEET, CEILING, "bullmq-5.28", NODE, "bullmq-6", OFFICIAL];

/// One executable that keeps the contract.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Whose: one of [`SIDES`].
    pub key: String,
    /// Name and version as it gives them itself.
    pub name: String,
    verbs: &'static [&'static str],
    program: PathBuf,
    first: Vec<String>,
    env: Vec<(String, String)>,
}

impl Adapter {
    /// The adapter of one side.
    ///
    /// # Errors
    /// Without what it needs; the text says what to run.
    pub async fn open(key: &str, redis_url: &str) -> Result<Self, BoxError> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let own = |first: &str| Ok((std::env::current_exe()?, vec![first.to_owned()]));
        let (program, first) = match key {
            FLEET => own(AS_ADAPTER),
            CEILING => own(AS_CEILING),
            "bullmq-5.28" | NODE | "bullmq-6" => {
                if !here.join("../testkit/node/node_modules").join(key).is_dir() {
                    let why = format!("{key} is not installed in testkit/node; run: make setup");
                    return Err(why.into());
                }
                let node = on_path("node").ok_or("node is missing; install Node 20 or newer, with npm")?;
                Ok((node, vec![here.join("node/adapter.mjs").display().to_string()]))
            }
            _ => {
                let program = here.join("peers/target/release").join(key);
                if !program.is_file() {
                    let why = format!("{key} is not built; run: make bench (it builds bench/peers)");
                    return Err(why.into());
                }
                Ok::<_, BoxError>((program, Vec::new()))
            }
        }?;
        let verbs: &[&str] = match key {
            CEILING => &["enqueue", "drain"],
            _ => &["enqueue", "drain", "retry", "latency"],
        };
        let env = [("REDIS_URL", redis_url), ("BENCH_QUEUE", QUEUE), ("BENCH_BULLMQ", key)];
        let env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        let mut adapter = Self { key: key.to_owned(), name: String::new(), verbs, program, first, env };
        adapter.name = adapter.run("version", 0, &[]).await?.adapter;
        Ok(adapter)
    }

    /// Whether it has the case's verb.
    #[must_use]
    pub fn serves(&self, case: &Case) -> bool {
        self.verbs.contains(&case.verb)
    }

    /// Runs one verb to its end.
    ///
    /// # Errors
    /// When it fails, or answers in another form than the contract's.
    pub async fn run(&self, verb: &str, n: u64, options: &[String]) -> Result<Answer, BoxError> {
        let mut builder = WorkerProcess::builder(&self.program).args(self.first.clone());
        builder = builder.arg(verb).arg(n.to_string()).args(options.to_vec());
        for (name, value) in &self.env {
            builder = builder.env(name, value);
        }
        let process = builder.start()?;
        let call = format!("{} {verb} {n} {}", self.key, options.join(" "));
        // The answer comes last, so it ends the wait sooner than polling for the end would.
        let line = process.wait_line("\"adapter\"", PATIENCE).await.map_err(|e| format!("{call}: {e}"))?;
        let status = process.wait(Duration::from_secs(30)).await?;
        if !status.success() {
            return Err(format!("{call}: {status}").into());
        }
        for complaint in process.lines().iter().filter(|l| l.stream == Stream::Err).take(5) {
            crate::report::progress(&format!("{call}: {}", complaint.text));
        }
        Ok(serde_json::from_str(&line).map_err(|e| format!("{call}: {e}: {line}"))?)
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
