//! Redis answers, but takes no calls: it loads, is busy, full, read-only, without
//! replicas. Nothing of a call was done, so workers wait and repeat it, and
//! producers are told that they may.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Bench, PATIENCE, completed, log::Log};
use mpanel_engine::{Engine, JobContext, JobError, Worker, handler_fn};
use mpanel_producer::{BulkJob, EnqueueError, EnqueueOptions};
use mpanel_protocol::ids::JobId;
use mpanel_testkit::{RedisServer, eventually};
use serde_json::{Value, json};

const JOBS: u32 = 300;

type Runs = Arc<Mutex<HashMap<String, u32>>>;

/// A queue with jobs, and a worker that has done some of them.
async fn at_work(bench: &Bench) -> (Vec<JobId>, Worker, Runs) {
    let bulk = (0..JOBS).map(|n| BulkJob::new("a", json!(n)));
    let stored = bench.queue("q").enqueue_bulk(bulk).await.unwrap();
    let ids: Vec<JobId> = stored.into_iter().map(|job| job.id().clone()).collect();
    let runs = Runs::default();
    let counted = runs.clone();
    let handler = handler_fn(move |ctx: JobContext, _: Value| {
        let runs = counted.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            *runs.lock().unwrap().entry(ctx.id().as_str().to_owned()).or_default() += 1;
            Ok::<_, JobError>(())
        }
    });
    let worker = bench.worker("q").concurrency(4).handle_any(handler).start().unwrap();
    eventually("some jobs", PATIENCE, || async {
        let done = runs.lock().unwrap().len();
        if done >= 20 { Ok(()) } else { Err(format!("{done} done")) }
    })
    .await
    .unwrap();
    (ids, worker, runs)
}

/// How often the server has refused with this code.
async fn refusals(bench: &Bench, code: &str) -> u64 {
    let stats: String = bench.ask("INFO errorstats").await;
    let prefix = format!("errorstat_{code}:count=");
    stats.lines().find_map(|l| l.strip_prefix(&prefix)?.trim().parse().ok()).unwrap_or(0)
}

async fn refused(bench: &Bench, code: &str, times: u64) {
    let before = refusals(bench, code).await;
    eventually(&format!("{times} answers {code}"), PATIENCE, || async {
        let seen = refusals(bench, code).await - before;
        if seen >= times { Ok(()) } else { Err(format!("{seen}")) }
    })
    .await
    .unwrap();
}

/// An enqueue that is surely not stored, and says that it may be repeated.
async fn not_stored(bench: &Bench, code: &str) {
    let error = bench.queue("q").enqueue("a", &json!(0), EnqueueOptions::new()).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Refused(_)) && error.is_retryable(), "{error:?}");
    assert!(error.to_string().to_ascii_uppercase().contains(code), "{error}");
}

