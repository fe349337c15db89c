//! Requests and answers between this process and the side-car.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::oneshot;

use super::{BullVersion, NodeMpanel, NodeQueue, NodeSpan};
use crate::TestkitError;
use crate::child::{Guarded, find_program, spawn, tied};

/// Deadline of a request that waits for nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// What the side-car's own deadline gets on top before this side gives up.
pub(super) const GRACE: Duration = Duration::from_secs(5);

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/node");

type Answer = Result<Value, (String, String)>;

/// Handle to one Node process with bullmq in three versions, connected to one Redis.
///
/// Clones share the process; it ends with the last of them, or with the test process.
#[derive(Debug, Clone)]
pub struct NodeSidecar {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    process: Guarded,
    input: tokio::sync::Mutex<ChildStdin>,
    open: Arc<Open>,
    next: AtomicU64,
}

/// Requests without an answer, and what the process complained about.
#[derive(Debug, Default)]
struct Open {
    requests: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    complaints: Mutex<Vec<String>>,
}

#[derive(Deserialize)]
struct AnswerLine {
    id: u64,
    #[serde(default)]
    ok: Value,
    error: Option<NodeError>,
}

#[derive(Deserialize)]
struct NodeError {
    name: String,
    message: String,
}

impl NodeSidecar {
    /// Starts Node with the side-car script. Must be called within a Tokio runtime, which reads its answers.
    ///
    /// # Errors
    /// [`TestkitError::Missing`] without node or without the installed packages.
    pub async fn start(redis_url: &str) -> Result<Self, TestkitError> {
        let node = find_program("node", "install Node 20 or newer, with npm")?;
        let packages = Path::new(FOLDER).join("node_modules");
        if !packages.join("bullmq-6").is_dir() {
            return Err(TestkitError::Missing {
                what: "npm packages of the side-car".into(),
                looked: packages.display().to_string(),
                remedy: "run `make setup` or `npm ci` in testkit/node",
            });
        }
        let mut command = tied(&node, "KILL", None)?;
        command.arg("sidecar.mjs").arg(redis_url).current_dir(FOLDER);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn("node", command)?;
        let fail = |source| TestkitError::Spawn { what: "node".into(), source };
        let no_pipe = || fail(std::io::Error::other("a pipe is missing"));
        let input = ChildStdin::from_std(child.stdin.take().ok_or_else(no_pipe)?).map_err(fail)?;
        let output = ChildStdout::from_std(child.stdout.take().ok_or_else(no_pipe)?).map_err(fail)?;
        let errors = ChildStderr::from_std(child.stderr.take().ok_or_else(no_pipe)?).map_err(fail)?;

        let open = Arc::new(Open { requests: Mutex::new(Some(HashMap::new())), ..Open::default() });
        // Both readers end with the process's output.
        tokio::spawn(read_complaints(errors, Arc::clone(&open)));
        tokio::spawn(read_answers(output, Arc::clone(&open)));
        let shared = Shared {
            process: Guarded::adopt("node side-car", child),
            input: tokio::sync::Mutex::new(input),
            open,
            next: AtomicU64::new(1),
        };
        let sidecar = Self { shared: Arc::new(shared) };
        sidecar.call::<Value>("hello", Map::new(), PATIENCE).await?;
        Ok(sidecar)
    }

    /// A queue as the given bullmq release sees it, under the prefix `bull`.
    pub fn queue(&self, version: BullVersion, name: &str) -> NodeQueue {
        NodeQueue::new(self.clone(), version, name)
    }

    /// mPanel's producer on the given bullmq release.
    pub fn mpanel(&self, version: BullVersion) -> NodeMpanel {
        NodeMpanel::new(self.clone(), version)
    }

    /// Lets every job go on that holds at `gate`, now and later.
    ///
    /// # Errors
    /// [`TestkitError::Timeout`] or [`TestkitError::Failed`] when the side-car does not answer.
    pub async fn release(&self, gate: &str) -> Result<(), TestkitError> {
        let body = fields(json!({"gate": gate}));
        self.call("release", body, PATIENCE).await
    }

