//! Uniqueness over payload fields, by period, and the same id in Node.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    process::Command,
    sync::Arc,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use common::{ask, connect, start};
use mpanel_connect::Redis;
use mpanel_producer::{Deduplication, EnqueueError, EnqueueOptions, Outcome, Producer};
use mpanel_protocol::{
    time::{Clock, TimestampMs},
    unique,
};
use mpanel_testkit::{BullVersion, NodeSidecar, RedisServer};
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_secs(3600);

fn by_pod() -> EnqueueOptions {
    EnqueueOptions::new().unique_by(&["tenantId", "vmid"])
}

fn pod(vmid: u32, note: &str) -> Value {
    json!({"tenantId": "t", "vmid": vmid, "note": note})
}

#[tokio::test(flavor = "multi_thread")]
async fn until_done_means_until_done() {
    let (server, producer, _conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let first = queue.enqueue("create", &pod(1, "a"), by_pod()).await.unwrap();
    let again = queue.enqueue("create", &pod(1, "b"), by_pod()).await.unwrap();
    assert_eq!((again.outcome(), again.id()), (Outcome::Deduplicated, first.id()));
    // Another name, another pod: other jobs.
    assert!(queue.enqueue("destroy", &pod(1, "a"), by_pod()).await.unwrap().is_new());
    assert!(queue.enqueue("create", &pod(2, "a"), by_pod()).await.unwrap().is_new());
    // A Node worker finishes them: the next one is stored.
    let node = NodeSidecar::start(&server.url()).await.unwrap();
    let theirs = node.queue(BullVersion::V5, "q");
    let worker = theirs.start_worker(json!({"default": {"return": 1}}), json!({})).await.unwrap();
    let _ = theirs.wait_until_finished(first.id().as_str(), common::PATIENCE).await.unwrap();
    assert!(queue.enqueue("create", &pod(1, "c"), by_pod()).await.unwrap().is_new());
    drop(worker);
}

#[derive(Debug)]
struct Hand(AtomicI64);

impl Clock for Hand {
    fn now(&self) -> TimestampMs {
        TimestampMs(self.0.load(Ordering::Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn periods_outlast_the_job() {
    let server = RedisServer::start().await.unwrap();
    let clock = Arc::new(Hand(AtomicI64::new(7_199_000)));
    let redis = Redis::open(&server.url()).unwrap();
    let producer = Producer::builder(redis).clock(clock.clone()).connect().await.unwrap();
    let mut conn = connect(&server).await;
    let queue = producer.queue("q").unwrap();
    // Windows are counted from the epoch: a second before the edge, and at it.
    let window = || by_pod().within_window(HOUR);
    assert!(queue.enqueue("w", &pod(1, ""), window()).await.unwrap().is_new());
    assert!(!queue.enqueue("w", &pod(1, ""), window()).await.unwrap().is_new());
    let keys: Vec<String> = ask(&mut conn, "KEYS bull:q:de:*").await;
    let ttl: i64 = ask(&mut conn, &format!("PTTL {}", keys[0])).await;
    assert!(keys[0].ends_with("-1") && (1..=1000).contains(&ttl), "{keys:?} {ttl}");
    clock.0.store(7_200_000, Ordering::Relaxed);
    assert!(queue.enqueue("w", &pod(1, ""), window()).await.unwrap().is_new());
    // From the first job on, and from the last attempt on.
    for (name, options) in [("s", by_pod().within(HOUR)), ("e", by_pod().until_quiet(HOUR))] {
        assert!(queue.enqueue(name, &pod(1, ""), options.clone()).await.unwrap().is_new());
        let key = unique::key(name, &pod(1, ""), &["vmid".into(), "tenantId".into()]).unwrap();
        let _: () = ask(&mut conn, &format!("PEXPIRE bull:q:de:{key} 100000")).await;
        assert!(!queue.enqueue(name, &pod(1, ""), options).await.unwrap().is_new());
        let ttl: i64 = ask(&mut conn, &format!("PTTL bull:q:de:{key}")).await;
        assert_eq!(ttl > 100_000, name == "e", "{name}: {ttl}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_unique_is_refused() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let none: [&str; 0] = [];
    for options in [
        EnqueueOptions::new().unique_by(&none),
        EnqueueOptions::new().within(HOUR),
        by_pod(),
        EnqueueOptions::new().unique_by(&["tenantId"]).within(Duration::ZERO),
    ] {
        let error = queue.enqueue("a", &json!({"tenantId": "t"}), options).await.unwrap_err();
        assert!(matches!(error, EnqueueError::Unique(_)) && !error.is_retryable(), "{error:?}");
    }
    let both = by_pod().deduplication(Deduplication { id: "d".into(), ..Deduplication::default() });
    let error = queue.enqueue("a", &pod(1, ""), both).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Option { option: "unique_by", .. }), "{error:?}");
    let error = queue.enqueue("a", &pod(1, ""), by_pod().seal(&["/vmid"])).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Option { option: "unique_by", .. }), "{error:?}");
    assert!(common::stored_keys(&mut conn).await.is_empty());
}

/// The code of the guide, run on many payloads by Node.
#[test]
fn node_computes_the_same_id_with_the_guides_code() {
    let guide = include_str!("../../docs/guide/unique.md");
    let code = guide.split("```js\n").nth(1).unwrap().split("```").next().unwrap();
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-0.0),
        json!(1),
        json!(1.0),
        json!(-7),
        json!(0.1),
        json!(1e21),
        json!(1.5e-7),
        json!(123_456_789_012_345_i64),
        json!(9_007_199_254_740_991_i64),
        json!(5e-324),
        json!(1.797_693_134_862_315_7e308),
        json!(100_000.5),
        json!(""),
        json!("a\"b\\c/\u{1}\u{1f}\u{7f}\n\t\u{8}\u{c}"),
        json!("ü€😀\u{2028}\u{ffff}"),
        json!([]),
        json!({}),
        json!([1, [2, {"b": 1, "a": [null]}]]),
        json!({"\u{ffff}": 1, "😀": 2, "a": 3, "": 4, "é": 5, "10": 6, "9": 7}),
    ];
    let mut cases = Vec::new();
    for value in &values {
        let data = json!({"v": value, "deep": {"a/b": {"~": [value]}}, "other": 1});
        for fields in [vec!["v"], vec!["deep", "v"], vec!["/deep/a~1b/~0/0", "/other"]] {
            let own: Vec<String> = fields.iter().map(|f| (*f).to_owned()).collect();
            let id = unique::key("näme", &data, &own).unwrap();
            cases.push(json!({"data": data, "fields": fields, "id": id}));
        }
    }
    let program = format!(
        "{code}\nfor (const {{ data, fields, id }} of {}) {{\n  const got = uniqueId('näme', data, fields);\n  \
         if (got !== id) {{ console.log(JSON.stringify({{ data, fields, id, got }})); process.exitCode = 1; }}\n}}",
        Value::from(cases)
    );
    let dir = std::env::temp_dir().join(format!("fleet-unique-{}.mjs", std::process::id()));
    std::fs::write(&dir, program).unwrap();
    let out = Command::new("node").arg(&dir).output().unwrap();
    let _ = std::fs::remove_file(&dir);
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}
