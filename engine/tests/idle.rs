//! What an idle worker costs Redis.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use common::{Bench, PATIENCE, echo};
use mpanel_testkit::eventually;

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