    /// Closes everything that was opened, workers first; waits for their running jobs unless `force`.
    ///
    /// # Errors
    /// As for every request; [`TestkitError::Timeout`] when a job does not end.
    pub async fn close_all(&self, force: bool) -> Result<(), TestkitError> {
        let body = fields(json!({"force": force}));
        self.call("closeAll", body, PATIENCE).await
    }

    /// The spans that queues and workers with telemetry have ended so far.
    ///
    /// # Errors
    /// As for every request.
    pub async fn spans(&self) -> Result<Vec<NodeSpan>, TestkitError> {
        self.call("spans", Map::new(), PATIENCE).await
    }

    /// Process id of Node.
    pub fn pid(&self) -> u32 {
        self.shared.process.pid()
    }

    /// SIGKILL: Node workers die in the middle of their jobs.
    pub fn kill9(&self) {
        self.shared.process.kill();
    }

    /// Any signal by name, for example `STOP`.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when it has ended.
    pub fn signal(&self, name: &str) -> Result<(), TestkitError> {
        self.shared.process.signal(name)
    }

    /// What Node wrote to standard error so far.
    pub fn complaints(&self) -> Vec<String> {
        self.shared.open.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One request of `testkit/node/ops.mjs` and its answer.
    ///
    /// # Errors
    /// [`TestkitError::Node`] when the operation threw, [`TestkitError::Answer`] when the answer is not a `T`,
    /// [`TestkitError::Timeout`] or [`TestkitError::Failed`] when none came.
    pub async fn call<T: DeserializeOwned>(
        &self,
        op: &str,
        mut body: Map<String, Value>,
        within: Duration,
    ) -> Result<T, TestkitError> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        body.insert("id".into(), id.into());
        body.insert("op".into(), op.into());
        let line = format!("{}\n", Value::Object(body));
        let (send, answered) = oneshot::channel();
        match &mut *self.shared.open.requests.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(requests) => requests.insert(id, send),
            None => return Err(self.ended(op)),
        };
        let exchange = async {
            let sent = self.shared.input.lock().await.write_all(line.as_bytes()).await;
            if sent.is_err() {
                return Err(self.ended(op));
            }
            answered.await.map_err(|_| self.ended(op))
        };
        let answer = tokio::time::timeout(within, exchange).await.map_err(|_| TestkitError::Timeout {
            what: format!("answer of node to {op}"),
            within,
            seen: self.complaints().join("\n"),
        })??;
        let value = answer.map_err(|(name, message)| TestkitError::Node { op: op.into(), name, message })?;
        serde_json::from_value(value).map_err(|source| TestkitError::Answer { op: op.into(), source })
    }

    fn ended(&self, op: &str) -> TestkitError {
        let detail = format!("the side-car has ended\n{}", self.complaints().join("\n"));
        TestkitError::Failed { what: format!("node {op}"), detail }
    }
}

/// The fields of a JSON object literal.
pub(super) fn fields(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

async fn read_answers(output: ChildStdout, open: Arc<Open>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(answer) = serde_json::from_str::<AnswerLine>(&line) else {
            open.complain(format!("not an answer: {line}"));
            continue;
        };
        let waiting = open
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .and_then(|r| r.remove(&answer.id));
        if let Some(waiting) = waiting {
            let result = answer.error.map_or(Ok(answer.ok), |error| Err((error.name, error.message)));
            // The asker may have given up.
            let _ = waiting.send(result);
        }
    }
    // Dropping the senders tells every asker that there will be no answer.
    *open.requests.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

async fn read_complaints(errors: ChildStderr, open: Arc<Open>) {
    let mut lines = BufReader::new(errors).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        open.complain(line);
    }
}

impl Open {
    /// Keeps the newest hundred.
    fn complain(&self, line: String) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.len() >= 100 {
            complaints.remove(0);
        }
        complaints.push(line);
    }
}
