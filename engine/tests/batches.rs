//! Many jobs in one handler call, each with its own outcome.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Bench, PATIENCE, completed};
use mpanel_engine::{BatchJob, JobError, admin::Counts, batch_fn};
use mpanel_producer::{BulkJob, EnqueueOptions};
use mpanel_protocol::ids::JobId;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn jobs_come_in_batches_and_each_has_its_own_result() {
    let bench = Bench::start().await;
    bench.queue("q").enqueue_bulk((0..95).map(|n| BulkJob::new("a", json!(n)))).await.unwrap();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = sizes.clone();
    let tens = batch_fn(10, Duration::from_millis(200), move |jobs: Vec<BatchJob<u32>>| {
        seen.lock().unwrap().push(jobs.len());
        async move {
            jobs.iter()
                .map(|job| match job.data {
                    n if n % 10 == 3 => Err(JobError::never(format!("{n} is no good"))),
                    n => Ok(n * 2),
                })
                .collect()
        }
    });
    let worker = bench.worker("q").concurrency(20).handle_any(tens).start().unwrap();
    bench.counts_become("q", Counts { completed: 85, failed: 10, ..Counts::default() }).await;
    let sizes = sizes.lock().unwrap().clone();
    assert_eq!(sizes.iter().sum::<usize>(), 95);
    assert!(sizes.iter().all(|size| *size <= 10), "{sizes:?}");
    assert!(sizes.len() <= 20, "{sizes:?}");
    let job = |id: &str| JobId::stored(id);
    assert_eq!(bench.job("q", &job("6")).await.return_value.as_deref(), Some("10"));
    assert_eq!(bench.job("q", &job("4")).await.failed_reason.as_deref(), Some("3 is no good"));
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_does_not_fill_up_goes_after_its_wait() {
    let bench = Bench::start().await;
    let all = batch_fn(100, Duration::from_millis(50), |jobs: Vec<BatchJob<u32>>| async move {
        let together = jobs.len();
        jobs.iter().map(|_| Ok(together)).collect()
    });
    let worker = bench.worker("q").concurrency(200).handle_any(all).start().unwrap();
    bench.queue("q").enqueue_bulk((0..3).map(|n| BulkJob::new("a", json!(n)))).await.unwrap();
    bench.counts_become("q", completed(3)).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_panics_or_miscounts_fails_its_attempts_and_nothing_else() {
    let bench = Bench::start().await;
    let options = EnqueueOptions::new().attempts(2);
    for n in 0..3 {
        bench.queue("q").enqueue("a", &n, options.clone()).await.unwrap();
    }
    let calls = Arc::new(Mutex::new(0));
    let clumsy = batch_fn(3, Duration::from_millis(500), move |jobs: Vec<BatchJob<u32>>| {
        let mut calls = calls.lock().unwrap();
        *calls += 1;
        let call = *calls;
        drop(calls);
        async move {
            assert!(call != 1, "the first call goes wrong");
            jobs.iter().map(|job| Ok(job.ctx.attempts_made())).collect()
        }
    });
    let worker = bench.worker("q").concurrency(3).handle_any(clumsy).start().unwrap();
    bench.counts_become("q", completed(3)).await;
    let detail = bench.job("q", &JobId::stored("1")).await;
    assert_eq!(detail.return_value.as_deref(), Some("1"));
    assert_eq!(detail.failed_reason.as_deref(), Some("the batch handler gave no answer for this job"));
    worker.stop(PATIENCE).await;
}
