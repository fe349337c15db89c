//! Fetches that meet very large jobs, or ids whose jobs are gone.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, PATIENCE, completed};
use mpanel_engine::{JobContext, JobError, handler_fn};
use mpanel_producer::{BulkJob, EnqueueOptions, KeepJobs, KeepPolicy};
use mpanel_protocol::{calls::fetch::FetchSpec, calls::fetch::fetch_jobs, ids::LockToken, keys::QueueKeys};
use mpanel_protocol::{ids::QueueName, peer::Peer, time::TimestampMs};
use serde_json::{Value, json};

/// Well below the 5 s after which a sleeping worker looks by itself.
const SOON: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_takes_few_of_many_large_jobs_and_leaves_the_rest_in_their_places() {
    let bench = Bench::start().await;
    let megabyte = "x".repeat(1024 * 1024);
    let jobs = (0..20).map(|n| {
        let options = EnqueueOptions::new();
        let options = if n % 2 == 0 { options } else { options.priority(n) };
        BulkJob::new("a", json!({ "n": n, "text": megabyte })).options(options)
    });
    bench.queue("q").enqueue_bulk(jobs).await.unwrap();
    let before: Vec<String> = bench.ask("LRANGE bull:q:wait 0 -1").await;
    let urgent: Vec<String> = bench.ask("ZRANGE bull:q:prioritized 0 -1 WITHSCORES").await;
    let keys = QueueKeys::new(bench.engine.prefix(), &QueueName::new("q").unwrap());
    let token = LockToken::new("t");
    let lock = Duration::from_secs(30);
    let spec = FetchSpec { slots: 20, token: &token, lock, limiter: None, worker_name: None };
    let mut conn = bench.conn().await;
    let fetched = fetch_jobs(&mut conn, &keys, Peer::V5, TimestampMs(1), &spec).await.unwrap();
    let taken = fetched.jobs.len();
    assert!((4..=6).contains(&taken), "{taken} taken");
    let after: Vec<String> = bench.ask("LRANGE bull:q:wait 0 -1").await;
    assert_eq!(after, before[..before.len() - taken]);
    let still: Vec<String> = bench.ask("ZRANGE bull:q:prioritized 0 -1 WITHSCORES").await;
    assert_eq!(still, urgent);
    let marker: u64 = bench.ask("ZCARD bull:q:marker").await;
    assert_eq!(marker, 1);
    for job in &fetched.jobs {
        let lock: String = bench.ask(&format!("GET bull:q:{}:lock", job.id)).await;
        assert_eq!(lock, "t");
    }

    // All of them, in line or by priority.
    let count = handler_fn(|_: JobContext, data: Value| async move { Ok::<_, JobError>(data["n"].clone()) });
    bench
        .queue("r")
        .enqueue_bulk((0..12).map(|n| {
            let options = EnqueueOptions::new().priority(1 + n % 3);
            BulkJob::new("a", json!({ "n": n, "text": megabyte })).options(options)
        }))
        .await
        .unwrap();
    let worker = bench.worker("r").concurrency(20).handle_any(count).start().unwrap();
    bench.counts_become("r", completed(12)).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_whose_jobs_are_gone_hold_nobody_up() {
    let bench = Bench::start().await;
    for n in 0..300 {
        let _: u64 = bench.ask(&format!("LPUSH bull:q:wait gone-{n}")).await;
    }
    bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let started = Instant::now();
    let worker = bench.worker("q").handle_any(common::echo()).start().unwrap();
    bench.counts_become("q", completed(1)).await;
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_by_age_takes_as_much_in_a_batch_as_one_by_one() {
    let bench = Bench::start().await;
    let policy = KeepPolicy { age: Some(0.0), limit: Some(2.0), ..KeepPolicy::default() };
    let keep = EnqueueOptions::new().remove_on_complete(KeepJobs::Policy(policy));
    bench
        .queue("q")
        .enqueue_bulk((0..400).map(|n| BulkJob::new("a", json!(n)).options(keep.clone())))
        .await
        .unwrap();
    let worker = bench.worker("q").concurrency(50).handle_any(common::echo()).start().unwrap();
    worker.until_idle().await;
    worker.stop(PATIENCE).await;
    let kept: u64 = bench.ask("ZCARD bull:q:completed").await;
    assert!(kept < 100, "{kept} are kept");
}
