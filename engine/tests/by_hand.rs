//! Jobs taken and ended by hand.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{Bench, PATIENCE, completed, echo};
use mpanel_engine::{ByHandError, CancelCause, Engine, JobError, admin::Counts};
use mpanel_producer::{Backoff, EnqueueOptions, FlowJob};
use mpanel_testkit::{BullVersion, NodeSidecar};
use serde_json::{Value, json};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_taken_one_by_one_and_end_as_told() {
    let bench = Bench::start().await;
    let taker = bench.worker("q").by_hand().unwrap();
    assert!(taker.take().await.unwrap().is_none());
    let options = EnqueueOptions::new().attempts(2).backoff(Backoff::fixed(30));
    let queue = bench.queue("q");
    let id = queue.enqueue("a", &json!({"n": 1}), options.clone()).await.unwrap().id().clone();
    let job = taker.take().await.unwrap().unwrap();
    assert_eq!((job.ctx().id(), job.ctx().attempt()), (&id, 1));
    assert!(taker.take().await.unwrap().is_none());
    job.ctx().progress(&10).await.unwrap();
    job.fail(JobError::retry("not yet")).await.unwrap();
    bench.counts_become("q", Counts { delayed: 1, ..Counts::default() }).await;
    let job = taker.wait(PATIENCE).await.unwrap().unwrap();
    assert_eq!(job.data::<Value>().unwrap(), json!({"n": 1}));
    assert!(job.data::<u32>().is_err());
    job.complete("done").await.unwrap();
    let detail = bench.job("q", &id).await;
    assert_eq!((detail.return_value.as_deref(), detail.job.attempts_made), (Some("\"done\""), 2));
    assert_eq!(detail.progress.as_deref(), Some("10"));

    queue.enqueue("b", &json!({}), options.clone()).await.unwrap();
    taker.take().await.unwrap().unwrap().fail(JobError::snooze(Duration::from_millis(20))).await.unwrap();
    let again = taker.wait(PATIENCE).await.unwrap().unwrap();
    assert_eq!((again.ctx().attempt(), again.ctx().attempts_made()), (2, 0));
    again.fail(JobError::never("no")).await.unwrap();
    bench.counts_become("q", Counts { completed: 1, failed: 1, ..Counts::default() }).await;
    assert!(taker.wait(Duration::from_millis(50)).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_comes_ends_the_wait() {
    let bench = Bench::start().await;
    let taker = bench.worker("q").by_hand().unwrap();
    let waits = tokio::spawn(async move {
        let job = taker.wait(PATIENCE).await.unwrap().unwrap();
        job.complete(&1).await.unwrap();
        // A wait that is dropped leaves the next one whole.
        assert!(timeout(Duration::from_millis(20), taker.wait(PATIENCE)).await.is_err());
        taker
    });
    bench.asleep(1).await;
    bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let taker = waits.await.unwrap();
    bench.queue("q").enqueue("b", &json!({}), EnqueueOptions::new()).await.unwrap();
    taker.wait(PATIENCE).await.unwrap().unwrap().complete(&2).await.unwrap();
    bench.counts_become("q", completed(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_that_are_dropped_hide_no_job_from_others() {
    const JOBS: u64 = 150;
    let bench = Bench::start().await;
    let worker = bench.worker("q").handle_any(echo()).start().unwrap();
    let taker = bench.worker("q").by_hand().unwrap();
    bench.asleep(1).await;
    let (queue, empty) = (bench.queue("q"), json!({}));
    let (mut ids, mut longest_ms) = (Vec::new(), 0);
    for n in 0..JOBS {
        // The job comes while the wait of one is being dropped; sooner or later by a little.
        let wait = timeout(Duration::from_micros(200 + n * 40), taker.wait(PATIENCE));
        let (waited, job) = tokio::join!(wait, queue.enqueue("a", &empty, EnqueueOptions::new()));
        if let Ok(taken) = waited {
            taken.unwrap().unwrap().complete(&1).await.unwrap();
        }
        ids.push(job.unwrap().id().clone());
        bench.counts_become("q", completed(n + 1)).await;
    }
    for id in ids {
        let job = bench.job("q", &id).await;
        let waited_ms = job.processed_on_ms.unwrap() - job.job.timestamp_ms;
        longest_ms = longest_ms.max(waited_ms);
    }
    println!("longest wait of {JOBS} jobs: {longest_ms} ms");
    // What is hidden starts when the other's wait for the marker ends, after 5 s.
    assert!(longest_ms < 1000, "a job waited {longest_ms} ms");
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_beside_another_ends_in_its_own_time() {
    let bench = Bench::start().await;
    let taker = Arc::new(bench.worker("q").by_hand().unwrap());
    let other = taker.clone();
    let long = tokio::spawn(async move { other.wait(PATIENCE).await.unwrap().unwrap().complete(&1).await });
    bench.asleep(1).await;
    let short = timeout(Duration::from_secs(3), taker.wait(Duration::from_millis(50))).await;
    assert!(short.unwrap().unwrap().is_none());
    bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    timeout(PATIENCE, long).await.unwrap().unwrap().unwrap();
    bench.counts_become("q", completed(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_wait_that_may_not_be_ended_gives_back_what_it_takes() {
    let bench = Bench::start().await;
    let _: () = bench.ask("ACL SETUSER hand on >pw ~* +@all -client|unblock").await;
    let url = bench.server.url().replace("redis://", "redis://hand:pw@");
    let engine = Engine::connect(&url).await.unwrap();
    let taker = Arc::new(engine.worker("q").unwrap().by_hand().unwrap());
    let other = taker.clone();
    let wait = tokio::spawn(async move { other.wait(PATIENCE).await.map(drop) });
    bench.asleep(1).await;
    // The marker goes to whoever has slept longest: the wait that nobody is interested in any more.
    let worker = bench.worker("q").handle_any(echo()).start().unwrap();
    bench.asleep(2).await;
    wait.abort();
    assert!(wait.await.unwrap_err().is_cancelled());
    // The connection for waiting is free again, though its last wait goes on.
    assert!(timeout(PATIENCE, taker.wait(Duration::ZERO)).await.unwrap().unwrap().is_none());
    let id = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap().id().clone();
    bench.counts_become("q", completed(1)).await;
    let job = bench.job("q", &id).await;
    let waited_ms = job.processed_on_ms.unwrap() - job.job.timestamp_ms;
    assert!(waited_ms < 1000, "waited {waited_ms} ms");
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_renewed_cancelling_is_noticed_and_a_dropped_job_is_rescued() {
    let bench = Bench::start().await;
    let taker = bench
        .worker("q")
        .lock(Duration::from_millis(400))
        .stalled_interval(Duration::from_millis(200))
        .by_hand()
        .unwrap();
    let id = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap().id().clone();
    let job = taker.take().await.unwrap().unwrap();
    bench.renewed("q", &id, 2).await;
    bench.admin("q").cancel(&id, "ann").await.unwrap();
    timeout(PATIENCE, job.ctx().cancelled().cancelled()).await.unwrap();
    assert_eq!(job.ctx().cancel_cause(), Some(CancelCause::Requested("cancelled by ann".into())));
    drop(job);
    // Rescued, and failed without being handed out.
    assert!(taker.wait(Duration::from_secs(2)).await.unwrap().is_none());
    bench.counts_become("q", Counts { failed: 1, ..Counts::default() }).await;
    assert_eq!(bench.job("q", &id).await.failed_reason.as_deref(), Some("cancelled by ann"));

    let id = bench.queue("q").enqueue("b", &json!({}), EnqueueOptions::new()).await.unwrap().id().clone();
    let job = taker.take().await.unwrap().unwrap();
    let _: () = bench.ask(&format!("SET bull:q:{id}:lock thief")).await;
    let refused = job.complete(&1).await.unwrap_err();
    assert!(matches!(refused, ByHandError::Refused { .. } | ByHandError::LockLost { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_in_hand_goes_to_its_children_and_node_does_them() {
    let bench = Bench::start().await;
    let flow = FlowJob::new("parent", "q").child(FlowJob::new("child", "parts"));
    let parent = bench.producer.enqueue_flow(flow).await.unwrap().id;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    let script = json!({"default": {"return": 7}});
    let parts = node.queue(BullVersion::V6, "parts").start_worker(script, json!({})).await.unwrap();
    let taker = bench.worker("q").by_hand().unwrap();
    let job = taker.wait(PATIENCE).await.unwrap().unwrap();
    let late = EnqueueOptions::new().parent(job.ctx().queue().clone(), parent.clone());
    bench.queue("late").enqueue("child", &json!({}), late).await.unwrap();
    let waits = job.ctx().wait_for_children().await.unwrap_err();
    job.fail(waits).await.unwrap();
    bench.counts_become("q", Counts { waiting_children: 1, ..Counts::default() }).await;
    let script = json!({"default": {"return": 8}});
    let late = node.queue(BullVersion::V5, "late").start_worker(script, json!({})).await.unwrap();
    let job = taker.wait(PATIENCE).await.unwrap().unwrap();
    job.ctx().wait_for_children().await.unwrap();
    let values = job.ctx().children_values::<u32>().await.unwrap();
    assert_eq!(values.into_values().sum::<u32>(), 15);
    job.complete(&json!(null)).await.unwrap();
    bench.counts_become("q", completed(1)).await;
    parts.close(false).await.unwrap();
    late.close(false).await.unwrap();
}
