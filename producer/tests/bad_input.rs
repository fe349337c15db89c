//! What cannot be a job: a typed error, nothing stored, the next job unharmed.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{ask, start, stored_keys};
use futures_util::future::join_all;
use mpanel_connect::Redis;
use mpanel_producer::{
    BulkJob, ChildFailure, Deduplication, EnqueueError, EnqueueOptions, FlowJob, FlowOptions, JobId,
    JobOptions, Prefix, Producer, QueueName, Refusal,
};
use redis::aio::MultiplexedConnection;
use serde::Serialize;

fn new() -> EnqueueOptions {
    EnqueueOptions::new()
}

fn raw(json: &str) -> EnqueueOptions {
    JobOptions::from_json(json).unwrap().into()
}

fn queue_name(name: &str) -> QueueName {
    QueueName::new(name).unwrap()
}

/// Nothing but `meta` is there, and the queue still takes jobs.
async fn unharmed(producer: &Producer, conn: &mut MultiplexedConnection) {
    assert_eq!(stored_keys(conn).await, [""; 0]);
    producer.queue("q").unwrap().enqueue("a", &1, new()).await.unwrap();
    let line: u32 = ask(conn, "LLEN bull:q:wait").await;
    assert_eq!(line, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_collide_with_bullmqs_own_are_refused() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let bad = ["", "0", "0:a:b", "7", "-7", "a:b", "a:b:c:d", ":", "wait", "meta", "de:a:b"];
    for id in bad.into_iter().chain(["metrics:completed:data"]) {
        let error = queue.enqueue("a", &1, new().job_id(id)).await.unwrap_err();
        assert!(matches!(error, EnqueueError::Name(_)) && !error.is_retryable(), "{id}: {error:?}");
    }
    let error = queue.enqueue("a", &1, new().job_id("x".repeat(10_000))).await.unwrap_err();
    assert!(matches!(error, EnqueueError::NameTooLong { what: "job id", bytes: 10_000, .. }), "{error:?}");
    unharmed(&producer, &mut conn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_ten_thousand_characters_are_refused() {
    let (_server, producer, mut conn) = start().await;
    let long = "n".repeat(10_000);
    let error = producer.queue("q").unwrap().enqueue(&long, &1, new()).await.unwrap_err();
    assert!(matches!(error, EnqueueError::NameTooLong { what: "job name", .. }), "{error:?}");
    assert!(error.to_string().len() < 200, "the name itself is not repeated");
    assert!(matches!(producer.queue(&long), Err(EnqueueError::NameTooLong { what: "queue name", .. })));
    assert!(matches!(producer.queue("a:b"), Err(EnqueueError::Name(_))));
    assert!(matches!(producer.queue(""), Err(EnqueueError::Name(_))));
    let error = producer.enqueue_flow(FlowJob::new(long.clone(), "q")).await.unwrap_err();
    assert!(matches!(error, EnqueueError::NameTooLong { .. }), "{error:?}");
    unharmed(&producer, &mut conn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_of_fifty_megabytes_is_refused_and_others_go_on() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let large = "x".repeat(50 * 1024 * 1024);
    let calls = (0..20).map(|n| {
        let (queue, large) = (queue.clone(), &large);
        async move {
            if n == 7 {
                let error = queue.enqueue("big", large, new()).await.unwrap_err();
                assert!(matches!(error, EnqueueError::TooLarge { limit: 16_777_216, .. }), "{error:?}");
            } else {
                queue.enqueue("a", &n, new()).await.unwrap();
            }
        }
    });
    join_all(calls).await;
    let line: u32 = ask(&mut conn, "LLEN bull:q:wait").await;
    assert_eq!(line, 19);
    let bulk = [BulkJob::new("a", "small"), BulkJob::new("a", &large)];
    assert!(matches!(queue.enqueue_bulk(bulk).await.unwrap_err(), EnqueueError::TooLarge { .. }));
    let flow = FlowJob::new("p", "q").child(FlowJob::new("c", "q").data(&large).unwrap());
    assert!(matches!(producer.enqueue_flow(flow).await.unwrap_err(), EnqueueError::TooLarge { .. }));
    // Node's own option counts too.
    let error = queue.enqueue("a", "12345678", raw(r#"{"sizeLimit":9}"#)).await.unwrap_err();
    assert!(matches!(error, EnqueueError::TooLarge { bytes: 10, limit: 9 }), "{error:?}");
    let line: u32 = ask(&mut conn, "LLEN bull:q:wait").await;
    assert_eq!(line, 19);
}

struct Broken;

impl Serialize for Broken {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("out of ink"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_no_json_is_refused() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let error = queue.enqueue("a", &Broken, new()).await.unwrap_err();
    assert!(matches!(&error, EnqueueError::Payload(why) if why.contains("out of ink")), "{error:?}");
    let error = queue.enqueue("a", &BTreeMap::from([((1, 2), 3)]), new()).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Payload(_)), "{error:?}");
    assert!(matches!(FlowJob::new("a", "q").data(Broken), Err(EnqueueError::Payload(_))));
    unharmed(&producer, &mut conn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_out_of_range_are_refused() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    for (option, options) in [
        ("delay", raw(r#"{"delay":-1}"#)),
        ("delay", raw(r#"{"delay":1e18}"#)),
        ("delay", new().delay(Duration::MAX)),
        ("priority", raw(r#"{"priority":-1}"#)),
        ("priority", raw(r#"{"priority":0.5}"#)),
        ("priority", raw(r#"{"priority":2097152}"#)),
        ("priority", new().priority(u32::MAX)),
        ("timestamp", new().timestamp_ms(-1)),
        ("backoff.jitter", raw(r#"{"backoff":{"type":"fixed","delay":1,"jitter":-0.1}}"#)),
        ("deduplication.id", new().deduplication(Deduplication::default())),
    ] {
        let error = queue.enqueue("a", &1, options.clone()).await.unwrap_err();
        assert!(
            matches!(error, EnqueueError::Option { option: o, .. } if o == option),
            "{options:?}: {error:?}"
        );
        // The same in a bulk takes the good one with it, and in a flow.
        let bulk = [BulkJob::new("a", 1), BulkJob::new("a", 2).options(options.clone())];
        assert!(matches!(queue.enqueue_bulk(bulk).await, Err(EnqueueError::Option { .. })));
        let flow = FlowJob::new("p", "q").child(FlowJob::new("c", "q").options(options));
        assert!(matches!(producer.enqueue_flow(flow).await, Err(EnqueueError::Option { .. })));
    }
    unharmed(&producer, &mut conn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn circular_flows_are_refused() {
    let (_server, producer, mut conn) = start().await;
    let job = |id: &str, queue: &str| FlowJob::new("a", queue).options(new().job_id(id));
    let parent = |queue: &str, id: &str| new().parent(queue_name(queue), JobId::stored(id));
    let circles = [
        job("x", "q").child(job("x", "q")),
        job("x", "q").child(job("y", "r").child(job("z", "q").child(job("x", "q")))),
        // The root's own parent is below it, or itself.
        FlowJob::new("a", "q").options(parent("r", "y").job_id("x")).child(job("y", "r")),
        FlowJob::new("a", "q").options(parent("q", "x").job_id("x")).child(job("y", "r")),
    ];
    for flow in circles {
        let error = producer.enqueue_flow(flow.clone()).await.unwrap_err();
        assert!(
            matches!(error, EnqueueError::Circular { .. }) && !error.is_retryable(),
            "{flow:?}: {error:?}"
        );
        // Its neighbours in a bulk are not stored either.
        let flows = [FlowJob::new("fine", "q"), flow];
        let error = producer.enqueue_flows(flows, &FlowOptions::new()).await.unwrap_err();
        assert!(matches!(error, EnqueueError::Circular { .. }), "{error:?}");
    }
    let error =
        producer.queue("q").unwrap().enqueue("a", &1, parent("q", "x").job_id("x")).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Circular { .. }), "{error:?}");
    let deep = (0..1100).fold(FlowJob::new("a", "q"), |below, _| FlowJob::new("a", "q").child(below));
    let error = producer.enqueue_flow(deep).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Option { option: "children", .. }), "{error:?}");
    // The same id in another queue is another job; twins below one parent are one.
    assert_eq!(stored_keys(&mut conn).await, [""; 0]);
    let flow = job("x", "q").child(job("x", "r")).child(job("x", "r"));
    let node = producer.enqueue_flow(flow).await.unwrap();
    assert!(node.children[0].outcome.as_ref().unwrap().is_new());
    assert!(!node.children[1].outcome.as_ref().unwrap().is_new());
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_that_are_missing_or_misnamed_are_refused() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    for options in [
        raw(r#"{"parent":{"id":"x"}}"#),
        raw(r#"{"parent":{"queue":"bull:q"}}"#),
        raw(r#"{"parent":{"id":"","queue":"bull:q"}}"#),
        raw(r#"{"parent":{"id":7,"queue":"bull:q"}}"#),
        raw(r#"{"parent":"x"}"#),
        raw(r#"{"parent":{"id":"x","queue":"q"}}"#),
    ] {
        let error = queue.enqueue("a", &1, options.clone()).await.unwrap_err();
        assert!(matches!(error, EnqueueError::Option { option: "parent", .. }), "{options:?}: {error:?}");
    }
    let missing = new().parent(queue_name("other"), JobId::stored("none"));
    let error = queue.enqueue("a", &1, missing.clone()).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Rejected(Refusal::MissingParent)), "{error:?}");
    // A flow below a missing parent: nothing of it.
    let flow = FlowJob::new("p", "q").options(missing.clone()).child(FlowJob::new("c", "q"));
    let error = producer.enqueue_flow(flow).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Rejected(Refusal::MissingParent)), "{error:?}");
    let both = missing.clone().deduplication(Deduplication { id: "d".into(), ..Deduplication::default() });
    let error = queue.enqueue("a", &1, both).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Option { option: "deduplication", .. }), "{error:?}");
    let two = missing.on_failure(ChildFailure::Ignore).on_failure(ChildFailure::FailParent);
    assert!(matches!(queue.enqueue("a", &1, two).await, Err(EnqueueError::Option { .. })));
    unharmed(&producer, &mut conn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_may_be_in_another_queue_or_under_another_prefix() {
    let (server, producer, mut conn) = start().await;
    let other = Prefix::new("elsewhere").unwrap();
    let redis = Redis::open(&server.url()).unwrap();
    let there = Producer::builder(redis).prefix(other.clone()).connect().await.unwrap();
    for (parents, prefix) in [(&producer, None), (&there, Some(other))] {
        let name = queue_name("parents");
        let flow = FlowJob::new("p", "parents").child(FlowJob::new("first", "q"));
        let parent = parents.enqueue_flow(flow).await.unwrap().id;
        let late = match prefix {
            None => new().parent(name, parent.clone()),
            Some(prefix) => new().parent_under(prefix, name, parent.clone()),
        };
        let late = late.on_failure(ChildFailure::FailParent);
        let child = producer.queue("q").unwrap().enqueue("late", &1, late).await.unwrap();
        let stored: String = ask(&mut conn, &format!("HGET bull:q:{} parent", child.id())).await;
        assert!(stored.contains(parent.as_str()) && stored.contains("\"fpof\":true"), "{stored}");
        let key: String = ask(&mut conn, &format!("HGET bull:q:{} parentKey", child.id())).await;
        let waits: bool =
            ask(&mut conn, &format!("SISMEMBER {key}:dependencies bull:q:{}", child.id())).await;
        assert!(waits);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_to_the_job_however_many_producers_there_are() {
    let (server, producer, mut conn) = start().await;
    let mut producers = vec![producer.queue("q").unwrap().max_waiting(50)];
    for _ in 0..3 {
        let other = Producer::connect(&server.url()).await.unwrap();
        producers.push(other.queue("q").unwrap().max_waiting(50));
    }
    let calls = (0..120).map(|n| {
        let queue = producers[n % producers.len()].clone();
        let options = match n % 3 {
            0 => new().delay(Duration::from_secs(60)),
            1 => new().priority(1),
            _ => new(),
        };
        async move { queue.enqueue("a", &n, options).await }
    });
    let results = join_all(calls).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 50);
    for error in results.iter().filter_map(|r| r.as_ref().err()) {
        assert!(
            matches!(error, EnqueueError::QueueFull { limit: 50, .. }) && error.is_retryable(),
            "{error:?}"
        );
    }
    let jobs: Vec<String> = ask(&mut conn, "KEYS bull:q:*").await;
    let hashes = jobs.iter().filter(|key| key.rsplit(':').next().unwrap().parse::<u32>().is_ok()).count();
    assert_eq!(hashes, 50, "nothing of a refused job is stored");
    // Refused jobs took no id; who sets no limit goes on.
    let next = producer.queue("q").unwrap().enqueue("a", &1, new()).await.unwrap();
    assert_eq!(next.id().as_str(), "51");
    // A bulk stores what fits and names the first that did not.
    let _: () = ask(&mut conn, "FLUSHALL").await;
    let bulk = (0..60).map(|n| BulkJob::new("a", n));
    assert!(matches!(producers[0].enqueue_bulk(bulk).await, Err(EnqueueError::QueueFull { .. })));
    let line: u32 = ask(&mut conn, "LLEN bull:q:wait").await;
    assert_eq!(line, 50);
    // A flow is stored whole or not at all.
    let redis = Redis::open(&server.url()).unwrap();
    let limited = Producer::builder(redis).max_waiting(51).connect().await.unwrap();
    let flow = |n| FlowJob::new("p", "q").children((0..n).map(|_| FlowJob::new("c", "q")));
    assert!(matches!(limited.enqueue_flow(flow(2)).await, Err(EnqueueError::QueueFull { .. })));
    limited.enqueue_flow(flow(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_nodes_place_takes_what_node_takes() {
    let (server, _, mut conn) = start().await;
    let redis = Redis::open(&server.url()).unwrap();
    let producer = Producer::builder(redis).as_node().connect().await.unwrap();
    let queue = producer.queue("q").unwrap();
    queue.enqueue(&"n".repeat(10_000), &1, raw(r#"{"delay":-5}"#)).await.unwrap();
    let delay: String = ask(&mut conn, "HGET bull:q:1 delay").await;
    let line: u32 = ask(&mut conn, "LLEN bull:q:wait").await;
    assert_eq!((delay.as_str(), line), ("-5", 1));
    let x = || FlowJob::new("a", "q").options(new().job_id("x"));
    producer.enqueue_flow(x().child(x())).await.unwrap();
    // Ids that would corrupt the queue are refused all the same.
    assert!(matches!(queue.enqueue("a", &1, new().job_id("wait")).await, Err(EnqueueError::Name(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_what_is_stored_in_one_step_must_share_a_slot() {
    let server = mpanel_testkit::RedisServer::builder().config("cluster-enabled yes").start().await.unwrap();
    let mut conn = common::connect(&server).await;
    let _: () = ask(&mut conn, "CLUSTER ADDSLOTSRANGE 0 16383").await;
    mpanel_testkit::eventually("a cluster of one", common::PATIENCE, || {
        let mut conn = conn.clone();
        async move {
            let info: String = ask(&mut conn, "CLUSTER INFO").await;
            if info.contains("cluster_state:ok") { Ok(()) } else { Err(info) }
        }
    })
    .await
    .unwrap();
    let redis = || Redis::open(&server.url()).unwrap();
    let error = Producer::builder(redis()).connect().await.unwrap_err();
    assert!(error.to_string().contains("{bull}"), "{error}");
    let tagged = Prefix::new("{bull}").unwrap();
    let producer = Producer::builder(redis()).prefix(tagged).connect().await.unwrap();
    let other = || Prefix::new("{other}").unwrap();
    let far = FlowJob::new("p", "q").child(FlowJob::new("c", "q").prefix(other()));
    let error = producer.enqueue_flow(far).await.unwrap_err();
    assert!(matches!(error, EnqueueError::AcrossSlots { .. }) && !error.is_retryable(), "{error:?}");
    assert!(error.to_string().contains("hash tag"), "{error}");
    let flows = [FlowJob::new("p", "q"), FlowJob::new("p", "q").prefix(other())];
    let error = producer.enqueue_flows(flows, &FlowOptions::new()).await.unwrap_err();
    assert!(matches!(error, EnqueueError::AcrossSlots { .. }), "{error:?}");
    let far = new().parent_under(other(), queue_name("q"), JobId::stored("x"));
    let error = producer.queue("q").unwrap().enqueue("a", &1, far).await.unwrap_err();
    assert!(matches!(error, EnqueueError::AcrossSlots { .. }), "{error:?}");
    assert_eq!(stored_keys(&mut conn).await, [""; 0]);
    // Queues of one tag share a slot.
    producer.enqueue_flow(FlowJob::new("p", "q").child(FlowJob::new("c", "r"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_refuses_and_nothing_is_stored() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    queue.introduce().await.unwrap();
    let _: () = ask(&mut conn, "CONFIG SET maxmemory 1").await;
    let error = queue.enqueue("a", &1, new()).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Refused(_)) && error.is_retryable(), "{error:?}");
    let error =
        producer.enqueue_flow(FlowJob::new("p", "q").child(FlowJob::new("c", "q"))).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Refused(_)) && error.is_retryable(), "{error:?}");
    let _: () = ask(&mut conn, "CONFIG SET maxmemory 0").await;
    unharmed(&producer, &mut conn).await;
}
