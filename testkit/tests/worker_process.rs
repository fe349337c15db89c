//! Programs under test: lines, signals, end. A shell stands in for the worker.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use mpanel_testkit::process::Stream;
use mpanel_testkit::{TestkitError, WorkerProcess};

const SOON: Duration = Duration::from_secs(10);

fn shell(script: &str) -> WorkerProcess {
    WorkerProcess::builder("/bin/sh").args(["-c", script]).env("FLEET_X", "from the test").start().unwrap()
}

#[tokio::test]
async fn lines_of_both_streams_are_captured() {
    let process = shell("echo out $FLEET_X; echo err >&2; exec sleep 30");
    assert_eq!(process.wait_line("out", SOON).await.unwrap(), "out from the test");
    process.wait_line("err", SOON).await.unwrap();
    let lines = process.lines();
    assert!(lines.iter().any(|line| line.stream == Stream::Out && line.text.starts_with("out")));
    assert!(lines.iter().any(|line| line.stream == Stream::Err && line.text == "err"));
}

#[tokio::test]
async fn sigterm_reaches_the_program_itself() {
    let process = shell("trap 'echo draining; exit 7' TERM; echo ready; while :; do sleep 0.05; done");
    process.wait_line("ready", SOON).await.unwrap();
    process.sigterm().unwrap();
    process.wait_line("draining", SOON).await.unwrap();
    assert_eq!(process.wait(SOON).await.unwrap().code(), Some(7));
    assert!(process.sigterm().is_err());
}

#[tokio::test]
async fn kill9_ends_it_at_once() {
    let process = shell("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    process.wait_line("ready", SOON).await.unwrap();
    process.kill9();
    assert_eq!(process.exited().unwrap().signal(), Some(9));
}

#[tokio::test]
async fn waiting_for_a_line_of_an_ended_program_says_what_it_wrote() {
    let process = shell("echo cannot reach redis >&2; exit 69");
    let error = process.wait_line("ready", SOON).await.unwrap_err();
    assert!(matches!(error, TestkitError::Failed { .. }));
    assert!(error.to_string().contains("cannot reach redis") && error.to_string().contains("69"), "{error}");
}

#[tokio::test]
async fn a_program_that_was_not_built_is_named() {
    let error = WorkerProcess::builder("/nowhere/mpanel-worker").start().unwrap_err();
    assert!(error.to_string().contains("cargo build"), "{error}");
}
