//! Traces beside the real npm bullmq with its add-on bullmq-otel: from Node through
//! our worker and back, over retries, and what either side leaves in the job.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{Bench, PATIENCE, log::Log};
use mpanel_engine::{Handler, JobContext, JobError, handler_fn};
use mpanel_producer::{BulkJob, EnqueueOptions, FlowJob, JobTemplate, QueueProducer, Repeat, TraceContext};
use mpanel_testkit::{BullVersion, NodeQueue, NodeSidecar, NodeSpan, eventually};
use serde_json::{Value, json};

/// OpenTelemetry's kinds of spans.
const PRODUCER: u8 = 3;
const CONSUMER: u8 = 4;

struct Beside {
    bench: Bench,
    node: NodeSidecar,
}

impl Beside {
    async fn start() -> Self {
        let bench = Bench::start().await;
        let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
        Self { bench, node }
    }

    /// The queue as Node sees it, with telemetry.
    fn traced(&self, version: BullVersion, name: &str) -> NodeQueue {
        self.node.queue(version, name).with_telemetry()
    }

    /// The span that Node made of a job, once it has ended; the `nth` of that name.
    async fn span(&self, name: &str, job: Option<&str>, nth: usize) -> NodeSpan {
        eventually(&format!("span {name} of {job:?}"), PATIENCE, || async {
            let mut spans = self.node.spans().await.map_err(|e| e.to_string())?;
            spans.retain(|span| span.name == name && job.is_none_or(|id| span.is_of_job(id)));
            if spans.len() > nth { Ok(spans.swap_remove(nth)) } else { Err(format!("{spans:?}")) }
        })
        .await
        .unwrap()
    }

    async fn hash(&self, queue: &str, id: &str) -> BTreeMap<String, String> {
        self.bench.ask(&format!("HGETALL bull:{queue}:{id}")).await
    }

    /// Stored options, as JSON.
    async fn opts(&self, queue: &str, id: &str) -> Value {
        serde_json::from_str(&self.hash(queue, id).await["opts"]).unwrap()
    }

    async fn ends(&self, queue: &str, id: &str, state: &str) {
        let node = self.node.queue(BullVersion::V5, queue);
        eventually(&format!("{queue} {id} {state}"), PATIENCE, || async {
            let now = node.state(id).await.map_err(|e| e.to_string())?;
            if now == state { Ok(()) } else { Err(now) }
        })
        .await
        .unwrap();
    }
}

/// Fails until `fails` attempts were made, then passes its trace on to `out`.
fn passes_on(out: QueueProducer, fails: u32) -> impl Handler {
    handler_fn(move |ctx: JobContext, _: Value| {
        let out = out.clone();
        async move {
            if ctx.attempts_made() < fails {
                return Err(JobError::retry("not yet"));
            }
            let traced = EnqueueOptions::new().trace(ctx.trace()).job_id("back");
            out.enqueue("back", &json!({}), traced).await.map_err(|e| JobError::retry(e.to_string()))?;
            Ok(())
        }
    })
}

#[tokio::test]
async fn a_trace_begun_in_node_goes_on_in_rust_and_back() {
    let (log, _guard) = Log::start();
    let beside = Beside::start().await;
    for version in BullVersion::ALL {
        let tag = version.alias().replace('.', "-");
        let (there, back) = (format!("there-{tag}"), format!("back-{tag}"));
        let producer =
            beside.traced(version, &there).in_span(&format!("request-{tag}"), json!({"user": "ü 7"}));
        let theirs = beside.traced(version, &back).start_worker(json!({}), json!({})).await.unwrap();
        let handler = passes_on(beside.bench.queue(&back), 1);
        let ours = beside.bench.worker(&there).handle_any(handler).start().unwrap();

        let opts = json!({"jobId": "there", "attempts": 2, "backoff": 10});
        producer.add("work", json!({}), opts).await.unwrap();
        beside.ends(&back, "back", "completed").await;

        // Node's request, the add in it, our attempts below the add, Node's process below the last.
        let request = beside.span(&format!("request-{tag}"), None, 0).await;
        let add = beside.span(&format!("add {there}.work"), Some("there"), 0).await;
        assert_eq!((add.kind, add.parent_span_id.as_ref()), (PRODUCER, Some(&request.span_id)));
        let attempts = log.attempts(&there, "there");
        assert_eq!(attempts.len(), 2);
        for attempt in &attempts {
            assert_eq!(attempt["trace_id"], request.trace_id.as_str(), "{version:?}");
            assert_eq!(attempt["parent_span_id"], add.span_id.as_str(), "{version:?}");
        }
        assert_ne!(attempts[0]["span_id"], attempts[1]["span_id"]);
        let process = beside.span(&format!("process {back}"), Some("back"), 0).await;
        assert_eq!((process.kind, &process.trace_id), (CONSUMER, &request.trace_id));
        assert_eq!(process.parent_span_id.as_deref(), attempts[1]["span_id"].as_str());
        assert_eq!(process.links, Vec::<Value>::new());

        // The carrier in Node's own words, baggage included.
        let carrier = |opts: &Value| -> Value { serde_json::from_str(opts["tm"].as_str().unwrap()).unwrap() };
        let (sent, returned) = (beside.opts(&there, "there").await, beside.opts(&back, "back").await);
        assert_eq!(carrier(&sent)["traceparent"], format!("00-{}-{}-01", add.trace_id, add.span_id));
        let span = attempts[1]["span_id"].as_str().unwrap();
        assert_eq!(carrier(&returned)["traceparent"], format!("00-{}-{span}-01", add.trace_id));
        assert_eq!(carrier(&sent)["baggage"], carrier(&returned)["baggage"]);
        assert_eq!(carrier(&sent)["baggage"], "user=%C3%BC%207");
        ours.stop(PATIENCE).await;
        theirs.close(false).await.unwrap();
    }
}