async fn done_once(bench: &Bench, ids: &[JobId], worker: Worker, runs: &Runs) {
    bench.counts_become("q", completed(u64::from(JOBS))).await;
    bench.each_has_one_event("q", "completed", ids).await;
    let runs = runs.lock().unwrap();
    assert_eq!(runs.len(), ids.len());
    assert!(runs.values().all(|times| *times == 1), "a handler ran twice");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_became_a_replica() {
    let bench = Bench::start().await;
    let (ids, worker, runs) = at_work(&bench).await;
    let _: () = bench.ask("REPLICAOF 127.0.0.1 1").await;
    refused(&bench, "READONLY", 3).await;
    not_stored(&bench, "READONLY").await;
    let _: () = bench.ask("REPLICAOF NO ONE").await;
    done_once(&bench, &ids, worker, &runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_misses_its_replicas() {
    let bench = Bench::start().await;
    let (ids, worker, runs) = at_work(&bench).await;
    let _: () = bench.ask("CONFIG SET min-replicas-to-write 1").await;
    refused(&bench, "NOREPLICAS", 3).await;
    not_stored(&bench, "NOREPLICAS").await;
    let _: () = bench.ask("CONFIG SET min-replicas-to-write 0").await;
    done_once(&bench, &ids, worker, &runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_out_of_memory() {
    let bench = Bench::start().await;
    let (ids, worker, runs) = at_work(&bench).await;
    let _: () = bench.ask("CONFIG SET maxmemory 1").await;
    not_stored(&bench, "OOM").await;
    // What is there is worked off, which makes room; a worker that only looks for work
    // is refused.
    bench.counts_become("q", completed(u64::from(JOBS))).await;
    let _: () = bench.ask("CONFIG SET maxmemory 0").await;
    done_once(&bench, &ids, worker, &runs).await;
}

#[tokio::test]
async fn a_server_that_could_not_save() {
    let (log, _guard) = Log::start();
    let server = RedisServer::builder().config("enable-protected-configs yes").config("save 3600 1");
    let bench = Bench::on(server.start().await.unwrap()).await;
    let (_, dir): (String, String) = bench.ask("CONFIG GET dir").await;
    let (ids, worker, runs) = at_work(&bench).await;
    // Nobody can write there.
    let _: () = bench.ask("CONFIG SET dir /proc").await;
    let _: String = bench.ask("BGSAVE").await;
    refused(&bench, "MISCONF", 3).await;
    not_stored(&bench, "MISCONF").await;
    // Many more tries; the operator reads one line: why, and of which queue.
    refused(&bench, "MISCONF", 3).await;
    let told = |level: &str| -> Vec<Value> {
        let ours = |line: &Value| {
            line["target"].as_str().is_some_and(|target| target.starts_with("mpanel"))
                && line["level"] == level
        };
        log.lines().into_iter().filter(ours).map(|mut line| line["fields"].take()).collect()
    };
    let warned = told("WARN");
    assert_eq!((warned.len(), told("ERROR").len()), (1, 0), "{warned:#?}");
    let line = &warned[0];
    assert_eq!(line["queue"], "q");
    assert_eq!(line["message"], "Redis does not take calls; trying on until it does");
    let why = line["error"].as_str().unwrap();
    // Redis's own words, which say what to look at.
    assert!(why.contains("MISCONF") && why.contains("unable to persist to disk"), "{why}");
    let _: () = bench.ask(&format!("CONFIG SET dir {dir}")).await;
    let _: String = bench.ask("BGSAVE").await;
    done_once(&bench, &ids, worker, &runs).await;
    let again = told("INFO").into_iter().filter(|fields| fields["message"] == "Redis takes calls again");
    assert_eq!((again.count(), told("WARN").len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_busy_with_a_script() {
    let bench = Bench::start().await;
    let (ids, worker, runs) = at_work(&bench).await;
    let _: () = bench.ask("CONFIG SET busy-reply-threshold 50").await;
    let mut conn = bench.conn().await;
    let busy = tokio::spawn(async move {
        let text = "local function ms() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end \
                    local till = ms() + 1500 while ms() < till do end return 1";
        redis::cmd("EVAL").arg(text).arg(0).query_async::<u32>(&mut conn).await
    });
    // While it is busy nothing can be asked of it; its statistics tell afterwards.
    assert_eq!(busy.await.unwrap().unwrap(), 1);
    assert!(refusals(&bench, "BUSY").await > 0);
    done_once(&bench, &ids, worker, &runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loads_its_data() {
    // 100 µs for each command of the file: it loads for some tenths of a second.
    let server = RedisServer::builder()
        .config("aof-use-rdb-preamble no")
        .config("key-load-delay 100")
        .config("loading-process-events-interval-bytes 1024");
    let bench = Bench::on(server.start().await.unwrap()).await;
    let (ids, worker, runs) = at_work(&bench).await;
    bench.server.kill9();
    let engine = Engine::builder(mpanel_connect::Redis::open(&bench.server.url()).unwrap());
    // Also one that starts meanwhile waits.
    let (restarted, connected) = tokio::join!(bench.server.restart(), engine.connect());
    restarted.unwrap();
    connected.unwrap();
    assert!(refusals(&bench, "LOADING").await > 0);
    bench.counts_become("q", completed(u64::from(JOBS))).await;
    bench.each_has_one_event("q", "completed", &ids).await;
    assert_eq!(runs.lock().unwrap().len(), ids.len());
    worker.stop(PATIENCE).await;
}
