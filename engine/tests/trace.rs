//! The trace of an attempt: what its span says, what a handler passes on, what a
//! failure leaves in the job.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeMap;

use common::{Bench, PATIENCE, completed, log::Log};
use mpanel_engine::{Handler, JobContext, JobError, admin::Counts, handler_fn};
use mpanel_producer::{Backoff, BulkJob, EnqueueOptions, FlowJob, KeepJobs, QueueProducer, TraceContext};
use serde_json::{Value, json};

const CARRIED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn carried() -> TraceContext {
    let context = TraceContext::from_traceparent(CARRIED).unwrap();
    TraceContext { state: Some("vendor=1".into()), baggage: Some("user=7".into()), ..context }
}

/// Enqueues a job `second` into the same trace, and answers what it was given.
fn passes_on(queue: QueueProducer) -> impl Handler {
    handler_fn(move |ctx: JobContext, _: Value| {
        let queue = queue.clone();
        async move {
            if ctx.name() == "first" {
                let traced = EnqueueOptions::new().trace(ctx.trace()).job_id("second");
                queue
                    .enqueue("second", &json!({}), traced)
                    .await
                    .map_err(|e| JobError::retry(e.to_string()))?;
            }
            Ok::<_, JobError>(json!([ctx.telemetry(), ctx.trace().to_carrier()]))
        }
    })
}

fn fails() -> impl Handler {
    handler_fn(|_: JobContext, _: Value| async move { Err::<(), _>(JobError::retry("no")) })
}

async fn field(bench: &Bench, queue: &str, id: &str, field: &str) -> Option<String> {
    bench.ask(&format!("HGET bull:{queue}:{id} {field}")).await
}

#[tokio::test]
async fn a_job_without_a_context_begins_a_trace_that_its_jobs_share() {
    let (log, _guard) = Log::start();
    let bench = Bench::start().await;
    let queue = bench.queue("q");
    let worker = bench.worker("q").handle_any(passes_on(queue.clone())).start().unwrap();
    queue.enqueue("first", &json!({}), EnqueueOptions::new().job_id("first")).await.unwrap();
    bench.counts_become("q", completed(2)).await;

    let (first, second) = (log.attempts("q", "first").remove(0), log.attempts("q", "second").remove(0));
    assert!(first.get("parent_span_id").is_none(), "{first}");
    assert_eq!(first["trace_id"].as_str().unwrap().len(), 32);
    assert_eq!((&second["trace_id"], &second["parent_span_id"]), (&first["trace_id"], &first["span_id"]));
    assert_ne!(second["span_id"], first["span_id"]);
    let [trace, span] = ["trace_id", "span_id"].map(|name| first[name].as_str().unwrap().to_owned());
    let stored = json!({ "traceparent": format!("00-{trace}-{span}-01") }).to_string();
    let answer: Value =
        serde_json::from_str(&field(&bench, "q", "second", "returnvalue").await.unwrap()).unwrap();
    assert_eq!(answer[0], stored.as_str());
    worker.stop(PATIENCE).await;
}

#[tokio::test]
async fn state_and_baggage_go_along_in_bulk_and_in_flows() {
    let (log, _guard) = Log::start();
    let bench = Bench::start().await;
    let queue = bench.queue("q");
    let traced = |id: &str| EnqueueOptions::new().trace(&carried()).job_id(id);
    queue.enqueue_bulk([BulkJob::new("bulk", json!({})).options(traced("bulk"))]).await.unwrap();
    let child = FlowJob::new("child", "q").options(traced("child"));
    let flow = FlowJob::new("parent", "q").options(traced("parent")).child(child);
    bench.producer.enqueue_flow(flow).await.unwrap();
    let worker = bench.worker("q").handle_any(passes_on(queue)).start().unwrap();
    bench.counts_become("q", completed(3)).await;
    for id in ["bulk", "child", "parent"] {
        let span = log.attempts("q", id).remove(0);
        assert_eq!((&span["trace_id"], &span["parent_span_id"]), (&json!(TRACE), &json!(SPAN)), "{id}");
        let answer: Value =
            serde_json::from_str(&field(&bench, "q", id, "returnvalue").await.unwrap()).unwrap();
        assert_eq!(answer[0], carried().to_carrier());
        let own: BTreeMap<String, String> = serde_json::from_str(answer[1].as_str().unwrap()).unwrap();
        let span = span["span_id"].as_str().unwrap();
        assert_eq!(own["traceparent"], format!("00-{TRACE}-{span}-01"));
        assert_eq!((own["tracestate"].as_str(), own["baggage"].as_str()), ("vendor=1", "user=7"));
    }
    worker.stop(PATIENCE).await;
}

