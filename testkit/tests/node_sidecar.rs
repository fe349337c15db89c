//! The real npm bullmq in three versions, driven from here.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::time::Duration;

use mpanel_testkit::{BullVersion, NodeSidecar, RedisServer, TestkitError};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

async fn environment() -> (RedisServer, NodeSidecar) {
    let redis = RedisServer::start().await.unwrap();
    let node = NodeSidecar::start(&redis.url()).await.unwrap();
    (redis, node)
}

#[tokio::test]
async fn the_installed_releases_are_the_pinned_ones() {
    let (_redis, node) = environment().await;
    let hello: Value = node.call("hello", serde_json::Map::new(), SOON).await.unwrap();
    for version in BullVersion::ALL {
        assert_eq!(hello["versions"][version.alias()], version.release());
    }
}

#[tokio::test]
async fn a_job_is_added_and_read_back_on_all_versions() {
    let (_redis, node) = environment().await;
    for version in BullVersion::ALL {
        let queue = node.queue(version, version.alias());
        let added =
            queue.add("mail", json!({"to": "ü"}), json!({"attempts": 3, "jobId": "m1"})).await.unwrap();
        assert_eq!(added.id, "m1");
        let job = queue.job("m1").await.unwrap().unwrap();
        assert_eq!((job.name.as_str(), job.state.as_str()), ("mail", "waiting"));
        assert_eq!((&job.data, &job.opts["attempts"]), (&json!({"to": "ü"}), &json!(3)));
        assert_eq!((job.attempts_made, job.finished_on, job.returnvalue), (Some(0), None, Value::Null));
        let bulk =
            vec![json!({"name": "a", "data": 1}), json!({"name": "b", "data": 2, "opts": {"delay": 60_000}})];
        assert_eq!(queue.add_bulk(bulk).await.unwrap().len(), 2);
        let counts = queue.counts(&[]).await.unwrap();
        assert_eq!((counts["waiting"], counts["delayed"]), (2, 1));
        assert_eq!(queue.job("absent").await.unwrap(), None);
        assert_eq!(queue.state("absent").await.unwrap(), "unknown");
    }
}

#[tokio::test]
async fn a_scripted_worker_retries_logs_and_finishes_on_all_versions() {
    let (_redis, node) = environment().await;
    for version in BullVersion::ALL {
        let queue = node.queue(version, "q").with_prefix(version.alias());
        queue.open_events().await.unwrap();
        let script = json!({
            "byName": {"flaky": [{"throw": "first"}, {"log": ["again"], "progress": 50, "return": {"n": 2}}]},
            "default": {"unrecoverable": "never"},
        });
        let worker = queue.start_worker(script, json!({"concurrency": 2})).await.unwrap();
        let flaky = queue.add("flaky", json!({}), json!({"attempts": 2})).await.unwrap();
        let doomed = queue.add("doomed", json!({}), json!({"attempts": 5})).await.unwrap();
        let completed = queue.wait_event("completed", Some(&flaky.id), SOON).await.unwrap();
        assert_eq!(completed.args["returnvalue"], json!({"n": 2}));
        queue.wait_event("failed", Some(&doomed.id), SOON).await.unwrap();
        worker.wait_events("failed", Some(&flaky.id), 1, SOON).await.unwrap();

        let job = queue.job(&flaky.id).await.unwrap().unwrap();
        assert_eq!((job.state.as_str(), job.attempts_made, job.progress), ("completed", Some(2), json!(50)));
        assert!(job.stacktrace.unwrap()[0].starts_with("Error: first"));
        assert!(job.finished_on >= job.processed_on && job.processed_on.is_some());
        assert_eq!(queue.logs(&flaky.id).await.unwrap().logs, ["again"]);
        let job = queue.job(&doomed.id).await.unwrap().unwrap();
        assert_eq!((job.failed_reason.as_deref(), job.attempts_made), (Some("never"), Some(1)));
        assert_eq!(queue.workers().await.unwrap().len(), 1);
        worker.close(false).await.unwrap();
    }
    node.close_all(false).await.unwrap();
}

#[tokio::test]
async fn jobs_hold_at_a_gate_until_it_is_released() {
    let (_redis, node) = environment().await;
    let queue = node.queue(BullVersion::V5, "held");
    queue.open_events().await.unwrap();
    let worker = queue.start_worker(json!({"default": {"hold": "g", "return": 1}}), json!({})).await.unwrap();
    let job = queue.add("x", json!({}), json!({})).await.unwrap();
    worker.wait_events("active", Some(&job.id), 1, SOON).await.unwrap();
    assert_eq!(queue.state(&job.id).await.unwrap(), "active");
    node.release("g").await.unwrap();
    assert_eq!(queue.wait_until_finished(&job.id, SOON).await.unwrap(), json!(1));
}

#[tokio::test]
async fn a_paused_queue_keeps_its_jobs() {
    let (_redis, node) = environment().await;
    let queue = node.queue(BullVersion::V5, "paused");
    queue.pause().await.unwrap();
    assert!(queue.is_paused().await.unwrap());
    queue.add("x", json!({}), json!({})).await.unwrap();
    assert_eq!(queue.counts(&["paused", "waiting"]).await.unwrap()["paused"], 1);
    queue.resume().await.unwrap();
    assert_eq!(queue.counts(&["paused", "waiting"]).await.unwrap()["waiting"], 1);
}

#[tokio::test]
async fn errors_of_node_and_deadlines_say_what_happened() {
    let (_redis, node) = environment().await;
    let refused = node.queue(BullVersion::V6, "a:b").open().await.unwrap_err();
    assert!(
        matches!(&refused, TestkitError::Node { .. }) && refused.to_string().contains("cannot contain :")
    );
    let queue = node.queue(BullVersion::V5_28, "quiet");
    queue.open_events().await.unwrap();
    queue.add("x", json!({}), json!({"jobId": "j"})).await.unwrap();
    queue.wait_event("waiting", Some("j"), SOON).await.unwrap();
    let late = queue.wait_event("completed", None, Duration::from_millis(100)).await.unwrap_err();
    assert!(late.to_string().contains("waiting(j)"), "{late}");
    node.kill9();
    let gone = queue.counts(&[]).await.unwrap_err();
    assert!(gone.to_string().contains("has ended"), "{gone}");
}
