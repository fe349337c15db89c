//! Limits of a queue that our workers and Node's keep together.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::Duration;

use common::{Bench, PATIENCE, completed};
use mpanel_engine::{JobContext, JobError, RateLimit, handler_fn};
use mpanel_producer::BulkJob;
use mpanel_testkit::{BullVersion, NodeSidecar};
use serde_json::{Value, json};

const JOBS: u64 = 24;

/// A handler that takes a moment.
fn brief() -> impl mpanel_engine::Handler {
    handler_fn(|_: JobContext, _: Value| async {
        tokio::time::sleep(Duration::from_millis(15)).await;
        Ok::<_, JobError>(())
    })
}

async fn fill(bench: &Bench, queue: &str) {
    bench.queue(queue).enqueue_bulk((0..JOBS).map(|n| BulkJob::new("a", json!(n)))).await.unwrap();
}

/// How many jobs ran at once at most, as the queue's events tell.
async fn most_at_once(bench: &Bench, queue: &str) -> i32 {
    let (mut now, mut most) = (0, 0);
    for event in bench.events(queue).await {
        now += match event["event"].as_str() {
            "active" => 1,
            "completed" => -1,
            _ => 0,
        };
        most = most.max(now);
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn global_concurrency_holds_over_all_workers() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    for version in BullVersion::ALL {
        let name = version.alias().replace('.', "-");
        bench.admin(&name).set_global_concurrency(3).await.unwrap();
        fill(&bench, &name).await;
        let script = json!({"default": {"sleepMs": 15}});
        let theirs =
            node.queue(version, &name).start_worker(script, json!({"concurrency": 5})).await.unwrap();
        let ours = bench.worker(&name).concurrency(5).handle_any(brief()).start().unwrap();
        bench.counts_become(&name, completed(JOBS)).await;
        assert_eq!(most_at_once(&bench, &name).await, 3, "{name}");
        theirs.close(false).await.unwrap();
        ours.stop(PATIENCE).await;
    }
}

/// From the first start of a job to the last.
async fn span_of_starts(bench: &Bench, queue: &str) -> Duration {
    let mut starts = Vec::new();
    for id in 1..=JOBS {
        starts.push(bench.ask::<u64>(&format!("HGET bull:{queue}:{id} processedOn")).await);
    }
    Duration::from_millis(starts.iter().max().unwrap() - starts.iter().min().unwrap())
}

const WINDOW: Duration = Duration::from_millis(400);
/// So many windows have to pass before the last of the jobs may start.
const WINDOWS: u32 = 3;
/// Redis ends a window by its own clock, in whole milliseconds.
const SLACK: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_holds_over_all_workers() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    let max = u32::try_from(JOBS).unwrap() / (WINDOWS + 1);
    for version in BullVersion::ALL {
        let name = version.alias().replace('.', "-");
        fill(&bench, &name).await;
        let opts = json!({"concurrency": 5, "limiter": {"max": max, "duration": WINDOW.as_millis()}});
        let theirs = node.queue(version, &name).start_worker(json!({"default": {}}), opts).await.unwrap();
        let limit = RateLimit { max, window: WINDOW };
        let ours = bench.worker(&name).concurrency(5).rate_limit(limit).handle_any(brief()).start().unwrap();
        bench.counts_become(&name, completed(JOBS)).await;
        let span = span_of_starts(&bench, &name).await;
        assert!(span + SLACK >= WINDOW * WINDOWS, "{name}: {span:?}");
        theirs.close(false).await.unwrap();
        ours.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_global_rate_limit_holds_for_workers_without_one_and_delayed_jobs_are_promoted_meanwhile() {
    let bench = Bench::start().await;
    let max = u32::try_from(JOBS).unwrap() / (WINDOWS + 1);
    bench.admin("q").set_global_rate_limit(max, WINDOW).await.unwrap();
    let later = |n: u64| {
        BulkJob::new("a", json!(n)).options(mpanel_producer::EnqueueOptions::new().delay(WINDOW / 4))
    };
    bench.queue("q").enqueue_bulk((0..JOBS).map(later)).await.unwrap();
    let workers = [0, 1].map(|_| bench.worker("q").concurrency(5).handle_any(brief()).start().unwrap());
    bench.counts_become("q", completed(JOBS)).await;
    let span = span_of_starts(&bench, "q").await;
    assert!(span + SLACK >= WINDOW * WINDOWS, "{span:?}");
    for worker in workers {
        worker.stop(PATIENCE).await;
    }
}
