//! Nothing outlives the test process, however it ends.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::path::Path;
use std::time::Duration;

use mpanel_testkit::{NodeSidecar, Postgres, RedisServer, WorkerProcess, eventually};

const HELPER: &str = "FLEET_TESTKIT_HELPER";

/// Not a test of its own: the body of the process that the tests below start and end.
#[tokio::test]
async fn helper_process() {
    let Ok(mode) = std::env::var(HELPER) else { return };
    let redis = RedisServer::start().await.unwrap();
    let node = NodeSidecar::start(&redis.url()).await.unwrap();
    let postgres = Postgres::shared().await.unwrap();
    println!("started redis={} node={} postgres={}", redis.pid().unwrap(), node.pid(), postgres.port());
    if mode == "wait" {
        std::future::pending::<()>().await;
    }
}

fn helper(mode: &str, temp: &Path) -> WorkerProcess {
    WorkerProcess::builder(std::env::current_exe().unwrap())
        .args(["--exact", "helper_process", "--nocapture"])
        .env(HELPER, mode)
        .env("TMPDIR", temp.to_str().unwrap())
        .start()
        .unwrap()
}

/// Processes whose command line names the directory, and what is left in it.
fn left_in(temp: &Path) -> Vec<String> {
    let needle = temp.to_str().unwrap();
    let mut left: Vec<String> =
        std::fs::read_dir(temp).unwrap().map(|entry| entry.unwrap().path().display().to_string()).collect();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(needle) {
            left.push(line);
        }
    }
    left
}

/// A directory that the account of Postgres can enter.
fn open_temp_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

async fn nothing_is_left(temp: &Path, started: &str) {
    // Redis overwrites its command line, and Node's does not name the directory: these two by pid.
    let pids = ["redis=", "node="].map(|name| started.split(name).nth(1).unwrap().split(' ').next().unwrap());
    eventually("an empty temp dir and no process", Duration::from_secs(10), || async {
        let mut left = left_in(temp);
        left.extend(
            pids.iter().filter(|pid| Path::new("/proc").join(pid).exists()).map(|pid| format!("pid {pid}")),
        );
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn servers_of_a_killed_test_process_end_and_leave_no_files() {
    let temp = open_temp_dir();
    let helper = helper("wait", temp.path());
    let started = helper.wait_line("started ", Duration::from_secs(60)).await.unwrap();
    assert!(left_in(temp.path()).len() >= 4, "{:?}", left_in(temp.path()));
    helper.kill9();
    nothing_is_left(temp.path(), &started).await;
}

#[tokio::test]
async fn servers_of_a_finished_test_process_end_and_leave_no_files() {
    let temp = open_temp_dir();
    let helper = helper("finish", temp.path());
    let started = helper.wait_line("started ", Duration::from_secs(60)).await.unwrap();
    assert!(helper.wait(Duration::from_secs(10)).await.unwrap().success());
    nothing_is_left(temp.path(), &started).await;
}
