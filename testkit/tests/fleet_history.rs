//! A mixed fleet (npm bullmq in three versions, and ours) while its Redis fails over or moves slots: what all
//! parties saw is one history that can be right. Short by default, longer with FLEET_TEST_TIER=full.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mpanel_connect::Redis;
use mpanel_engine::{Engine, JobContext, JobError, Worker, handler_fn};
use mpanel_producer::{EnqueueOptions, Prefix, Producer};
use mpanel_protocol::keys::slot;
use mpanel_testkit::history::{Event, Journal, Snapshot, Violation, check, open_jobs};
use mpanel_testkit::redis_server::RedisServerBuilder;
use mpanel_testkit::{BullVersion, Cluster, NodeSidecar, NodeWorker, Sentinel, TestkitError, eventually};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const PREFIX: &str = "{mix}";
const QUEUE: &str = "jobs";
const BASE: &str = "{mix}:jobs";
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two jobs of one producer.
const PACE: Duration = Duration::from_millis(5);
/// How long a handler takes.
const WORK_MS: u64 = 5;

fn full() -> bool {
    std::env::var("FLEET_TEST_TIER").is_ok_and(|tier| tier == "full")
}

/// The first violations, and how many there are.
fn told(violations: &[Violation]) -> String {
    let first: Vec<String> = violations.iter().take(30).map(ToString::to_string).collect();
    format!("{} violations\n{}", violations.len(), first.join("\n"))
}

/// Everybody who works on the queue.
struct Fleet {
    journal: Arc<Journal>,
    redis: Redis,
    node: NodeSidecar,
    node_workers: Vec<NodeWorker>,
    workers: Vec<Worker>,
    producers: JoinSet<()>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    /// Longest time without an acknowledged enqueue of ours, ms.
    gap: Arc<AtomicUsize>,
}

impl Fleet {
    async fn start(url: &str) -> Self {
        let redis = Redis::open(url).unwrap();
        let node = NodeSidecar::start(url).await.unwrap();
        for version in BullVersion::ALL {
            node.queue(version, QUEUE).with_prefix(PREFIX).open().await.unwrap();
        }
        // Node writes its default when a queue is opened: only now is it ours to set.
        let mut meta = redis.shared_for(BASE).await.unwrap();
        let key = format!("{BASE}:meta");
        let set = redis::cmd("HSET").arg(key).arg("opts.maxLenEvents").arg(10_000_000).clone();
        set.query_async::<()>(&mut meta.conn).await.unwrap();
        let mut fleet = Self {
            journal: Arc::new(Journal::new().unwrap()),
            redis,
            node,
            node_workers: Vec::new(),
            workers: Vec::new(),
            producers: JoinSet::new(),
            stop: Arc::default(),
            acknowledged: Arc::default(),
            gap: Arc::default(),
        };
        fleet.start_workers().await;
        for version in BullVersion::ALL {
            fleet.node_produces(version);
        }
        fleet.we_produce().await;
        fleet
    }

    async fn start_workers(&mut self) {
        let dir = self.journal.dir().to_str().unwrap();
        let script = json!({"default": {"journal": dir, "sleepMs": WORK_MS, "return": "node"}});
        let options =
            json!({"concurrency": 3, "lockDuration": 8000, "stalledInterval": 1000, "maxStalledCount": 9});
        for version in BullVersion::ALL {
            let queue = self.node.queue(version, QUEUE).with_prefix(PREFIX);
            self.node_workers.push(queue.start_worker(script.clone(), options.clone()).await.unwrap());
        }
        let engine = Engine::builder(self.redis.clone()).prefix(Prefix::new(PREFIX).unwrap());
        let engine = engine.connect().await.unwrap();
        for _ in 0..2 {
            let journal = self.journal.clone();
            let handler = handler_fn(move |ctx: JobContext, _: Value| {
                let journal = journal.clone();
                async move {
                    let failed = |e: TestkitError| JobError::retry(e.to_string());
                    journal.start(ctx.id().as_str(), "rust").map_err(failed)?;
                    tokio::time::sleep(Duration::from_millis(WORK_MS)).await;
                    journal.effect(ctx.id().as_str(), "rust").map_err(failed)?;
                    Ok::<_, JobError>("rust")
                }
            });
            let worker = engine.worker(QUEUE).unwrap().concurrency(3).handle_any(handler);
            let worker = worker.lock(Duration::from_secs(8)).stalled_interval(Duration::from_secs(1));
            self.workers.push(worker.stalls_allowed(9).start().unwrap());
        }
    }

