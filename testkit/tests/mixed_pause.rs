//! Pause and resume by every version and by us, with every one of them at work in
//! between (decision 2): no job is lost, but for what 5.x and 6.x do to each other.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, stream};
use mpanel_connect::Redis;
use mpanel_engine::admin::QueueAdmin;
use mpanel_producer::{BulkJob, EnqueueOptions, Prefix, Producer, QueueName};
use mpanel_protocol::{
    calls::{
        locks::rescue_stalled,
        manage::{FinalState, Reprocess, promote_job},
    },
    ids::JobId,
    keys::QueueKeys,
    peer::Peer,
    time::TimestampMs,
};
use mpanel_testkit::{BullVersion, NodeQueue, NodeSidecar, RedisServer, eventually};
use redis::aio::MultiplexedConnection;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Node(BullVersion),
    Ours(Peer),
}

const ALL: [Who; 5] = [
    Who::Node(BullVersion::V5_28),
    Who::Node(BullVersion::V5),
    Who::Node(BullVersion::V6),
    Who::Ours(Peer::V5),
    Who::Ours(Peer::V6),
];

impl Who {
    fn is_node_5(self) -> bool {
        matches!(self, Self::Node(BullVersion::V5_28 | BullVersion::V5))
    }

    fn is_6(self) -> bool {
        matches!(self, Self::Node(BullVersion::V6) | Self::Ours(Peer::V6))
    }
}

/// Whether Node's 5.x throws jobs away at resume: it renames `paused` over a `wait`
/// into which 6.x put jobs, or in which it left them.
fn is_their_own_doing(pauser: Who, worker: Who, resumer: Who) -> bool {
    let node_6 = Who::Node(BullVersion::V6);
    resumer.is_node_5() && (worker == node_6 && !pauser.is_6() || pauser.is_6() && worker.is_node_5())
}

struct Stage {
    server: RedisServer,
    node: NodeSidecar,
    conn: MultiplexedConnection,
}

/// One queue, with everybody's handle on it.
struct Case<'a> {
    stage: &'a Stage,
    name: String,
    keys: QueueKeys,
}

impl Case<'_> {
    fn node(&self, version: BullVersion) -> NodeQueue {
        self.stage.node.queue(version, &self.name)
    }

    fn admin(&self, peer: Peer) -> QueueAdmin {
        let redis = Redis::open(&self.stage.server.url()).unwrap();
        QueueAdmin::new(redis, &Prefix::default(), &QueueName::new(&self.name).unwrap(), peer)
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &str, key: &str, rest: &[&str]) -> T {
        let key = format!("bull:{}:{key}", self.name);
        redis::cmd(command).arg(key).arg(rest).query_async(&mut self.stage.conn.clone()).await.unwrap()
    }

    async fn pause(&self, who: Who) {
        match who {
            Who::Node(version) => self.node(version).pause().await.unwrap(),
            Who::Ours(peer) => self.admin(peer).pause().await.unwrap(),
        }
    }

    async fn resume(&self, who: Who) {
        match who {
            Who::Node(version) => self.node(version).resume().await.unwrap(),
            Who::Ours(peer) => self.admin(peer).resume().await.unwrap(),
        }
    }

    /// Adds three jobs, retries one, promotes one and rescues one.
    async fn work(&self, who: Who) {
        let now = TimestampMs(1_800_000_000_000);
        match who {
            Who::Node(version) => {
                let queue = self.node(version);
                queue.add("n", json!({}), json!({"jobId": "late"})).await.unwrap();
                queue.add("n", json!({}), json!({"jobId": "late-lifo", "lifo": true})).await.unwrap();
                let bulk = json!({"name": "n", "data": {}, "opts": {"jobId": "late-bulk"}});
                queue.add_bulk(vec![bulk]).await.unwrap();
                queue.job_call("broken", "retry", vec![json!("failed")]).await.unwrap();
                queue.job_call("later", "promote", vec![]).await.unwrap();
                let options = json!({"stalledInterval": 50, "maxStalledCount": 5, "autorun": true});
                let worker = queue.start_worker(json!({}), options).await.unwrap();
                eventually("the rescue", PATIENCE, || async {
                    let left: u64 = self.ask("LLEN", "active", &[]).await;
                    if left == 0 { Ok(()) } else { Err(format!("{left} active")) }
                })
                .await
                .unwrap();
                worker.close(true).await.unwrap();
            }
            Who::Ours(peer) => {
                let producer = Producer::builder(Redis::open(&self.stage.server.url()).unwrap()).peer(peer);
                let queue = producer.connect().await.unwrap().queue(&self.name).unwrap();
                let id = |id: &str| EnqueueOptions::new().job_id(id);
                queue.enqueue("n", &json!({}), id("late")).await.unwrap();
                queue.enqueue("n", &json!({}), id("late-lifo").lifo(true)).await.unwrap();
                queue
                    .enqueue_bulk(vec![BulkJob::new("n", json!({})).options(id("late-bulk"))])
                    .await
                    .unwrap();
                let admin = self.admin(peer);
                admin
                    .retry(&JobId::stored("broken"), FinalState::Failed, Reprocess::default())
                    .await
                    .unwrap();
                let mut conn = self.stage.conn.clone();
                promote_job(&mut conn, &self.keys, peer, &JobId::stored("later")).await.unwrap();
                let interval = Duration::from_secs(30);
                rescue_stalled(&mut conn, &self.keys, peer, now, interval, 5).await.unwrap();
            }
        }
    }

    /// All ids in line, with how often each is there.
    async fn in_line(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.ask("LRANGE", "wait", &["0", "-1"]).await;
        ids.extend(self.ask::<Vec<String>>("LRANGE", "paused", &["0", "-1"]).await);
        ids.extend(self.ask::<Vec<String>>("ZRANGE", "prioritized", &["0", "-1"]).await);
        ids.sort();
        ids
    }
}

