//! The admin handle and Node's Queue and Job look at the same queues, in three
//! versions, and must see the same; what one changes the other must find changed.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::Duration;

use common::Bench;
use mpanel_engine::admin::{
    DependencyKind, Ended, FlowLimits, FlowTree, Listing, Order, QueueAdmin, Subtree,
};
use mpanel_protocol::{
    calls::{
        manage::{FinalState, Removal, Reprocess},
        sweep::{Cleanable, Obliterated},
    },
    ids::{JobId, LockToken, Prefix, QueueName},
    peer::Peer,
    state::JobState,
};
use mpanel_testkit::{BullVersion, NodeQueue, NodeSidecar};
use serde_json::{Value, json};

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

    /// A queue of each version, with our handle on it.
    fn queues(&self) -> Vec<(BullVersion, NodeQueue, QueueAdmin)> {
        let open = |version: BullVersion| {
            let name = format!("q-{}", version.alias().replace('.', "-"));
            let peer = if version == BullVersion::V6 { Peer::V6 } else { Peer::V5 };
            let redis = mpanel_connect::Redis::open(&self.bench.server.url()).unwrap();
            let admin = QueueAdmin::new(redis, &Prefix::default(), &QueueName::new(&name).unwrap(), peer);
            (version, self.node.queue(version, &name), admin)
        };
        BullVersion::ALL.into_iter().map(open).collect()
    }
}

/// Jobs in every state but active: 5 waiting, 3 prioritized, 4 delayed, 3
/// completed, 2 failed, a parent with a delayed child.
async fn furnish(node: &NodeQueue) {
    let script = json!({"byName": {"bad": {"throw": "boom"}}});
    let worker = node.start_worker(script, json!({"name": "furnisher"})).await.unwrap();
    for name in ["good", "bad", "good", "bad", "good"] {
        node.add(name, json!({}), json!({})).await.unwrap();
    }
    worker.wait_events("completed", None, 3, common::PATIENCE).await.unwrap();
    worker.wait_events("failed", None, 2, common::PATIENCE).await.unwrap();
    worker.close(false).await.unwrap();
    for i in 0..4 {
        node.add("later", json!({"i": i}), json!({"delay": 3_600_000 + i * 1000})).await.unwrap();
    }
    for priority in [7, 2, 2] {
        node.add("urgent", json!({}), json!({"priority": priority})).await.unwrap();
    }
    for i in 0..5 {
        node.add("plain", json!({"i": i, "text": "ü"}), json!({"attempts": 3, "backoff": 5})).await.unwrap();
    }
    let flow = json!({"name": "parent", "queueName": node.name(), "data": {},
        "children": [{"name": "child", "queueName": node.name(), "data": {}, "opts": {"delay": 999_999}}]});
    node.add_flow(flow).await.unwrap();
}

fn ids(page: &mpanel_engine::admin::JobPage) -> Vec<String> {
    page.jobs.iter().map(|j| j.job.id.to_string()).collect()
}

