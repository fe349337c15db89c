//! Handlers that end without having failed: put off, given back, limited, waiting
//! for children; and what they may do to their job on the way.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Bench, PATIENCE, completed};
use mpanel_engine::{JobContext, JobError, RateLimit, admin::Counts, handler_fn};
use mpanel_producer::{ChildFailure, EnqueueOptions, FlowJob, Producer};
use mpanel_testkit::{BullVersion, NodeSidecar, eventually};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_snoozed_job_runs_again_and_no_attempt_is_used() {
    let bench = Bench::start().await;
    let job = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new().attempts(1)).await.unwrap();
    let tired = handler_fn(|ctx: JobContext, _: Value| async move {
        if ctx.attempt() < 4 {
            Err(JobError::snooze(Duration::from_millis(20)))
        } else {
            Ok(ctx.attempts_made())
        }
    });
    let worker = bench.worker("q").handle_any(tired).start().unwrap();
    bench.counts_become("q", completed(1)).await;
    let detail = bench.job("q", job.id()).await;
    assert_eq!((detail.job.attempts_made, detail.job.attempts_started), (1, 4));
    assert_eq!((detail.return_value.as_deref(), detail.failed_reason), (Some("0"), None));
    let delayed = bench.event_ids("q", "delayed").await;
    assert_eq!(delayed.len(), 3);
    assert_eq!(worker.stats().failed, 0);
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_given_back_is_next_in_line() {
    let bench = Bench::start().await;
    for name in ["first", "second"] {
        bench.queue("q").enqueue(name, &json!({}), EnqueueOptions::new()).await.unwrap();
    }
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = order.clone();
    let undecided = handler_fn(move |ctx: JobContext, _: Value| {
        seen.lock().unwrap().push((ctx.name().to_owned(), ctx.attempt()));
        async move {
            let again = ctx.name() == "first" && ctx.attempt() == 1;
            if again { Err(JobError::back_in_line()) } else { Ok(()) }
        }
    });
    let worker = bench.worker("q").handle_any(undecided).start().unwrap();
    bench.counts_become("q", completed(2)).await;
    let order = order.lock().unwrap().clone();
    assert_eq!(order, [("first".into(), 1), ("first".into(), 2), ("second".into(), 1)]);
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_limits_its_queue_for_every_worker_that_has_a_limit() {
    const PAUSE: Duration = Duration::from_millis(700);
    let bench = Bench::start().await;
    for n in 0..4 {
        bench.queue("q").enqueue("a", &n, EnqueueOptions::new()).await.unwrap();
    }
    let (starts, first) = (Arc::new(std::sync::Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
    let busy = || {
        let (starts, first) = (starts.clone(), first.clone());
        handler_fn(move |_: JobContext, n: u32| {
            let limited = first.fetch_add(1, Ordering::SeqCst) == 0;
            if !limited {
                starts.lock().unwrap().push(Instant::now());
            }
            async move { if limited { Err(JobError::rate_limited(PAUSE)) } else { Ok(n) } }
        })
    };
    let limit = RateLimit { max: 1000, window: Duration::from_secs(1) };
    let asked = Instant::now();
    let one = bench.worker("q").rate_limit(limit).handle_any(busy()).start().unwrap();
    eventually("the limit", PATIENCE, || async {
        match bench.ask::<Option<String>>("GET bull:q:limiter").await {
            Some(value) if value == "9007199254740991" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
    let other = bench.worker("q").rate_limit(limit).handle_any(busy()).start().unwrap();
    bench.counts_become("q", completed(4)).await;
    let earliest = starts.lock().unwrap().iter().min().copied().unwrap();
    assert!(earliest - asked >= PAUSE, "started after {:?}", earliest - asked);
    let detail = bench.job("q", &mpanel_protocol::ids::JobId::stored("1")).await;
    assert_eq!((detail.job.attempts_made, detail.job.attempts_started), (1, 2));
    one.stop(PATIENCE).await;
    other.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_asked_for_by_a_worker_without_one_holds_for_it_until_it_is_lifted() {
    let bench = Bench::start().await;
    bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let busy = handler_fn(|ctx: JobContext, _: Value| async move {
        if ctx.attempt() == 1 { Err(JobError::rate_limited(Duration::from_millis(600))) } else { Ok(()) }
    });
    let started = Instant::now();
    let worker = bench.worker("q").handle_any(busy).start().unwrap();
    // Jobs that come meanwhile do not end the limit.
    eventually("the job is back", PATIENCE, || async {
        match bench.ask::<i64>("PTTL bull:q:limiter").await {
            0.. => Ok(()),
            ttl => Err(format!("PTTL {ttl}")),
        }
    })
    .await
    .unwrap();
    bench.queue("q").enqueue("b", &json!({}), EnqueueOptions::new()).await.unwrap();
    bench.counts_become("q", completed(2)).await;
    assert!(started.elapsed() >= Duration::from_millis(600));
    worker.stop(PATIENCE).await;
}

/// A parent that orders its children itself, in two steps.
fn orders_parts(producer: Producer, runs: Arc<AtomicU32>) -> impl mpanel_engine::Handler {
    handler_fn(move |ctx: JobContext, mut data: Value| {
        let (producer, runs) = (producer.clone(), runs.clone());
        async move {
            runs.fetch_add(1, Ordering::SeqCst);
            if data["ordered"] != true {
                for part in ["a", "b"] {
                    let options = EnqueueOptions::new()
                        .job_id(format!("{}-{part}", ctx.id()))
                        .parent(ctx.queue().clone(), ctx.id().clone());
                    producer.queue("parts").unwrap().enqueue("part", &json!(part), options).await.unwrap();
                }
                data["ordered"] = json!(true);
                ctx.update_data(&data).await.unwrap();
            }
            ctx.wait_for_children().await?;
            let values = ctx.children_values::<Value>().await.unwrap();
            let keys: Vec<&String> = values.keys().collect();
            Ok(json!({ "parts": values.len(), "keys": keys }))
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_waits_for_children_that_it_made_itself_some_of_them_nodes() {
    let bench = Bench::start().await;
    let runs = Arc::new(AtomicU32::new(0));
    let whole = bench.worker("whole").handle_any(orders_parts(bench.producer.clone(), runs.clone()));
    let whole = whole.start().unwrap();
    let job = bench.queue("whole").enqueue("report", &json!({}), EnqueueOptions::new()).await.unwrap();
    bench.counts_become("whole", Counts { waiting_children: 1, ..Counts::default() }).await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    let script = json!({"default": {"return": {"by": "node"}}});
    let parts = node.queue(BullVersion::V5, "parts").start_worker(script, json!({})).await.unwrap();
    bench.counts_become("whole", completed(1)).await;
    let detail = bench.job("whole", job.id()).await;
    let value: Value = serde_json::from_str(&detail.return_value.unwrap()).unwrap();
    let key = |part: &str| format!("bull:parts:{}-{part}", job.id());
    assert_eq!(value, json!({"parts": 2, "keys": [key("a"), key("b")]}));
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    assert_eq!((detail.job.attempts_made, detail.job.attempts_started), (1, 2));
    parts.close(false).await.unwrap();
    whole.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_whose_child_failed_cannot_wait_and_fails() {
    let bench = Bench::start().await;
    let child =
        FlowJob::new("child", "q").options(EnqueueOptions::new().on_failure(ChildFailure::FailParent));
    bench.producer.enqueue_flow(FlowJob::new("parent", "q").child(child)).await.unwrap();
    let worker = bench.worker("q").handle_any(handler_fn(|ctx: JobContext, _: Value| async move {
        if ctx.name() == "child" {
            return Err(JobError::never("broken"));
        }
        ctx.wait_for_children().await
    }));
    let worker = worker.start().unwrap();
    bench.counts_become("q", Counts { failed: 2, ..Counts::default() }).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_pending_children_goes_on_at_once() {
    let bench = Bench::start().await;
    let job = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let waits = handler_fn(|ctx: JobContext, _: Value| async move {
        ctx.wait_for_children().await?;
        ctx.wait_for_child("bull:q:none").await?;
        Ok::<_, JobError>(ctx.children_values::<Value>().await.unwrap().len())
    });
    let worker = bench.worker("q").handle_any(waits).start().unwrap();
    bench.counts_become("q", completed(1)).await;
    assert_eq!(bench.job("q", job.id()).await.job.attempts_started, 1);
    worker.stop(PATIENCE).await;
}