    fn node_produces(&mut self, version: BullVersion) {
        let queue = self.node.queue(version, QUEUE).with_prefix(PREFIX);
        let (journal, stop, acknowledged) =
            (self.journal.clone(), self.stop.clone(), self.acknowledged.clone());
        self.producers.spawn(async move {
            let by = version.alias().replace('.', "-");
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let id = format!("{by}-{n}");
                let mut options = json!({"jobId": id});
                match n % 3 {
                    0 => options["delay"] = json!(20),
                    1 => options["priority"] = json!(1 + n % 5),
                    _ => {}
                }
                let asked = Instant::now();
                let event = match queue.add("job", json!({}), options).await {
                    // ioredis waits for a frozen primary, and takes its word when it wakes up, replaced.
                    Ok(_) if asked.elapsed() > Duration::from_secs(1) => Event::EnqueueUnknown { id },
                    Ok(_) => {
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        Event::EnqueueAck { id }
                    }
                    Err(_) => Event::EnqueueUnknown { id },
                };
                journal.record(&event).unwrap();
                tokio::time::sleep(PACE).await;
            }
        });
    }

    async fn we_produce(&mut self) {
        let producer = Producer::builder(self.redis.clone()).prefix(Prefix::new(PREFIX).unwrap());
        let queue = producer.connect().await.unwrap().queue(QUEUE).unwrap();
        let (journal, stop, acknowledged) =
            (self.journal.clone(), self.stop.clone(), self.acknowledged.clone());
        let gap = self.gap.clone();
        self.producers.spawn(async move {
            let mut last = Instant::now();
            for n in 0u32.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let id = format!("rust-{n}");
                let mut options = EnqueueOptions::new().job_id(id.clone());
                match n % 3 {
                    0 => options = options.delay(Duration::from_millis(20)),
                    1 => options = options.priority(1 + n % 5),
                    _ => {}
                }
                match queue.enqueue("job", &json!({}), options).await {
                    Ok(_) => {
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        let waited = usize::try_from(last.elapsed().as_millis()).unwrap();
                        gap.fetch_max(waited, Ordering::Relaxed);
                        last = Instant::now();
                        journal.record(&Event::EnqueueAck { id }).unwrap();
                        tokio::time::sleep(PACE).await;
                    }
                    Err(error) => {
                        assert!(error.is_retryable(), "{error}");
                        let unstored = error.is_not_stored();
                        let event = if unstored {
                            Event::EnqueueRefused { id }
                        } else {
                            Event::EnqueueUnknown { id }
                        };
                        journal.record(&event).unwrap();
                        tokio::time::sleep(PACE * 4).await;
                    }
                }
            }
        });
    }

    /// Waits until so many more jobs are acknowledged.
    async fn more(&self, jobs: usize) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        eventually("more jobs", PATIENCE, || async {
            let more = self.acknowledged.load(Ordering::Relaxed) - before;
            if more >= jobs { Ok(()) } else { Err(format!("{more} of {jobs}")) }
        })
        .await
        .unwrap();
    }

    async fn snapshot(&self) -> Result<Snapshot, String> {
        let mut shared = self.redis.shared_for(BASE).await.map_err(|e| e.to_string())?;
        Snapshot::read(&mut shared.conn, BASE).await.map_err(|e| e.to_string())
    }

    /// Ends the producers, waits until all jobs have ended, and holds everything against everything.
    async fn settle(mut self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.producers.join_next().await {
            ended.unwrap();
        }
        let snapshot = eventually("the end of all jobs", PATIENCE, || async {
            let events = self.journal.events().map_err(|e| e.to_string())?;
            let snapshot = self.snapshot().await?;
            let open = snapshot.open();
            let lost = open_jobs(&events, &snapshot);
            if open == 0 && lost == 0 && snapshot.locked.is_empty() {
                Ok(snapshot)
            } else {
                Err(format!("{open} in the queue, {lost} acknowledged without an end"))
            }
        })
        .await;
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            // What is missing is told by the rules.
            Err(error) => {
                let violations = check(&self.journal.events().unwrap(), &self.snapshot().await.unwrap());
                panic!("{what}: {error}\n{}", told(&violations));
            }
        };
        let events = self.journal.events().unwrap();
        let violations = check(&events, &snapshot);
        assert!(violations.is_empty(), "{what}:\n{}", told(&violations));
        let by = |who: &str| {
            let ours = |e: &&Event| matches!(e, Event::Effect { by, .. } if by == who);
            events.iter().filter(ours).count()
        };
        assert!(by("rust") > 0 && by("node") > 0, "one side did nothing: {} and {}", by("rust"), by("node"));
        let count = |wanted: fn(&Event) -> bool| events.iter().filter(|e| wanted(e)).count();
        println!(
            "{what}: {} acknowledged, {} refused, {} unknown, {} starts, {} effects (rust {}, node {}), {} failed, longest gap {} ms",
            count(|e| matches!(e, Event::EnqueueAck { .. })),
            count(|e| matches!(e, Event::EnqueueRefused { .. })),
            count(|e| matches!(e, Event::EnqueueUnknown { .. })),
            count(|e| matches!(e, Event::Start { .. })),
            by("rust") + by("node"),
            by("rust"),
            by("node"),
            snapshot.states["failed"].len(),
            self.gap.load(Ordering::Relaxed),
        );
        for worker in self.workers {
            worker.stop(Duration::from_secs(5)).await;
        }
        self.node.kill9();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_fail_over_by_sentinel() {
    let topology = Sentinel::start().await.unwrap();
    let fleet = Fleet::start(&topology.url()).await;
    fleet.more(200).await;
    // Not by SENTINEL FAILOVER: between the promotion and the moment when everybody has left the old primary, that
    // acknowledges what is lost; no client can know.
    for round in 0..if full() { 6 } else { 1 } {
        let old = topology.primary().await.unwrap();
        for replica in topology.servers().iter().filter(|server| server.port() != old.port()) {
            topology.follows(replica, PATIENCE).await.unwrap();
        }
        fleet.more(200).await;
        let freeze = round % 2 == 1;
        if freeze {
            old.sigstop().unwrap()
        } else {
            old.kill9()
        }
        topology.primary_after(old.port()).await.unwrap();
        fleet.more(200).await;
        if freeze { old.sigcont().unwrap() } else { old.restart().await.unwrap() }
    }
    fleet.settle("Sentinel").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_resharding_of_a_cluster() {
    let cluster = Cluster::start(false).await.unwrap();
    let fleet = Fleet::start(&cluster.url()).await;
    let slot = slot(BASE);
    fleet.more(200).await;
    for round in 0..if full() { 30 } else { 3 } {
        let from = cluster.owner(slot).await.unwrap().port();
        let to = &cluster.nodes()[(round + 1) % 3];
        if to.port() == from {
            continue;
        }
        cluster.begin_move(slot, to).await.unwrap();
        while cluster.move_keys(slot, to, 40).await.unwrap() > 0 {}
        cluster.end_move(slot, to).await.unwrap();
        fleet.more(100).await;
    }
    fleet.settle("Cluster, resharding").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_resharding_of_a_cluster_of_valkey() {
    let cluster = Cluster::with(false, RedisServerBuilder::valkey).await.unwrap();
    let fleet = Fleet::start(&cluster.url()).await;
    let slot = slot(BASE);
    fleet.more(200).await;
    let from = cluster.owner(slot).await.unwrap().port();
    let to = cluster.nodes().iter().find(|node| node.port() != from).unwrap();
    cluster.move_slot(slot, to).await.unwrap();
    fleet.more(200).await;
    fleet.settle("Cluster of Valkey, resharding").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_the_death_of_a_cluster_node() {
    let cluster = Cluster::start(true).await.unwrap();
    let fleet = Fleet::start(&cluster.url()).await;
    let slot = slot(BASE);
    fleet.more(200).await;
    let old = cluster.owner(slot).await.unwrap();
    old.kill9();
    cluster.owner_after(slot, old.port()).await.unwrap();
    fleet.more(200).await;
    if full() {
        old.restart().await.unwrap();
        fleet.more(500).await;
    }
    fleet.settle("Cluster, a node killed").await;
}
