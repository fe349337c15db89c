//! The traps that `bullmq-protocol.md` names, one test each, where neither the
//! conformance scenarios nor the differential test nor the model step into them.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::time::Duration;

use mpanel_connect::Redis;
use mpanel_engine::{Engine, JobContext, JobError, admin::QueueAdmin, handler_fn};
use mpanel_producer::{EnqueueOptions, Prefix, Producer, QueueName};
use mpanel_protocol::{
    calls::{
        fetch::{FetchSpec, fetch_jobs},
        locks::rescue_stalled,
        sweep::Cleanable,
    },
    ids::{JobId, LockToken},
    keys::QueueKeys,
    options::Deduplication,
    peer::Peer,
    state::JobState,
    time::TimestampMs,
};
use mpanel_testkit::{BullVersion, NodeSidecar, RedisServer, eventually};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(30);
const SOUND: [&str; 12] =
    ["name", "n", "data", "{}", "opts", "{}", "timestamp", "1", "delay", "0", "priority", "0"];

struct Bench {
    server: RedisServer,
    conn: MultiplexedConnection,
    keys: QueueKeys,
    admin: QueueAdmin,
    engine: Engine,
    producer: Producer,
}

impl Bench {
    async fn start() -> Self {
        let server = RedisServer::builder().appendonly(false).start().await.unwrap();
        let url = server.url();
        let conn =
            redis::Client::open(url.as_str()).unwrap().get_multiplexed_async_connection().await.unwrap();
        let (prefix, name) = (Prefix::default(), QueueName::new("q").unwrap());
        let keys = QueueKeys::new(&prefix, &name);
        let admin = QueueAdmin::new(Redis::open(&url).unwrap(), &prefix, &name, Peer::V5);
        let engine = Engine::connect(&url).await.unwrap();
        let producer = Producer::connect(&url).await.unwrap();
        Self { server, conn, keys, admin, engine, producer }
    }

    /// A command on a key of the queue.
    async fn ask<T: redis::FromRedisValue>(&self, command: &str, key: &str, rest: &[&str]) -> T {
        let key = format!("bull:q:{key}");
        redis::cmd(command).arg(key).arg(rest).query_async(&mut self.conn.clone()).await.unwrap()
    }

    /// A sound job in line, with more fields.
    async fn plant(&self, id: &str, more: &[&str]) {
        self.ask::<()>("HSET", id, &[&SOUND[..], more].concat()).await;
        self.ask::<()>("LPUSH", "wait", &[id]).await;
        self.ask::<()>("ZADD", "marker", &["0", "0"]).await;
    }

    async fn fetch(&self, slots: u32, now: i64) -> Vec<String> {
        let token = LockToken::new("t");
        let lock = Duration::from_secs(60);
        let spec = FetchSpec { slots, token: &token, lock, limiter: None, worker_name: None };
        let mut conn = self.conn.clone();
        let fetched = fetch_jobs(&mut conn, &self.keys, Peer::V5, TimestampMs(now), &spec).await.unwrap();
        fetched.jobs.into_iter().map(|j| j.id.into_string()).collect()
    }

