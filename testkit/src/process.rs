//! A program under test: its lines captured, its end awaited, killed when dropped.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::sync::watch;

use crate::TestkitError;
use crate::child::{Guarded, spawn, tied};
use crate::wait::eventually;

/// Variables that a program under test inherits; no setting of the developer's shell reaches it.
const INHERITED: [&str; 8] =
    ["PATH", "HOME", "TMPDIR", "LANG", "USER", "RUST_BACKTRACE", "LLVM_PROFILE_FILE", "LD_LIBRARY_PATH"];

/// Arguments and environment of a [`WorkerProcess`] to be started.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `start`"]
pub struct WorkerProcessBuilder {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl WorkerProcessBuilder {
    /// One more argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// One environment variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it. Must be called within a Tokio runtime, which reads its output.
    ///
    /// # Errors
    /// [`TestkitError::Missing`] when the program does not exist, [`TestkitError::Spawn`] when it cannot be
    /// started.
    pub fn start(self) -> Result<WorkerProcess, TestkitError> {
        if !self.program.is_file() {
            return Err(TestkitError::Missing {
                what: self.program.display().to_string(),
                looked: "that path".into(),
                remedy: "build it first: cargo build --workspace",
            });
        }
        let name =
            self.program.file_name().map_or_else(|| "program".into(), |n| n.to_string_lossy().into_owned());
        let mut command = tied(&self.program, "KILL", None)?;
        command.args(&self.args).env_clear();
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(self.env);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(&name, command)?;
        let lines = Lines::default();
        let fail = |source| TestkitError::Spawn { what: name.clone(), source };
        if let Some(out) = child.stdout.take() {
            lines.follow(Stream::Out, ChildStdout::from_std(out).map_err(fail)?);
        }
        if let Some(err) = child.stderr.take() {
            lines.follow(Stream::Err, ChildStderr::from_std(err).map_err(fail)?);
        }
        Ok(WorkerProcess { process: Guarded::adopt(&name, child), name, lines })
    }
}

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// One line of a program's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it was written.
    pub stream: Stream,
    /// Without the line end.
    pub text: String,
}

/// How long the last lines of a program that has ended may take; a grandchild may keep its output open.
const LAST_LINES: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Default)]
struct Lines {
    read: Arc<Mutex<Vec<Line>>>,
    /// Streams that are not at their end.
    open: watch::Sender<usize>,
}

impl Lines {
    fn follow(&self, stream: Stream, source: impl AsyncRead + Unpin + Send + 'static) {
        let lines = self.clone();
        self.open.send_modify(|open| *open += 1);
        // Ends with the program's output, at the latest with the runtime.
        tokio::spawn(async move {
            let mut source = BufReader::new(source).lines();
            while let Ok(Some(text)) = source.next_line().await {
                lines.read.lock().unwrap_or_else(PoisonError::into_inner).push(Line { stream, text });
            }
            lines.open.send_modify(|open| *open -= 1);
        });
    }

    fn are_complete(&self) -> bool {
        *self.open.borrow() == 0
    }

    async fn complete(&self) {
        let mut open = self.open.subscribe();
        // What a grandchild still writes is not waited for.
        let _ = tokio::time::timeout(LAST_LINES, open.wait_for(|open| *open == 0)).await;
    }

    fn all(&self) -> Vec<Line> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A running program. SIGKILLed on drop, and when the test process dies.
#[derive(Debug)]
pub struct WorkerProcess {
    process: Guarded,
    name: String,
    lines: Lines,
}

impl WorkerProcess {
    /// A program to be started, with an environment cleared of everything but PATH and the like.
    pub fn builder(program: impl AsRef<Path>) -> WorkerProcessBuilder {
        WorkerProcessBuilder { program: program.as_ref().into(), args: Vec::new(), env: Vec::new() }
    }

    /// Process id; valid until it has ended.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// All lines so far, in the order in which they were read.
    pub fn lines(&self) -> Vec<Line> {
        self.lines.all()
    }

    /// Exit status, `None` while it runs.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// The first line that contains `part`, old ones included.
    ///
    /// # Errors
    /// [`TestkitError::Timeout`] with the last lines, [`TestkitError::Failed`] when it ended without one.
    pub async fn wait_line(&self, part: &str, within: Duration) -> Result<String, TestkitError> {
        let what = format!("a line of {} with {part:?}", self.name);
        let found = eventually(&what, within, || async {
            let ended = self.exited().filter(|_| self.lines.are_complete());
            match (self.lines().into_iter().find(|line| line.text.contains(part)), ended) {
                (Some(line), _) => Ok(Ok(line.text)),
                (None, Some(status)) => Ok(Err(status)),
                (None, _) => Err(self.tail()),
            }
        })
        .await?;
        found.map_err(|status| {
            let detail = format!("ended ({status}) without a line with {part:?}\n{}", self.tail());
            TestkitError::Failed { what: self.name.clone(), detail }
        })
    }

    /// SIGTERM: the order to drain and end.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when it has ended already.
    pub fn sigterm(&self) -> Result<(), TestkitError> {
        self.process.signal("TERM")
    }

    /// Any signal by name, for example `HUP` or `STOP`.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when it has ended already.
    pub fn signal(&self, name: &str) -> Result<(), TestkitError> {
        self.process.signal(name)
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&self) {
        self.process.kill();
    }

    /// Its exit status; all its lines have been read then.
    ///
    /// # Errors
    /// [`TestkitError::Timeout`] with the last lines when it still runs.
    pub async fn wait(&self, within: Duration) -> Result<ExitStatus, TestkitError> {
        let ended = self.process.wait(within).await;
        if ended.is_ok() {
            self.lines.complete().await;
        }
        ended.map_err(|error| match error {
            TestkitError::Timeout { what, within, seen } => {
                TestkitError::Timeout { what, within, seen: format!("{seen}\n{}", self.tail()) }
            }
            other => other,
        })
    }

    fn tail(&self) -> String {
        let lines = self.lines();
        let tail: Vec<_> =
            lines[lines.len().saturating_sub(15)..].iter().map(|line| line.text.as_str()).collect();
        if tail.is_empty() { "no output".into() } else { tail.join("\n") }
    }
}
