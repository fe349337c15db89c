//! Machines whose clocks are an hour apart agree on when a job is due: everyone
//! goes by the Redis server's time (decision 12).
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::{Duration, SystemTime};

use common::{Bench, PATIENCE, completed, echo};
use mpanel_engine::{Engine, admin::Counts};
use mpanel_producer::{EnqueueOptions, Producer};
use mpanel_protocol::ids::JobId;
use mpanel_testkit::WorkerProcess;
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(400);

/// This test binary once more, on a machine whose clock is off.
fn process(bench: &Bench, test: &str, shift: &str) -> WorkerProcess {
    WorkerProcess::builder("/usr/bin/faketime")
        .args(["-f", shift])
        .arg(std::env::current_exe().unwrap().to_str().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("CLOCKS_REDIS", bench.server.url())
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_when_started_as_a_child() {
    let Ok(url) = std::env::var("CLOCKS_REDIS") else { return };
    println!("clock {}", SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs());
    let engine = Engine::connect(&url).await.unwrap();
    let _worker = engine.worker("q").unwrap().handle_any(echo()).start().unwrap();
    println!("serving");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_when_started_as_a_child() {
    let Ok(url) = std::env::var("CLOCKS_REDIS") else { return };
    let producer = Producer::connect(&url).await.unwrap();
    let soon = EnqueueOptions::new().delay(SOON);
    producer.queue("q").unwrap().enqueue("a", &json!({}), soon).await.unwrap();
    println!("enqueued");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_due_when_the_server_says_so() {
    for (shift, producer_shift) in [("+3600s", "-3600s"), ("-3600s", "+3600s")] {
        let bench = Bench::start().await;
        let worker = process(&bench, "a_worker_when_started_as_a_child", shift);
        let line = worker.wait_line("clock ", PATIENCE).await.unwrap();
        let theirs: u64 = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        let ours = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(ours.abs_diff(theirs) > HOUR.as_secs() - 60, "the clock is not off: {ours} and {theirs}");
        worker.wait_line("serving", PATIENCE).await.unwrap();
        let producer = process(&bench, "a_producer_when_started_as_a_child", producer_shift);
        producer.wait_line("enqueued", PATIENCE).await.unwrap();
        bench.counts_become("q", completed(1)).await;
        let job = bench.job("q", &JobId::stored("1")).await;
        let now = u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
        let started = u64::try_from(job.processed_on_ms.unwrap()).unwrap();
        let created = u64::try_from(job.job.timestamp_ms).unwrap();
        assert!(
            now.abs_diff(created) < 60_000 && now.abs_diff(started) < 60_000,
            "{created} {started} {now}"
        );
        assert!(started - created >= 400, "not before it is due: {created} {started}");

        // The lock of a running job is no matter of clocks: nobody finds it stalled.
        bench.queue("q").enqueue("b", &json!({}), EnqueueOptions::new()).await.unwrap();
        bench.counts_become("q", Counts { completed: 2, ..Counts::default() }).await;
        assert!(bench.event_ids("q", "stalled").await.is_empty());
    }
}
