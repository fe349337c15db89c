//! The admin handle on queues that are broken, odd or large: a typed answer, and
//! the rest of the queue as it was.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::Duration;

use common::Bench;
use mpanel_engine::admin::{
    AdminError, DeadLetterFilter, FlowLimits, Handled, JobProblem, Listing, Order, Subtree,
};
use mpanel_producer::{BulkJob, EnqueueOptions};
use mpanel_protocol::{
    calls::{
        manage::{Removal, Reprocess},
        sweep::Cleanable,
    },
    ids::JobId,
    state::JobState,
    time::TimestampMs,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

fn id(text: &str) -> JobId {
    JobId::stored(text)
}

#[tokio::test]
async fn broken_jobs_are_shown_with_what_is_wrong() {
    let bench = Bench::start().await;
    let admin = bench.admin("q");
    let fine = bench.queue("q").enqueue("fine", &json!({"x": 1}), EnqueueOptions::default()).await.unwrap();
    for command in [
        "HSET bull:q:json name n data {broken opts {} timestamp 1",
        "LPUSH bull:q:wait json",
        "HSET bull:q:bare foreign field",
        "LPUSH bull:q:wait bare",
        "SET bull:q:text hello",
        "LPUSH bull:q:wait text",
        "LPUSH bull:q:wait orphan",
        "HSET bull:q:odd name n data 1 opts [] timestamp soon delay x stacktrace 7 progress {",
        "LPUSH bull:q:wait odd",
    ] {
        bench.ask::<redis::Value>(command).await;
    }
    let page = admin.list(Listing::of(JobState::Waiting).order(Order::Ascending)).await.unwrap();
    let ids: Vec<&str> = page.jobs.iter().map(|j| j.job.id.as_str()).collect();
    assert_eq!(ids, [fine.id().as_str(), "json", "bare", "text", "odd"]);
    assert_eq!(page.orphans, [id("orphan")]);
    assert_eq!(page.jobs[0].problems, []);
    assert!(matches!(page.jobs[1].problems[..], [JobProblem::NotJson { field: "data", .. }]));
    assert_eq!(page.jobs[1].job.data, "{broken");
    assert!(page.jobs[2].problems.contains(&JobProblem::Missing("opts")));
    assert_eq!(page.jobs[2].foreign["foreign"], "field");
    assert_eq!(page.jobs[3].problems, [JobProblem::WrongType { found: "string".into() }]);
    let odd = &page.jobs[4].problems;
    for field in ["timestamp", "delay"] {
        assert!(
            odd.iter().any(|p| matches!(p, JobProblem::NotANumber { field: f, .. } if *f == field)),
            "{odd:?}"
        );
    }
    assert!(odd.contains(&JobProblem::Unexpected { field: "opts", expected: "an object" }));
    assert!(odd.contains(&JobProblem::Unexpected { field: "stacktrace", expected: "an array" }));
    let small = admin.list(Listing::of(JobState::Waiting).without_payloads()).await.unwrap();
    assert_eq!(small.jobs.len() + small.orphans.len(), 6, "{small:?}");

    // A key of the queue itself that is something else is named.
    bench.ask::<()>("SET bull:q:failed x").await;
    for error in [
        admin.counts().await.unwrap_err(),
        admin.list(Listing::of(JobState::Failed)).await.unwrap_err(),
        admin.dead_letters(&DeadLetterFilter::default(), None, 5).await.unwrap_err(),
    ] {
        let AdminError::WrongType { key, found, .. } = &error else { panic!("{error:?}") };
        assert_eq!((key.as_str(), found.as_str()), ("bull:q:failed", "string"));
    }
    assert_eq!(admin.job(fine.id()).await.unwrap().unwrap().problems, []);
    assert_eq!(admin.job(&id("nobody")).await.unwrap(), None);
}

#[tokio::test]
async fn circular_and_wide_flows_end() {
    let bench = Bench::start().await;
    let admin = bench.admin("q");
    let job = |name: &str, parent: &str| {
        format!("HSET bull:q:{name} name n data {{}} opts {{}} timestamp 1 parentKey bull:q:{parent}")
    };
    for command in [
        job("a", "b"),
        job("b", "a"),
        "SADD bull:q:a:dependencies bull:q:b".into(),
        "SADD bull:q:b:dependencies bull:q:a nonsense bull:gone:7".into(),
        "ZADD bull:q:waiting-children 1 a 1 b".into(),
    ] {
        bench.ask::<redis::Value>(&command).await;
    }
    let tree = admin.flow(&id("a"), FlowLimits::default()).await.unwrap().unwrap();
    let (_, Subtree::Job(b)) = &tree.children[0] else { panic!("{tree:?}") };
    let mut below: Vec<String> = b.children.iter().map(|(_, c)| format!("{c:?}")).collect();
    below.sort();
    assert!(below[0].starts_with("Circle"), "{below:?}");
    assert!(below[1].starts_with("Gone") && below[2].starts_with("Gone"), "{below:?}");

    // A parent of 2500 children: every one is found by pages.
    let keys: Vec<String> = (0..2500).map(|n| format!("bull:q:c{n}")).collect();
    bench.ask::<i64>(&format!("SADD bull:q:wide:dependencies {}", keys.join(" "))).await;
    bench.ask::<i64>("HSET bull:q:wide name n data {} opts {} timestamp 1").await;
    let (mut found, mut from) = (std::collections::BTreeSet::new(), Some(0));
    while let Some(cursor) = from {
        let kind = mpanel_engine::admin::DependencyKind::Unprocessed;
        let page = admin.dependencies(&id("wide"), kind, cursor, 100).await.unwrap();
        assert!(page.children.len() < 400, "{}", page.children.len());
        found.extend(page.children.into_iter().map(|c| c.key));
        from = page.next;
    }
    assert_eq!(found.len(), 2500);
    let limits = FlowLimits { children: 5000, jobs: 100, ..FlowLimits::default() };
    let tree = admin.flow(&id("wide"), limits).await.unwrap().unwrap();
    assert_eq!((tree.children.len(), tree.counts.unprocessed), (2500, 2500));
}

/// 1200 failed jobs, three kinds, 400 of them in one millisecond.
async fn dead(bench: &Bench) {
    let mut pipe = redis::pipe();
    for n in 0..1200 {
        let name = ["mail", "bill", "scan"][n % 3];
        let data = json!({"tenant": {"id": n % 10}, "n": n}).to_string();
        let reason = if n % 2 == 0 { "Timeout of 3 s" } else { "connection refused" };
        let at = if n < 800 { 1000 + n } else { 5000 };
        pipe.cmd("HSET").arg(format!("bull:q:d{n:04}")).arg("name").arg(name).arg("data").arg(data);
        pipe.arg("opts").arg("{}").arg("timestamp").arg(1).arg("failedReason").arg(reason);
        pipe.arg("atm").arg(n % 4).arg("finishedOn").arg(at).ignore();
        pipe.cmd("ZADD").arg("bull:q:failed").arg(at).arg(format!("d{n:04}")).ignore();
    }
    pipe.query_async::<()>(&mut bench.conn().await).await.unwrap();
}

#[tokio::test]
async fn dead_letters_by_filter() {
    let bench = Bench::start().await;
    let admin = bench.admin("q");
    dead(&bench).await;
    let count = async |filter: DeadLetterFilter| admin.count_dead_letters(filter).await.unwrap().matched;
    let any = DeadLetterFilter::default;
    assert_eq!(count(any()).await, 1200);
    assert_eq!(count(DeadLetterFilter { name: Some("mail".into()), ..any() }).await, 400);
    assert_eq!(count(DeadLetterFilter { reason: Some("timeout".into()), ..any() }).await, 600);
    assert_eq!(count(DeadLetterFilter { attempts: Some(2..=3), ..any() }).await, 600);
    assert_eq!(count(DeadLetterFilter { after: Some(TimestampMs(5000)), ..any() }).await, 400);
    assert_eq!(count(DeadLetterFilter { before: Some(TimestampMs(1009)), ..any() }).await, 10);
    let tenant = |n: u64| DeadLetterFilter { data: Some(("/tenant/id".into(), json!(n))), ..any() };
    assert_eq!(count(tenant(3)).await, 120);

    // Page by page, while others are taken away: none is passed over, none comes twice.
    let (mut seen, mut from) = (Vec::new(), None);
    loop {
        let page = admin.dead_letters(&tenant(3), from.as_ref(), 7).await.unwrap();
        assert!(page.jobs.len() <= 7);
        seen.extend(page.jobs.iter().map(|j| j.job.id.to_string()));
        let gone = page.jobs.first().map(|j| j.job.id.clone());
        if let Some(gone) = gone {
            admin.remove(&gone).await.unwrap();
        }
        let Some(next) = page.next else { break };
        from = Some(next);
    }
    let expected: Vec<String> = (0..1200).filter(|n| n % 10 == 3).map(|n| format!("d{n:04}")).collect();
    assert_eq!(seen, expected);

    let left = admin.counts().await.unwrap().failed;
    let dry = admin.retry_dead_letters(tenant(4), Reprocess::default(), true).await.unwrap();
    assert_eq!((dry, admin.counts().await.unwrap().failed), (Handled { matched: 120, ..dry }, left));
    let retried = admin.retry_dead_letters(tenant(4), Reprocess::default(), false).await.unwrap();
    assert_eq!(retried, Handled { matched: 120, done: 120, skipped: 0 });
    assert_eq!(admin.counts().await.unwrap().waiting, 120);
    let removed = admin.remove_dead_letters(tenant(5), false).await.unwrap();
    assert_eq!(removed, Handled { matched: 120, done: 120, skipped: 0 });
    assert_eq!(count(tenant(5)).await + count(tenant(4)).await, 0);
    assert_eq!(admin.counts().await.unwrap().failed, left - 240);
}

#[tokio::test]
async fn a_large_tree_with_a_running_job_deep_below_is_left_whole() {
    let bench = Bench::start().await;
    let admin = bench.admin("q");
    // One root, 500 children, below the last of them 300 more, below the last of those one that runs.
    let tree = "local P, call = 'bull:q:', redis.call \
        local function add(id, parent) \
          call('HSET', P .. id, 'name', 'n', 'data', '{}', 'opts', '{}', 'timestamp', 1, 'parentKey', P .. parent) \
          call('ZADD', P .. 'waiting-children', 1, id) \
          call('SADD', P .. parent .. ':dependencies', P .. id) end \
        call('HSET', P .. 'root', 'name', 'n', 'data', '{}', 'opts', '{}', 'timestamp', 1) \
        call('ZADD', P .. 'waiting-children', 1, 'root') \
        for i = 1, 500 do add('c' .. i, 'root') end \
        for i = 1, 300 do add('g' .. i, 'c500') end \
        add('leaf', 'g300') call('SET', P .. 'leaf:lock', 'token')";
    let mut conn = bench.conn().await;
    redis::cmd("EVAL").arg(tree).arg(0).query_async::<()>(&mut conn).await.unwrap();
    let whole = bench.ask::<u64>("DBSIZE").await;
    let root = JobId::stored("root");
    assert_eq!(admin.remove(&root).await.unwrap(), Removal::Locked);
    assert_eq!(
        (bench.ask::<u64>("DBSIZE").await, admin.counts().await.unwrap().waiting_children),
        (whole, 802)
    );

    bench.ask::<u64>("DEL bull:q:leaf:lock").await;
    assert_eq!(admin.remove(&root).await.unwrap(), Removal::Removed);
    assert_eq!(admin.counts().await.unwrap().total(), 0);
    let mut left = bench.ask::<Vec<String>>("KEYS bull:q:*").await;
    left.sort();
    assert_eq!(left, ["bull:q:events", "bull:q:marker", "bull:q:meta"]);
}

#[tokio::test]
async fn long_operations_stop_when_told_and_go_on() {
    let bench = Bench::start().await;
    let admin = bench.admin("q");
    let jobs = (0..3000).map(|n| BulkJob::new("n", json!({ "n": n }))).collect::<Vec<_>>();
    bench.queue("q").enqueue_bulk(jobs).await.unwrap();
    let token = CancellationToken::new();
    let stop = token.clone();
    let cancelled = admin
        .drain(false)
        .cancelled_by(token)
        .on_progress(move |p| {
            if p.done >= 1000 {
                stop.cancel();
            }
        })
        .await;
    let Err(AdminError::Cancelled { done }) = cancelled else { panic!("{cancelled:?}") };
    assert!((1000..1400).contains(&done), "{done}");
    assert_eq!(admin.counts().await.unwrap().waiting, 3000 - done);
    admin.drain(false).await.unwrap();
    assert_eq!(admin.counts().await.unwrap().waiting, 0);
    let keys: Vec<String> = bench.ask("KEYS bull:q:*").await;
    assert!(keys.iter().all(|key| !key.bytes().last().unwrap().is_ascii_digit()), "{keys:?}");
}

#[tokio::test]
async fn draining_ends_with_many_iterations_of_schedules_in_line() {
    let bench = Bench::start().await;
    let admin = bench.admin("q");
    let mut pipe = redis::pipe();
    for n in 0..300 {
        let id = format!("repeat:s{n}:7");
        pipe.cmd("ZADD").arg("bull:q:repeat").arg(7).arg(format!("s{n}")).ignore();
        pipe.cmd("HSET")
            .arg(format!("bull:q:{id}"))
            .arg("name")
            .arg("n")
            .arg("rjk")
            .arg(format!("s{n}"))
            .ignore();
        let (key, list) = (["bull:q:wait", "bull:q:paused"][n % 2], n % 3 > 0);
        if list {
            pipe.cmd("LPUSH").arg(key).arg(&id).ignore();
        } else {
            let set = ["bull:q:delayed", "bull:q:prioritized"][n % 2];
            pipe.cmd("ZADD").arg(set).arg(n).arg(&id).ignore();
        }
        pipe.cmd("HSET").arg(format!("bull:q:j{n}")).arg("name").arg("n").ignore();
        pipe.cmd("LPUSH").arg(key).arg(format!("j{n}")).ignore();
    }
    let mut conn = bench.conn().await;
    pipe.query_async::<()>(&mut conn).await.unwrap();
    let before: Vec<String> = bench.ask("LRANGE bull:q:wait 0 -1").await;
    let drained = tokio::time::timeout(common::PATIENCE, async { admin.drain(true).await }).await;
    drained.expect("it goes round for ever").unwrap();
    let counts = admin.counts().await.unwrap();
    assert_eq!((counts.waiting + counts.paused, counts.delayed + counts.prioritized), (200, 100));
    let after: Vec<String> = bench.ask("LRANGE bull:q:wait 0 -1").await;
    let kept: Vec<String> = before.into_iter().filter(|id| id.starts_with("repeat")).collect();
    assert_eq!(after, kept, "their order stays");
}

#[tokio::test]
async fn orphans_go_and_nothing_else() {
    let bench = Bench::start().await;
    let admin = bench.admin("q*");
    let queue = bench.queue("q*");
    let other = bench.queue("q-other").enqueue("n", &json!({}), EnqueueOptions::default()).await.unwrap();
    let kept = queue.enqueue("n", &json!({}), EnqueueOptions::default()).await.unwrap();
    bench.ask::<i64>("HSET bull:q*:lost-1 name n data {}").await;
    bench.ask::<i64>("RPUSH bull:q*:lost-2:logs line").await;
    bench.ask::<i64>("HSET bull:q*:held name n").await;
    bench.ask::<()>("SET bull:q*:held:lock token").await;
    bench.ask::<i64>("HSET bull:q*:failed-1 name n").await;
    bench.ask::<i64>("ZADD bull:q*:failed 7 failed-1").await;
    assert_eq!(admin.remove_orphans().await.unwrap(), 2);
    assert_eq!(admin.remove_orphans().await.unwrap(), 0);
    for stays in [kept.id(), &id("held"), &id("failed-1")] {
        assert!(admin.job(stays).await.unwrap().is_some(), "{stays}");
    }
    assert!(bench.admin("q-other").job(other.id()).await.unwrap().is_some());
    let mut pipe = redis::pipe();
    for n in 0..400 {
        pipe.cmd("XADD").arg("bull:q*:events").arg("*").arg("event").arg("x").arg("n").arg(n).ignore();
    }
    pipe.query_async::<()>(&mut bench.conn().await).await.unwrap();
    let gone = admin.trim_events(100).await.unwrap();
    assert!(gone >= 200, "{gone}");
    let cleaned = admin.clean(Cleanable::Waiting, Duration::from_secs(3600), 0).await.unwrap();
    assert_eq!(cleaned, Vec::<JobId>::new(), "younger than an hour");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_replaced() {
    let bench = Bench::start().await;
    let admin = bench.admin("q");
    bench.queue("q").enqueue("n", &json!({}), EnqueueOptions::default()).await.unwrap();
    assert_eq!(admin.counts().await.unwrap().waiting, 1);
    bench.server.restart().await.unwrap();
    let counts = mpanel_testkit::eventually("counts after a restart", common::PATIENCE, || async {
        admin.counts().await.map_err(|e| e.to_string())
    });
    assert_eq!(counts.await.unwrap().waiting, 1);
}
