//! 200,000 jobs: every long operation goes in chunks, pages are small wherever
//! they begin. With `FLEET_TEST_TIER=full` at most one call in a hundred may
//! take 5 ms; `script_time` of the testkit is stricter, by CPU time.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::Duration;

use common::Bench;
use mpanel_engine::admin::{DeadLetterFilter, Listing, Order};
use mpanel_protocol::{
    calls::{
        manage::{FinalState, Reprocess},
        sweep::{Cleanable, Obliterated},
    },
    state::JobState,
};
use serde_json::json;

const JOBS: u64 = 200_000;

/// Fills a queue with jobs by a script of the test's own.
async fn fill(bench: &Bench, place: &str) {
    let script = format!(
        "local P, call = 'bull:q:', redis.call for i = 1, {JOBS} do \
         call('HSET', P .. i, 'name', 'n', 'data', '{{\"n\":' .. i % 100 .. '}}', 'opts', '{{}}', 'timestamp', 1, \
         'failedReason', 'boom', 'delay', 0, 'priority', 0) {place} end"
    );
    let mut conn = bench.conn().await;
    redis::cmd("EVAL").arg(script).arg(0).query_async::<redis::Value>(&mut conn).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn long_operations_go_in_chunks() {
    let bench = Bench::start().await;
    let admin = bench.admin("q");
    fill(&bench, "call('ZADD', P .. 'failed', i, i)").await;
    bench.ask::<()>("CONFIG SET slowlog-log-slower-than 5000").await;
    bench.ask::<()>("SLOWLOG RESET").await;

    for start in [0, JOBS / 2, JOBS - 10, JOBS + 10] {
        let page =
            admin.list(Listing::of(JobState::Failed).skip(start).first(100).order(Order::Ascending)).await;
        let page = page.unwrap();
        let expected = JOBS.saturating_sub(start).min(100);
        assert_eq!((page.jobs.len() as u64, page.total), (expected, JOBS));
    }
    let seventh = DeadLetterFilter { data: Some(("/n".into(), json!(7))), ..DeadLetterFilter::default() };
    let page = admin.dead_letters(&seventh, None, 10).await.unwrap();
    assert_eq!(page.jobs.len(), 10);
    let mut calls = 0;
    let dry = admin.count_dead_letters(seventh.clone()).on_progress(|p| calls = p.calls).await.unwrap();
    assert_eq!((dry.matched, calls >= JOBS / 1000), (JOBS / 100, true));
    let retried = admin.retry_dead_letters(seventh, Reprocess::default(), false).await.unwrap();
    assert_eq!(retried.done, JOBS / 100);
    admin.retry_all(FinalState::Failed, None).on_progress(|p| calls = p.calls).await.unwrap();
    assert!(calls >= JOBS / 1000, "{calls}");
    assert_eq!(admin.counts().await.unwrap().waiting, JOBS);
    for order in [Order::Ascending, Order::Descending] {
        let page =
            admin.list(Listing::of(JobState::Waiting).skip(JOBS / 2).first(50).order(order)).await.unwrap();
        assert_eq!((page.jobs.len(), page.next), (50, Some(JOBS / 2 + 50)));
    }
    let cleaned = admin.clean(Cleanable::Waiting, Duration::ZERO, 50_000).await.unwrap();
    assert_eq!(cleaned.len(), 50_000);
    admin.drain(true).on_progress(|p| calls = p.calls).await.unwrap();
    assert!(calls >= 150_000 / 1000, "{calls}");
    assert_eq!(admin.counts().await.unwrap().total(), 0);

    fill(&bench, "call('ZADD', P .. 'completed', i, i)").await;
    bench.ask::<()>("SLOWLOG RESET").await;
    assert_eq!(admin.obliterate(false).await.unwrap(), Obliterated::Gone);
    assert_eq!(bench.ask::<u64>("DBSIZE").await, 0);
    if std::env::var("FLEET_TEST_TIER").as_deref() == Ok("full") {
        // By the clock on the wall: a busy machine takes the CPU away now and then.
        let slow: u64 = bench.ask("SLOWLOG LEN").await;
        assert!(slow <= bench.calls("evalsha").await / 100, "{slow} calls took over 5 ms");
    }
}
