//! Stopping: what runs may finish, what does not is given back, nothing gets stuck.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, Gate, PATIENCE, completed, echo};
use mpanel_engine::admin::Counts;
use mpanel_producer::{BulkJob, EnqueueOptions};
use mpanel_testkit::eventually;
use serde_json::json;

/// Well below the 5 s after which a sleeping worker looks by itself.
const SOON: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_finishes_what_runs_and_takes_nothing_new() {
    let bench = Bench::start().await;
    bench.queue("q").enqueue_bulk((0..3).map(|n| BulkJob::new("a", json!(n)))).await.unwrap();
    let gate = Gate::closed();
    let worker = bench.worker("q").concurrency(2).handle_any(gate.stubborn()).start().unwrap();
    gate.started(2).await;
    worker.pause();
    bench.queue("q").enqueue("late", &json!({}), EnqueueOptions::new()).await.unwrap();
    gate.open();
    let report = worker.stop(PATIENCE).await;
    assert_eq!(report.unfinished, 0);
    assert_eq!(gate.count(), 2);
    bench.counts_become("q", Counts { completed: 2, waiting: 2, ..Counts::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_cut_off_by_the_stop_goes_back_in_line_without_a_used_attempt() {
    let bench = Bench::start().await;
    let options = EnqueueOptions::new().attempts(1);
    let job = bench.queue("q").enqueue("a", &json!({}), options).await.unwrap();
    bench.queue("q").enqueue("behind", &json!({}), EnqueueOptions::new()).await.unwrap();
    let gate = Gate::closed();
    let worker = bench.worker("q").handle_any(gate.polite()).start().unwrap();
    gate.started(1).await;
    worker.stop(Duration::ZERO).await;
    bench.counts_become("q", Counts { waiting: 2, ..Counts::default() }).await;
    let detail = bench.job("q", job.id()).await;
    assert_eq!((detail.job.attempts_made, detail.job.attempts_started), (0, 1));
    assert_eq!(detail.failed_reason, None);
    let locks: u64 = bench.ask(&format!("EXISTS bull:q:{}:lock", job.id())).await;
    assert_eq!(locks, 0);

    let next = bench.worker("q").handle_any(echo()).start().unwrap();
    bench.counts_become("q", completed(2)).await;
    let detail = bench.job("q", job.id()).await;
    assert_eq!((detail.job.attempts_made, detail.job.attempts_started, detail.stalls), (1, 2, 0));
    let order = bench.event_ids("q", "completed").await;
    assert_eq!(order[0], job.id().as_str(), "it was first in line and stays so");
    next.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ignores_the_stop_is_reported_and_rescued() {
    let bench = Bench::start().await;
    let job = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let gate = Gate::closed();
    let short = Duration::from_millis(300);
    let worker = bench.worker("q").lock(short).stalled_interval(short).handle_any(gate.stubborn());
    let worker = worker.start().unwrap();
    gate.started(1).await;
    let report = worker.stop(Duration::ZERO).await;
    assert_eq!(report.unfinished, 1);
    let next = bench.worker("q").lock(short).stalled_interval(short).handle_any(echo()).start().unwrap();
    bench.counts_become("q", completed(1)).await;
    let detail = bench.job("q", job.id()).await;
    assert_eq!((detail.job.attempts_started, detail.stalls), (2, 1));
    next.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_could_not_be_written_is_reported() {
    let bench = Bench::start().await;
    bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let gate = Gate::closed();
    let worker = bench.worker("q").handle_any(gate.stubborn()).start().unwrap();
    gate.started(1).await;
    bench.server.stop().await.unwrap();
    gate.open();
    let report = worker.stop(Duration::from_millis(200)).await;
    assert_eq!(report.unfinished, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_does_not_take_the_wake_up_of_another() {
    let bench = Bench::start().await;
    let queue = bench.queue("q");
    let gate = Gate::closed();
    gate.open();
    // The marker goes to whoever has slept longest: always the one that goes.
    let mut goes = bench.worker("q").handle_any(gate.stubborn()).start().unwrap();
    let mut slowest = Duration::ZERO;
    for round in 1..=60 {
        bench.asleep(1).await;
        let stays = bench.worker("q").handle_any(gate.stubborn()).start().unwrap();
        bench.asleep(2).await;
        let began = Instant::now();
        let data = json!({});
        let (_, enqueued) =
            tokio::join!(goes.stop(PATIENCE), queue.enqueue("a", &data, EnqueueOptions::new()));
        enqueued.unwrap();
        gate.started(round).await;
        slowest = slowest.max(began.elapsed());
        goes = stays;
    }
    assert!(slowest < SOON, "a job waited {slowest:?}");
    bench.counts_become("q", completed(60)).await;
    goes.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_waits_for_no_marker_while_its_jobs_end() {
    let bench = Bench::start().await;
    let gate = Gate::closed();
    let worker = bench.worker("q").concurrency(2).handle_any(gate.stubborn()).start().unwrap();
    bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    gate.started(1).await;
    bench.asleep(1).await;
    let stopped = tokio::spawn(worker.stop(PATIENCE));
    let since = Instant::now();
    bench.asleep(0).await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    gate.open();
    assert_eq!(tokio::time::timeout(PATIENCE, stopped).await.unwrap().unwrap().unfinished, 0);
    bench.counts_become("q", completed(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_worker_stops_listening_at_once() {
    let bench = Bench::start().await;
    let worker = bench.worker("q").handle_any(echo()).start().unwrap();
    bench.asleep(1).await;
    drop(worker);
    eventually("no listener", SOON, || async {
        let clients: String = bench.ask("CLIENT LIST").await;
        if clients.contains("cmd=bzpopmin") { Err(clients) } else { Ok(()) }
    })
    .await
    .unwrap();
}
