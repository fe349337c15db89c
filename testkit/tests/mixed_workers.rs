//! Producers and workers of all three versions and of ours on one queue: every job
//! is done once, and everybody hears of it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use mpanel_engine::{Engine, JobContext, JobError, handler_fn};
use mpanel_producer::{Backoff, BulkJob, EnqueueOptions, FlowJob, Producer};
use mpanel_protocol::options::Deduplication;
use mpanel_testkit::{BullVersion, NodeSidecar, RedisServer, eventually};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
/// Of each kind, by each of the four producers.
const EACH: usize = 150;
const FLOWS: usize = 10;
/// Children of a flow; the flow is one job more.
const CHILDREN: usize = 3;
const PER_PRODUCER: usize = 6 * EACH + FLOWS * (CHILDREN + 1);

async fn node_produces(node: &NodeSidecar, version: BullVersion) {
    let queue = node.queue(version, "mix");
    let by = version.alias().replace('.', "-");
    let mut jobs = Vec::new();
    for i in 0..EACH {
        let id = |kind: &str| format!("{by}-{kind}-{i}");
        jobs.push(json!({"name": "plain", "data": {}, "opts": {"jobId": id("plain")}}));
        jobs.push(json!({"name": "later", "data": {}, "opts": {"jobId": id("later"), "delay": 5 * i}}));
        jobs.push(
            json!({"name": "urgent", "data": {}, "opts": {"jobId": id("urgent"), "priority": 1 + i % 3}}),
        );
        jobs.push(json!({"name": "lifo", "data": {}, "opts": {"jobId": id("lifo"), "lifo": true}}));
        let backoff = json!({"type": "fixed", "delay": (i % 2) * 20});
        let opts = json!({"jobId": id("retried"), "attempts": 3, "backoff": backoff});
        jobs.push(json!({"name": "retried", "data": {}, "opts": opts}));
        let dedup = json!({"jobId": id("single"), "deduplication": {"id": id("de")}});
        jobs.push(json!({"name": "single", "data": {}, "opts": dedup}));
    }
    for chunk in jobs.chunks(50) {
        queue.add_bulk(chunk.to_vec()).await.unwrap();
    }
    for i in 0..FLOWS {
        let children: Vec<Value> = (0..CHILDREN)
            .map(|c| json!({"name": "child", "queueName": "mix", "opts": {"jobId": format!("{by}-child-{i}-{c}")}}))
            .collect();
        let opts = json!({"jobId": format!("{by}-parent-{i}")});
        let flow = json!({"name": "parent", "queueName": "mix", "opts": opts, "children": children});
        queue.add_flow(flow).await.unwrap();
    }
}

async fn we_produce(url: &str) {
    let producer = Producer::connect(url).await.unwrap();
    let mut jobs = Vec::new();
    for i in 0..EACH {
        let own = |kind: &str| EnqueueOptions::new().job_id(format!("ours-{kind}-{i}"));
        let wait = Duration::from_millis(5 * i as u64);
        jobs.push(BulkJob::new("plain", json!({})).options(own("plain")));
        jobs.push(BulkJob::new("later", json!({})).options(own("later").delay(wait)));
        jobs.push(BulkJob::new("urgent", json!({})).options(own("urgent").priority(1 + i as u32 % 3)));
        jobs.push(BulkJob::new("lifo", json!({})).options(own("lifo").lifo(true)));
        let backoff = Backoff::fixed((i as u32 % 2) * 20);
        jobs.push(BulkJob::new("retried", json!({})).options(own("retried").attempts(3).backoff(backoff)));
        let dedup = Deduplication { id: format!("ours-de-{i}"), ..Deduplication::default() };
        jobs.push(BulkJob::new("single", json!({})).options(own("single").deduplication(dedup)));
    }
    producer.queue("mix").unwrap().enqueue_bulk(jobs).await.unwrap();
    for i in 0..FLOWS {
        let own = |id: String| EnqueueOptions::new().job_id(id);
        let mut flow = FlowJob::new("parent", "mix").options(own(format!("ours-parent-{i}")));
        for c in 0..CHILDREN {
            flow = flow.child(FlowJob::new("child", "mix").options(own(format!("ours-child-{i}-{c}"))));
        }
        producer.enqueue_flow(flow).await.unwrap();
    }
}

