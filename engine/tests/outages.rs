//! Redis fails in every way it can: the worker goes on by itself, no job is lost
//! or finished twice.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::{Bench, Gate, PATIENCE, completed, echo, proxy::Wire};
use mpanel_engine::{
    Engine, EngineError, Handler, JobContext, JobError, WorkerBuilder, admin::Counts, handler_fn,
};
use mpanel_producer::{Backoff, BulkJob, EnqueueOptions};
use mpanel_protocol::ids::JobId;
use mpanel_testkit::{RedisServer, eventually};
use serde_json::{Value, json};

fn short(worker: WorkerBuilder) -> WorkerBuilder {
    worker.lock(Duration::from_secs(2)).stalled_interval(Duration::from_millis(300))
}

/// Counts how often each job's handler ran to its end.
#[derive(Clone, Default)]
struct Effects(Arc<Mutex<HashMap<String, u32>>>);

impl Effects {
    fn handler(&self, takes: Duration) -> impl Handler + use<> {
        let effects = self.clone();
        handler_fn(move |ctx: JobContext, _: Value| {
            let effects = effects.clone();
            async move {
                tokio::time::sleep(takes).await;
                *effects.0.lock().unwrap().entry(ctx.id().as_str().to_owned()).or_default() += 1;
                Ok::<_, JobError>(())
            }
        })
    }

