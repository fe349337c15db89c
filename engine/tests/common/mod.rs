//! What the engine's tests share: a private Redis with an engine and a producer
//! on it, handlers, and looks at what an outsider sees.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

pub mod log;
pub mod proxy;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use mpanel_connect::Redis;
use mpanel_engine::{
    Engine, Handler, JobContext, JobError, WorkerBuilder,
    admin::{Counts, JobDetail, QueueAdmin},
    handler_fn,
};
use mpanel_producer::{Prefix, Producer, QueueName, QueueProducer};
use mpanel_protocol::{ids::JobId, peer::Peer};
use mpanel_testkit::{RedisServer, eventually};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::sync::watch;

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A private Redis, with an engine and a producer on it.
pub struct Bench {
    pub server: RedisServer,
    pub engine: Engine,
    pub producer: Producer,
    looker: redis::Client,
}

impl Bench {
    pub async fn start() -> Self {
        Self::on(RedisServer::start().await.unwrap()).await
    }

    /// The same on a server with settings of its own.
    pub async fn on(server: RedisServer) -> Self {
        let engine = Engine::connect(&server.url()).await.unwrap();
        let producer = Producer::connect(&server.url()).await.unwrap();
        let looker = redis::Client::open(server.url()).unwrap();
        Self { server, engine, producer, looker }
    }

    pub fn admin(&self, queue: &str) -> QueueAdmin {
        let redis = Redis::open(&self.server.url()).unwrap();
        QueueAdmin::new(redis, &Prefix::default(), &QueueName::new(queue).unwrap(), Peer::V5)
    }

    pub fn queue(&self, queue: &str) -> QueueProducer {
        self.producer.queue(queue).unwrap()
    }

    pub fn worker(&self, queue: &str) -> WorkerBuilder {
        self.engine.worker(queue).unwrap()
    }

    pub async fn counts_become(&self, queue: &str, expected: Counts) {
        let admin = self.admin(queue);
        eventually(&format!("counts of {queue}: {expected:?}"), PATIENCE, || async {
            let counts = admin.counts().await.map_err(|e| e.to_string())?;
            if counts == expected { Ok(()) } else { Err(format!("{counts:?}")) }
        })
        .await
        .unwrap();
    }

    pub async fn job(&self, queue: &str, id: &JobId) -> JobDetail {
        self.admin(queue).job(id).await.unwrap().unwrap()
    }

    /// A fresh connection of the test's own.
    pub async fn conn(&self) -> MultiplexedConnection {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        self.looker.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    /// One command on a fresh connection.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            cmd.arg(word);
        });
        cmd.query_async(&mut self.conn().await).await.unwrap()
    }

    /// The queue's event stream: event name and its fields, in order.
    pub async fn events(&self, queue: &str) -> Vec<BTreeMap<String, String>> {
        let entries: Vec<(String, BTreeMap<String, String>)> =
            self.ask(&format!("XRANGE bull:{queue}:events - +")).await;
        entries.into_iter().map(|(_, fields)| fields).collect()
    }

    /// The ids of the jobs in the events named `event`, in order.
    pub async fn event_ids(&self, queue: &str, event: &str) -> Vec<String> {
        let mut events = self.events(queue).await;
        events.retain(|fields| fields["event"] == event);
        events.into_iter().map(|mut fields| fields.remove("jobId").unwrap_or_default()).collect()
    }

    /// Every one of `ids` has exactly one event named `event`, and nothing else has.
    pub async fn each_has_one_event(&self, queue: &str, event: &str, ids: &[JobId]) {
        let mut seen = self.event_ids(queue, event).await;
        seen.sort();
        let mut expected: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
        expected.sort();
        assert_eq!(seen, expected, "{event} events of {queue}");
    }

    /// How often a command was called, by clients and by scripts.
    pub async fn calls(&self, command: &str) -> u64 {
        let stats: String = self.ask("INFO commandstats").await;
        let prefix = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        line.and_then(|rest| rest.split(',').next()).map_or(0, |calls| calls.parse().unwrap())
    }

    /// Waits until `workers` workers of `queue` sleep on its marker.
    pub async fn asleep(&self, workers: usize) {
        eventually("workers asleep on the marker", PATIENCE, || async {
            let clients: String = self.ask("CLIENT LIST").await;
            let sleeps = |client: &&str| client.contains("cmd=bzpopmin") && client.contains("flags=b");
            let asleep = clients.lines().filter(sleeps).count();
            if asleep == workers { Ok(()) } else { Err(format!("{asleep} asleep")) }
        })
        .await
        .unwrap();
    }

    /// Waits until the job's lock was renewed `times` times from now on.
    pub async fn renewed(&self, queue: &str, id: &JobId, times: u32) {
        let key = format!("bull:{queue}:{id}:lock");
        let mut conn = self.conn().await;
        let mut last = i64::MAX;
        let mut renewals = 0;
        let looked = async {
            loop {
                let ttl: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut conn).await.unwrap();
                assert!(ttl > 0, "{key} is gone (PTTL {ttl}) after {renewals} renewals");
                renewals += u32::from(ttl > last);
                last = ttl;
                if renewals >= times {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looked).await.expect("the lock is not renewed");
    }
}

/// A job count with everything else zero.
pub fn completed(jobs: u64) -> Counts {
    Counts { completed: jobs, ..Counts::default() }
}

/// A handler that answers with its payload.
pub fn echo() -> impl Handler {
    handler_fn(|_: JobContext, data: Value| async move { Ok::<_, JobError>(json!({ "echo": data })) })
}

/// What attempts have begun, in order; every one holds until the gate is opened.
#[derive(Clone)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
    started: Arc<watch::Sender<Vec<(String, u32)>>>,
    ended: Arc<Mutex<Vec<String>>>,
}

impl Gate {
    pub fn closed() -> Self {
        Self {
            open: Arc::new(watch::Sender::new(false)),
            started: Arc::new(watch::Sender::new(Vec::new())),
            ended: Arc::default(),
        }
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Ids and attempt numbers, once there are `count`.
    pub async fn started(&self, count: usize) -> Vec<(String, u32)> {
        let mut started = self.started.subscribe();
        let seen = tokio::time::timeout(PATIENCE, started.wait_for(|s| s.len() >= count)).await;
        seen.unwrap_or_else(|_| panic!("{count} attempts do not start")).unwrap().clone()
    }

    /// How many have begun so far.
    pub fn count(&self) -> usize {
        self.started.borrow().len()
    }

    fn note(&self, ctx: &JobContext) {
        self.started.send_modify(|s| s.push((ctx.id().as_str().to_owned(), ctx.attempt())));
    }

    async fn pass(&self) {
        // The sender lives as long as the gate.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    /// Holds at the gate, heedless of cancellation.
    pub fn stubborn(&self) -> impl Handler<Data = Value, Output = u32> + use<> {
        let gate = self.clone();
        handler_fn(move |ctx: JobContext, _: Value| {
            let gate = gate.clone();
            async move {
                gate.note(&ctx);
                gate.pass().await;
                Ok::<_, JobError>(ctx.attempt())
            }
        })
    }

    /// Holds at the gate; ends as failed when it is cancelled.
    pub fn polite(&self) -> impl Handler<Data = Value, Output = u32> + use<> {
        let gate = self.clone();
        handler_fn(move |ctx: JobContext, _: Value| {
            let gate = gate.clone();
            async move {
                gate.note(&ctx);
                tokio::select! {
                    () = gate.pass() => Ok(ctx.attempt()),
                    () = ctx.cancelled().cancelled() => Err(JobError::retry("cancelled")),
                }
            }
        })
    }
}
