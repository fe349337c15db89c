//! A worker that is cut off from Redis for longer than its locks live: nothing arrives,
//! nothing is refused.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Bench, Gate, PATIENCE, completed, echo, log::Log, proxy::Wire};
use mpanel_connect::Redis;
use mpanel_engine::{CancelCause, Engine, JobContext, JobError, Worker, WorkerBuilder, handler_fn};
use mpanel_producer::EnqueueOptions;
use mpanel_protocol::ids::JobId;
use mpanel_testkit::eventually;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const LOCK: Duration = Duration::from_millis(900);

fn short(builder: WorkerBuilder) -> WorkerBuilder {
    builder.lock(LOCK).stalled_interval(Duration::from_millis(300)).stalls_allowed(5)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_loses_its_job_and_comes_back() {
    let bench = Bench::start().await;
    let wire = Wire::to(bench.server.port()).await;
    let far = Engine::builder(Redis::open(&wire.url()).unwrap()).connect().await.unwrap();

    // Its first run ends when it is told to, which is too late: what it has to say must not count.
    let (tell, mut told) = mpsc::unbounded_channel();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let handler = handler_fn(move |ctx: JobContext, _: Value| {
        let (tell, runs) = (tell.clone(), counted.clone());
        async move {
            if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                ctx.cancelled().cancelled().await;
                tell.send(ctx.cancel_cause()).map_err(|e| JobError::retry(e.to_string()))?;
            }
            Ok::<_, JobError>("far")
        }
    });
    let far_worker = short(far.worker("q").unwrap()).handle_any(handler).start().unwrap();
    let job = bench.queue("q").enqueue("a", &json!(1), EnqueueOptions::new()).await.unwrap();
    eventually("a job at the far worker", PATIENCE, async || {
        if far_worker.stats().active == 1 { Ok(()) } else { Err(format!("{:?}", far_worker.stats())) }
    })
    .await
    .unwrap();

    wire.cut();
    let near = short(bench.worker("q")).handle_any(echo()).start().unwrap();
    bench.counts_become("q", completed(1)).await;
    // The far handler is told although nothing comes through: its lock cannot live any more.
    let cause = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert_eq!(cause, Some(CancelCause::LockLost));
    near.stop(PATIENCE).await;

    wire.mend();
    let second = bench.queue("q").enqueue("a", &json!(2), EnqueueOptions::new()).await.unwrap();
    bench.counts_become("q", completed(2)).await;
    bench.each_has_one_event("q", "completed", &[job.id().clone(), second.id().clone()]).await;
    let results = [bench.job("q", job.id()).await, bench.job("q", second.id()).await];
    assert_eq!(
        results.each_ref().map(|job| job.return_value.as_deref()),
        [Some(r#"{"echo":1}"#), Some(r#""far""#)]
    );
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    far_worker.stop(PATIENCE).await;
}

/// A worker behind a wire that holds one job; another one takes it over once the wire
/// is cut, and is gone again.
async fn taken_over(bench: &Bench, wire: &Wire) -> (Worker, JobId) {
    let far = Engine::builder(Redis::open(&wire.url()).unwrap()).connect().await.unwrap();
    let gate = Gate::closed();
    let far_worker = short(far.worker("q").unwrap()).handle_any(gate.stubborn()).start().unwrap();
    let job = bench.queue("q").enqueue("a", &json!(1), EnqueueOptions::new()).await.unwrap();
    gate.started(1).await;
    wire.cut();
    // Its handler ends while its lock still lives, so it says so, into the void.
    gate.open();
    eventually("an outcome under way", PATIENCE, async || {
        let stats = far_worker.stats();
        if stats.active == 0 && stats.unwritten == 1 { Ok(()) } else { Err(format!("{stats:?}")) }
    })
    .await
    .unwrap();
    let near = short(bench.worker("q")).handle_any(echo()).start().unwrap();
    bench.counts_become("q", completed(1)).await;
    near.stop(PATIENCE).await;
    (far_worker, job.id().clone())
}

/// The other worker's outcome stands, and the one that was cut off does the next job.
async fn comes_back(bench: &Bench, far_worker: Worker, job: JobId, within: Duration) {
    let since = Instant::now();
    let second = bench.queue("q").enqueue("a", &json!(2), EnqueueOptions::new()).await.unwrap();
    bench.counts_become("q", completed(2)).await;
    println!("back at work after {:?}", since.elapsed());
    assert!(since.elapsed() < within, "{:?}", since.elapsed());
    tokio::time::timeout(PATIENCE, far_worker.until_quiet()).await.unwrap();
    bench.each_has_one_event("q", "completed", &[job.clone(), second.id().clone()]).await;
    assert_eq!(bench.job("q", &job).await.return_value.as_deref(), Some(r#"{"echo":1}"#));
    assert_eq!(bench.job("q", second.id()).await.return_value.as_deref(), Some("1"));
    far_worker.stop(PATIENCE).await;
}

#[tokio::test]
async fn an_outcome_that_arrives_after_the_partition_is_refused() {
    let (log, _guard) = Log::start();
    let bench = Bench::start().await;
    let wire = Wire::to(bench.server.port()).await;
    let (far_worker, job) = taken_over(&bench, &wire).await;
    wire.mend();
    comes_back(&bench, far_worker, job.clone(), Duration::from_secs(5)).await;
    let refused = log.lines().into_iter().map(|mut line| line["fields"].take()).filter(|fields| {
        fields["message"] == "the outcome was refused" && fields["job.id"] == json!(job.as_str())
    });
    assert_eq!(refused.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_stay_silent_are_replaced() {
    let bench = Bench::start().await;
    let wire = Wire::to(bench.server.port()).await;
    let (far_worker, job) = taken_over(&bench, &wire).await;
    wire.abandon();
    // A call's deadline of 10 s, a pause of 2 s, and what a new connection takes.
    comes_back(&bench, far_worker, job, Duration::from_secs(15)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_let_in_and_never_greeted_are_given_up() {
    let bench = Bench::start().await;
    let wire = Wire::to(bench.server.port()).await;
    let (far_worker, job) = taken_over(&bench, &wire).await;
    // One may be for a last renewal; then the one for scripts is made anew, into the void.
    wire.connected(2).await;
    wire.abandon();
    // The time to be let in is 5 s; a pause of 2 s, and what a new connection takes.
    comes_back(&bench, far_worker, job, Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_can_be_stopped() {
    let bench = Bench::start().await;
    let wire = Wire::to(bench.server.port()).await;
    let far = Engine::builder(Redis::open(&wire.url()).unwrap()).connect().await.unwrap();
    let worker = far.worker("q").unwrap().handle_any(echo()).start().unwrap();
    bench.asleep(1).await;
    wire.cut();
    let since = Instant::now();
    let report = worker.stop(PATIENCE).await;
    println!("stopped after {:?}", since.elapsed());
    assert_eq!(report.unfinished, 0);
    // A second for the wait, and two for what it may have taken.
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}