    fn jobs(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

async fn load(bench: &Bench, jobs: u32) -> Vec<JobId> {
    let bulk = (0..jobs).map(|n| BulkJob::new("a", json!(n)));
    let stored = bench.queue("q").enqueue_bulk(bulk).await.unwrap();
    stored.into_iter().map(|job| job.id().clone()).collect()
}

/// All completed, each once, none stalled, and nothing left behind.
async fn all_finished_once(bench: &Bench, effects: &Effects, ids: &[JobId]) {
    bench.counts_become("q", completed(ids.len() as u64)).await;
    bench.each_has_one_event("q", "completed", ids).await;
    assert_eq!(effects.jobs(), ids.len());
    assert!(bench.event_ids("q", "failed").await.is_empty());
    let locks: Vec<String> = bench.ask("KEYS bull:q:*:lock").await;
    assert!(locks.is_empty(), "{locks:?}");
}

/// The stalled check of a worker that has just started is over.
async fn swept(bench: &Bench) {
    eventually("the first stalled check", PATIENCE, || async {
        let swept: bool = bench.ask("EXISTS bull:q:stalled-check").await;
        if swept { Ok(()) } else { Err("none".to_owned()) }
    })
    .await
    .unwrap();
}

async fn half_done(effects: &Effects, of: usize) {
    eventually("half of the jobs", PATIENCE, || async {
        let done = effects.jobs();
        if done * 2 >= of { Ok(()) } else { Err(format!("{done} of {of}")) }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_redis_while_jobs_run_loses_and_doubles_nothing() {
    let bench = Bench::start().await;
    let ids = load(&bench, 400).await;
    let effects = Effects::default();
    let handler = effects.handler(Duration::from_millis(5));
    let worker = short(bench.worker("q")).concurrency(8).handle_any(handler).start().unwrap();
    half_done(&effects, 400).await;
    bench.server.restart().await.unwrap();
    all_finished_once(&bench, &effects, &ids).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_waits_for_redis_to_come_back() {
    let bench = Bench::start().await;
    let ids = load(&bench, 1).await;
    let gate = Gate::closed();
    let worker = bench.worker("q").handle_any(gate.stubborn()).start().unwrap();
    gate.started(1).await;
    bench.server.stop().await.unwrap();
    gate.open();
    eventually("the end of the attempt", PATIENCE, || async {
        if worker.stats().completed == 1 { Ok(()) } else { Err(format!("{:?}", worker.stats())) }
    })
    .await
    .unwrap();
    bench.server.restart().await.unwrap();
    bench.counts_become("q", completed(1)).await;
    assert_eq!(bench.job("q", &ids[0]).await.job.attempts_started, 1);
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_serves_again_soon_after_a_restart() {
    let bench = Bench::start().await;
    let worker = bench.worker("q").handle_any(echo()).start().unwrap();
    for round in 1..=3 {
        bench.asleep(1).await;
        bench.server.restart().await.unwrap();
        let back = Instant::now();
        let queue = bench.queue("q");
        eventually("an accepted job", PATIENCE, || async {
            queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.map_err(|e| e.to_string())
        })
        .await
        .unwrap();
        bench.counts_become("q", completed(round)).await;
        assert!(back.elapsed() < Duration::from_secs(3), "served {:?} after the restart", back.elapsed());
    }
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_is_waited_for() {
    let bench = Bench::start().await;
    let ids = load(&bench, 400).await;
    let effects = Effects::default();
    let handler = effects.handler(Duration::from_millis(5));
    // Locks outlive the freeze.
    let worker = bench.worker("q").concurrency(8).handle_any(handler).start().unwrap();
    half_done(&effects, 400).await;
    bench.server.sigstop().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await; // the length of the fault
    bench.server.sigcont().unwrap();
    all_finished_once(&bench, &effects, &ids).await;
    assert!(effects.0.lock().unwrap().values().all(|runs| *runs == 1));
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_scripts_are_sent_again() {
    let bench = Bench::start().await;
    let ids = load(&bench, 2000).await;
    let effects = Effects::default();
    let worker = bench.worker("q").concurrency(16).handle_any(effects.handler(Duration::ZERO));
    let worker = worker.start().unwrap();
    let mut conn = bench.conn().await;
    while effects.jobs() < 2000 {
        redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut conn).await.unwrap();
        tokio::task::yield_now().await;
    }
    all_finished_once(&bench, &effects, &ids).await;
    assert!(effects.0.lock().unwrap().values().all(|runs| *runs == 1));
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_lose_and_double_nothing() {
    let bench = Bench::start().await;
    let ids = load(&bench, 2000).await;
    let effects = Effects::default();
    let handler = effects.handler(Duration::from_millis(1));
    let worker = short(bench.worker("q")).concurrency(16).handle_any(handler).start().unwrap();
    let mut conn = bench.conn().await;
    let mut cut = 0;
    while effects.jobs() < 2000 {
        let before = effects.jobs();
        cut += redis::cmd("CLIENT")
            .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
            .query_async::<u32>(&mut conn)
            .await
            .unwrap();
        eventually("progress between two cuts", PATIENCE, || async {
            let done = effects.jobs();
            if done >= 2000 || done > before + 60 { Ok(()) } else { Err(format!("{done} done")) }
        })
        .await
        .unwrap();
    }
    assert!(cut > 20, "{cut} connections were cut");
    all_finished_once(&bench, &effects, &ids).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_fetch_whose_answer_was_lost_go_back_in_line_without_a_stall() {
    let bench = Bench::start().await;
    let wire = Wire::to(bench.server.port()).await;
    let engine = Engine::connect(&wire.url()).await.unwrap();
    // The locks outlive the test: only giving back can bring the jobs to light.
    let worker = engine.worker("q").unwrap().concurrency(4).handle_any(echo()).start().unwrap();
    bench.asleep(1).await;
    swept(&bench).await;
    wire.lose_next_answer();
    let ids = load(&bench, 4).await;
    wire.lost().await;
    bench.counts_become("q", completed(4)).await;
    for id in &ids {
        let job = bench.job("q", id).await;
        assert_eq!((job.job.attempts_made, job.job.attempts_started, job.stalls), (1, 2, 0));
    }
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_whose_acknowledgement_was_lost_is_written_once() {
    let bench = Bench::start().await;
    let wire = Wire::to(bench.server.port()).await;
    let engine = Engine::connect(&wire.url()).await.unwrap();
    let gate = Gate::closed();
    let worker = engine.worker("q").unwrap().handle_any(gate.stubborn()).start().unwrap();
    let ids = load(&bench, 2).await;
    gate.started(1).await;
    swept(&bench).await;
    wire.lose_next_answer();
    gate.open();
    wire.lost().await;
    bench.counts_become("q", completed(2)).await;
    bench.each_has_one_event("q", "completed", &ids).await;
    let attempts = gate.started(2).await;
    assert_eq!(attempts.iter().filter(|(id, _)| id == ids[0].as_str()).count(), 1, "{attempts:?}");
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_the_wrong_type_harms_its_own_queue_only() {
    let bench = Bench::start().await;
    let _: () = bench.ask("SET bull:broken:wait x").await;
    let broken = bench.worker("broken").handle_any(echo()).start().unwrap();
    let sound = bench.worker("q").handle_any(echo()).start().unwrap();
    load(&bench, 50).await;
    bench.counts_become("q", completed(50)).await;
    let _: () = bench.ask("DEL bull:broken:wait").await;
    bench.queue("broken").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    bench.counts_become("broken", completed(1)).await;
    broken.stop(PATIENCE).await;
    sound.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_type_anywhere_in_a_queue_loses_no_job() {
    let bench = Bench::start().await;
    for key in ["active", "prioritized", "events", "marker", "delayed", "limiter", "meta"] {
        let queue = format!("broken-{key}");
        let producer = bench.queue(&queue);
        for n in 0..5 {
            producer.enqueue("a", &json!(n), EnqueueOptions::new()).await.unwrap();
        }
        let spoilt = format!("bull:{queue}:{key}");
        let aside = format!("aside:{key}");
        let existed = bench.ask::<u64>(&format!("EXISTS {spoilt}")).await == 1;
        if existed {
            let _: () = bench.ask(&format!("RENAME {spoilt} {aside}")).await;
        }
        let _: () = bench.ask(&format!("SET {spoilt} x")).await;
        let before = bench.calls("evalsha").await;
        let limit = mpanel_engine::RateLimit { max: 1000, window: Duration::from_secs(1) };
        let worker =
            bench.worker(&queue).concurrency(5).rate_limit(limit).handle_any(echo()).start().unwrap();
        eventually("a fetch", PATIENCE, || async {
            let calls = bench.calls("evalsha").await;
            // One of the calls is the stalled check, one the look at our permissions.
            if calls >= before + 3 { Ok(()) } else { Err(format!("{calls} calls")) }
        })
        .await
        .unwrap();
        worker.stop(PATIENCE).await;
        let _: () = bench.ask(&format!("DEL {spoilt}")).await;
        if existed {
            let _: () = bench.ask(&format!("RENAME {aside} {spoilt}")).await;
        }
        let short = Duration::from_millis(100);
        // Jobs that were started under the fault hold locks of the first worker.
        let locks: Vec<String> = bench.ask(&format!("KEYS bull:{queue}:*:lock")).await;
        for lock in locks {
            let _: () = bench.ask(&format!("DEL {lock}")).await;
        }
        let worker = bench.worker(&queue).stalled_interval(short).handle_any(echo()).start().unwrap();
        bench.counts_become(&queue, completed(5)).await;
        worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_written_though_the_fetch_beside_it_meets_a_broken_key() {
    let bench = Bench::start().await;
    let ids = load(&bench, 1).await;
    let gate = Gate::closed();
    let worker = bench.worker("q").handle_any(gate.stubborn()).start().unwrap();
    gate.started(1).await;
    let _: () = bench.ask("SET bull:q:prioritized x").await;
    gate.open();
    eventually("a written outcome", PATIENCE, || async {
        let completed: u64 = bench.ask("ZCARD bull:q:completed").await;
        if completed == 1 { Ok(()) } else { Err(format!("{completed} completed")) }
    })
    .await
    .unwrap();
    let active: u64 = bench.ask("LLEN bull:q:active").await;
    let locks: bool = bench.ask(&format!("EXISTS bull:q:{}:lock", ids[0])).await;
    assert_eq!((active, locks), (0, false));
    let _: () = bench.ask("DEL bull:q:prioritized").await;
    bench.each_has_one_event("q", "completed", &ids).await;
    load(&bench, 1).await;
    bench.counts_become("q", completed(2)).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_a_broken_key_refuses_leaves_its_job_to_be_rescued() {
    let bench = Bench::start().await;
    for (key, attempts) in [("completed", 0), ("failed", 1), ("delayed", 2)] {
        let queue = format!("broken-{key}");
        let options = EnqueueOptions::new().attempts(attempts).backoff(Backoff::fixed(20));
        let job = bench.queue(&queue).enqueue("a", &json!({}), options).await.unwrap();
        let gate = Gate::closed();
        let held = gate.clone();
        let does = handler_fn(move |ctx: JobContext, data: Value| {
            let held = held.stubborn();
            async move {
                let attempt = held.run(&ctx, data).await?;
                if attempts == 0 { Ok(attempt) } else { Err(JobError::retry("as told")) }
            }
        });
        let sweep = Duration::from_millis(100);
        let worker = bench.worker(&queue).stalled_interval(sweep).handle_any(does).start().unwrap();
        gate.started(1).await;
        let _: () = bench.ask(&format!("SET bull:{queue}:{key} x")).await;
        gate.open();
        eventually("an attempt that is over", PATIENCE, || async {
            let stats = worker.stats();
            if stats.completed + stats.failed == 1 && stats.unwritten == 0 {
                Ok(())
            } else {
                Err(format!("{stats:?}"))
            }
        })
        .await
        .unwrap();
        worker.stop(PATIENCE).await;
        let active: Vec<String> = bench.ask(&format!("LRANGE bull:{queue}:active 0 -1")).await;
        assert_eq!(active, [job.id().as_str()], "{key}");
        let _: () = bench.ask(&format!("DEL bull:{queue}:{key} bull:{queue}:{}:lock", job.id())).await;
        let worker = bench.worker(&queue).stalled_interval(sweep).handle_any(echo()).start().unwrap();
        bench.counts_become(&queue, completed(1)).await;
        worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_key_has_the_wrong_type_takes_no_other_with_it() {
    let bench = Bench::start().await;
    let ids = load(&bench, 20).await;
    let key = format!("bull:q:{}", ids[7]);
    let _: () = bench.ask(&format!("DEL {key}")).await;
    let _: () = bench.ask(&format!("SET {key} x")).await;
    let worker = bench.worker("q").concurrency(20).handle_any(echo()).start().unwrap();
    bench.counts_become("q", completed(19)).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_is_no_utf8_fails_its_job_alone() {
    let bench = Bench::start().await;
    let ids = load(&bench, 20).await;
    let key = format!("bull:q:{}", ids[7]);
    let mut conn = bench.conn().await;
    let bytes: &[u8] = b"\"\xff\xfe\"";
    redis::cmd("HSET").arg(key).arg("data").arg(bytes).query_async::<()>(&mut conn).await.unwrap();
    let worker = bench.worker("q").concurrency(20).handle_any(echo()).start().unwrap();
    bench.counts_become("q", completed(20)).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_waits_for_a_redis_that_is_down_at_start() {
    let server = RedisServer::start().await.unwrap();
    let url = server.url();
    server.stop().await.unwrap();
    let mut connecting = tokio::spawn(async move { Engine::connect(&url).await });
    let early = tokio::time::timeout(Duration::from_millis(500), &mut connecting).await;
    assert!(early.is_err(), "{early:?}");
    server.restart().await.unwrap();
    let engine = tokio::time::timeout(PATIENCE, connecting).await.unwrap().unwrap().unwrap();
    let worker = engine.worker("q").unwrap().handle_any(echo()).start().unwrap();
    let producer = mpanel_producer::Producer::connect(&server.url()).await.unwrap();
    producer.queue("q").unwrap().enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    eventually("a completed job", PATIENCE, || async {
        if worker.stats().completed == 1 { Ok(()) } else { Err(format!("{:?}", worker.stats())) }
    })
    .await
    .unwrap();
    worker.stop(PATIENCE).await;
}

#[tokio::test]
async fn wrong_credentials_are_an_error_at_once() {
    let server = RedisServer::builder().password("right").start().await.unwrap();
    for url in [
        format!("redis://:wrong@127.0.0.1:{}/0", server.port()),
        format!("redis://127.0.0.1:{}/0", server.port()),
        format!("redis://nobody:wrong@127.0.0.1:{}/0", server.port()),
    ] {
        let refused = tokio::time::timeout(Duration::from_secs(2), Engine::connect(&url)).await.unwrap();
        let error = refused.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, EngineError::Connect(_)), "{error:?}");
        assert!(text.contains("refuses the credentials") && text.contains("REDIS_PASSWORD"), "{text}");
        assert!(!text.contains("wrong@"), "{text}");
    }
    let client = redis::Client::open(server.url()).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let info: String = redis::cmd("INFO").arg("stats").query_async(&mut conn).await.unwrap();
    let made = info.lines().find_map(|l| l.strip_prefix("total_connections_received:")).unwrap();
    assert!(made.parse::<u32>().unwrap() < 12, "{made} connections: a retry storm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_retried_later_is_kept_over_a_restart() {
    let bench = Bench::start().await;
    let flaky = handler_fn(|ctx: JobContext, _: Value| async move {
        if ctx.attempt() == 1 {
            Err(JobError::retry_after(Duration::from_millis(400), "busy"))
        } else {
            Ok(ctx.attempt())
        }
    });
    let worker = bench.worker("q").handle_any(flaky).start().unwrap();
    let job = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new().attempts(2)).await.unwrap();
    bench.counts_become("q", Counts { delayed: 1, ..Counts::default() }).await;
    bench.server.restart().await.unwrap();
    bench.counts_become("q", completed(1)).await;
    assert_eq!(bench.job("q", job.id()).await.job.attempts_made, 2);
    worker.stop(PATIENCE).await;
}
