//! Beside the real npm bullmq, in three versions: either side enqueues, either side
//! works, and Node reads what our workers leave.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{Bench, Gate, PATIENCE, completed, echo};
use mpanel_engine::{Handler, JobContext, JobError, admin::Counts, handler_fn};
use mpanel_producer::{Backoff, BulkJob, EnqueueOptions, KeepJobs};
use mpanel_testkit::{BullVersion, NodeQueue, NodeSidecar, TestkitError, eventually, node::NodeEvent};
use serde_json::{Value, json};

const VERSIONS: [BullVersion; 3] = BullVersion::ALL;

/// A bench with Node beside it, and the three versions' queues, one name each.
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

    fn queues(&self) -> [(NodeQueue, String); 3] {
        VERSIONS.map(|version| {
            let name = format!("q-{}", version.alias().replace('.', "-"));
            (self.node.queue(version, &name), name)
        })
    }
}

async fn node_counts(queue: &NodeQueue, expected: &[(&str, u64)]) {
    let expected: BTreeMap<String, u64> = expected.iter().map(|(s, n)| ((*s).to_owned(), *n)).collect();
    eventually("getJobCounts", PATIENCE, || async {
        let mut counts = queue.counts(&[]).await.map_err(|e| e.to_string())?;
        counts.retain(|_, n| *n > 0);
        if counts == expected { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await
    .unwrap();
}

/// Does what its payload says: `fail`, `never`, `log`, `progress`, else answers it.
fn obedient() -> impl Handler {
    handler_fn(|ctx: JobContext, data: Value| async move {
        if let Some(line) = data["log"].as_str() {
            ctx.log(line).await.map_err(|e| JobError::retry(e.to_string()))?;
        }
        if !data["progress"].is_null() {
            ctx.progress(&data["progress"]).await.map_err(|e| JobError::retry(e.to_string()))?;
        }
        if let Some(reason) = data["never"].as_str() {
            return Err(JobError::never(reason.to_owned()));
        }
        if data["fail"].as_u64().is_some_and(|times| u64::from(ctx.attempts_made()) < times) {
            return Err(JobError::retry("as told").because("a cause"));
        }
        Ok(json!({ "name": ctx.name(), "data": data }))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn node_enqueues_and_rust_works() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        queue.add("plain", json!({"text": "ü/\u{2028}😀"}), json!({})).await.unwrap();
        queue.add("later", json!({}), json!({"delay": 150})).await.unwrap();
        queue.add("urgent", json!([1, 2]), json!({"priority": 3})).await.unwrap();
        queue.add("own", json!(null), json!({"jobId": "own-1", "lifo": true})).await.unwrap();
        let retried = json!({"attempts": 3, "backoff": {"type": "exponential", "delay": 10}});
        let retried = queue.add("retried", json!({"fail": 2}), retried).await.unwrap();
        queue.add("gone", json!({}), json!({"removeOnComplete": true})).await.unwrap();
        let bulk = (0..50).map(|n| json!({"name": "bulk", "data": {"n": n}, "opts": {}})).collect();
        let bulk = queue.add_bulk(bulk).await.unwrap();

        let worker = beside.bench.worker(&name).concurrency(8).handle_any(obedient()).start().unwrap();
        node_counts(&queue, &[("completed", 55)]).await;
        let own = queue.job("own-1").await.unwrap().unwrap();
        assert_eq!((own.state.as_str(), &own.returnvalue["data"]), ("completed", &Value::Null));
        let retried = queue.job(&retried.id).await.unwrap().unwrap();
        assert_eq!(retried.attempts_made, Some(3));
        assert_eq!(retried.stacktrace.unwrap().len(), 2);
        let first = queue.job(&bulk[0]).await.unwrap().unwrap();
        assert_eq!(first.returnvalue, json!({"name": "bulk", "data": {"n": 0}}));
        worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_enqueues_and_node_works() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        let ours = beside.bench.queue(&name);
        let new = EnqueueOptions::new;
        let data =
            json!({"text": "ü/\u{2028}\u{0}😀\"\\", "deep": [[{"a": [1.5, -2, 9_007_199_254_740_991_i64]}]]});
        let plain = ours.enqueue("plain", &data, new()).await.unwrap();
        let later = ours.enqueue("later", &json!({}), new().delay(Duration::from_millis(150))).await.unwrap();
        let urgent = ours.enqueue("urgent", &json!({}), new().priority(1)).await.unwrap();
        let own = ours.enqueue("own", &json!({}), new().job_id("own-1").lifo(true)).await.unwrap();
        let backoff = Backoff::fixed(10);
        let retried = ours.enqueue("retried", &json!({}), new().attempts(3).backoff(backoff)).await.unwrap();
        let gone = new().remove_on_complete(KeepJobs::Remove(true));
        let gone = ours.enqueue("gone", &json!({}), gone).await.unwrap();
        let bulk = ours.enqueue_bulk((0..50).map(|n| BulkJob::new("bulk", json!(n)))).await.unwrap();

        let view = queue.job(plain.id().as_str()).await.unwrap().unwrap();
        assert_eq!((view.state.as_str(), &view.name, &view.data), ("waiting", &"plain".to_owned(), &data));
        let view = queue.job(later.id().as_str()).await.unwrap().unwrap();
        assert_eq!((view.state.as_str(), view.delay), ("delayed", Some(150.0)));
        let view = queue.job(urgent.id().as_str()).await.unwrap().unwrap();
        assert_eq!((view.state.as_str(), view.priority), ("prioritized", Some(1)));
        let view = queue.job(retried.id().as_str()).await.unwrap().unwrap();
        assert_eq!(view.opts["attempts"], 3);
        assert_eq!(view.opts["backoff"], json!({"type": "fixed", "delay": 10}));

        let script = json!({"default": {"return": {"by": "node"}},
            "byName": {"retried": [{"throw": "one"}, {"throw": "two"}, {"return": "third"}]}});
        let worker = queue.start_worker(script, json!({})).await.unwrap();
        node_counts(&queue, &[("completed", 55)]).await;
        let started = worker.wait_events("active", None, 1, PATIENCE).await.unwrap();
        assert_eq!(started[0].job_id.as_deref(), Some(own.id().as_str()), "lifo goes first");
        let detail = beside.bench.job(&name, retried.id()).await;
        assert_eq!((detail.job.attempts_made, detail.return_value.as_deref()), (3, Some("\"third\"")));
        let detail = beside.bench.job(&name, bulk[49].id()).await;
        assert_eq!(detail.return_value.as_deref(), Some(r#"{"by":"node"}"#));
        assert_eq!(queue.job(gone.id().as_str()).await.unwrap(), None);
        worker.close(false).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_and_rust_share_a_queue_and_finish_each_job_once() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        let script = json!({"default": {"sleepMs": 2, "return": "node"}});
        let theirs = queue.start_worker(script, json!({"concurrency": 5})).await.unwrap();
        let works = handler_fn(|_: JobContext, _: Value| async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok::<_, JobError>("rust")
        });
        let ours = beside.bench.worker(&name).concurrency(5).handle_any(works).start().unwrap();
        let producer = beside.bench.queue(&name);
        let by_rust = producer.enqueue_bulk((0..300).map(|n| BulkJob::new("a", json!(n)))).await.unwrap();
        let by_node = (0..300).map(|n| json!({"name": "a", "data": n, "opts": {}})).collect();
        let by_node = queue.add_bulk(by_node).await.unwrap();
        node_counts(&queue, &[("completed", 600)]).await;

        let mut ids: Vec<_> = by_rust.iter().map(|job| job.id().clone()).collect();
        ids.extend(by_node.iter().map(mpanel_producer::JobId::stored));
        beside.bench.each_has_one_event(&name, "completed", &ids).await;
        let mut done: BTreeMap<String, u32> = BTreeMap::new();
        for event in beside.bench.events(&name).await {
            if event["event"] == "completed" {
                *done.entry(event["returnvalue"].clone()).or_default() += 1;
            }
        }
        assert!(done["\"node\""] > 0 && done["\"rust\""] > 0, "{done:?}");
        ours.stop(PATIENCE).await;
        theirs.close(false).await.unwrap();
    }
}

/// The events about one job, as names with what a listener gets.
fn about(events: &[NodeEvent], id: &str) -> Vec<(String, Value)> {
    // Each event is emitted once more, as `event:id`.
    let own = events.iter().filter(|e| e.job_id.as_deref() == Some(id) && !e.event.contains(':'));
    own.map(|e| (e.event.clone(), e.args.clone())).collect()
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_events_in_node_tell_what_rust_does() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        queue.open_events().await.unwrap();
        let good = queue.add("good", json!({"progress": {"pct": 40}}), json!({})).await.unwrap().id;
        let bad = json!({"attempts": 2, "backoff": {"type": "fixed", "delay": 20}});
        let bad = queue.add("bad", json!({"fail": 9}), bad).await.unwrap().id;
        let worker = beside.bench.worker(&name).handle_any(obedient()).start().unwrap();
        queue.wait_event("retries-exhausted", Some(&bad), PATIENCE).await.unwrap();
        queue.wait_event("drained", None, PATIENCE).await.unwrap();
        let events = queue.events().await.unwrap();

        let seen = about(&events, &good);
        assert_eq!(names(&seen), ["added", "waiting", "active", "progress", "completed"]);
        assert_eq!(seen[0].1, json!({"jobId": good, "name": "good"}));
        assert_eq!(seen[2].1, json!({"jobId": good, "prev": "waiting"}));
        assert_eq!(seen[3].1, json!({"jobId": good, "data": {"pct": 40}}));
        let result = json!({"name": "good", "data": {"progress": {"pct": 40}}});
        assert_eq!(seen[4].1, json!({"jobId": good, "returnvalue": result, "prev": "active"}));

        let seen = about(&events, &bad);
        assert_eq!(
            names(&seen),
            ["added", "waiting", "active", "delayed", "waiting", "active", "failed", "retries-exhausted"]
        );
        let due = match &seen[3].1["delay"] {
            Value::String(text) => text.parse::<f64>().unwrap(),
            other => other.as_f64().unwrap(),
        };
        assert!(due > 1.7e12, "an absolute time: {due}");
        assert_eq!(seen[4].1, json!({"jobId": bad, "prev": "delayed"}));
        assert_eq!(seen[6].1, json!({"jobId": bad, "failedReason": "as told", "prev": "active"}));
        assert_eq!(seen[7].1, json!({"jobId": bad, "attemptsMade": "2"}));
        worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_reads_the_jobs_that_rust_ran() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        let ours = beside.bench.queue(&name);
        let data = json!({"progress": 70, "log": "hello"});
        let good = ours.enqueue("good", &data, EnqueueOptions::new()).await.unwrap().id().to_string();
        let bad = EnqueueOptions::new().attempts(2);
        let bad = ours.enqueue("bad", &json!({"fail": 9}), bad).await.unwrap().id().to_string();
        ours.enqueue("later", &json!({}), EnqueueOptions::new().delay(PATIENCE)).await.unwrap();
        let worker = beside.bench.worker(&name).name("w1").handle_any(obedient()).start().unwrap();
        node_counts(&queue, &[("completed", 1), ("failed", 1), ("delayed", 1)]).await;

        let view = queue.job(&good).await.unwrap().unwrap();
        assert_eq!(queue.state(&good).await.unwrap(), "completed");
        assert_eq!(view.returnvalue["name"], "good");
        assert_eq!((view.progress, view.attempts_made, view.attempts_started), (json!(70), Some(1), Some(1)));
        assert_eq!(view.failed_reason, None);
        assert_eq!(view.processed_by.as_deref(), Some("w1"));
        // Two clocks: the producer's and the worker's, both set by the server's.
        let [added, began, ended] = [view.timestamp, view.processed_on, view.finished_on].map(Option::unwrap);
        assert!(added <= began + 100 && began <= ended, "{added} {began} {ended}");
        let logs = queue.logs(&good).await.unwrap();
        assert_eq!((logs.logs, logs.count), (vec!["hello".to_owned()], 1));

        let view = queue.job(&bad).await.unwrap().unwrap();
        assert_eq!((view.state.as_str(), view.failed_reason.as_deref()), ("failed", Some("as told")));
        assert_eq!((view.attempts_made, view.attempts_started), (Some(2), Some(2)));
        let stack = view.stacktrace.unwrap();
        assert_eq!(stack.len(), 2);
        assert_eq!(stack[0], "Error: as told\n    caused by: a cause");
        assert!(view.finished_on.is_some() && view.returnvalue.is_null());
        worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_until_finished_in_node_settles_for_a_job_that_rust_runs() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        queue.open_events().await.unwrap();
        let gate = Gate::closed();
        let held = gate.clone();
        let holds = handler_fn(move |ctx: JobContext, data: Value| {
            let gate = held.stubborn();
            async move {
                gate.run(&ctx, Value::Null).await?;
                if data == json!("bad") { Err(JobError::retry("no luck")) } else { Ok(json!({"got": data})) }
            }
        });
        let worker = beside.bench.worker(&name).concurrency(2).handle_any(holds).start().unwrap();
        let good = queue.add("a", json!("good"), json!({})).await.unwrap().id;
        let bad = queue.add("a", json!("bad"), json!({})).await.unwrap().id;
        gate.started(2).await;
        let open = async {
            gate.open();
        };
        let (good, bad, ()) = tokio::join!(
            queue.wait_until_finished(&good, PATIENCE),
            queue.wait_until_finished(&bad, PATIENCE),
            open
        );
        assert_eq!(good.unwrap(), json!({"got": "good"}));
        let Err(TestkitError::Node { message, .. }) = bad else { panic!("{bad:?}") };
        assert!(message.contains("no luck"), "{message}");
        worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn get_workers_in_node_lists_ours() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        let unnamed = beside.bench.worker(&name).handle_any(echo()).start().unwrap();
        let named = beside.bench.worker(&name).name("fleet-1").handle_any(echo()).start().unwrap();
        let workers = eventually("two workers", PATIENCE, || async {
            let workers = queue.workers().await.map_err(|e| e.to_string())?;
            if workers.len() == 2 { Ok(workers) } else { Err(format!("{workers:?}")) }
        })
        .await
        .unwrap();
        let mut raw: Vec<&str> = workers.iter().map(|w| w["rawname"].as_str()).collect();
        raw.sort_unstable();
        assert!(raw[1].ends_with(":w:fleet-1") && raw[1].starts_with(raw[0]), "{raw:?}");
        assert!(workers.iter().all(|w| w["name"] == name), "{workers:?}");
        named.stop(PATIENCE).await;
        unnamed.stop(PATIENCE).await;
        eventually("no worker", PATIENCE, || async {
            let workers = queue.workers().await.map_err(|e| e.to_string())?;
            if workers.is_empty() { Ok(()) } else { Err(format!("{workers:?}")) }
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_paused_in_node_is_left_alone_until_node_resumes_it() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        let worker = beside.bench.worker(&name).handle_any(echo()).start().unwrap();
        beside.bench.asleep(1).await;
        queue.add("before", json!({}), json!({})).await.unwrap();
        node_counts(&queue, &[("completed", 1)]).await;
        queue.pause().await.unwrap();
        queue.add("a", json!({}), json!({})).await.unwrap();
        queue.add("b", json!({}), json!({"priority": 1})).await.unwrap();
        beside.bench.queue(&name).enqueue("c", &json!({}), EnqueueOptions::new()).await.unwrap();
        // A wake-up by hand: the worker looks, and takes nothing.
        let before = beside.bench.calls("evalsha").await;
        let _: () = beside.bench.ask(&format!("ZADD bull:{name}:marker 0 0")).await;
        eventually("a look at the queue", PATIENCE, || async {
            let calls = beside.bench.calls("evalsha").await;
            if calls > before { Ok(()) } else { Err(format!("{calls} calls")) }
        })
        .await
        .unwrap();
        assert!(queue.is_paused().await.unwrap());
        let counts = beside.bench.admin(&name).counts().await.unwrap();
        assert_eq!((counts.waiting + counts.paused, counts.prioritized, counts.completed), (2, 1, 1));
        queue.resume().await.unwrap();
        node_counts(&queue, &[("completed", 4)]).await;
        worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unrecoverable_error_ends_a_job_on_either_side() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        let opts = json!({"attempts": 5, "backoff": 10});
        let ours = queue.add("ours", json!({"never": "bad input"}), opts).await.unwrap().id;
        let worker = beside.bench.worker(&name).handle_any(obedient()).start().unwrap();
        node_counts(&queue, &[("failed", 1)]).await;
        worker.stop(PATIENCE).await;
        let view = queue.job(&ours).await.unwrap().unwrap();
        assert_eq!((view.failed_reason.as_deref(), view.attempts_made), (Some("bad input"), Some(1)));
        assert!(view.stacktrace.unwrap()[0].starts_with("UnrecoverableError: bad input"));
        assert!(beside.bench.event_ids(&name, "retries-exhausted").await.is_empty());

        let options = EnqueueOptions::new().attempts(5).backoff(Backoff::fixed(10));
        let theirs = beside.bench.queue(&name).enqueue("theirs", &json!({}), options).await.unwrap();
        let script = json!({"default": {"unrecoverable": "broken"}});
        let worker = queue.start_worker(script, json!({})).await.unwrap();
        node_counts(&queue, &[("failed", 2)]).await;
        worker.close(false).await.unwrap();
        let detail = beside.bench.job(&name, theirs.id()).await;
        assert_eq!((detail.failed_reason.as_deref(), detail.job.attempts_made), (Some("broken"), 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_that_node_retries_runs_again() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        let job = queue.add("a", json!({"fail": 1}), json!({})).await.unwrap().id;
        let worker = beside.bench.worker(&name).handle_any(obedient()).start().unwrap();
        node_counts(&queue, &[("failed", 1)]).await;
        queue.job_call(&job, "retry", Vec::new()).await.unwrap();
        node_counts(&queue, &[("completed", 1)]).await;
        let view = queue.job(&job).await.unwrap().unwrap();
        assert_eq!((view.attempts_made, view.attempts_started), (Some(2), Some(2)));
        assert_eq!(view.failed_reason, None);
        worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_one_side_retries_is_finished_by_the_other() {
    let beside = Beside::start().await;
    for (queue, name) in beside.queues() {
        let opts = json!({"attempts": 2, "backoff": {"type": "fixed", "delay": 1500}});
        let job = queue.add("a", json!({"fail": 9}), opts).await.unwrap().id;
        let worker = beside.bench.worker(&name).handle_any(obedient()).start().unwrap();
        beside.bench.counts_become(&name, Counts { delayed: 1, ..Counts::default() }).await;
        worker.stop(PATIENCE).await;
        let worker = queue.start_worker(json!({"default": {"return": "node"}}), json!({})).await.unwrap();
        queue.job_call(&job, "promote", Vec::new()).await.unwrap();
        node_counts(&queue, &[("completed", 1)]).await;
        let view = queue.job(&job).await.unwrap().unwrap();
        assert_eq!((view.returnvalue, view.attempts_made), (json!("node"), Some(2)));
        worker.close(false).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mpanels_own_functions_enqueue_is_served() {
    for version in VERSIONS {
        let beside = Beside::start().await;
        let mpanel = beside.node.mpanel(version);
        let payload = json!({"vmid": 121, "cloudPodId": "pod-1", "hostname": "a.example.net", "cores": 2});
        let created = [
            mpanel.enqueue_create(payload.clone(), Some("create-own")).await.unwrap(),
            mpanel.enqueue_destroy(payload.clone()).await.unwrap(),
            mpanel.enqueue_backup(payload.clone()).await.unwrap(),
            mpanel.enqueue_health(payload.clone()).await.unwrap(),
            mpanel.enqueue_scale(payload.clone()).await.unwrap(),
        ];
        for (job, attempts) in created.iter().zip([2, 3, 3, 1, 2]) {
            let look = handler_fn(|ctx: JobContext, data: Value| async move {
                Ok::<_, JobError>(json!({"attempts": ctx.max_attempts(), "name": ctx.name(), "data": data}))
            });
            let worker = beside.bench.worker(&job.queue_name).handle(&job.name, look).start().unwrap();
            beside.bench.counts_become(&job.queue_name, completed(1)).await;
            worker.stop(PATIENCE).await;
            let view = beside.node.queue(version, &job.queue_name).job(&job.id).await.unwrap().unwrap();
            let expected = json!({"attempts": attempts, "name": job.name, "data": payload});
            assert_eq!(view.returnvalue, expected, "{}", job.queue_name);
            assert_eq!(view.opts["backoff"], json!({"type": "exponential", "delay": 5000}));
            assert_eq!(view.opts["removeOnComplete"], json!({"age": 86_400, "count": 1000}));
            assert_eq!(view.opts["removeOnFail"], json!({"age": 604_800}));
        }
        assert_eq!(created[0].id, "create-own");
        let stats = mpanel.queue_stats().await.unwrap();
        assert_eq!(stats["scale"]["completed"], 1, "{stats}");
    }
}
