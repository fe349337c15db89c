//! npm bullmq in a process of its own that answers scenario after scenario. It must
//! not know ours: what it says is the truth we are compared with.

use std::{path::Path, process::Stdio};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{ChildStdin, ChildStdout},
};

use super::{js, scenario::Golden};
use crate::{
    TestkitError,
    child::{Guarded, find_program, spawn, tied},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/node");

/// One Node process that runs scenarios on one database, as one version.
#[derive(Debug)]
pub struct Oracle {
    url: String,
    version: String,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    _guard: Guarded,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

fn failed(why: impl std::fmt::Display) -> TestkitError {
    TestkitError::failed("ask the oracle", why.to_string())
}

impl Process {
    fn start(url: &str, version: &str) -> Result<Self, TestkitError> {
        let node = find_program("node", "install Node 20 or newer, with npm")?;
        let mut command = tied(&node, "KILL", None)?;
        command.arg(Path::new(FOLDER).join("oracle-server.mjs")).args([url, version]).current_dir(FOLDER);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = spawn("node", command)?;
        let no_pipe = || failed("a pipe is missing");
        let input = ChildStdin::from_std(child.stdin.take().ok_or_else(no_pipe)?).map_err(failed)?;
        let output = ChildStdout::from_std(child.stdout.take().ok_or_else(no_pipe)?).map_err(failed)?;
        Ok(Self { _guard: Guarded::adopt("oracle", child), input, output: BufReader::new(output).lines() })
    }
}

impl Oracle {
    /// An oracle for `version` on the database at `url`; its process starts with the first scenario.
    #[must_use]
    pub fn new(url: String, version: &str) -> Self {
        Self { url, version: version.to_owned(), process: None }
    }

    /// What npm bullmq does with a scenario; `None` where it gave up.
    ///
    /// # Errors
    /// When node fails.
    ///
    /// # Cancel safety
    /// Not cancel safe: a dropped call leaves its answer in the pipe.
    pub async fn run(&mut self, scenario: &Value) -> Result<Option<Golden>, TestkitError> {
        let process = match &mut self.process {
            Some(process) => process,
            none => none.insert(Process::start(&self.url, &self.version)?),
        };
        process.input.write_all(format!("{scenario}\n").as_bytes()).await.map_err(failed)?;
        let line = process.output.next_line().await.map_err(failed)?;
        let line = line.ok_or_else(|| failed("it ended without an answer"))?;
        let golden: Option<Golden> = js::parse(&line).map_err(failed)?;
        if golden.is_none() {
            // What a scenario without an end left running must not reach the next one.
            self.process = None;
        }
        Ok(golden)
    }
}
