//! What becomes of a job: completed, retried, failed for good.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use common::{Bench, PATIENCE};
use mpanel_engine::{
    Handler, JobContext, JobError,
    admin::Counts,
    handler::{BoxError, FinalCause},
    handler_fn,
};
use mpanel_producer::{Backoff, BulkJob, EnqueueOptions};
use mpanel_protocol::ids::JobId;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Serialize, Deserialize)]
struct Number {
    n: u32,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_job_of_a_bulk_is_run_once() {
    let bench = Bench::start().await;
    let queue = bench.producer.queue("numbers").unwrap();
    queue.enqueue_bulk((0..5000).map(|n| BulkJob::new("add", Number { n }))).await.unwrap();
    let sum = Arc::new(AtomicU32::new(0));
    let seen = sum.clone();
    let add = handler_fn(move |_: JobContext, number: Number| {
        let seen = seen.clone();
        async move {
            seen.fetch_add(number.n, Ordering::Relaxed);
            Ok::<_, JobError>(number.n * 2)
        }
    });
    let worker = bench.engine.worker("numbers").unwrap().concurrency(50).handle("add", add).start().unwrap();
    worker.until_idle().await;
    assert_eq!(sum.load(Ordering::Relaxed), 4999 * 5000 / 2);
    bench.counts_become("numbers", Counts { completed: 5000, ..Counts::default() }).await;
    let detail = bench.admin("numbers").job(&JobId::stored("7")).await.unwrap().unwrap();
    assert_eq!(detail.return_value.as_deref(), Some("12"));
    let report = worker.stop(PATIENCE).await;
    assert_eq!(report.unfinished, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_job_is_retried_with_its_backoff_until_it_succeeds() {
    let bench = Bench::start().await;
    let queue = bench.producer.queue("q").unwrap();
    let options = EnqueueOptions::new().attempts(3).backoff(Backoff::exponential(5));
    let job = queue.enqueue("a", &json!({}), options).await.unwrap();
    let flaky = handler_fn(|ctx: JobContext, _: serde_json::Value| async move {
        if ctx.attempt() < 3 { Err(JobError::retry("not yet")) } else { Ok(ctx.attempts_made()) }
    });
    let worker = bench.engine.worker("q").unwrap().handle_any(flaky).start().unwrap();
    bench.counts_become("q", Counts { completed: 1, ..Counts::default() }).await;
    let detail = bench.admin("q").job(job.id()).await.unwrap().unwrap();
    assert_eq!((detail.job.attempts_made, detail.job.attempts_started), (3, 3));
    assert_eq!(detail.return_value.as_deref(), Some("2"));
    assert_eq!(detail.failed_reason.as_deref(), Some("not yet"));
    worker.stop(PATIENCE).await;
}

/// Records why it was told that a job failed.
struct Recorder(Arc<std::sync::Mutex<Vec<(FinalCause, String)>>>);

impl Handler for Recorder {
    type Data = Number;
    type Output = ();

    async fn run(&self, _: &JobContext, number: Number) -> Result<(), JobError> {
        match number.n {
            0 => Err(JobError::never("zero is not allowed")),
            1 => panic!("one is unlucky"),
            _ => Err(JobError::retry("busy")),
        }
    }

    async fn on_failed(&self, _: &JobContext, cause: FinalCause, reason: &str) -> Result<(), BoxError> {
        self.0.lock().unwrap().push((cause, reason.to_owned()));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_jobs_fail_for_good_and_the_handler_is_told() {
    let bench = Bench::start().await;
    let queue = bench.producer.queue("q").unwrap();
    let options = EnqueueOptions::new().attempts(5);
    let one = EnqueueOptions::new();
    let never = queue.enqueue("known", &Number { n: 0 }, options.clone()).await.unwrap();
    let panics = queue.enqueue("known", &Number { n: 1 }, one.clone()).await.unwrap();
    let exhausted = queue.enqueue("known", &Number { n: 2 }, one).await.unwrap();
    let undecodable = queue.enqueue("known", &json!({"n": "x"}), options.clone()).await.unwrap();
    let unknown = queue.enqueue("stranger", &json!({}), options).await.unwrap();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let worker = bench.engine.worker("q").unwrap().handle("known", Recorder(told.clone())).start().unwrap();
    bench.counts_become("q", Counts { failed: 5, ..Counts::default() }).await;
    let admin = bench.admin("q");
    for (job, made, reason) in [
        (never, 1, "zero is not allowed"),
        (panics, 1, "handler panicked: one is unlucky"),
        (exhausted, 1, "busy"),
        (undecodable, 1, "the payload cannot be decoded: invalid type: string"),
        (unknown, 1, "unknown job name `stranger`; this worker handles: known"),
    ] {
        let detail = admin.job(job.id()).await.unwrap().unwrap();
        assert_eq!(detail.job.attempts_made, made);
        let failed = detail.failed_reason.unwrap();
        assert!(failed.starts_with(reason), "{failed}");
    }
    let causes: Vec<FinalCause> = told.lock().unwrap().iter().map(|(cause, _)| *cause).collect();
    assert_eq!(
        causes,
        [
            FinalCause::NeverRetry,
            FinalCause::Exhausted,
            FinalCause::Exhausted,
            FinalCause::BadPayload,
            FinalCause::BadPayload
        ]
    );
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_is_no_json_fails_its_job_and_not_the_queue() {
    let bench = Bench::start().await;
    let queue = bench.producer.queue("q").unwrap();
    let broken = queue.enqueue("a", &json!({}), EnqueueOptions::new().attempts(3)).await.unwrap();
    let good = queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let mut conn = bench.engine.redis().shared().await.unwrap().conn;
    let key = format!("bull:q:{}", broken.id());
    redis::cmd("HSET").arg(key).arg("data").arg("{not json").query_async::<()>(&mut conn).await.unwrap();
    let ok = handler_fn(|_: JobContext, _: serde_json::Value| async move { Ok::<_, JobError>(()) });
    let worker = bench.engine.worker("q").unwrap().handle_any(ok).start().unwrap();
    bench.counts_become("q", Counts { completed: 1, failed: 1, ..Counts::default() }).await;
    let detail = bench.admin("q").job(good.id()).await.unwrap().unwrap();
    assert_eq!(detail.return_value.as_deref(), Some("null"));
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_job_runs_when_it_is_due_without_another_add() {
    let bench = Bench::start().await;
    let queue = bench.producer.queue("q").unwrap();
    let ok = handler_fn(|_: JobContext, _: serde_json::Value| async move { Ok::<_, JobError>(()) });
    let worker = bench.engine.worker("q").unwrap().handle_any(ok).start().unwrap();
    queue.enqueue("a", &json!({}), EnqueueOptions::new().delay(Duration::from_millis(300))).await.unwrap();
    bench.counts_become("q", Counts { delayed: 1, ..Counts::default() }).await;
    bench.counts_become("q", Counts { completed: 1, ..Counts::default() }).await;
    worker.stop(PATIENCE).await;
}
