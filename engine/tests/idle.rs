//! What an idle worker costs Redis.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Bench, PATIENCE, completed, echo};
use mpanel_engine::{JobContext, JobError, handler_fn};
use mpanel_producer::EnqueueOptions;
use mpanel_testkit::eventually;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

async fn calls(bench: &Bench) -> BTreeMap<String, u64> {
    let stats: String = bench.ask("INFO commandstats").await;
    let lines = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_"));
    lines
        .map(|line| {
            let (name, rest) = line.split_once(":calls=").unwrap();
            (name.to_owned(), rest.split(',').next().unwrap().parse().unwrap())
        })
        .collect()
}

/// Waits until so many blocking pops have ended; gives back the moment's counters.
async fn pops(bench: &Bench, ended: u64) -> (Instant, BTreeMap<String, u64>) {
    eventually("blocking pops", PATIENCE, || async {
        let calls = calls(bench).await;
        let pops = calls.get("bzpopmin").copied().unwrap_or(0);
        if pops >= ended { Ok((Instant::now(), calls)) } else { Err(format!("{pops} pops")) }
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_sends_less_than_two_commands_a_second() {
    let bench = Bench::start().await;
    let workers: Vec<_> =
        ["a", "b", "c"].map(|q| bench.worker(q).concurrency(10).handle_any(echo()).start().unwrap()).into();
    let (from, before) = pops(&bench, 3).await;
    let (to, after) = pops(&bench, 6).await;
    let span = to - from;
    assert!(span > Duration::from_secs(4), "a wait lasts 5 s, not {span:?}");
    let made = |name: &str| after.get(name).unwrap_or(&0) - before.get(name).unwrap_or(&0);
    // What each worker sent: the wait, and one fetch after it. The rest are the
    // scripts' own commands and the test's looks.
    let sent: u64 = ["bzpopmin", "evalsha", "eval", "time", "ping", "exists", "get", "client", "mget"]
        .map(made)
        .iter()
        .sum();
    assert!(made("bzpopmin") <= 3 && made("evalsha") <= 6, "{before:?} {after:?}");
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let rate = sent as f64 / 3.0 / span.as_secs_f64();
    assert!(rate < 1.0, "{rate} commands/s for each worker");
    for worker in workers {
        worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_is_overlooked_when_its_marker_is_taken_during_a_fetch() {
    const ROUNDS: usize = 400;
    let bench = Bench::start().await;
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let handler = handler_fn(move |ctx: JobContext, _: Value| {
        let gate = gate.clone();
        async move {
            if ctx.name() == "first" {
                gate.acquire().await.map_err(|e| JobError::retry(e.to_string()))?.forget();
            }
            Ok(())
        }
    });
    let worker = bench.worker("q").concurrency(32).handle_any(handler).start().unwrap();
    let (queue, admin, empty) = (bench.queue("q"), bench.admin("q"), json!({}));
    let options = EnqueueOptions::default;
    let mut ids = Vec::new();
    for round in 0..ROUNDS {
        queue.enqueue("first", &empty, options()).await.unwrap();
        eventually("a running job", PATIENCE, async || {
            if worker.stats().active == 1 { Ok(()) } else { Err(format!("{:?}", worker.stats())) }
        })
        .await
        .unwrap();
        // The first ends, which fetches, while the second comes; sooner or later by a little.
        let second = async {
            for _ in 0..round % 20 {
                tokio::task::yield_now().await;
            }
            queue.enqueue("second", &empty, options()).await
        };
        let (_, second) = tokio::join!(async { opened.add_permits(1) }, second);
        let second = second.unwrap();
        bench.counts_become("q", completed(2 * (round as u64 + 1))).await;
        ids.push(second.id().clone());
    }
    for id in ids {
        let job = admin.job(&id).await.unwrap().unwrap();
        let waited_ms = job.processed_on_ms.unwrap() - job.job.timestamp_ms;
        // What was overlooked starts when the wait for the marker ends, after 5 s.
        assert!(waited_ms < 3000, "{id} waited {waited_ms} ms");
    }
    worker.stop(PATIENCE).await;
}