#[tokio::test]
async fn a_retry_and_a_failure_leave_what_node_leaves() {
    let (log, _guard) = Log::start();
    let beside = Beside::start().await;
    for version in [BullVersion::V5, BullVersion::V6] {
        for (omit, backoff) in [(false, 0), (false, 10), (true, 0)] {
            let tag = format!("{}-{omit}-{backoff}", version.alias());
            let queues = [format!("node-{tag}"), format!("rust-{tag}")];
            let [theirs, ours] = &queues;
            let metadata = r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
            let telemetry = json!({"metadata": metadata, "omitContext": omit});
            let opts = json!({"jobId": "j", "attempts": 2, "backoff": backoff, "telemetry": telemetry});
            for queue in &queues {
                beside.node.queue(version, queue).add("a", json!({}), opts.clone()).await.unwrap();
            }
            let script = json!({"default": {"throw": "no"}});
            let node = beside.traced(version, theirs).start_worker(script, json!({})).await.unwrap();
            let fails =
                handler_fn(|_: JobContext, _: Value| async move { Err::<(), _>(JobError::retry("no")) });
            let rust = beside.bench.worker(ours).handle_any(fails).start().unwrap();
            for queue in &queues {
                beside.ends(queue, "j", "failed").await;
            }

            let [left, by_us] = [beside.hash(theirs, "j").await, beside.hash(ours, "j").await];
            assert_eq!(left.keys().collect::<Vec<_>>(), by_us.keys().collect::<Vec<_>>(), "{tag}");
            assert_eq!(left["opts"], by_us["opts"], "the producer's context stays");
            assert_eq!(left.contains_key("tm"), !omit, "{tag}");
            let attempts = log.attempts(ours, "j");
            let carried = TraceContext::from_carrier(metadata).unwrap();
            assert_eq!(attempts.len(), 2, "{tag}");
            for (nth, attempt) in attempts.iter().enumerate() {
                let process = beside.span(&format!("process {theirs}"), Some("j"), nth).await;
                assert_eq!(
                    process.parent_span_id,
                    Some(carried.span_id.to_string()),
                    "{tag}: also with omitContext"
                );
                assert_eq!(attempt["parent_span_id"], carried.span_id.to_string(), "{tag}");
            }
            if !omit {
                // Node's is the span of the move below the attempt's; we have no span for it.
                let moved = beside.span(&format!("fail {theirs}"), Some("j"), 0).await;
                let [node, rust] =
                    [&left, &by_us].map(|hash| TraceContext::from_carrier(&hash["tm"]).unwrap());
                assert_eq!((node.trace_id, rust.trace_id), (carried.trace_id, carried.trace_id));
                assert_eq!(node.span_id.to_string(), moved.span_id);
                assert_eq!(attempts[1]["span_id"], rust.span_id.to_string());
            }
            rust.stop(PATIENCE).await;
            node.close(false).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_retry_by_the_other_side_has_the_same_parent() {
    let (log, _guard) = Log::start();
    let beside = Beside::start().await;
    for version in [BullVersion::V5, BullVersion::V6] {
        let name = format!("q-{}", version.alias());
        let queue = beside.traced(version, &name).in_span("request", json!({}));
        queue.add("a", json!({}), json!({"jobId": "j", "attempts": 3, "backoff": 60_000})).await.unwrap();
        let add = beside.span(&format!("add {name}.a"), Some("j"), 0).await;

        let fails = handler_fn(|_: JobContext, _: Value| async move { Err::<(), _>(JobError::retry("no")) });
        let ours = beside.bench.worker(&name).handle_any(fails).start().unwrap();
        beside.ends(&name, "j", "delayed").await;
        ours.stop(PATIENCE).await;
        let left = TraceContext::from_carrier(&beside.hash(&name, "j").await["tm"]).unwrap();
        assert_eq!(log.attempts(&name, "j")[0]["span_id"], left.span_id.to_string());

        queue.job_call("j", "promote", Vec::new()).await.unwrap();
        let theirs = beside.traced(version, &name).start_worker(json!({}), json!({})).await.unwrap();
        beside.ends(&name, "j", "completed").await;
        let process = beside.span(&format!("process {name}"), Some("j"), 0).await;
        assert_eq!((&process.trace_id, process.parent_span_id.as_ref()), (&add.trace_id, Some(&add.span_id)));
        theirs.close(false).await.unwrap();
    }
}

#[tokio::test]
async fn every_way_in_which_node_adds_jobs_is_continued_or_omitted() {
    let (log, _guard) = Log::start();
    let beside = Beside::start().await;
    for version in [BullVersion::V5, BullVersion::V6] {
        for omit in [false, true] {
            let name = format!("q-{}-{omit}", version.alias());
            let queue = beside.traced(version, &name).in_span("request", json!({}));
            let opts = |id: &str| {
                let telemetry = if omit { json!({"omitContext": true}) } else { json!({}) };
                json!({"jobId": id, "telemetry": telemetry})
            };
            queue.add("a", json!({}), opts("one")).await.unwrap();
            queue.add_bulk(vec![json!({"name": "a", "data": {}, "opts": opts("bulk")})]).await.unwrap();
            let child = json!({"name": "a", "queueName": name, "opts": opts("child")});
            let flow = json!({"name": "a", "queueName": name, "opts": opts("parent"), "children": [child]});
            queue.add_flow(flow).await.unwrap();
            let template = json!({"name": "a", "data": {}, "opts": {"telemetry": opts("")["telemetry"]}});
            let first = vec![json!("s"), json!({"every": 3_600_000}), template];
            let first = queue.queue_call("upsertJobScheduler", first).await.unwrap();
            let first = first["id"].as_str().unwrap();

            if omit {
                let [one, bulk] = [beside.opts(&name, "one").await, beside.opts(&name, "bulk").await];
                assert_eq!((one.get("tm"), &one["omc"]), (None, &json!(true)));
                assert_eq!((&bulk["tm"], &bulk["omc"]), (&json!(false), &json!(true)));
            }

            let done = handler_fn(|_: JobContext, _: Value| async move { Ok::<_, JobError>(()) });
            let ours = beside.bench.worker(&name).handle_any(done).start().unwrap();
            let added = format!("add {name}.a");
            for (id, made_by) in [
                ("one", added.clone()),
                ("bulk", format!("addBulk {name}")),
                ("child", format!("addNode {name}")),
                ("parent", format!("addNode {name}")),
                (first, added.clone()),
            ] {
                beside.ends(&name, id, "completed").await;
                let attempt = log.attempts(&name, id).remove(0);
                let job = (id != "bulk").then_some(id);
                let producer = beside.span(&made_by, job, 0).await;
                if omit {
                    assert!(attempt.get("parent_span_id").is_none(), "{version:?} {id} {attempt}");
                    assert_ne!(attempt["trace_id"], producer.trace_id, "{version:?} {id}");
                } else {
                    assert_eq!(producer.kind, PRODUCER);
                    assert_eq!(attempt["parent_span_id"], producer.span_id, "{version:?} {id}");
                    assert_eq!(attempt["trace_id"], producer.trace_id, "{version:?} {id}");
                }
            }
            ours.stop(PATIENCE).await;
        }
    }
}

#[tokio::test]
async fn every_iteration_of_a_schedule_carries_the_context_of_the_upsert() {
    let beside = Beside::start().await;
    for version in [BullVersion::V5, BullVersion::V6] {
        for by_node in [true, false] {
            let name = format!("q-{}-{by_node}", version.alias());
            let queue = beside.traced(version, &name).in_span("request", json!({}));
            let upsert = vec![json!("s"), json!({"every": 3_600_000}), json!({"name": "a"})];
            let first = queue.queue_call("upsertJobScheduler", upsert).await.unwrap();
            let first = first["id"].as_str().unwrap();
            let theirs =
                if by_node { Some(queue.start_worker(json!({}), json!({})).await.unwrap()) } else { None };
            let done = handler_fn(|_: JobContext, _: Value| async move { Ok::<_, JobError>(()) });
            let ours = (!by_node).then(|| beside.bench.worker(&name).handle_any(done).start().unwrap());
            beside.ends(&name, first, "completed").await;
            let next: Vec<String> = beside.bench.ask(&format!("ZRANGE bull:{name}:delayed 0 -1")).await;
            let carried = beside.opts(&name, first).await["tm"].clone();
            assert!(TraceContext::from_carrier(carried.as_str().unwrap()).is_some());
            assert_eq!(beside.opts(&name, &next[0]).await["tm"], carried, "{version:?} by Node: {by_node}");
            if let Some(worker) = theirs {
                worker.close(false).await.unwrap();
            }
            if let Some(worker) = ours {
                worker.stop(PATIENCE).await;
            }
        }
    }
}

#[tokio::test]
async fn telemetry_options_are_stored_as_node_stores_them() {
    let beside = Beside::start().await;
    let metadata = r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","x":"ü/\""}"#;
    let cases = [
        (json!({"metadata": metadata}), EnqueueOptions::new().telemetry(metadata)),
        (json!({"omitContext": true}), EnqueueOptions::new().omit_context(true)),
        (
            json!({"metadata": "any", "omitContext": false}),
            EnqueueOptions::new().telemetry("any").omit_context(false),
        ),
        (
            json!({"metadata": "", "omitContext": true}),
            EnqueueOptions::new().telemetry("").omit_context(true),
        ),
    ];
    for version in [BullVersion::V5, BullVersion::V6] {
        for (n, (telemetry, options)) in cases.iter().enumerate() {
            let [theirs, ours] = ["node", "rust"].map(|by| format!("{by}-{}-{n}", version.alias()));
            let node = beside.node.queue(version, &theirs);
            let rust = beside.bench.queue(&ours);
            let opts = |id: &str| json!({"jobId": id, "telemetry": telemetry});
            node.add("a", json!({}), opts("one")).await.unwrap();
            node.add_bulk(vec![json!({"name": "a", "data": {}, "opts": opts("bulk")})]).await.unwrap();
            let child = json!({"name": "a", "queueName": theirs, "opts": opts("child")});
            let flow = json!({"name": "a", "queueName": theirs, "opts": opts("parent"), "children": [child]});
            node.add_flow(flow).await.unwrap();
            let every = json!({"every": 3_600_000});
            let template = json!({"name": "a", "data": {}, "opts": {"telemetry": telemetry}});
            node.queue_call("upsertJobScheduler", vec![json!("s"), every, template]).await.unwrap();

            let with = |id: &str| options.clone().job_id(id);
            rust.enqueue("a", &json!({}), with("one")).await.unwrap();
            rust.enqueue_bulk([BulkJob::new("a", json!({})).options(with("bulk"))]).await.unwrap();
            let child = FlowJob::new("a", ours.as_str()).options(with("child"));
            let flow = FlowJob::new("a", ours.as_str()).options(with("parent")).child(child);
            beside.bench.producer.enqueue_flow(flow).await.unwrap();
            let template = JobTemplate::new("a").options(options.clone()).unwrap();
            let schedules = beside.bench.producer.schedules(&ours).unwrap();
            schedules.upsert("s", Repeat::every(Duration::from_secs(3600)), template).await.unwrap();

            for id in ["one", "bulk", "child", "parent"] {
                let [mut theirs, mut ours] = [beside.opts(&theirs, id).await, beside.opts(&ours, id).await];
                if id == "child" {
                    // The parent's queue has another name.
                    theirs.as_object_mut().unwrap().remove("parent");
                    ours.as_object_mut().unwrap().remove("parent");
                }
                assert_eq!(theirs, ours, "{version:?} {telemetry} {id}");
            }
            let [theirs, ours] =
                [beside.hash(&theirs, "repeat:s").await, beside.hash(&ours, "repeat:s").await];
            assert_eq!(template_of(&theirs), template_of(&ours), "{version:?} {telemetry} scheduler");
        }
    }
}

/// A scheduler's stored template.
fn template_of(scheduler: &BTreeMap<String, String>) -> Value {
    serde_json::from_str(&scheduler["opts"]).unwrap()
}
