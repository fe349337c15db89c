//! Flows beside BullMQ's FlowProducer: bulk, defaults by queue, late children.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{ask, start};
use mpanel_producer::{
    Backoff, ChildFailure, EnqueueError, EnqueueOptions, FlowJob, FlowNode, FlowOptions, JobId, Prefix,
    QueueName,
};
use mpanel_testkit::{BullVersion, NodeSidecar};
use serde_json::{Value, json};

fn new() -> EnqueueOptions {
    EnqueueOptions::new()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_flows_are_stored_in_one_step_and_a_refused_root_leaves_the_others() {
    let (_server, producer, mut conn) = start().await;
    let orphan = new().parent(QueueName::new("p").unwrap(), JobId::stored("none"));
    let mut flows: Vec<FlowJob> =
        (0..100).map(|n| FlowJob::new(format!("p{n}"), "p").child(FlowJob::new("c", "c"))).collect();
    flows.insert(50, FlowJob::new("orphan", "p").options(orphan).child(FlowJob::new("c", "c")));
    let stored = producer.enqueue_flows(flows, &FlowOptions::new()).await.unwrap();
    assert_eq!(stored.len(), 101);
    let good: Vec<&FlowNode> = stored.iter().flatten().collect();
    assert_eq!(good.len(), 100);
    assert!(matches!(stored[50], Err(EnqueueError::Rejected(_))));
    assert!(good.iter().all(|n| n.outcome.is_ok() && n.children[0].outcome.is_ok()));
    let (parents, children): (u32, u32) =
        (ask(&mut conn, "ZCARD bull:p:waiting-children").await, ask(&mut conn, "LLEN bull:c:wait").await);
    assert_eq!((parents, children), (100, 100));
    assert!(producer.enqueue_flows([], &FlowOptions::new()).await.unwrap().is_empty());
}

/// What a job has that a FlowProducer decides.
async fn job_of(conn: &mut redis::aio::MultiplexedConnection, key: &str) -> Value {
    let fields: std::collections::BTreeMap<String, String> = ask(conn, &format!("HGETALL {key}")).await;
    let opts: Value = serde_json::from_str(&fields["opts"]).unwrap();
    let parent: Option<Value> = fields.get("parent").map(|p| serde_json::from_str(p).unwrap());
    json!({
        "name": fields["name"], "data": fields["data"], "delay": fields["delay"], "priority": fields["priority"],
        "opts": opts, "parent": parent, "parentKey": fields.get("parentKey"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_is_what_nodes_flow_producer_makes_of_it() {
    let (server, producer, mut conn) = start().await;
    let node = NodeSidecar::start(&server.url()).await.unwrap();
    let flow =
        FlowJob::new("root", "parents").options(new().job_id("root").priority(2).attempts(2)).children([
            FlowJob::new("c1", "children")
                .options(new().job_id("c1").backoff(Backoff::fixed(7)).on_failure(ChildFailure::FailParent))
                .data(json!({"n": 1}))
                .unwrap(),
            FlowJob::new("c2", "children")
                .options(new().job_id("c2").delay(std::time::Duration::from_secs(60)))
                .on_failure(ChildFailure::Ignore)
                .child(
                    FlowJob::new("g", "other").options(new().job_id("g")).on_failure(ChildFailure::Forget),
                ),
            FlowJob::new("c3", "children")
                .prefix(Prefix::new("elsewhere").unwrap())
                .options(new().job_id("c3").on_failure(ChildFailure::ContinueParent)),
        ]);
    let same = json!({"name": "root", "queueName": "parents", "opts": {"jobId": "root", "priority": 2, "attempts": 2},
        "children": [
            {"name": "c1", "queueName": "children", "data": {"n": 1},
             "opts": {"jobId": "c1", "backoff": 7, "failParentOnFailure": true}},
            {"name": "c2", "queueName": "children",
             "opts": {"jobId": "c2", "delay": 60000, "ignoreDependencyOnFailure": true},
             "children": [{"name": "g", "queueName": "other", "opts": {"jobId": "g", "removeDependencyOnFailure": true}}]},
            {"name": "c3", "queueName": "children", "prefix": "elsewhere",
             "opts": {"jobId": "c3", "continueParentOnFailure": true}}]});
    let keys = [
        "bull:parents:root",
        "bull:children:c1",
        "bull:children:c2",
        "elsewhere:children:c3",
        "bull:other:g",
    ];
    producer.enqueue_flow(flow).await.unwrap();
    let mut ours = Vec::new();
    for key in keys {
        ours.push(job_of(&mut conn, key).await);
    }
    let _: () = ask(&mut conn, "FLUSHALL").await;
    node.queue(BullVersion::V5, "parents").add_flow(same).await.unwrap();
    for (key, ours) in keys.iter().zip(ours) {
        assert_eq!(job_of(&mut conn, key).await, ours, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_by_queue_fill_what_a_job_leaves_open() {
    let (_server, producer, mut conn) = start().await;
    let options = FlowOptions::new()
        .queue_defaults("children", new().attempts(5).backoff(Backoff::exponential(100)).keep_logs(9))
        .queue_defaults("parents", new().attempts(2));
    let flow = FlowJob::new("p", "parents").options(new().job_id("p")).children([
        FlowJob::new("c", "children").options(new().job_id("c1")),
        FlowJob::new("c", "children").options(new().job_id("c2").attempts(1).backoff(Backoff::fixed(3))),
        FlowJob::new("c", "others").options(new().job_id("c3")),
    ]);
    producer.enqueue_flow_with(flow, &options).await.unwrap();
    let mut opts = async |key: &str| job_of(&mut conn, key).await["opts"].clone();
    assert_eq!(opts("bull:parents:p").await["attempts"], 2);
    let c1 = opts("bull:children:c1").await;
    assert_eq!((&c1["attempts"], &c1["backoff"]["delay"], &c1["kl"]), (&json!(5), &json!(100), &json!(9)));
    let c2 = opts("bull:children:c2").await;
    assert_eq!((&c2["attempts"], &c2["backoff"]["delay"], &c2["kl"]), (&json!(1), &json!(3), &json!(9)));
    assert_eq!(opts("bull:others:c3").await["attempts"], 0);
    // The same for the jobs of one queue.
    let queue = producer.queue("children").unwrap().defaults(new().attempts(4));
    queue.enqueue("a", &1, new().job_id("own")).await.unwrap();
    assert_eq!(opts("bull:children:own").await["attempts"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_flows_are_stored_in_the_order_of_nodes_add_bulk() {
    let (_server, producer, mut conn) = start().await;
    let job = |id: &str| FlowJob::new("a", "q").options(new().job_id(id));
    let flows = [
        job("p1").children([job("c1"), job("m1").child(job("g1")), job("d1")]),
        job("p2").children([job("c2").child(job("g2")), job("d2")]),
        job("p3"),
    ];
    producer.enqueue_flows(flows, &FlowOptions::new()).await.unwrap();
    let mut line: Vec<String> = ask(&mut conn, "LRANGE bull:q:wait 0 -1").await;
    line.reverse();
    // Read from FlowProducer.addBulk of 5.28.2, 5.81.5 and 6.7.0: level by level.
    assert_eq!(line, ["p3", "c1", "d1", "d2", "g1", "g2"]);
}
