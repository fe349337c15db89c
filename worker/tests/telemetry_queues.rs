//! Redis and its queues seen by telemetry: real npm bullmq makes the jobs.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::telemetry::Watch;
use mpanel_testkit::{BullVersion, Cluster, NodeSidecar, eventually};
use mpanel_worker::services::telemetry::{clock::Collector, redis};
use serde_json::json;

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[tokio::test]
async fn queues_are_found_and_counted() {
    let watch = Watch::new(&[("MPANEL_FLEET_TELEMETRY__QUEUE_AGE_SECONDS", "60")]).await;
    let node = NodeSidecar::start(&watch.redis.url()).await.unwrap();
    let mails = node.queue(BullVersion::V5, "mails");
    let others = node.queue(BullVersion::V6, "others");
    // Added two minutes ago, by its own account.
    mails.add("m", json!({}), json!({ "timestamp": now_ms() - 120_000 })).await.unwrap();
    mails.add("m", json!({}), json!({})).await.unwrap();
    mails.add("m", json!({}), json!({ "delay": 3_600_000 })).await.unwrap();
    mails.add("m", json!({}), json!({ "priority": 3 })).await.unwrap();
    others.add("o", json!({}), json!({})).await.unwrap();
    others.pause().await.unwrap();
    watch.set_clock(now_ms());
    watch.tick(Collector::Queues).await;
    let rows = "SELECT string_agg(concat_ws(' ', queue, waiting, active, failed, completed_total), ';' ORDER BY queue)
                FROM fleet_queue_samples";
    assert_eq!(watch.one(rows).await, "mails 4 0 0 0;others 1 0 0 0");
    assert_eq!(watch.figure("queue_waiting", "mails").await, Some(2.0));
    assert_eq!(watch.figure("queue_delayed", "mails").await, Some(1.0));
    assert_eq!(watch.figure("queue_prioritized", "mails").await, Some(1.0));
    let age = watch.figure("queue_oldest_waiting_seconds", "mails").await.unwrap();
    assert!((120.0..200.0).contains(&age), "{age}");
    assert_eq!(watch.statuses("queue-mails").await, "degraded");
    assert_eq!(watch.statuses("queue-others").await, "up");
}

#[tokio::test]
async fn a_queue_that_is_new_is_found_at_the_next_tick() {
    let watch = Watch::new(&[]).await;
    let node = NodeSidecar::start(&watch.redis.url()).await.unwrap();
    watch.set_clock(now_ms());
    watch.tick(Collector::Queues).await;
    node.queue(BullVersion::V5, "late").add("j", json!({}), json!({})).await.unwrap();
    watch.tick(Collector::Queues).await;
    assert_eq!(watch.figure("queue_waiting", "late").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_looked_at_server_by_server() {
    let watch = Watch::new(&[]).await;
    let cluster = Cluster::start(false).await.unwrap();
    let url = cluster.url();
    let node = NodeSidecar::start(&url).await.unwrap();
    let mails = node.queue(BullVersion::V5, "mails").with_prefix("{bull}");
    mails.add("m", json!({}), json!({})).await.unwrap();
    watch.set_clock(now_ms());
    let service = watch.another(&[("REDIS_URL", &url), ("MPANEL_FLEET_REDIS__PREFIX", "{bull}")]);
    service.tick(watch.due(Collector::Queues)).await.unwrap();
    service.tick(watch.due(Collector::Redis)).await.unwrap();
    assert_eq!(watch.figure("queue_waiting", "mails").await, Some(1.0));
    assert_eq!(watch.statuses(redis::SERVICE).await, "up", "{}", watch.why(redis::SERVICE).await);
    for server in ["server-1", "server-2", "server-3"] {
        assert!(watch.figure("redis_memory_bytes", server).await.unwrap() > 100_000.0);
    }
}

#[tokio::test]
async fn what_completes_is_counted_once_by_whichever_worker() {
    let watch = Watch::new(&[]).await;
    let node = NodeSidecar::start(&watch.redis.url()).await.unwrap();
    let mails = node.queue(BullVersion::V5, "mails");
    mails.open().await.unwrap();
    watch.set_clock(now_ms());
    watch.tick(Collector::Queues).await;
    let _worker = mails.start_worker(json!({}), json!({})).await.unwrap();
    for _ in 0..5 {
        mails.add("m", json!({}), json!({})).await.unwrap();
    }
    eventually("five jobs to complete", Duration::from_secs(20), || async {
        let counts = mails.counts(&["completed"]).await.map_err(|error| error.to_string())?;
        if counts["completed"] == 5 { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await
    .unwrap();
    // Ends are told two seconds late; the clock of the ticks goes ahead of ours.
    let another = watch.another(&[]);
    watch.set_clock(now_ms() + 3000);
    another.tick(watch.due(Collector::Queues)).await.unwrap();
    watch.set_clock(now_ms() + 6000);
    watch.service.tick(watch.due(Collector::Queues)).await.unwrap();
    let totals = "SELECT string_agg(completed_total::text, ' ' ORDER BY at) FROM fleet_queue_samples
                  WHERE queue = 'mails'";
    assert_eq!(watch.one(totals).await, "0 5 5");
}

#[tokio::test]
async fn a_redis_that_may_lose_jobs_is_degraded() {
    let watch = Watch::new(&[]).await;
    watch.set_clock(now_ms());
    watch.tick(Collector::Redis).await;
    assert_eq!(watch.statuses(redis::SERVICE).await, "up");
    assert!(watch.figure("redis_memory_bytes", "").await.unwrap() > 100_000.0);
    let client = ::redis::Client::open(watch.redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut set = async |name: &str, value: &str| {
        let _: () = ::redis::cmd("CONFIG")
            .arg("SET")
            .arg(name)
            .arg(value)
            .query_async(&mut connection)
            .await
            .unwrap();
    };
    set("maxmemory-policy", "allkeys-lru").await;
    set("slowlog-log-slower-than", "0").await;
    for _ in 0..3 {
        watch.tick(Collector::Redis).await;
    }
    assert_eq!(watch.statuses(redis::SERVICE).await, "up up up degraded");
    assert!(watch.why(redis::SERVICE).await.contains("set noeviction"));
    assert!(watch.figure("redis_slow_commands", "").await.unwrap() > 0.0);
}

#[tokio::test]
async fn a_user_without_rights_is_told_what_to_grant() {
    let watch = Watch::new(&[]).await;
    let client = ::redis::Client::open(watch.redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut acl = ::redis::cmd("ACL");
    for word in ["SETUSER", "little", "on", ">word", "~*", "+@all", "-slowlog", "-info"] {
        acl.arg(word);
    }
    let _: () = acl.query_async(&mut connection).await.unwrap();
    let url = watch.redis.url().replace("redis://", "redis://little:word@");
    let service = watch.another(&[("REDIS_URL", &url)]);
    service.tick(watch.due(Collector::Redis)).await.unwrap();
    assert_eq!(watch.statuses("telemetry-redis").await, "degraded");
    let why = watch.why("telemetry-redis").await;
    assert!(why.contains("INFO") && why.contains("SLOWLOG") && why.contains("+slowlog|get"), "{why}");
}
