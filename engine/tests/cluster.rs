//! In a Cluster: queues under several hash tags are served side by side, also while
//! their slots move and a node dies.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{Gate, PATIENCE, echo};
use mpanel_connect::Redis;
use mpanel_engine::{Engine, EngineError, JobContext, JobError, Worker, events::Start, handler_fn};
use mpanel_producer::{
    EnqueueError, EnqueueOptions, FlowJob, JobTemplate, Prefix, Producer, QueueProducer, Repeat,
};
use mpanel_protocol::keys::slot;
use mpanel_testkit::{
    Cluster, eventually,
    history::{Event, Journal, Snapshot, check, open_jobs},
    redis_server::RedisServerBuilder,
    tls::Authority,
};
use serde_json::{Value, json};

/// Slots 15495, 3300 and 7365: one on each node.
const PREFIXES: [&str; 3] = ["{a}", "{b}", "{c}"];

fn prefix(text: &str) -> Prefix {
    Prefix::new(text).unwrap()
}

async fn engine(redis: &Redis, under: &str) -> Engine {
    Engine::builder(redis.clone()).prefix(prefix(under)).connect().await.unwrap()
}

async fn producer(redis: &Redis, under: &str) -> Producer {
    Producer::builder(redis.clone()).prefix(prefix(under)).connect().await.unwrap()
}

/// How often the nodes have answered with this code.
async fn told(cluster: &Cluster, code: &str) -> u64 {
    let mut told = 0;
    for node in cluster.nodes().iter().filter(|node| node.pid().is_some()) {
        let client = redis::Client::open(node.url()).unwrap();
        let mut conn = client.get_multiplexed_async_connection().await.unwrap();
        let stats: String = redis::cmd("INFO").arg("errorstats").query_async(&mut conn).await.unwrap();
        let prefix = format!("errorstat_{code}:count=");
        told +=
            stats.lines().filter_map(|l| l.strip_prefix(&prefix)?.trim().parse::<u64>().ok()).sum::<u64>();
    }
    told
}

/// One queue under a prefix: its producer, its worker, what happened.
struct Line {
    base: String,
    queue: QueueProducer,
    journal: Arc<Journal>,
    worker: Worker,
    number: u32,
}

impl Line {
    async fn start(redis: &Redis, under: &str) -> Self {
        let journal = Arc::new(Journal::new().unwrap());
        let handler = handler_fn({
            let journal = journal.clone();
            move |ctx: JobContext, _: Value| {
                let journal = journal.clone();
                async move {
                    journal.start(ctx.id().as_str(), "w").unwrap();
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    journal.effect(ctx.id().as_str(), "w").unwrap();
                    Ok::<_, JobError>(())
                }
            }
        });
        let worker = engine(redis, under).await.worker("q").unwrap().concurrency(4).handle_any(handler);
        let worker =
            worker.lock(Duration::from_secs(5)).stalled_interval(Duration::from_secs(1)).stalls_allowed(9);
        Self {
            base: format!("{under}:q"),
            queue: producer(redis, under).await.queue("q").unwrap(),
            journal,
            worker: worker.start().unwrap(),
            number: 0,
        }
    }