async fn node_ids(node: &NodeQueue, state: &str, start: i64, end: i64, asc: bool) -> Vec<String> {
    let args = vec![json!([state]), json!(start), json!(end), json!(asc)];
    let jobs = node.queue_call("getRanges", args).await.unwrap();
    serde_json::from_value(jobs).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_pages_are_nodes() {
    let beside = Beside::start().await;
    for (version, node, admin) in beside.queues() {
        furnish(&node).await;
        for paused in [false, true] {
            if paused {
                node.pause().await.unwrap();
                node.add("while-paused", json!({}), json!({})).await.unwrap();
            }
            let counts = serde_json::to_value(admin.counts().await.unwrap()).unwrap();
            for (state, count) in node.counts(&[]).await.unwrap() {
                assert_eq!(counts[&state], json!(count), "{version:?} {state} paused={paused}");
            }
            assert_eq!(
                admin.counts().await.unwrap().to_do(),
                node.queue_call("count", vec![]).await.unwrap()
            );
            assert_eq!(admin.is_paused().await.unwrap(), paused);
            let by_priority =
                node.queue_call("getCountsPerPriority", vec![json!([0, 2, 7, 9])]).await.unwrap();
            let ours = admin.counts_per_priority(&[0, 2, 7, 9]).await.unwrap();
            assert_eq!(serde_json::to_value(ours).unwrap(), by_priority, "{version:?} paused={paused}");
            for state in JobState::ALL {
                let word = if state == JobState::Waiting { "wait" } else { state.as_str() };
                for (order, asc) in [(Order::Ascending, true), (Order::Descending, false)] {
                    for (start, count) in [(0, 3), (2, 2), (4, 5), (100, 5)] {
                        let listing = Listing::of(state).skip(start).first(count).order(order);
                        let page = admin.list(listing).await.unwrap();
                        let (first, last) = (start as i64, start as i64 + i64::from(count) - 1);
                        let theirs = node_ids(&node, word, first, last, asc).await;
                        assert_eq!(ids(&page), theirs, "{version:?} {word} {first}..{last} asc={asc}");
                        assert_eq!(page.next.is_some(), start + u64::from(count) < page.total);
                        let small = admin.list(listing.without_payloads()).await.unwrap();
                        assert_eq!(ids(&small), theirs);
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_changed_from_either_side() {
    let beside = Beside::start().await;
    for (version, node, admin) in beside.queues() {
        let id = JobId::stored(node.add("job", json!({"a": 1}), json!({"delay": 100_000})).await.unwrap().id);
        admin.update_data(&id, &json!({"b": ["x", 2]})).await.unwrap();
        admin.update_progress(&id, &json!({"percent": 40})).await.unwrap();
        assert_eq!(admin.add_log(&id, "one", None).await.unwrap(), 1);
        node.job_call(id.as_str(), "log", vec![json!("two")]).await.unwrap();
        admin.add_log(&id, "three", Some(2)).await.unwrap();
        let logs = node.logs(id.as_str()).await.unwrap();
        assert_eq!((logs.count, &logs.logs[..]), (2, &["two".to_owned(), "three".to_owned()][..]));
        let ours = admin.logs(&id, 0, 10, true).await.unwrap();
        assert_eq!(ours.lines, ["three", "two"]);
        assert_eq!(admin.logs(&id, 1, 10, false).await.unwrap().lines, ["three"]);
        assert_eq!(admin.logs(&id, 5, 10, true).await.unwrap().lines, Vec::<String>::new());

        admin.change_delay(&id, Duration::from_secs(500)).await.unwrap();
        let seen = node.job(id.as_str()).await.unwrap().unwrap();
        assert_eq!(
            (seen.data, seen.progress, seen.delay),
            (json!({"b": ["x", 2]}), json!({"percent": 40}), Some(500_000.0))
        );
        let report = admin.report(&id).await.unwrap().unwrap();
        assert_eq!(
            (report.state, report.log_lines, report.detail.delay_ms),
            (Some(JobState::Delayed), 2, 500_000)
        );
        assert_eq!(report.detail.problems, []);

        admin.promote(&id).await.unwrap();
        assert_eq!(node.state(id.as_str()).await.unwrap(), "waiting");
        assert!(admin.promote(&id).await.is_err(), "it is not delayed any more");
        admin.change_priority(&id, 5, false).await.unwrap();
        assert_eq!(node.state(id.as_str()).await.unwrap(), "prioritized");
        assert!(admin.change_priority(&id, 1 << 21, false).await.is_err());
        admin.change_priority(&id, 0, true).await.unwrap();

        // Run again after Node failed it, then taken away.
        let script = json!({"default": [{"throw": "boom"}]});
        let worker = node.start_worker(script, json!({"name": "w"})).await.unwrap();
        worker.wait_events("failed", Some(id.as_str()), 1, common::PATIENCE).await.unwrap();
        worker.close(true).await.unwrap();
        let detail = admin.job(&id).await.unwrap().unwrap();
        assert_eq!(detail.failed_reason.as_deref(), Some("boom"));
        assert_eq!((detail.job.attempts_made, detail.processed_by.as_deref()), (1, Some("w")));
        let again = Reprocess { reset_attempts_made: true, ..Reprocess::default() };
        admin.retry(&id, FinalState::Failed, again).await.unwrap();
        let seen = node.job(id.as_str()).await.unwrap().unwrap();
        assert_eq!((seen.state.as_str(), seen.attempts_made, seen.failed_reason), ("waiting", Some(0), None));
        assert_eq!(admin.remove(&id).await.unwrap(), Removal::Removed);
        assert_eq!(node.job(id.as_str()).await.unwrap(), None, "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_meta_and_deduplication_are_shared() {
    let beside = Beside::start().await;
    for (version, node, admin) in beside.queues() {
        node.open().await.unwrap();
        assert_eq!(admin.global_concurrency().await.unwrap(), None);
        node.queue_call("setGlobalConcurrency", vec![json!(4)]).await.unwrap();
        assert_eq!(admin.global_concurrency().await.unwrap(), Some(4));
        assert!(!admin.is_maxed().await.unwrap());
        admin.set_global_concurrency(0).await.unwrap();
        assert!(admin.is_maxed().await.unwrap());
        assert!(
            admin.remove_global_concurrency().await.unwrap()
                && !admin.remove_global_concurrency().await.unwrap()
        );
        admin.set_global_rate_limit(9, Duration::from_millis(700)).await.unwrap();
        if version != BullVersion::V5_28 {
            assert_eq!(node.queue_call("getGlobalConcurrency", vec![]).await.unwrap(), Value::Null);
            let theirs = node.queue_call("getGlobalRateLimit", vec![]).await.unwrap();
            assert_eq!(theirs, json!({"max": 9, "duration": 700}));
        }
        let ours = admin.global_rate_limit().await.unwrap().unwrap();
        assert_eq!((ours.max, ours.window), (9, Duration::from_millis(700)));
        assert_eq!(admin.rate_limited_for(None).await.unwrap(), None);
        assert!(admin.remove_global_rate_limit().await.unwrap());
        node.queue_call("rateLimit", vec![json!(60_000)]).await.unwrap();
        let left = admin.rate_limited_for(None).await.unwrap().unwrap();
        assert!(left > Duration::from_secs(30) && left <= Duration::from_secs(60), "{left:?}");
        assert!(admin.end_rate_limit().await.unwrap());
        admin.rate_limit(Duration::from_secs(50)).await.unwrap();
        let theirs = node.queue_call("getRateLimitTtl", vec![]).await.unwrap().as_i64().unwrap();
        assert!((30_000..=50_000).contains(&theirs), "{version:?} {theirs}");
        let meta = admin.meta().await.unwrap();
        assert_eq!(meta.version.unwrap(), format!("bullmq:{}", version.release()));
        assert_eq!((meta.max_events, meta.paused), (Some(10_000), false));

        let id = node.add("a", json!({}), json!({"deduplication": {"id": "d1"}})).await.unwrap().id;
        assert_eq!(admin.deduplicated_by("d1").await.unwrap().unwrap().as_str(), id);
        assert!(admin.free_deduplication(&JobId::stored(&id)).await.unwrap());
        assert!(!admin.free_deduplication(&JobId::stored(&id)).await.unwrap());
        assert!(!admin.remove_deduplication_key("d1").await.unwrap());
        assert_eq!(node.queue_call("getDeduplicationJobId", vec![json!("d1")]).await.unwrap(), Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_sees_the_others_workers_and_metrics() {
    let beside = Beside::start().await;
    for (version, node, admin) in beside.queues() {
        let worker =
            beside.bench.worker(node.name()).name("ours").handle("n", common::echo()).start().unwrap();
        let theirs = node
            .start_worker(json!({}), json!({"name": "theirs", "metrics": {"maxDataPoints": 5}}))
            .await
            .unwrap();
        beside.bench.asleep(2).await;
        let mut ours: Vec<_> = admin.workers().await.unwrap().into_iter().map(|w| w.raw_name).collect();
        let mut nodes: Vec<_> = node.workers().await.unwrap().iter().map(|w| w["rawname"].clone()).collect();
        ours.sort();
        nodes.sort();
        assert_eq!((ours.len(), &ours), (2, &nodes), "{version:?}");
        let names: Vec<_> = admin.workers().await.unwrap().into_iter().map(|w| w.name).collect();
        assert!(names.contains(&Some("ours".into())) && names.contains(&Some("theirs".into())), "{names:?}");
        worker.stop(Duration::from_secs(5)).await;

        node.open_events().await.unwrap();
        assert_eq!(admin.event_readers().await.unwrap().len(), 1);
        for _ in 0..3 {
            node.add("n", json!({}), json!({})).await.unwrap();
        }
        theirs.wait_events("completed", None, 3, common::PATIENCE).await.unwrap();
        let metrics = admin.metrics(Ended::Completed, 0, 10).await.unwrap();
        let nodes =
            node.queue_call("getMetrics", vec![json!("completed"), json!(0), json!(9)]).await.unwrap();
        assert_eq!(json!(metrics.count), nodes["meta"]["count"]);
        assert_eq!(json!(metrics.newest_ms), nodes["meta"]["prevTS"]);
        assert_eq!(json!(metrics.per_minute), nodes["data"]);
        theirs.close(true).await.unwrap();
    }
}

fn shape(tree: &FlowTree) -> Value {
    let mut children: Vec<Value> = tree
        .children
        .iter()
        .map(|(_, child)| match child {
            Subtree::Job(tree) => shape(tree),
            other => json!(format!("{other:?}")),
        })
        .collect();
    children.sort_by_key(Value::to_string);
    json!({"id": tree.job.id, "queue": tree.job.queue, "children": children})
}

fn sorted(mut node: Value) -> Value {
    if let Some(children) = node["children"].as_array_mut() {
        let mut sorted_children: Vec<Value> = children.drain(..).map(sorted).collect();
        sorted_children.sort_by_key(Value::to_string);
        node["children"] = json!(sorted_children);
    }
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_read_across_queues_by_kind_and_within_limits() {
    let beside = Beside::start().await;
    for (version, node, admin) in beside.queues() {
        let (q, other) = (node.name().to_owned(), format!("{}-other", node.name()));
        let leaf = |name: &str| json!({"name": name, "queueName": other, "data": {}});
        let flow = json!({"name": "root", "queueName": q, "data": {}, "children": [
            {"name": "middle", "queueName": other, "data": {}, "children": [leaf("x"), leaf("y")]},
            leaf("z"),
        ]});
        let made = node.add_flow(flow).await.unwrap();
        let root = JobId::stored(made["id"].as_str().unwrap());
        let tree = admin.flow(&root, FlowLimits::default()).await.unwrap().unwrap();
        assert_eq!(shape(&tree), sorted(made.clone()), "{version:?}");
        assert_eq!((tree.state, tree.counts.unprocessed), (Some(JobState::WaitingChildren), 2));

        let flat =
            admin.flow(&root, FlowLimits { depth: 1, ..FlowLimits::default() }).await.unwrap().unwrap();
        assert_eq!((flat.children.len(), flat.counts.unprocessed), (0, 2));
        let one =
            admin.flow(&root, FlowLimits { children: 1, ..FlowLimits::default() }).await.unwrap().unwrap();
        assert_eq!(one.children.len(), 1);

        // A worker ends the leaves; values and kinds are as Node reads them.
        let leaves = beside.node.queue(version, &other);
        let worker = leaves.start_worker(json!({}), json!({"concurrency": 5})).await.unwrap();
        worker.wait_events("completed", None, 4, common::PATIENCE).await.unwrap();
        worker.close(true).await.unwrap();
        let theirs = node.job_call(root.as_str(), "getDependencies", vec![]).await.unwrap();
        let ours = admin.children_values(&root, 100).await.unwrap();
        let keys: Vec<&String> = theirs["processed"].as_object().unwrap().keys().collect();
        let mut our_keys: Vec<&String> = ours.keys().collect();
        our_keys.sort();
        let mut keys = keys;
        keys.sort();
        assert_eq!(our_keys, keys);
        assert_eq!(admin.dependency_counts(&root).await.unwrap().processed, 2);
        assert_eq!(admin.dependencies(&root, DependencyKind::Unprocessed, 0, 10).await.unwrap().children, []);
        assert_eq!(admin.state(&root).await.unwrap(), Some(JobState::Waiting));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_operations_leave_what_node_expects() {
    let beside = Beside::start().await;
    for (version, node, admin) in beside.queues() {
        furnish(&node).await;
        admin.promote_all().await.unwrap();
        admin.retry_all(FinalState::Failed, None).await.unwrap();
        admin.retry_all(FinalState::Completed, None).await.unwrap();
        let counts = node.counts(&[]).await.unwrap();
        assert_eq!((counts["failed"], counts["completed"], counts["delayed"]), (0, 0, 0), "{version:?}");
        assert_eq!(counts["waiting"], 5 + 5 + 4 + 1);
        admin.drain(true).await.unwrap();
        // The parent goes with its last child.
        assert_eq!(node.counts(&[]).await.unwrap().values().sum::<u64>(), 0, "{version:?}");
        // Old enough even by a clock that lags a little.
        for _ in 0..250 {
            node.add("x", json!({}), json!({"timestamp": 1})).await.unwrap();
        }
        let mut steps = Vec::new();
        let grace = Duration::ZERO;
        let cleaned =
            admin.clean(Cleanable::Waiting, grace, 0).on_progress(|p| steps.push(p.done)).await.unwrap();
        assert_eq!((cleaned.len(), steps.last(), steps.is_sorted()), (250, Some(&250), true));
        node.add("x", json!({}), json!({})).await.unwrap();
        assert_eq!(admin.obliterate(false).await.unwrap(), Obliterated::Gone);
        let left: Vec<String> = beside.bench.ask(&format!("KEYS bull:{}:*", node.name())).await;
        assert_eq!(left, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_removal_respect_the_holder() {
    let beside = Beside::start().await;
    for (version, node, admin) in beside.queues() {
        let worker = node.start_worker(json!({"default": {"hold": "g"}}), json!({})).await.unwrap();
        let id = JobId::stored(node.add("held", json!({}), json!({})).await.unwrap().id);
        worker.wait_events("active", None, 1, common::PATIENCE).await.unwrap();
        let key = format!("bull:{}:{id}:lock", node.name());
        let held: Option<String> = beside.bench.ask(&format!("GET {key}")).await;
        let token = LockToken::new(held.unwrap());
        assert_eq!(admin.remove(&id).await.unwrap(), Removal::Locked, "{version:?}");
        assert!(admin.extend_lock(&id, &token, Duration::from_secs(300)).await.unwrap());
        assert!(!admin.extend_lock(&id, &LockToken::new("wrong"), Duration::from_secs(1)).await.unwrap());
        let report = admin.report(&id).await.unwrap().unwrap();
        assert!(report.locked_for.unwrap() > Duration::from_secs(200));
        worker.close(true).await.unwrap();
        let error = admin.retry(&id, FinalState::Failed, Reprocess::default()).await.unwrap_err();
        assert!(error.to_string().contains("not in the expected state"), "{error}");
        let missing = admin.retry(&JobId::stored("nobody"), FinalState::Failed, Reprocess::default()).await;
        assert!(missing.unwrap_err().to_string().contains("gone"));
    }
}