    async fn becomes(&self, id: &str, state: JobState) {
        eventually(&format!("{id} {state:?}"), PATIENCE, || async {
            let found = self.admin.state(&JobId::stored(id)).await.map_err(|e| e.to_string())?;
            if found == Some(state) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await
        .unwrap();
    }
}

fn answer(value: Value) -> impl mpanel_engine::Handler {
    handler_fn(move |_: JobContext, _: Value| {
        let value = value.clone();
        async move { Ok::<_, JobError>(value) }
    })
}

#[tokio::test]
async fn the_stalled_counter_of_5_28_is_not_ours() {
    let bench = Bench::start().await;
    bench.ask::<()>("HSET", "job", &[&SOUND[..], &["stalledCounter", "7"]].concat()).await;
    bench.ask::<()>("LPUSH", "active", &["job"]).await;
    bench.ask::<()>("SADD", "stalled", &["job"]).await;
    let mut conn = bench.conn.clone();
    rescue_stalled(&mut conn, &bench.keys, Peer::V5, TimestampMs(1), Duration::from_secs(1), 1)
        .await
        .unwrap();
    let fields: Vec<Option<String>> = bench.ask("HMGET", "job", &["stc", "stalledCounter", "defa"]).await;
    assert_eq!(fields, [Some("1".to_owned()), Some("7".to_owned()), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_under_their_old_name_count() {
    let bench = Bench::start().await;
    bench.plant("old", &["attemptsMade", "2"]).await;
    bench.ask::<()>("HSET", "old", &["opts", r#"{"attempts":3}"#]).await;
    let handler =
        handler_fn(|_: JobContext, _: Value| async { Err::<(), _>(JobError::retry("the third time")) });
    let worker = bench.engine.worker("q").unwrap().handle_any(handler).start().unwrap();
    bench.becomes("old", JobState::Failed).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferred_failure_fails_the_job_before_it_runs() {
    let bench = Bench::start().await;
    bench.plant("doomed", &["defa", "child bull:q:x failed"]).await;
    let worker = bench.engine.worker("q").unwrap().handle_any(answer(json!(1))).start().unwrap();
    bench.becomes("doomed", JobState::Failed).await;
    let fields: Vec<Option<String>> =
        bench.ask("HMGET", "doomed", &["failedReason", "defa", "returnvalue"]).await;
    assert_eq!(fields, [Some("child bull:q:x failed".to_owned()), None, None]);
    worker.stop(PATIENCE).await;
}

#[tokio::test]
async fn delayed_scores_stop_at_the_end_of_their_millisecond() {
    let bench = Bench::start().await;
    let at = 1_700_000_000_000_i64;
    let mut pipe = redis::pipe();
    for i in 0..4095 {
        let score = at * 4096 + i;
        pipe.cmd("ZADD").arg("bull:q:delayed").arg(score).arg(format!("filler-{i}")).ignore();
    }
    pipe.query_async::<()>(&mut bench.conn.clone()).await.unwrap();
    let queue = bench.producer.queue("q").unwrap();
    for i in 0..3 {
        // Due in that same millisecond.
        let options = EnqueueOptions::new().job_id(format!("late-{i}")).timestamp_ms(at - 1);
        let options = options.delay(Duration::from_millis(1));
        queue.enqueue("n", &json!({}), options).await.unwrap();
    }
    for i in 0..3 {
        let score: f64 = bench.ask("ZSCORE", "delayed", &[&format!("late-{i}")]).await;
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        let top = (at * 4096 + 4095) as f64;
        assert!((score - top).abs() < 0.5, "{score}");
    }
    // A millisecond early none is due, then all are: promotion goes by chunks.
    assert_eq!(bench.fetch(1, at - 1).await, Vec::<String>::new());
    let mut taken = Vec::new();
    for _ in 0..60 {
        taken.extend(bench.fetch(64, at).await);
    }
    taken.sort();
    assert_eq!(taken, ["late-0", "late-1", "late-2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_with_a_fraction_wakes_in_time() {
    let bench = Bench::start().await;
    let worker = bench.engine.worker("q").unwrap().handle_any(answer(json!(1))).start().unwrap();
    // The second of two jobs of one millisecond: its score has a place, the marker a fraction.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let due = i64::try_from(now).unwrap() + 300;
    bench.ask::<()>("HSET", "second", &SOUND).await;
    bench.ask::<()>("ZADD", "delayed", &[&(due * 4096 + 3).to_string(), "second"]).await;
    bench.ask::<()>("ZADD", "marker", &[&format!("{due}.000732421875"), "1"]).await;
    bench.becomes("second", JobState::Completed).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_end_of_an_active_job_runs_after_it() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    let (gate, open) = watch::channel(false);
    let handler = handler_fn(move |_: JobContext, data: Value| {
        let mut open = open.clone();
        async move {
            open.wait_for(|o| *o).await.unwrap();
            Ok::<_, JobError>(data)
        }
    });
    let worker = bench.engine.worker("q").unwrap().handle_any(handler).start().unwrap();
    let queue = node.queue(BullVersion::V5, "q");
    let options = json!({"deduplication": {"id": "d", "keepLastIfActive": true}});
    let first = queue.add("n", json!("first"), options.clone()).await.unwrap();
    bench.becomes(&first.id, JobState::Active).await;
    queue.add("n", json!("second"), options.clone()).await.unwrap();
    queue.add("n", json!("third"), options).await.unwrap();
    let waiting: String = bench.ask("HGET", "dn:d", &["data"]).await;
    assert_eq!(waiting, "\"third\"");
    gate.send_replace(true);
    eventually("both are done", PATIENCE, || async {
        let done: Vec<String> = bench.ask("ZRANGE", "completed", &["0", "-1"]).await;
        if done.len() == 2 { Ok(()) } else { Err(format!("{done:?}")) }
    })
    .await
    .unwrap();
    let done: Vec<String> = bench.ask("ZRANGE", "completed", &["0", "-1"]).await;
    let last = done.iter().find(|id| **id != first.id).unwrap();
    assert_eq!(queue.job(last).await.unwrap().unwrap().returnvalue, json!("third"));
    let left: bool = bench.ask("EXISTS", "dn:d", &[]).await;
    assert!(!left);
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_json_for_the_listeners_of_every_version() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    let text = json!("no {json} \u{0} \"at\" all");
    for version in BullVersion::ALL {
        node.queue(version, "q").open_events().await.unwrap();
    }
    let worker = bench.engine.worker("q").unwrap().handle_any(answer(text.clone())).start().unwrap();
    let id =
        bench.producer.queue("q").unwrap().enqueue("n", &json!({}), EnqueueOptions::new()).await.unwrap();
    for version in BullVersion::ALL {
        let queue = node.queue(version, "q");
        let heard = queue.wait_event("completed", Some(id.id().as_str()), PATIENCE).await.unwrap();
        assert_eq!(heard.args["returnvalue"], text, "{version:?}");
    }
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_iteration_of_a_scheduler_may_be_a_parent() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    let parent = "repeat:nightly:1700000000000";
    bench.ask::<()>("HSET", parent, &SOUND).await;
    bench.ask::<()>("ZADD", "waiting-children", &["1", parent]).await;
    let options = json!({"jobId": "child", "parent": {"id": parent, "queue": "bull:q"}});
    node.queue(BullVersion::V5, "q").add("n", json!({}), options).await.unwrap();
    let worker = bench.engine.worker("q").unwrap().handle_any(answer(json!("done"))).start().unwrap();
    bench.becomes(parent, JobState::Completed).await;
    let kept: String = bench.ask("HGET", &format!("{parent}:processed"), &["bull:q:child"]).await;
    assert_eq!(kept, "\"done\"");
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messagepack_between_us_and_redis_loses_nothing() {
    let bench = Bench::start().await;
    let worker = bench
        .engine
        .worker("q")
        .unwrap()
        .handle_any(handler_fn(|_: JobContext, data: Value| async move { Ok::<_, JobError>(data) }))
        .start()
        .unwrap();
    // Deeper than cmsgpack packs, and with integers that Lua would round.
    let mut deep = json!({"big": 9_007_199_254_740_993_i64, "huge": u64::MAX, "f": 0.1, "e": [], "o": {}});
    for _ in 0..60 {
        deep = json!([deep]);
    }
    let queue = bench.producer.queue("q").unwrap();
    let id = queue.enqueue("n", &deep, EnqueueOptions::new()).await.unwrap().id().as_str().to_owned();
    bench.becomes(&id, JobState::Completed).await;
    let fields: Vec<String> = bench.ask("HMGET", &id, &["data", "returnvalue"]).await;
    assert_eq!(serde_json::from_str::<Value>(&fields[0]).unwrap(), deep);
    assert_eq!(fields[0], fields[1]);
    // Bytes that are no UTF-8, where Node would read replacement characters.
    let mut conn = bench.conn.clone();
    let mut cmd = redis::cmd("HSET");
    cmd.arg("bull:q:bytes").arg(&SOUND).arg("name").arg(&b"\xff\xfe"[..]);
    cmd.query_async::<()>(&mut conn).await.unwrap();
    bench.ask::<()>("LPUSH", "wait", &["bytes"]).await;
    bench.ask::<()>("ZADD", "marker", &["0", "0"]).await;
    bench.becomes("bytes", JobState::Completed).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test]
async fn meta_keeps_the_version_that_is_there() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    node.queue(BullVersion::V5, "q").open().await.unwrap();
    eventually("Node's version", PATIENCE, || async {
        let version: Option<String> = bench.ask("HGET", "meta", &["version"]).await;
        version.map(drop).ok_or_else(|| "none".to_owned())
    })
    .await
    .unwrap();
    let queue = bench.producer.queue("q").unwrap();
    queue.introduce().await.unwrap();
    queue.enqueue("n", &json!({}), EnqueueOptions::new()).await.unwrap();
    let version: String = bench.ask("HGET", "meta", &["version"]).await;
    assert_eq!(version, "bullmq:5.81.5");
    let other = bench.producer.queue("other").unwrap();
    other.introduce().await.unwrap();
    let ours: String = redis::cmd("HGET")
        .arg(&["bull:other:meta", "version"])
        .query_async(&mut bench.conn.clone())
        .await
        .unwrap();
    assert!(ours.starts_with("mpanel-fleet:"), "{ours}");
}

#[tokio::test]
async fn listeners_of_5_x_hear_of_debounced_jobs() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    let queue = node.queue(BullVersion::V5_28, "q");
    queue.open_events().await.unwrap();
    let single = || {
        let dedup = Deduplication { id: "d".to_owned(), ..Deduplication::default() };
        EnqueueOptions::new().deduplication(dedup)
    };
    let ours = bench.producer.queue("q").unwrap();
    let first = ours.enqueue("n", &json!({}), single()).await.unwrap();
    ours.enqueue("n", &json!({}), single()).await.unwrap();
    let id = first.id().as_str();
    let heard = queue.wait_event("debounced", Some(id), PATIENCE).await.unwrap();
    assert_eq!(heard.args["debounceId"], "d");
    queue.wait_event("deduplicated", Some(id), PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_lock_outlives_its_removed_job_and_guards_nobody_else() {
    let bench = Bench::start().await;
    bench.plant("twice", &[]).await;
    assert_eq!(bench.fetch(1, 1).await, ["twice"]);
    // Cleaned away by force of an expired hash: the lock stays, as in BullMQ.
    bench.ask::<()>("DEL", "twice", &[]).await;
    bench.ask::<()>("LREM", "active", &["0", "twice"]).await;
    let locked: bool = bench.ask("EXISTS", "twice:lock", &[]).await;
    assert!(locked);
    // The id is used again: it waits, is cleaned and is taken like any other.
    bench.plant("twice", &[]).await;
    let cleaned = bench.admin.clean(Cleanable::Waiting, Duration::ZERO, 0).await.unwrap();
    assert_eq!(cleaned, [JobId::stored("twice")]);
    bench.plant("twice", &[]).await;
    assert_eq!(bench.fetch(1, 1).await, ["twice"]);
}