#[tokio::test]
async fn every_attempt_is_a_child_of_what_the_job_carries_and_a_failure_leaves_its_own() {
    let (log, _guard) = Log::start();
    let bench = Bench::start().await;
    let queue = bench.queue("q");
    let new = EnqueueOptions::new;
    let later = Backoff::fixed(10);
    for (id, options) in [
        ("at-once", new().trace(&carried()).attempts(3)),
        ("later", new().trace(&carried()).attempts(3).backoff(later)),
        ("lifo", new().trace(&carried()).attempts(3).lifo(true)),
        ("kept", new().trace(&carried()).remove_on_fail(KeepJobs::Count(100))),
        ("omitted", new().trace(&carried()).omit_context(true).attempts(3)),
        ("alone", new().attempts(3)),
        ("foreign", new().telemetry(r#"{"b3":"1-2-1"}"#).attempts(3)),
    ] {
        queue.enqueue("a", &json!({}), options.job_id(id)).await.unwrap();
    }
    let worker = bench.worker("q").concurrency(4).handle_any(fails()).start().unwrap();
    bench.counts_become("q", Counts { failed: 7, ..Counts::default() }).await;
    for id in ["at-once", "later", "lifo", "kept", "omitted"] {
        let attempts = log.attempts("q", id);
        assert_eq!(attempts.len(), if id == "kept" { 1 } else { 3 }, "{id}");
        for attempt in &attempts {
            assert_eq!((&attempt["trace_id"], &attempt["parent_span_id"]), (&json!(TRACE), &json!(SPAN)));
        }
        let left = field(&bench, "q", id, "tm").await;
        let expected = carried().child(carried().span_id);
        let own = left.as_deref().and_then(TraceContext::from_carrier);
        let own_span = own.as_ref().map(|own| json!(own.span_id.to_string()));
        if id == "omitted" {
            assert_eq!(left, None);
        } else {
            assert_eq!(own_span.as_ref(), attempts.last().map(|last| &last["span_id"]), "{id}");
            assert_eq!(own.map(|own| own.child(carried().span_id)), Some(expected), "{id}");
        }
    }
    for id in ["alone", "foreign"] {
        let attempts = log.attempts("q", id);
        assert!(attempts.iter().all(|attempt| attempt.get("parent_span_id").is_none()));
        assert_ne!(attempts[0]["trace_id"], attempts[1]["trace_id"], "{id}");
        assert_eq!(field(&bench, "q", id, "tm").await, None, "{id}");
    }
    worker.stop(PATIENCE).await;
}

#[tokio::test]
async fn broken_metadata_fail_no_job_and_stay() {
    let (log, _guard) = Log::start();
    let bench = Bench::start().await;
    let queue = bench.queue("q");
    let half = r#"{"traceparent":"00-0af7"}"#;
    let texts = ["", "{", "null", "[1]", r#"{"traceparent":7}"#, half, "ü\u{0}\n", r#"{"b3":"1-2-1"}"#];
    for (n, text) in texts.iter().enumerate() {
        let options = EnqueueOptions::new().telemetry(*text).job_id(format!("job-{n}"));
        queue.enqueue("a", &json!({}), options).await.unwrap();
    }
    let worker = bench.worker("q").handle_any(passes_on(queue)).start().unwrap();
    bench.counts_become("q", completed(texts.len() as u64)).await;
    for (n, text) in texts.iter().enumerate() {
        let id = format!("job-{n}");
        let answer: Value =
            serde_json::from_str(&field(&bench, "q", &id, "returnvalue").await.unwrap()).unwrap();
        assert_eq!(answer[0], *text);
        let opts: Value = serde_json::from_str(&field(&bench, "q", &id, "opts").await.unwrap()).unwrap();
        assert_eq!(opts["tm"], *text);
        assert!(log.attempts("q", &id)[0].get("parent_span_id").is_none());
    }
    worker.stop(PATIENCE).await;
}