/// What is in the queue before it is paused: in line, by priority, failed, delayed,
/// and active with a worker that is gone.
async fn furnish(case: &Case<'_>) {
    let job = |id: &str| format!("bull:{}:{id}", case.name);
    let mut pipe = redis::pipe();
    for id in ["one", "two", "first", "broken", "later", "lost"] {
        pipe.cmd("HSET").arg(job(id)).arg(&["name", "n", "data", "{}", "opts", "{}", "timestamp", "1"]);
        pipe.cmd("HSET").arg(job(id)).arg(&["delay", "0", "priority", "0"]);
    }
    let key = |name: &str| format!("bull:{}:{name}", case.name);
    pipe.cmd("LPUSH").arg(key("wait")).arg(&["one", "two"]);
    pipe.cmd("ZADD").arg(key("prioritized")).arg(&["4294967297", "first"]);
    pipe.cmd("HSET").arg(job("first")).arg(&["priority", "1"]);
    pipe.cmd("ZADD").arg(key("failed")).arg(&["1", "broken"]);
    pipe.cmd("HSET").arg(job("broken")).arg(&["failedReason", "no", "finishedOn", "1"]);
    // Due in the year 2100.
    pipe.cmd("ZADD").arg(key("delayed")).arg(&["16803762739200000", "later"]);
    pipe.cmd("LPUSH").arg(key("active")).arg("lost");
    pipe.cmd("SADD").arg(key("stalled")).arg("lost");
    pipe.query_async::<()>(&mut case.stage.conn.clone()).await.unwrap();
}

/// Whether jobs were lost as 5.x and 6.x lose them; else what went wrong.
async fn play(stage: &Stage, pauser: Who, worker: Who, resumer: Who) -> Result<bool, String> {
    let at = |who: Who| ALL.iter().position(|w| *w == who).unwrap();
    let name = format!("q{}{}{}", at(pauser), at(worker), at(resumer));
    let queue = QueueName::new(&name).unwrap();
    let case = Case { stage, name, keys: QueueKeys::new(&Prefix::default(), &queue) };
    furnish(&case).await;
    case.pause(pauser).await;
    case.work(worker).await;
    case.resume(resumer).await;

    let mut expected: BTreeSet<String> =
        ["one", "two", "first", "broken", "later", "lost", "late", "late-lifo", "late-bulk"]
            .map(str::to_owned)
            .into();
    let line = case.in_line().await;
    let twice: Vec<_> = line.windows(2).filter(|w| w[0] == w[1]).collect();
    for id in &line {
        expected.remove(id);
    }
    let hidden: u64 = case.ask("LLEN", "paused", &[]).await;
    let paused: bool = case.ask("HEXISTS", "meta", &["paused"]).await;
    // A Node worker that is being closed may still take the marker.
    let woken = matches!(worker, Who::Node(_)) || case.ask("EXISTS", "marker", &[]).await;
    if !twice.is_empty() || paused || !woken {
        let text = format!("paused {paused}, marker {woken}, twice {twice:?}");
        return Err(format!("{pauser:?} {worker:?} {resumer:?}: {text}"));
    }
    let lost = !expected.is_empty() || hidden > 0;
    if lost && !is_their_own_doing(pauser, worker, resumer) {
        let text = format!("lost {expected:?}, left in paused {hidden}");
        return Err(format!("paused by {pauser:?}, {worker:?} at work, resumed by {resumer:?}: {text}"));
    }
    Ok(lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_is_lost_over_pause_and_resume() {
    let server = RedisServer::builder().appendonly(false).start().await.unwrap();
    let node = NodeSidecar::start(&server.url()).await.unwrap();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    let client = redis::Client::open(server.url()).unwrap();
    let conn = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    let stage = Stage { server, node, conn };
    let mut cases = Vec::new();
    for pauser in ALL {
        for worker in ALL {
            for resumer in ALL {
                cases.push((pauser, worker, resumer));
            }
        }
    }
    let outcomes: Vec<Result<bool, String>> = stream::iter(cases)
        .map(|(pauser, worker, resumer)| play(&stage, pauser, worker, resumer))
        .buffer_unordered(8)
        .collect()
        .await;
    // The test sees a loss where there is one.
    assert!(outcomes.contains(&Ok(true)));
    let failures: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}
