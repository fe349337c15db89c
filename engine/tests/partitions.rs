//! Partitioned queues on a real Cluster and on one server: several ordinary queues
//! behind one producer handle and one worker, growing and shrinking under load.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{Gate, PATIENCE, echo};
use mpanel_connect::Redis;
use mpanel_engine::{
    Engine, EngineError, JobContext, JobError, PartitionedWorker, WorkerBuilder,
    admin::{AdminError, Counts, Listing, Partitions, Retirement},
    events::Start,
    handler_fn,
};
use mpanel_producer::{
    BulkJob, By, Deduplication, EnqueueError, EnqueueOptions, PartitionedProducer, Prefix, Producer,
    testing::recording,
};
use mpanel_protocol::{
    partition::partition_of_key,
    state::JobState,
    time::{Clock, TimestampMs},
};
use mpanel_testkit::{
    BullVersion, Cluster, NodeSidecar, RedisServer, eventually,
    history::{Event, Journal, Snapshot, check, open_jobs},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

/// One Redis, and a queue `mail` on it.
struct Post {
    redis: Redis,
    engine: Engine,
    producer: Producer,
}

impl Post {
    async fn on(url: &str, prefix: &str) -> Self {
        let redis = Redis::open(url).unwrap();
        let prefix = Prefix::new(prefix).unwrap();
        let engine = Engine::builder(redis.clone()).prefix(prefix.clone()).connect().await.unwrap();
        let producer = Producer::builder(redis.clone()).prefix(prefix).connect().await.unwrap();
        Self { redis, engine, producer }
    }

    /// With so many partitions.
    async fn with(url: &str, prefix: &str, partitions: u32) -> Self {
        let post = Self::on(url, prefix).await;
        post.partitions().ensure(partitions).await.unwrap();
        post
    }

    fn partitions(&self) -> Partitions {
        self.engine.partitions("mail").unwrap()
    }

    /// As an operator a few minutes later.
    fn later(&self, by: Duration) -> Partitions {
        #[derive(Debug)]
        struct Later(Duration);
        impl Clock for Later {
            fn now(&self) -> TimestampMs {
                let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
                TimestampMs(mpanel_protocol::time::millis(now)).plus(self.0)
            }
        }
        self.partitions().with_clock(Arc::new(Later(by)))
    }

    async fn mails(&self) -> PartitionedProducer {
        self.producer.partitioned("mail").await.unwrap()
    }

    fn worker(&self) -> WorkerBuilder {
        self.engine.worker("mail").unwrap()
    }

    /// All partitions that were ever used, as one queue.
    async fn snapshot(&self, partitions: u32) -> Result<Snapshot, String> {
        let mut all = Snapshot::default();
        for index in 0..partitions {
            let keys = self.partitions().name().partition(index).keys();
            let mut shared = self.redis.shared_for(keys.meta()).await.map_err(|e| e.to_string())?;
            let part =
                Snapshot::read(&mut shared.conn, keys.qualified_name()).await.map_err(|e| e.to_string())?;
            for (state, ids) in part.states {
                all.states.entry(state).or_default().extend(ids);
            }
            all.locked.extend(part.locked);
            all.events.extend(part.events);
        }
        Ok(all)
    }

    /// Keeps all events, so that the whole history can be checked.
    async fn keep_events(&self, partitions: u32) {
        for index in 0..partitions {
            let meta = self.partitions().name().partition(index).keys().meta().to_owned();
            let mut shared = self.redis.shared_for(&meta).await.unwrap();
            let mut set = redis::cmd("HSET");
            set.arg(&meta).arg("opts.maxLenEvents").arg(10_000_000);
            set.query_async::<()>(&mut shared.conn).await.unwrap();
        }
    }

    async fn counts_become(&self, wanted: impl Fn(&Counts) -> bool) {
        let partitions = self.partitions();
        eventually("counts of all partitions", PATIENCE, || async {
            let counts = partitions.counts().await.map_err(|e| e.to_string())?.all;
            if wanted(&counts) { Ok(()) } else { Err(format!("{counts:?}")) }
        })
        .await
        .unwrap();
    }
}

/// Counts how many of its jobs run at once.
#[derive(Default)]
struct Busy {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Busy {
    fn enter(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
    }

    fn leave(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Producers, each on a connection of its own, and what all parties saw.
struct Load {
    journal: Arc<Journal>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    /// How many jobs went to each partition.
    sent: Arc<std::sync::Mutex<BTreeMap<u32, usize>>>,
    producers: JoinSet<()>,
    busy: Arc<Busy>,
}

impl Load {
    async fn start(url: &str, producers: usize) -> Self {
        let mut load = Self {
            journal: Arc::new(Journal::new().unwrap()),
            stop: Arc::default(),
            acknowledged: Arc::default(),
            sent: Arc::default(),
            producers: JoinSet::new(),
            busy: Arc::default(),
        };
        for producer in 0..producers {
            load.produce(Post::on(url, "{bull}").await.mails().await, producer);
        }
        load
    }

    fn produce(&mut self, mails: PartitionedProducer, producer: usize) {
        let (journal, stop) = (self.journal.clone(), self.stop.clone());
        let (acknowledged, sent) = (self.acknowledged.clone(), self.sent.clone());
        self.producers.spawn(async move {
            for n in 0u32.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let id = format!("p{producer}-{n}");
                let key = format!("tenant-{}", n % 97);
                let by = if n.is_multiple_of(2) { By::Key(&key) } else { By::Turn };
                let mut options = EnqueueOptions::new().job_id(id.clone());
                match n % 5 {
                    0 => options = options.delay(Duration::from_millis(20)),
                    1 => options = options.priority(1 + n % 4),
                    _ => {}
                }
                let placed = mails.enqueue(by, "welcome", &json!({"n": n}), options).await.unwrap();
                journal.record(&Event::EnqueueAck { id }).unwrap();
                *sent.lock().unwrap().entry(placed.partition().index()).or_default() += 1;
                acknowledged.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    async fn worker(&self, post: &Post, concurrency: usize, by: &'static str) -> PartitionedWorker {
        let (journal, busy) = (self.journal.clone(), self.busy.clone());
        let handler = handler_fn(move |ctx: JobContext, _: Value| {
            let (journal, busy) = (journal.clone(), busy.clone());
            async move {
                busy.enter();
                journal.start(ctx.id().as_str(), by).unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
                journal.effect(ctx.id().as_str(), by).unwrap();
                busy.leave();
                Ok::<_, JobError>(())
            }
        });
        post.worker().concurrency(concurrency).handle_any(handler).start_partitioned().await.unwrap()
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

    /// Waits until jobs go to exactly these partitions.
    async fn goes_to(&self, partitions: u32) {
        let wanted: BTreeSet<u32> = (0..partitions).collect();
        eventually("jobs in exactly these partitions", PATIENCE, || async {
            self.sent.lock().unwrap().clear();
            self.more(60).await;
            let seen: BTreeSet<u32> = self.sent.lock().unwrap().keys().copied().collect();
            if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await
        .unwrap();
    }

    /// Ends the producers, and waits until every job of `partitions` has ended.
    async fn settle(&mut self, post: &Post, partitions: u32) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.producers.join_next().await {
            ended.unwrap();
        }
        let snapshot = eventually("the end of all jobs", PATIENCE, || async {
            let snapshot = post.snapshot(partitions).await?;
            let open = open_jobs(&self.journal.events().unwrap(), &snapshot) + snapshot.open();
            if open + snapshot.locked.len() == 0 { Ok(snapshot) } else { Err(format!("{open} open")) }
        })
        .await
        .unwrap();
        let history = self.journal.events().unwrap();
        // One queue to the checker: a job in two partitions would be in two structures.
        assert_eq!(check(&history, &snapshot), []);
        let starts = history.iter().filter(|e| matches!(e, Event::Start { .. })).count();
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        assert_eq!(starts, acknowledged, "a job was started twice");
        println!("{acknowledged} jobs, each done once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn growing_and_shrinking_under_load_loses_and_repeats_nothing() {
    let cluster = Cluster::start(false).await.unwrap();
    let url = cluster.url();
    let post = Post::with(&url, "{bull}", 2).await;
    post.keep_events(5).await;
    // Two worker processes as it were, each with an engine of its own.
    let mut load = Load::start(&url, 3).await;
    let other = Post::on(&url, "{bull}").await;
    let workers = [load.worker(&post, 6, "one").await, load.worker(&other, 4, "two").await];
    load.goes_to(2).await;

    post.partitions().resize(5).await.unwrap();
    load.goes_to(5).await;
    let mut nodes = BTreeSet::new();
    for index in 0..5 {
        nodes.insert(cluster.owner(post.partitions().name().partition(index).slot()).await.unwrap().port());
    }
    assert_eq!(nodes.len(), 3, "five partitions are on all three nodes");

    let layout = post.partitions().resize(2).await.unwrap();
    assert_eq!((layout.open(), layout.served()), (2, 5));
    assert!(matches!(post.partitions().retire().await.unwrap(), Retirement::Later(_)));
    load.goes_to(2).await;
    // What is kept of those that are being retired goes to nobody's dead letters.
    let minutes = post.later(Duration::from_secs(120));
    let Retirement::NotEmpty(left) = minutes.retire().await.unwrap() else { panic!("kept jobs are jobs") };
    assert_eq!(left.iter().map(|l| l.partition.index()).collect::<Vec<_>>(), [2, 3, 4]);
    assert!(left.iter().all(|l| l.counts.completed > 0), "{left:?}");
    load.settle(&post, 5).await;
    let most = load.busy.most.load(Ordering::SeqCst);
    assert!(most <= 10, "{most} ran at once in two workers of 6 and 4");
    assert_eq!(workers.each_ref().map(|w| w.stats_of_each().len()), [5, 5]);

    for left in &left {
        let grace = Duration::ZERO;
        let kept = mpanel_protocol::calls::sweep::Cleanable::Completed;
        post.partitions().at(&left.partition).clean(kept, grace, 0).await.unwrap();
    }
    assert_eq!(minutes.retire().await.unwrap(), Retirement::Done(3));
    assert_eq!(minutes.retire().await.unwrap(), Retirement::Done(0));
    eventually("workers that have left the retired partitions", PATIENCE, || async {
        let serving = workers.each_ref().map(|w| w.stats_of_each().len());
        if serving == [2, 2] { Ok(()) } else { Err(format!("{serving:?}")) }
    })
    .await
    .unwrap();
    // A partition that is back is served again.
    post.partitions().resize(3).await.unwrap();
    post.mails().await.enqueue(By::Partition(2), "welcome", &1, EnqueueOptions::new()).await.unwrap();
    let third = post.partitions().at(&post.partitions().name().partition(2));
    eventually("a job in a partition that is back", PATIENCE, || async {
        let counts = third.counts().await.map_err(|e| e.to_string())?;
        if counts.completed == 1 { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await
    .unwrap();
    for worker in workers {
        assert_eq!(worker.stop(PATIENCE).await.unfinished, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_in_one_partition_starves_no_other() {
    let server = RedisServer::start().await.unwrap();
    let post = Post::with(&server.url(), "bull", 3).await;
    let mails = post.mails().await;
    let flood = (0..200).map(|n| (By::Partition(0), BulkJob::new("a", n)));
    assert!(mails.enqueue_bulk(flood).await.unwrap().iter().all(Result::is_ok));

    // One job ends at a time; who starts is written down.
    let turns = Arc::new(Semaphore::new(0));
    let started = Arc::new(std::sync::Mutex::new(Vec::new()));
    let handler = handler_fn({
        let (turns, started) = (turns.clone(), started.clone());
        move |ctx: JobContext, _: Value| {
            let (turns, started) = (turns.clone(), started.clone());
            async move {
                started.lock().unwrap().push(ctx.queue().as_str().to_owned());
                turns.acquire().await.unwrap().forget();
                Ok::<_, JobError>(())
            }
        }
    });
    let worker = post.worker().concurrency(4).handle_any(handler).start_partitioned().await.unwrap();
    let begun = |count: usize| {
        let started = started.clone();
        async move {
            eventually("starts", PATIENCE, || async {
                let begun = started.lock().unwrap().len();
                if begun >= count { Ok(()) } else { Err(format!("{begun}")) }
            })
            .await
            .unwrap();
        }
    };
    begun(4).await;
    assert_eq!(worker.stats().active, 4, "work is in one partition only: it has all slots");
    for partition in [1, 2] {
        let few = (0..10).map(|n| (By::Partition(partition), BulkJob::new("a", n)));
        assert!(mails.enqueue_bulk(few).await.unwrap().iter().all(Result::is_ok));
    }
    let mut done = 0;
    while started.lock().unwrap().iter().filter(|queue| *queue != "mail-0").count() < 20 {
        turns.add_permits(1);
        done += 1;
        assert!(done < 100, "the other partitions starve: {:?}", started.lock().unwrap());
        begun(4 + done).await;
    }
    // Fair is a third each: of the starts until then about ten more belong to the flood.
    let of_flood = started.lock().unwrap().iter().filter(|queue| *queue == "mail-0").count();
    println!("{of_flood} of the flood while 20 of the others started");
    assert!(of_flood < 40, "{of_flood} of the flood while 20 of the others started");
    turns.add_permits(1000);
    worker.until_idle().await;
    post.counts_become(|counts| *counts == common::completed(220)).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slot_goes_round_and_all_share_their_number() {
    let server = RedisServer::start().await.unwrap();
    let post = Post::with(&server.url(), "bull", 4).await;
    let busy = Arc::new(Busy::default());
    let handler = handler_fn({
        let busy = busy.clone();
        move |_: JobContext, _: Value| {
            let busy = busy.clone();
            async move {
                busy.enter();
                tokio::task::yield_now().await;
                busy.leave();
                Ok::<_, JobError>(())
            }
        }
    });
    let worker = post.worker().concurrency(1).handle_any(handler).start_partitioned().await.unwrap();
    let mails = post.mails().await;
    let jobs = (0..80).map(|n| (By::Turn, BulkJob::new("a", n)));
    assert!(mails.enqueue_bulk(jobs).await.unwrap().iter().all(Result::is_ok));
    post.counts_become(|counts| *counts == common::completed(80)).await;
    assert_eq!(busy.most.load(Ordering::SeqCst), 1);

    // More slots at run time; what Redis calls active keeps to them, over all partitions.
    worker.set_concurrency(8);
    let jobs = (0..4000).map(|n| (By::Turn, BulkJob::new("a", n)));
    let client = redis::Client::open(server.url()).unwrap();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    let mut conn = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    let mut looks = redis::pipe();
    looks.atomic();
    for index in 0..4 {
        looks.llen(post.partitions().name().partition(index).keys().active());
    }
    let work = async {
        assert!(mails.enqueue_bulk(jobs).await.unwrap().iter().all(Result::is_ok));
        post.counts_become(|counts| *counts == common::completed(4080)).await;
    };
    let mut most = 0;
    let watch = async {
        loop {
            let active: Vec<usize> = looks.query_async(&mut conn).await.unwrap();
            most = most.max(active.iter().sum());
        }
    };
    tokio::select! {
        () = work => {}
        () = watch => {}
    }
    println!("at most {most} active, {} at once", busy.most.load(Ordering::SeqCst));
    assert!(most > 1 && most <= 8, "{most} were active");
    assert!(busy.most.load(Ordering::SeqCst) <= 8);
    let each = worker.stats_of_each();
    assert!(each.iter().all(|(_, stats)| stats.completed > 900), "{each:?}");
    assert_eq!(worker.stats().completed, 4080);
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_partition_s_dead_node_does_not_hold_up_the_others() {
    let cluster = Cluster::with(false, |node| node.config("cluster-require-full-coverage no")).await.unwrap();
    let post = Post::with(&cluster.url(), "{bull}", 5).await;
    let gate = Gate::closed();
    let worker = post.worker().concurrency(4).handle_any(gate.stubborn()).start_partitioned().await.unwrap();
    let mails = post.mails().await;
    let name = post.partitions().name().clone();
    let home = cluster.owner(name.partition(0).slot()).await.unwrap().port();
    let mut dying = None;
    for index in 1..5 {
        let node = cluster.owner(name.partition(index).slot()).await.unwrap();
        if node.port() != home {
            dying = Some((index, node));
        }
    }
    let (index, node) = dying.unwrap();
    // It has all slots when its node dies; then its jobs end, and cannot say so.
    for _ in 0..4 {
        mails.enqueue(By::Partition(index), "a", &1, EnqueueOptions::new()).await.unwrap();
    }
    gate.started(4).await;
    node.kill9();
    gate.open();
    let near = post.partitions().at(&name.partition(0));
    for _ in 0..20 {
        mails.enqueue(By::Partition(0), "a", &1, EnqueueOptions::new()).await.unwrap();
    }
    eventually("jobs on a living node", PATIENCE, || async {
        let counts = near.counts().await.map_err(|e| e.to_string())?;
        if counts == common::completed(20) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await
    .unwrap();
    let far = mails.enqueue(By::Partition(index), "a", &1, EnqueueOptions::new()).await.unwrap_err();
    assert_eq!(far.partition.as_ref().map(|p| p.index()), Some(index));
    node.restart().await.unwrap();
    let far = post.partitions().at(&name.partition(index));
    eventually("the outcomes of the dead node's jobs", PATIENCE, || async {
        let counts = far.counts().await.map_err(|e| e.to_string())?;
        if counts == common::completed(4) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await
    .unwrap();
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn to_node_each_partition_is_an_ordinary_queue() {
    let cluster = Cluster::start(false).await.unwrap();
    let post = Post::with(&cluster.url(), "{bull}", 3).await;
    let node = NodeSidecar::start(&cluster.url()).await.unwrap();
    let third = post.partitions().describe().await.unwrap().remove(2);
    assert_eq!((third.queue.as_str(), third.prefix.as_str(), third.open), ("mail-2", "bull{mail-2}", true));
    let queue = node.queue(BullVersion::V5, &third.queue).with_prefix(&third.prefix);

    // What we enqueue Node counts and works off, and the other way round.
    let mails = post.mails().await;
    let key = (0..).map(|n| format!("k{n}")).find(|key| partition_of_key(key, 3) == 2).unwrap();
    let ours = mails.enqueue(By::Key(&key), "a", &json!({"n": 1}), EnqueueOptions::new()).await.unwrap();
    assert_eq!(ours.to_string(), "mail-2/1");
    assert_eq!(queue.counts(&["waiting"]).await.unwrap()["waiting"], 1);
    let theirs = queue.start_worker(json!({"default": {"return": "node"}}), json!({})).await.unwrap();
    theirs.wait_events("completed", Some("1"), 1, PATIENCE).await.unwrap();
    theirs.close(false).await.unwrap();
    let admin = post.partitions().at(ours.partition());
    assert_eq!(admin.job(ours.id()).await.unwrap().unwrap().return_value.as_deref(), Some("\"node\""));

    let worker = post.worker().name("rust").handle_any(echo()).start_partitioned().await.unwrap();
    let job = queue.add("a", json!({"n": 2}), json!({})).await.unwrap();
    let result = queue.wait_until_finished(&job.id, PATIENCE).await.unwrap();
    assert_eq!(result, json!({"echo": {"n": 2}}));
    // Its waiting connection is there as soon as it waits.
    eventually("our worker among Node's", PATIENCE, || async {
        let seen = queue.workers().await.unwrap();
        let named = seen.iter().any(|w| w.values().any(|field| field.ends_with(":w:rust")));
        if named { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await
    .unwrap();
    // Events and waits by partition.
    let here = post.engine.at(ours.partition());
    let mut events = here.events("mail-2", Start::Oldest).unwrap();
    events.next().await.unwrap();
    let waited = mails.enqueue(By::Partition(2), "a", &3, EnqueueOptions::new()).await.unwrap();
    here.finish_watch("mail-2").unwrap().wait(waited.id(), PATIENCE).await.unwrap();
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_are_looked_at_and_managed_as_one() {
    let server = RedisServer::start().await.unwrap();
    let post = Post::with(&server.url(), "bull", 3).await;
    let partitions = post.partitions();
    assert_eq!(partitions.ensure(7).await.unwrap().open(), 3, "there are some already");
    let mails = post.mails().await;
    let jobs = (0..30).map(|n| (By::Turn, BulkJob::new("a", n)));
    let placed = mails.enqueue_bulk(jobs).await.unwrap();
    let counts = partitions.counts().await.unwrap();
    assert_eq!(counts.all, Counts { waiting: 30, ..Counts::default() });
    assert!(counts.each.iter().all(|(_, c)| c.waiting == 10), "{counts:?}");

    // Page by page every job once.
    let (mut seen, mut next) = (BTreeSet::new(), Some(0));
    while let Some(at) = next {
        let page = partitions.list(Listing::of(JobState::Waiting).skip(at).first(7)).await.unwrap();
        assert_eq!(page.total, 30);
        let ids = page.jobs.iter().map(|(partition, job)| format!("{partition}/{}", job.job.id));
        for id in ids {
            assert!(seen.insert(id.clone()), "{id} is listed twice");
        }
        next = page.next;
    }
    assert_eq!(seen, placed.iter().map(|p| p.as_ref().unwrap().to_string()).collect());

    partitions.pause().await.unwrap();
    let grown = partitions.resize(4).await.unwrap();
    assert_eq!(grown.served(), 4);
    for (partition, admin) in partitions.all().await.unwrap() {
        assert!(admin.is_paused().await.unwrap(), "{partition} came to a paused queue");
    }
    let worker = post.worker().concurrency(2).handle_any(echo()).start_partitioned().await.unwrap();
    worker.until_idle().await;
    assert_eq!(partitions.counts().await.unwrap().all.completed, 0);
    partitions.resume().await.unwrap();
    post.counts_become(|counts| *counts == common::completed(30)).await;
    worker.pause();
    worker.until_quiet().await;
    mails.enqueue(By::Turn, "a", &1, EnqueueOptions::new()).await.unwrap();
    partitions.drain(true).await.unwrap();
    worker.resume();
    assert_eq!(worker.stop(PATIENCE).await.unfinished, 0);
    assert_eq!(partitions.counts().await.unwrap().all, common::completed(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_where_they_belong() {
    let server = RedisServer::start().await.unwrap();
    let post = Post::with(&server.url(), "bull", 4).await;
    let mails = post.mails().await;
    let by_key: Vec<_> = (0..40).map(|n| format!("tenant-{n}")).collect();
    let bulk = by_key.iter().map(|key| (By::Key(key), BulkJob::new("a", key.clone())));
    for (key, placed) in by_key.iter().zip(mails.enqueue_bulk(bulk).await.unwrap()) {
        assert_eq!(placed.unwrap().partition().index(), partition_of_key(key, 4), "{key}");
    }
    // An id of its own is its key: the second is the first.
    let once = || EnqueueOptions::new().job_id("once");
    let first = mails.enqueue(By::Turn, "a", &1, once()).await.unwrap();
    let second = mails.enqueue(By::Turn, "a", &1, once()).await.unwrap();
    assert_eq!(first.to_string(), second.to_string());
    assert!(first.enqueued().is_new() && !second.enqueued().is_new());
    // Turns are equal.
    let turns = (0..40).map(|n| (By::Turn, BulkJob::new("a", n)));
    let mut each = BTreeMap::new();
    for placed in mails.enqueue_bulk(turns).await.unwrap() {
        *each.entry(placed.unwrap().partition().index()).or_insert(0) += 1;
    }
    assert_eq!(each, (0..4).map(|index| (index, 10)).collect());

    // What cannot hold over partitions is refused, and nothing is stored of a bulk with it.
    let unique =
        EnqueueOptions::new().deduplication(Deduplication { id: "d".into(), ..Deduplication::default() });
    let before = post.partitions().counts().await.unwrap();
    let bulk = [(By::Turn, BulkJob::new("a", 1)), (By::Turn, BulkJob::new("a", 2).options(unique.clone()))];
    let error = mails.enqueue_bulk(bulk).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Option { option: "deduplication", .. }), "{error}");
    let error = mails.enqueue(By::Partition(4), "a", &1, EnqueueOptions::new()).await.unwrap_err();
    assert!(error.to_string().contains("partitions 0 to 3"), "{error}");
    assert_eq!(post.partitions().counts().await.unwrap(), before);
    let one = mails.enqueue(By::Key("k"), "a", &1, unique.clone()).await.unwrap();
    let other = mails.enqueue(By::Key("k"), "a", &2, unique).await.unwrap();
    assert_eq!(one.id(), other.id());

    // A limit is each partition's.
    let full = mails.clone().max_waiting(1);
    let error = full.enqueue(By::Partition(0), "a", &1, EnqueueOptions::new()).await.unwrap_err();
    assert!(matches!(*error.error, EnqueueError::QueueFull { .. }), "{error}");

    let (recorder, seen) = recording();
    recorder
        .partitioned("mail")
        .await
        .unwrap()
        .enqueue(By::Key("k"), "a", &1, EnqueueOptions::new())
        .await
        .unwrap();
    assert_eq!(seen.jobs()[0].queue, "mail-0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_set_up_is_said() {
    let server = RedisServer::start().await.unwrap();
    let post = Post::on(&server.url(), "bull").await;
    let error = post.producer.partitioned("mail").await.unwrap_err();
    assert!(matches!(error, EnqueueError::NotPartitioned { .. }) && !error.is_retryable(), "{error}");
    let error = post.worker().handle_any(echo()).start_partitioned().await.unwrap_err();
    assert!(matches!(error, EngineError::Setting(_)) && error.to_string().contains("ensure"), "{error}");
    assert!(matches!(post.partitions().counts().await, Err(AdminError::NoPartitions(_))));
    for wrong in [0, 257] {
        let error = post.partitions().resize(wrong).await.unwrap_err();
        assert!(matches!(error, AdminError::PartitionNumber(_)), "{error}");
    }
    assert!(post.engine.partitions("a{b}").is_err());
    assert!(post.producer.partitioned("a}").await.is_err());

    // A key that somebody else has put there.
    let client = redis::Client::open(server.url()).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let key = post.partitions().name().layout_key();
    redis::cmd("ZADD").arg(&key).arg(0.5).arg("open").query_async::<()>(&mut conn).await.unwrap();
    for error in [
        post.partitions().layout().await.unwrap_err().to_string(),
        post.producer.partitioned("mail").await.unwrap_err().to_string(),
        post.worker().handle_any(echo()).start_partitioned().await.unwrap_err().to_string(),
    ] {
        assert!(error.contains(&key) && error.contains("0.5"), "{error}");
    }
    // And one made by hand is as good as ours.
    redis::cmd("ZADD").arg(&key).arg(2).arg("open").query_async::<()>(&mut conn).await.unwrap();
    assert_eq!(post.mails().await.partitions().await.unwrap(), 2);
    redis::cmd("ZADD").arg(&key).arg(0).arg("served").query_async::<()>(&mut conn).await.unwrap();
    assert!(post.partitions().layout().await.is_err());
}

/// The code of the guide, run by Node.
#[test]
fn node_computes_the_same_partition_with_the_guides_code() {
    let guide = include_str!("../../docs/guide/partitions.md");
    let code = guide.split("```js\nimport").nth(1).unwrap().split("```").next().unwrap();
    let mut cases = Vec::new();
    for key in ["", "a", "tenant-7", "ü€😀", "0", "a longer key with spaces and: colons"] {
        for partitions in [1, 2, 3, 5, 7, 64, 255, 256] {
            cases.push(json!({"key": key, "of": partitions, "is": partition_of_key(key, partitions)}));
        }
    }
    let program = format!(
        "import{code}\nfor (const {{ key, of, is }} of {}) {{\n  const got = partitionOfKey(key, of);\n  \
         if (got !== is) throw new Error(`${{key}} of ${{of}}: ${{got}}, not ${{is}}`);\n}}",
        json!(cases)
    );
    let node =
        std::process::Command::new("node").args(["--input-type=module", "-e", &program]).output().unwrap();
    assert!(node.status.success(), "{}", String::from_utf8_lossy(&node.stderr));
}