    /// Enqueues so many jobs, and goes on after those that fail.
    async fn enqueue(&mut self, jobs: u32) {
        let mut acknowledged = 0;
        while acknowledged < jobs {
            self.number += 1;
            let id = format!("j{}", self.number);
            let mut options = EnqueueOptions::new().job_id(id.clone());
            if self.number.is_multiple_of(3) {
                options = options.delay(Duration::from_millis(10));
            }
            let event = match self.queue.enqueue("a", &json!({}), options).await {
                Ok(_) => {
                    acknowledged += 1;
                    Event::EnqueueAck { id }
                }
                Err(error) if error.is_not_stored() => Event::EnqueueRefused { id },
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    Event::EnqueueUnknown { id }
                }
            };
            self.journal.record(&event).unwrap();
        }
    }

    async fn settle(self, redis: &Redis) {
        let snapshot = eventually(&format!("the end of all jobs of {}", self.base), PATIENCE, || async {
            let mut shared = redis.shared_for(&self.base).await.map_err(|e| e.to_string())?;
            let snapshot = Snapshot::read(&mut shared.conn, &self.base).await.map_err(|e| e.to_string())?;
            let (lost, open) = (open_jobs(&self.journal.events().unwrap(), &snapshot), snapshot.open());
            if lost + open == 0 { Ok(snapshot) } else { Err(format!("{lost}, {open}")) }
        })
        .await
        .unwrap();
        assert_eq!(check(&self.journal.events().unwrap(), &snapshot), [], "{}", self.base);
        self.worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_while_their_slots_move() {
    let cluster = Cluster::start(false).await.unwrap();
    let redis = Redis::open(&cluster.url()).unwrap();
    let mut lines = Vec::new();
    for under in PREFIXES {
        let mut line = Line::start(&redis, under).await;
        line.enqueue(30).await;
        lines.push(line);
    }
    let mut producers = tokio::task::JoinSet::new();
    for mut line in lines {
        producers.spawn(async move {
            line.enqueue(400).await;
            line
        });
    }
    for turn in 1..=2 {
        for (at, under) in PREFIXES.into_iter().enumerate() {
            let to = &cluster.nodes()[(at + turn) % 3];
            let slot = slot(under);
            if cluster.owner(slot).await.unwrap().port() != to.port() {
                cluster.begin_move(slot, to).await.unwrap();
                while cluster.move_keys(slot, to, 60).await.unwrap() > 0 {}
                cluster.end_move(slot, to).await.unwrap();
            }
        }
    }
    while let Some(line) = producers.join_next().await {
        line.unwrap().settle(&redis).await;
    }
    for code in ["MOVED", "ASK", "TRYAGAIN"] {
        let told = told(&cluster, code).await;
        println!("{code}: {told}");
        assert!(told > 0, "no {code} was met");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_into_a_moving_slot_is_done_whole_after_the_move() {
    let cluster = Cluster::start(false).await.unwrap();
    let redis = Redis::open(&cluster.url()).unwrap();
    let queue = producer(&redis, "{a}").await.queue("q").unwrap();
    for n in 0..5 {
        queue.enqueue("a", &json!(n), EnqueueOptions::new()).await.unwrap();
    }
    // With `meta` on one side and `wait` on the other, either side would run a script
    // into its missing half.
    let (slot, to) = (slot("{a}"), &cluster.nodes()[0]);
    cluster.begin_move(slot, to).await.unwrap();
    let keys = cluster.move_keys(slot, to, 4).await.unwrap();
    assert_eq!(keys, 4);
    let before = told(&cluster, "TRYAGAIN").await;
    let data = json!(5);
    let waiting = queue.enqueue("a", &data, EnqueueOptions::new());
    let moved = async {
        eventually("a refusal", PATIENCE, || async {
            let now = told(&cluster, "TRYAGAIN").await;
            if now > before + 2 { Ok(()) } else { Err(format!("{before} -> {now}")) }
        })
        .await
        .unwrap();
        while cluster.move_keys(slot, to, 4).await.unwrap() > 0 {}
        cluster.end_move(slot, to).await.unwrap();
    };
    let (enqueued, ()) = tokio::join!(waiting, moved);
    enqueued.unwrap();
    let mut shared = redis.shared_for("{a}:q").await.unwrap();
    let snapshot = Snapshot::read(&mut shared.conn, "{a}:q").await.unwrap();
    assert_eq!(snapshot.states["wait"].len(), 6);
    assert_eq!(snapshot.events.iter().filter(|(event, _)| event == "added").count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_serves_on_when_its_primary_dies() {
    let cluster = Cluster::start(true).await.unwrap();
    let url = cluster.url();
    it_serves_on(&cluster, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_serves_on_with_tls_everywhere() {
    let authority = Authority::new().unwrap();
    let with_tls = |node: RedisServerBuilder| {
        let node = node.tls(&authority).config("tls-cluster yes").config("tls-replication yes");
        node.config("tls-auth-clients yes")
    };
    let cluster = Cluster::with(true, with_tls).await.unwrap();
    let (cert, key) = authority.client("worker").unwrap();
    let files = format!("ca={}&cert={}&key={}", authority.ca().display(), cert.display(), key.display());
    let port = cluster.nodes()[0].tls_port().unwrap();
    it_serves_on(&cluster, &format!("rediss+cluster://127.0.0.1:{port}?{files}")).await;
}

async fn it_serves_on(cluster: &Cluster, url: &str) {
    let redis = Redis::open(url).unwrap();
    let mut lines = Vec::new();
    for under in PREFIXES {
        let mut line = Line::start(&redis, under).await;
        line.enqueue(30).await;
        lines.push(line);
    }
    let old = cluster.owner(slot("{a}")).await.unwrap();
    old.kill9();
    // The queues of the other nodes do not notice.
    for line in lines.iter_mut().skip(1) {
        tokio::time::timeout(Duration::from_secs(1), line.enqueue(30)).await.unwrap();
    }
    let new = cluster.owner_after(slot("{a}"), old.port());
    let since = std::time::Instant::now();
    let (new, ()) = tokio::join!(new, lines[0].enqueue(30));
    println!("a dead node's queue is served again after {:?}", since.elapsed());
    assert_ne!(new.unwrap().port(), old.port());
    for line in lines {
        line.settle(&redis).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_schedules_waits_locks_and_listings_work_under_each_tag() {
    let cluster = Cluster::start(false).await.unwrap();
    let redis = Redis::open(&cluster.url()).unwrap();
    let gate = Gate::closed();
    let mut held = Vec::new();
    for under in PREFIXES {
        let engine = engine(&redis, under).await;
        let producer = producer(&redis, under).await;
        // A flow over two queues of one tag, waited for.
        let parents = engine.worker("parents").unwrap().handle_any(echo()).start().unwrap();
        let children = engine.worker("children").unwrap().name("kid").handle_any(echo()).start().unwrap();
        let flow = FlowJob::new("p", "parents").child(FlowJob::new("c", "children"));
        let parent = producer.enqueue_flow(flow).await.unwrap();
        let watch = engine.finish_watch("parents").unwrap();
        watch.wait(&parent.id, PATIENCE).await.unwrap();
        let mut events = engine.events("children", Start::Oldest).unwrap();
        events.next().await.unwrap();
        // Listed wherever they are connected.
        let workers = engine.admin("children").unwrap().workers().await.unwrap();
        assert_eq!(workers.iter().filter_map(|w| w.name.as_deref()).collect::<Vec<_>>(), ["kid"]);
        assert_eq!(engine.admin("children").unwrap().event_readers().await.unwrap().len(), 1);
        // A schedule.
        let schedules = producer.schedules("children").unwrap();
        let every = Repeat::every(Duration::from_millis(50));
        schedules.upsert("s", every, JobTemplate::new("tick")).await.unwrap();
        eventually("runs of the schedule", PATIENCE, || async {
            let done = engine.admin("children").unwrap().counts().await.map_err(|e| e.to_string())?.completed;
            if done >= 4 { Ok(()) } else { Err(format!("{done}")) }
        })
        .await
        .unwrap();
        schedules.remove("s").await.unwrap();
        // Jobs that hold their locks, each at its node.
        let lock = Duration::from_millis(600);
        let worker = engine.worker("held").unwrap().lock(lock).stalled_interval(lock / 3);
        held.push((worker.handle_any(gate.stubborn()).start().unwrap(), engine.admin("held").unwrap()));
        producer.queue("held").unwrap().enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
        parents.stop(PATIENCE).await;
        children.stop(PATIENCE).await;
    }
    gate.started(3).await;
    tokio::time::sleep(Duration::from_secs(2)).await; // three lives of a lock
    gate.open();
    for (worker, admin) in held {
        eventually("a held job's end", PATIENCE, || async {
            let counts = admin.counts().await.map_err(|e| e.to_string())?;
            if counts.completed == 1 { Ok(()) } else { Err(format!("{counts:?}")) }
        })
        .await
        .unwrap();
        worker.stop(PATIENCE).await;
    }
    assert_eq!(gate.count(), 3, "a lock was lost, and its job ran again");

    // A flow across tags cannot be one step.
    let producer = producer(&redis, "{a}").await;
    let child = FlowJob::new("c", "q").prefix(prefix("{b}"));
    let error = producer.enqueue_flow(FlowJob::new("p", "q").child(child)).await.unwrap_err();
    assert!(matches!(error, EnqueueError::AcrossSlots { .. }), "{error}");
}

#[tokio::test]
async fn a_prefix_without_a_hash_tag_is_refused_at_start() {
    // By the URL, and by what a server says that was reached by another.
    let cluster = Cluster::start(false).await.unwrap();
    for url in [cluster.url(), cluster.nodes()[0].url()] {
        let redis = Redis::open(&url).unwrap();
        let error = Engine::builder(redis.clone()).connect().await.unwrap_err();
        assert!(matches!(error, EngineError::Setting(_)), "{error}");
        assert!(error.to_string().contains("`{bull}`"), "{error}");
        let error = Producer::builder(redis).connect().await.unwrap_err().to_string();
        assert!(error.contains("{bull}"), "{error}");
    }
}