async fn ask<T: redis::FromRedisValue>(conn: &MultiplexedConnection, command: &[&str]) -> T {
    redis::cmd(command[0]).arg(&command[1..]).query_async(&mut conn.clone()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_job_of_a_mixed_fleet_is_done_once() {
    let server = RedisServer::builder().appendonly(false).start().await.unwrap();
    let node = NodeSidecar::start(&server.url()).await.unwrap();
    let conn = redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    // Enough for every event: QueueEvents must not find the stream trimmed.
    ask::<()>(&conn, &["HSET", "bull:mix:meta", "opts.maxLenEvents", "100000"]).await;
    for version in BullVersion::ALL {
        node.queue(version, "mix").open_events().await.unwrap();
    }

    let done: Arc<Mutex<Vec<String>>> = Arc::default();
    let handler = handler_fn({
        let done = done.clone();
        move |ctx: JobContext, _: Value| {
            let done = done.clone();
            async move {
                if ctx.name() == "retried" && ctx.attempts_made() == 0 {
                    return Err(JobError::retry("once"));
                }
                done.lock().unwrap().push(ctx.id().as_str().to_owned());
                Ok::<_, JobError>(json!("rust"))
            }
        }
    });
    let engine = Engine::connect(&server.url()).await.unwrap();
    let worker = engine.worker("mix").unwrap().concurrency(5).handle_any(handler).start().unwrap();
    let script = json!({"default": {"return": "node"}, "byName": {"retried": [{"throw": "once"}, {"return": "node"}]}});
    let mut node_workers = Vec::new();
    for version in BullVersion::ALL {
        let options = json!({"concurrency": 5});
        node_workers.push(node.queue(version, "mix").start_worker(script.clone(), options).await.unwrap());
    }

    let url = server.url();
    tokio::join!(
        node_produces(&node, BullVersion::V5_28),
        node_produces(&node, BullVersion::V5),
        node_produces(&node, BullVersion::V6),
        we_produce(&url),
    );
    let total = 4 * PER_PRODUCER;
    eventually("all jobs completed", PATIENCE, || async {
        let completed: usize = ask(&conn, &["ZCARD", "bull:mix:completed"]).await;
        if completed == total { Ok(()) } else { Err(format!("{completed} of {total}")) }
    })
    .await
    .unwrap();

    // Nothing is left anywhere else.
    for (command, key) in [
        ("LLEN", "wait"),
        ("LLEN", "paused"),
        ("LLEN", "active"),
        ("ZCARD", "delayed"),
        ("ZCARD", "prioritized"),
        ("ZCARD", "failed"),
        ("ZCARD", "waiting-children"),
    ] {
        assert_eq!(ask::<usize>(&conn, &[command, &format!("bull:mix:{key}")]).await, 0, "{key}");
    }
    let locks: Vec<String> = ask(&conn, &["KEYS", "bull:mix:*:lock"]).await;
    assert_eq!(locks, Vec::<String>::new());
    let dedup: Vec<String> = ask(&conn, &["KEYS", "bull:mix:de:*"]).await;
    assert_eq!(dedup, Vec::<String>::new());

    // Each was done by one of them, and all four took part.
    let mut by: BTreeMap<String, usize> = BTreeMap::new();
    let ours = done.lock().unwrap().clone();
    assert!(!ours.is_empty());
    for id in ours {
        *by.entry(id).or_default() += 1;
    }
    for worker in &node_workers {
        let completed: Vec<_> =
            worker.events().await.unwrap().into_iter().filter(|e| e.event == "completed").collect();
        assert!(!completed.is_empty());
        for event in completed {
            *by.entry(event.job_id.unwrap()).or_default() += 1;
        }
    }
    assert_eq!(by.len(), total);
    assert_eq!(by.iter().filter(|(_, n)| **n != 1).collect::<Vec<_>>(), []);

    // What is written about the attempts is right, whoever made them.
    for id in by.keys() {
        let key = format!("bull:mix:{id}");
        let fields: (Option<String>, Option<String>, Option<String>) =
            ask(&conn, &["HMGET", &key, "atm", "ats", "delay"]).await;
        let attempts = if id.contains("-retried-") { "2" } else { "1" };
        assert_eq!((fields.0.as_deref(), fields.1.as_deref()), (Some(attempts), Some(attempts)), "{id}");
        if id.contains("-parent-") {
            assert_eq!(ask::<usize>(&conn, &["HLEN", &format!("{key}:processed")]).await, CHILDREN, "{id}");
            assert_eq!(ask::<usize>(&conn, &["SCARD", &format!("{key}:dependencies")]).await, 0, "{id}");
        }
    }

    // QueueEvents of each version heard of each.
    let all: BTreeSet<&str> = by.keys().map(String::as_str).collect();
    for version in BullVersion::ALL {
        let queue = node.queue(version, "mix");
        let heard = queue.wait_events("completed", None, total, PATIENCE).await.unwrap();
        let ids: BTreeSet<&str> = heard.iter().filter_map(|e| e.job_id.as_deref()).collect();
        assert_eq!(ids.len(), total, "{version:?}");
        assert_eq!(ids, all);
        let waiting = queue.events().await.unwrap();
        assert!(waiting.iter().any(|e| e.event == "waiting-children"));
    }
    worker.stop(Duration::from_secs(10)).await;
    node.close_all(false).await.unwrap();
}
