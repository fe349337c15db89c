//! Starting an adapter and reading its answer. An adapter ends with this process,
//! even when that is killed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use mpanel_testkit::{WorkerProcess, process::Stream};

use crate::{BoxError, contract::Answer};

/// Longest run of one verb.
const PATIENCE: Duration = Duration::from_secs(600);

/// First argument by which the benchmark's own program becomes our adapter: `cargo run` builds no other.
pub const AS_ADAPTER: &str = "adapter";

/// The queue of every run.
pub const QUEUE: &str = "bench";

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// npm bullmq.
    Node,
    /// mpanel-fleet.
    Fleet,
}

/// One executable that keeps the contract.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Whose.
    pub side: Side,
    /// Name and version as it gives them itself.
    pub name: String,
    program: PathBuf,
    first: Vec<String>,
    env: Vec<(String, String)>,
}

impl Adapter {
    /// npm bullmq under its alias in `testkit/node/package.json`.
    ///
    /// # Errors
    /// Without node or the installed packages.
    pub async fn node(alias: &str, redis_url: &str) -> Result<Self, BoxError> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        if !here.join("../testkit/node/node_modules").join(alias).is_dir() {
            return Err(format!(
                "{alias} is not installed in testkit/node; run: make setup (or npm ci there)"
            )
            .into());
        }
        let program = on_path("node").ok_or("node is missing; install Node 20 or newer, with npm")?;
        let first = vec![here.join("node/adapter.mjs").display().to_string()];
        Self::known(Side::Node, program, first, redis_url, &[("BENCH_BULLMQ", alias)]).await
    }

    /// This program, as our adapter.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn fleet(redis_url: &str) -> Result<Self, BoxError> {
        let program = std::env::current_exe()?;
        Self::known(Side::Fleet, program, vec![AS_ADAPTER.to_owned()], redis_url, &[]).await
    }

    async fn known(
        side: Side,
        program: PathBuf,
        first: Vec<String>,
        redis_url: &str,
        env: &[(&str, &str)],
    ) -> Result<Self, BoxError> {
        let own = [("REDIS_URL", redis_url), ("BENCH_QUEUE", QUEUE)];
        let env = own.iter().chain(env).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut adapter = Self { side, name: String::new(), program, first, env };
        adapter.name = adapter.run("version", 0, &[]).await?.adapter;
        Ok(adapter)
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
        let call = format!("{:?} {verb} {n} {}", self.side, options.join(" "));
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
