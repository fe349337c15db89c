//! More work than can be done: producers ten times faster than workers, large
//! payloads, 200 queues in one process, a neighbour that hogs Redis. No job is lost,
//! no more jobs are active than may run, and other queues go on.
//!
//! Short by default; FLEET_TEST_TIER=full holds the first for ten minutes.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Bench, PATIENCE, completed};
use mpanel_engine::{Handler, JobContext, JobError, handler_fn};
use mpanel_producer::{BulkJob, EnqueueOptions, KeepJobs, QueueProducer};
use mpanel_testkit::{
    RedisServer, eventually,
    history::{Event, Journal, Snapshot, check, open_jobs},
};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

fn full() -> bool {
    std::env::var("FLEET_TEST_TIER").is_ok_and(|tier| tier == "full")
}

/// Looks again and again how many jobs of a queue are active.
struct ActiveWatch {
    most: Arc<AtomicUsize>,
    looks: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl ActiveWatch {
    async fn start(bench: &Bench, queue: &str) -> Self {
        let mut conn = bench.conn().await;
        let key = format!("bull:{queue}:active");
        let (most, looks) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let task = tokio::spawn({
            let (most, looks) = (most.clone(), looks.clone());
            async move {
                loop {
                    let active = redis::cmd("LLEN").arg(&key).query_async(&mut conn).await.unwrap();
                    most.fetch_max(active, Ordering::Relaxed);
                    looks.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        Self { most, looks, task }
    }

    /// Never more than `slots` were seen, and never fewer than one in all.
    fn end(self, slots: usize) {
        self.task.abort();
        let (most, looks) = (self.most.load(Ordering::Relaxed), self.looks.load(Ordering::Relaxed));
        println!("at most {most} active in {looks} looks");
        assert!((1..=slots).contains(&most), "{most} jobs were active with {slots} slots");
    }
}

/// A handler that takes a time, and writes down what it does.
fn noting(journal: &Arc<Journal>, takes: Duration) -> impl Handler + use<> {
    let journal = journal.clone();
    handler_fn(move |ctx: JobContext, _: serde::de::IgnoredAny| {
        let journal = journal.clone();
        async move {
            journal.start(ctx.id().as_str(), "w").unwrap();
            tokio::time::sleep(takes).await;
            journal.effect(ctx.id().as_str(), "w").unwrap();
            Ok::<_, JobError>(())
        }
    })
}

/// Waits until all jobs have ended, and holds everybody's word against Redis's. Each
/// job was started once: no lock was lost.
async fn settle(bench: &Bench, queue: &str, journal: &Journal, jobs: usize) {
    let mut conn = bench.conn().await;
    let snapshot = settled(&mut conn, queue, journal).await;
    let history = journal.events().unwrap();
    assert_eq!(check(&history, &snapshot), []);
    let starts = history.iter().filter(|e| matches!(e, Event::Start { .. })).count();
    assert_eq!(starts, jobs, "a job was started twice, or never");
}

async fn settled(conn: &mut MultiplexedConnection, queue: &str, journal: &Journal) -> Snapshot {
    let base = format!("bull:{queue}");
    eventually("the end of all jobs", PATIENCE * 4, || {
        let mut conn = conn.clone();
        let base = base.clone();
        async move {
            let snapshot = Snapshot::read(&mut conn, &base).await.map_err(|e| e.to_string())?;
            let open = open_jobs(&journal.events().unwrap(), &snapshot) + snapshot.open();
            if open + snapshot.locked.len() == 0 { Ok(snapshot) } else { Err(format!("{open} open")) }
        }
    })
    .await
    .unwrap()
}

/// Keeps all events, so that the whole history can be checked.
async fn keep_events(bench: &Bench, queue: &QueueProducer) {
    queue.introduce().await.unwrap();
    let set = format!("HSET bull:{}:meta opts.maxLenEvents 10000000", queue.name());
    bench.ask::<u32>(&set).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_ten_times_faster_than_workers() {
    // Four slots of 40 ms work off a hundred jobs a second; a thousand come. In ten minutes a
    // tenth of that each.
    const SLOTS: usize = 4;
    let (lasts, takes_ms, batch) = if full() { (600, 400, 5) } else { (3, 40, 50) };
    let (lasts, takes) = (Duration::from_secs(lasts), Duration::from_millis(takes_ms));
    let bench = Bench::start().await;
    let queue = bench.queue("q");
    keep_events(&bench, &queue).await;
    let journal = Arc::new(Journal::new().unwrap());
    let worker = bench.worker("q").concurrency(SLOTS).handle_any(noting(&journal, takes)).start().unwrap();
    let watch = ActiveWatch::start(&bench, "q").await;

    let (since, mut sent, mut rates, mut seen) = (Instant::now(), 0usize, Vec::new(), 0u64);
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while since.elapsed() < lasts {
        pace.tick().await;
        let ids: Vec<String> = (sent..sent + batch).map(|n| format!("j{n}")).collect();
        let jobs = ids
            .iter()
            .map(|id| BulkJob::new("a", json!({})).options(EnqueueOptions::new().job_id(id.clone())));
        queue.enqueue_bulk(jobs).await.unwrap();
        for id in ids {
            journal.record(&Event::EnqueueAck { id }).unwrap();
        }
        sent += batch;
        if sent.is_multiple_of(10 * batch) {
            let done = worker.stats().completed;
            rates.push(done - seen);
            seen = done;
        }
        assert!(worker.stats().active <= SLOTS);
    }
    let done = usize::try_from(worker.stats().completed).unwrap();
    println!("{sent} came, {done} were done; while each ten bulks came {rates:?}");
    assert!(done * 3 < sent, "the producers were not much faster: {done} of {sent}");
    // It does what it can all the time.
    assert!(rates.iter().all(|done| *done > 0), "{rates:?}");
    watch.end(SLOTS);

    // And works off what has gathered, once it may.
    worker.set_concurrency(400);
    let admin = bench.admin("q");
    eventually("the end of the backlog", PATIENCE * 10, async || {
        let counts = admin.counts().await.map_err(|e| e.to_string())?;
        if counts == completed(sent as u64) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await
    .unwrap();
    settle(&bench, "q", &journal, sent).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_of_a_megabyte() {
    const SLOTS: usize = 4;
    const JOBS: usize = 60;
    let bench = Bench::on(RedisServer::builder().appendonly(false).start().await.unwrap()).await;
    let queue = bench.queue("large");
    let journal = Arc::new(Journal::new().unwrap());
    let takes = Duration::from_millis(5);
    let worker =
        bench.worker("large").concurrency(SLOTS).handle_any(noting(&journal, takes)).start().unwrap();
    let small = bench.queue("small");
    let neighbour = bench.worker("small").handle_any(common::echo()).start().unwrap();
    let watch = ActiveWatch::start(&bench, "large").await;

    let megabyte = "x".repeat(1024 * 1024);
    let done = Arc::new(AtomicBool::new(false));
    let others = tokio::spawn({
        let (done, small) = (done.clone(), small.clone());
        async move {
            let mut sent = 0u64;
            while !done.load(Ordering::Relaxed) {
                small.enqueue("a", &sent, EnqueueOptions::new()).await.unwrap();
                sent += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            sent
        }
    });
    // One by one, then all at once: cut into calls that Redis takes.
    for n in 0..JOBS {
        let options = |n: usize| EnqueueOptions::new().job_id(format!("j{n}"));
        if n < JOBS / 2 {
            queue.enqueue("a", &megabyte, options(n)).await.unwrap();
        } else if n == JOBS / 2 {
            let rest = (n..JOBS).map(|n| BulkJob::new("a", megabyte.as_str()).options(options(n)));
            queue.enqueue_bulk(rest).await.unwrap();
        }
        journal.record(&Event::EnqueueAck { id: format!("j{n}") }).unwrap();
    }
    settle(&bench, "large", &journal, JOBS).await;
    watch.end(SLOTS);
    done.store(true, Ordering::Relaxed);
    let sent = others.await.unwrap();
    assert!(sent > 0);
    bench.counts_become("small", completed(sent)).await;
    worker.stop(PATIENCE).await;
    neighbour.stop(PATIENCE).await;
}

/// How long each of `queues` takes from an enqueue to the start of its handler, ms;
/// sorted.
async fn waits(queues: &[QueueProducer], rounds: usize, started: &mut Started) -> Vec<u128> {
    let mut waits = Vec::new();
    for _ in 0..rounds {
        for queue in queues {
            let since = Instant::now();
            queue.enqueue("a", &0, EnqueueOptions::new()).await.unwrap();
            tokio::time::timeout(PATIENCE, started.recv()).await.expect("a queue starves").unwrap();
            waits.push(since.elapsed().as_micros());
        }
    }
    waits.sort_unstable();
    waits
}

type Started = tokio::sync::mpsc::UnboundedReceiver<()>;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_queues_beside_a_noisy_one() {
    const QUEUES: usize = 200;
    const NOISE: usize = 20_000;
    let bench = Bench::start().await;
    let (tell, mut started) = tokio::sync::mpsc::unbounded_channel();
    let mut workers = Vec::new();
    let mut queues = Vec::new();
    for n in 0..QUEUES {
        let (tell, name) = (tell.clone(), format!("quiet-{n}"));
        let handler = handler_fn(move |_: JobContext, _: Value| {
            let told = tell.send(());
            async move { told.map_err(|e| JobError::retry(e.to_string())) }
        });
        workers.push(bench.worker(&name).concurrency(2).handle_any(handler).start().unwrap());
        queues.push(bench.queue(&name));
    }
    // Every connection is made, every `meta` written.
    eventually("all workers asleep", PATIENCE * 6, async || {
        let clients: String = bench.ask("CLIENT LIST").await;
        let asleep = clients.lines().filter(|client| client.contains("cmd=bzpopmin")).count();
        if asleep == QUEUES { Ok(()) } else { Err(format!("{asleep} of {QUEUES}")) }
    })
    .await
    .unwrap();
    waits(&queues, 1, &mut started).await;
    bench.asleep(QUEUES).await;
    let alone = waits(&queues[..50], 2, &mut started).await;

    let noisy = bench.queue("noisy");
    let noise = handler_fn(|_: JobContext, _: Value| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok::<_, JobError>(())
    });
    let remove = EnqueueOptions::new().remove_on_complete(KeepJobs::Remove(true));
    for n in (0..NOISE).step_by(1000) {
        let jobs = (n..n + 1000).map(|n| BulkJob::new("a", n).options(remove.clone()));
        noisy.enqueue_bulk(jobs).await.unwrap();
    }
    let worker = bench.worker("noisy").concurrency(20).handle_any(noise).start().unwrap();
    eventually("noise", PATIENCE, async || {
        let active = worker.stats().active;
        if active == 20 { Ok(()) } else { Err(format!("{active}")) }
    })
    .await
    .unwrap();
    let beside = waits(&queues[..50], 2, &mut started).await;
    let left = bench.admin("noisy").counts().await.unwrap().waiting;
    let median = |waits: &[u128]| waits[waits.len() / 2];
    println!(
        "of {} waits the median alone {} us, beside the noise {} us; the longest {} and {} us; {left} of {NOISE} left",
        alone.len(),
        median(&alone),
        median(&beside),
        alone[alone.len() - 1],
        beside[beside.len() - 1]
    );
    // All of them were served while most of the noise was still in line, by a wide margin.
    assert!(left > NOISE as u64 / 20, "the noise was over before the others were served: {left} left");
    worker.stop(Duration::ZERO).await;
    let counts = async |queue: &str| bench.admin(queue).counts().await.unwrap();
    for (n, worker) in workers.into_iter().enumerate() {
        worker.stop(PATIENCE).await;
        let wanted = if n < 50 { 5 } else { 1 };
        assert_eq!(counts(&format!("quiet-{n}")).await, completed(wanted));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_hogs_redis() {
    const SLOTS: usize = 20;
    const JOBS: usize = 3000;
    /// Keeps the server from everything else for some 10 ms.
    const HOG: &str =
        "local n = 0; for i = 1, tonumber(ARGV[1]) do n = n + redis.call('LLEN', KEYS[1]) end return n";
    let bench = Bench::start().await;
    let queue = bench.queue("q");
    keep_events(&bench, &queue).await;
    let journal = Arc::new(Journal::new().unwrap());
    let takes = Duration::from_millis(1);
    let builder = bench.worker("q").concurrency(SLOTS).handle_any(noting(&journal, takes));
    // A lock that was lost for the neighbours' sake would be noticed soon.
    let worker = builder.lock(Duration::from_secs(10)).stalled_interval(Duration::from_millis(500));
    let worker = worker.start().unwrap();
    let watch = ActiveWatch::start(&bench, "q").await;

    let hogged = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut neighbours = Vec::new();
    for _ in 0..2 {
        let (hogged, stop, mut conn) = (hogged.clone(), stop.clone(), bench.conn().await);
        neighbours.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut hog = redis::cmd("EVAL");
                hog.arg(HOG).arg(1).arg("neighbour").arg(30_000);
                hog.query_async::<i64>(&mut conn).await.unwrap();
                hogged.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let producer = tokio::spawn({
        let (queue, journal) = (queue.clone(), journal.clone());
        async move {
            for n in (0..JOBS).step_by(50) {
                let id = |n: usize| format!("j{n}");
                let jobs = (n..n + 50)
                    .map(|n| BulkJob::new("a", json!(n)).options(EnqueueOptions::new().job_id(id(n))));
                queue.enqueue_bulk(jobs).await.unwrap();
                for n in n..n + 50 {
                    journal.record(&Event::EnqueueAck { id: id(n) }).unwrap();
                }
            }
        }
    });
    // Between any 25 of the neighbours' scripts some jobs end: slower, but never at a halt.
    eventually("the first jobs' end", PATIENCE, async || {
        let done = worker.stats().completed;
        if done > 0 { Ok(()) } else { Err(format!("{done}")) }
    })
    .await
    .unwrap();
    let (mut done, mut scripts, mut steps) =
        (worker.stats().completed, hogged.load(Ordering::Relaxed), Vec::new());
    while worker.stats().completed < JOBS as u64 {
        eventually("the neighbours' scripts", PATIENCE, async || {
            let now = hogged.load(Ordering::Relaxed);
            let over = now >= scripts + 25 || worker.stats().completed == JOBS as u64;
            if over { Ok(()) } else { Err(format!("{now}")) }
        })
        .await
        .unwrap();
        let now = worker.stats().completed;
        assert!(now > done, "25 of the neighbours' scripts, and no job ended: {steps:?}");
        steps.push(now - done);
        (done, scripts) = (now, hogged.load(Ordering::Relaxed));
    }
    println!("jobs between 25 scripts of the neighbours: {steps:?}");
    stop.store(true, Ordering::Relaxed);
    producer.await.unwrap();
    for neighbour in neighbours {
        neighbour.await.unwrap();
    }
    settle(&bench, "q", &journal, JOBS).await;
    watch.end(SLOTS);
    worker.stop(PATIENCE).await;
}
