//! The users of `docs/guide/topologies.md` can do their work with the commands listed
//! there, and a missing one is reported before anything is written.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::Duration;

use common::{Bench, PATIENCE, completed, echo};
use mpanel_connect::Redis;
use mpanel_engine::{
    ByHandError, Engine, EngineError,
    admin::{AdminError, DeadLetterFilter, Ended, FlowLimits, Listing, QueueAdmin},
    events::Start,
};
use mpanel_producer::{
    Durability, EnqueueError, EnqueueOptions, FlowJob, JobTemplate, Page, Prefix, Producer, QueueName, Repeat,
};
use mpanel_protocol::{calls::permissions::Role, peer::Peer, state::JobState};
use mpanel_testkit::eventually;
use serde_json::json;

const GUIDE: &str = include_str!("../../docs/guide/topologies.md");

/// The rules of a user as the guide has them.
fn rules(user: &str) -> Vec<String> {
    let start = format!("ACL SETUSER {user} ");
    let line = GUIDE.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
    line.replace("PASSWORD", "pw").split(' ').map(ToOwned::to_owned).collect()
}

async fn set_user(bench: &Bench, user: &str, rules: &[String]) {
    let mut conn = bench.conn().await;
    let mut cmd = redis::cmd("ACL");
    cmd.arg("SETUSER").arg(user).arg(rules);
    cmd.query_async::<()>(&mut conn).await.unwrap();
}

async fn user(bench: &Bench, user: &str) -> Redis {
    set_user(bench, user, &rules(user)).await;
    Redis::open(&bench.server.url().replace("redis://", &format!("redis://{user}:pw@"))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn producer_worker_and_inspector_do_all_their_work() {
    let bench = Bench::start().await;
    let producer = Producer::builder(user(&bench, "fleet-producer").await).max_waiting(1000);
    let producer = producer.connect().await.unwrap();
    let engine = Engine::builder(user(&bench, "fleet-worker").await).connect().await.unwrap();
    let inspector = user(&bench, "fleet-inspector").await;

    // Everything a producer does.
    let queue = producer.queue("q").unwrap();
    let plain = queue.enqueue("a", &json!(1), EnqueueOptions::new()).await.unwrap();
    let later = EnqueueOptions::new().delay(Duration::from_millis(50)).priority(3);
    queue.enqueue("a", &json!(2), later).await.unwrap();
    let replicated = queue.durability(Durability::replicated(1, Duration::from_millis(1)));
    let stored = replicated.enqueue("a", &json!(3), EnqueueOptions::new()).await;
    assert!(matches!(stored, Err(EnqueueError::NotReplicated { .. })), "{stored:?}");
    let flow = FlowJob::new("p", "q").child(FlowJob::new("c", "q"));
    let parent = producer.enqueue_flow(flow).await.unwrap();
    let schedules = producer.schedules("q").unwrap();
    let every = Repeat::every(Duration::from_secs(3600));
    schedules.upsert("s", every, JobTemplate::new("tick")).await.unwrap();
    assert_eq!(schedules.list(Page::default()).await.unwrap().len(), 1);

    // Everything a worker does.
    let builder = engine.worker("q").unwrap().concurrency(3).lock(Duration::from_millis(400)).metrics(10);
    builder.check_permissions().await.unwrap();
    let worker = builder.stalled_interval(Duration::from_millis(100)).handle_any(echo()).start().unwrap();
    eventually("five jobs and a run of the schedule", PATIENCE, || async {
        let done: u64 = bench.ask("ZCARD bull:q:completed").await;
        if done >= 5 { Ok(()) } else { Err(format!("{done}")) }
    })
    .await
    .unwrap();
    assert!(schedules.remove("s").await.unwrap());
    let failed: u64 = bench.ask("ZCARD bull:q:failed").await;
    assert_eq!(failed, 0);

    // Everything an inspector looks at.
    let admin =
        QueueAdmin::new(inspector.clone(), &Prefix::default(), &QueueName::new("q").unwrap(), Peer::V5);
    assert!(admin.counts().await.unwrap().completed >= 5);
    assert!(!admin.list(Listing::of(JobState::Completed)).await.unwrap().jobs.is_empty());
    assert!(admin.job(plain.id()).await.unwrap().is_some());
    admin.report(plain.id()).await.unwrap();
    admin.state(plain.id()).await.unwrap();
    admin.logs(plain.id(), 0, 9, true).await.unwrap();
    assert!(admin.flow(&parent.id, FlowLimits::default()).await.unwrap().is_some());
    admin.dependency_counts(&parent.id).await.unwrap();
    admin.metrics(Ended::Completed, 0, 10).await.unwrap();
    admin.meta().await.unwrap();
    admin.is_paused().await.unwrap();
    admin.is_maxed().await.unwrap();
    admin.rate_limited_for(None).await.unwrap();
    admin.dead_letters(&DeadLetterFilter::default(), None, 10).await.unwrap();
    assert_eq!(admin.workers().await.unwrap().len(), 1);
    let looker = Engine::builder(inspector).connect().await.unwrap();
    let watch = looker.finish_watch("q").unwrap();
    watch.wait(plain.id(), PATIENCE).await.unwrap();
    looker.events("q", Start::Oldest).unwrap().next().await.unwrap();
    // And what it must not do.
    let error = admin.pause().await.unwrap_err().to_string();
    // In the words of Redis 7.0, or of later ones and Valkey.
    assert!(error.contains("can't run this command") || error.contains("no permissions"), "{error}");
    worker.stop(PATIENCE).await;

    // Nothing was refused to producer and worker meanwhile.
    let mut log: Vec<Vec<redis::Value>> = bench.ask("ACL LOG").await;
    // Sent by the redis crate, which does without; Redis 7.0 does not know it.
    log.retain(|entry| !format!("{entry:?}").contains("object\"'), bulk-string('\"client|setinfo"));
    let seen = format!("{log:?}");
    for user in ["fleet-producer", "fleet-worker"] {
        let refused = seen.matches(user).count();
        assert_eq!(refused, 0, "{seen}");
    }
}

/// The keys there are, and what is in them.
async fn keys(bench: &Bench) -> Vec<(String, Option<Vec<u8>>)> {
    let mut keys: Vec<String> = bench.ask("KEYS *").await;
    keys.sort();
    let mut dump = Vec::new();
    for key in keys {
        let content = bench.ask(&format!("DUMP {key}")).await;
        dump.push((key, content));
    }
    dump
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_command_is_reported_and_nothing_is_written() {
    let bench = Bench::start().await;
    bench.queue("q").enqueue("a", &json!(1), EnqueueOptions::new()).await.unwrap();
    let before = keys(&bench).await;
    let all = rules("fleet-producer");
    for command in Role::Producer.commands().into_iter().chain(["EVALSHA"]) {
        let mut rules = all.clone();
        rules.push(format!("-{}", command.to_lowercase()));
        set_user(&bench, "fleet-producer", &rules).await;
        let redis =
            Redis::open(&bench.server.url().replace("redis://", "redis://fleet-producer:pw@")).unwrap();
        let producer = Producer::builder(redis).connect().await.unwrap();
        let error = producer.queue("q").unwrap().enqueue("a", &json!(2), EnqueueOptions::new()).await;
        let error = error.unwrap_err();
        assert!(matches!(error, EnqueueError::Forbidden(_)), "{command}: {error:?}");
        assert!(!error.is_retryable() && error.is_not_stored());
        assert!(error.to_string().to_uppercase().contains(command), "{command}: {error}");
    }
    let all = rules("fleet-worker");
    for command in Role::Worker.commands().into_iter().chain(["EVALSHA"]) {
        let mut rules = all.clone();
        rules.push(format!("-{}", command.to_lowercase()));
        set_user(&bench, "fleet-worker", &rules).await;
        let redis = Redis::open(&bench.server.url().replace("redis://", "redis://fleet-worker:pw@")).unwrap();
        let engine = Engine::builder(redis).connect().await.unwrap();
        let error = engine.worker("q").unwrap().check_permissions().await.unwrap_err();
        assert!(matches!(error, EngineError::Forbidden { .. }), "{command}: {error:?}");
        assert!(error.to_string().to_uppercase().contains(command), "{command}: {error}");
    }
    assert_eq!(keys(&bench).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_its_permissions() {
    let bench = Bench::start().await;
    bench.queue("q").enqueue("a", &json!(1), EnqueueOptions::new()).await.unwrap();
    let mut rules = rules("fleet-worker");
    let granted = rules.clone();
    rules.push("-zadd".to_owned());
    set_user(&bench, "fleet-worker", &rules).await;
    let redis = Redis::open(&bench.server.url().replace("redis://", "redis://fleet-worker:pw@")).unwrap();
    let engine = Engine::builder(redis.clone()).connect().await.unwrap();
    let before = keys(&bench).await;
    let calls = bench.calls("evalsha").await;
    let worker = engine.worker("q").unwrap().handle_any(echo()).start().unwrap();
    eventually("a look at the permissions", PATIENCE, || async {
        if bench.calls("evalsha").await > calls { Ok(()) } else { Err("none".to_owned()) }
    })
    .await
    .unwrap();
    assert_eq!(keys(&bench).await, before);
    set_user(&bench, "fleet-worker", &granted).await;
    bench.counts_become("q", completed(1)).await;
    worker.stop(PATIENCE).await;

    // Whoever takes jobs by hand is told at the first call, and may go on once it is granted.
    set_user(&bench, "fleet-worker", &["-zadd".to_owned()]).await;
    let taker = engine.worker("q").unwrap().by_hand().unwrap();
    let before = keys(&bench).await;
    for error in [taker.take().await.unwrap_err(), taker.wait(PATIENCE).await.unwrap_err()] {
        assert!(matches!(error, ByHandError::Engine(EngineError::Forbidden { .. })), "{error:?}");
        assert!(error.to_string().contains("ZADD"), "{error}");
    }
    assert_eq!(keys(&bench).await, before);
    set_user(&bench, "fleet-worker", &["+zadd".to_owned()]).await;
    assert!(taker.take().await.unwrap().is_none());

    // A user without any right to the queue's keys.
    set_user(&bench, "fleet-worker", &["resetkeys".to_owned(), "~other:*".to_owned()]).await;
    let error = engine.worker("q").unwrap().check_permissions().await.unwrap_err();
    assert!(matches!(error, EngineError::Forbidden { .. }), "{error:?}");
    let taker = engine.worker("q").unwrap().by_hand().unwrap();
    let error = taker.take().await.unwrap_err();
    assert!(matches!(error, ByHandError::Engine(EngineError::Forbidden { .. })), "{error:?}");
}

/// The stalled check moves jobs too: broken off half way it would lose one.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_job_stays_where_it_is_until_the_permissions_are_there() {
    let bench = Bench::start().await;
    let job = bench.queue("q").enqueue("a", &json!(1), EnqueueOptions::new()).await.unwrap().id().clone();
    // As a worker that died long ago leaves it.
    let _: () = bench.ask("DEL bull:q:marker bull:q:wait").await;
    let _: () = bench.ask(&format!("LPUSH bull:q:active {job}")).await;
    let _: () = bench.ask(&format!("SADD bull:q:stalled {job}")).await;
    let before = keys(&bench).await;
    let mut lacking = rules("fleet-worker");
    lacking.push("-rpush".to_owned());
    set_user(&bench, "fleet-worker", &lacking).await;
    let redis = Redis::open(&bench.server.url().replace("redis://", "redis://fleet-worker:pw@")).unwrap();
    let engine = Engine::builder(redis).connect().await.unwrap();
    let builder =
        || engine.worker("q").unwrap().stalled_interval(Duration::from_millis(100)).stalls_allowed(9);

    let probed = bench.calls("evalsha").await;
    let (worker, taker) = (builder().handle_any(echo()).start().unwrap(), builder().by_hand().unwrap());
    let error = taker.take().await.unwrap_err();
    assert!(matches!(error, ByHandError::Engine(EngineError::Forbidden { .. })), "{error:?}");
    // Every duty of both asks again and again, and does nothing meanwhile.
    eventually("looks at the permissions", PATIENCE, || async {
        let looks = bench.calls("evalsha").await - probed;
        if looks >= 10 { Ok(()) } else { Err(format!("{looks}")) }
    })
    .await
    .unwrap();
    assert_eq!(keys(&bench).await, before);
    set_user(&bench, "fleet-worker", &["+rpush".to_owned()]).await;
    drop(taker);
    bench.counts_become("q", completed(1)).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_manages_is_told_what_to_grant() {
    let bench = Bench::start().await;
    bench.queue("q").enqueue("a", &json!(1), EnqueueOptions::new()).await.unwrap();
    let redis = user(&bench, "fleet-inspector").await;
    let admin = QueueAdmin::new(redis, &Prefix::default(), &QueueName::new("q").unwrap(), Peer::V5);
    let lacks = |error: AdminError, rule: &str| {
        assert!(matches!(error, AdminError::Forbidden { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("ACL SETUSER") && text.split([' ', '`']).any(|word| word == rule), "{text}");
    };
    // Within a script, where Redis 7.0 does not say which command it was.
    lacks(admin.pause().await.unwrap_err(), "+hset");
    lacks(admin.pause().await.unwrap_err(), "+xadd");
    for rule in ["-zcard", "-evalsha"] {
        set_user(&bench, "fleet-inspector", &[rule.to_owned()]).await;
    }
    lacks(admin.counts().await.unwrap_err(), "+zcard");
    lacks(admin.pause().await.unwrap_err(), "+evalsha");
    set_user(&bench, "fleet-inspector", &["resetkeys".to_owned(), "+zcard".to_owned()]).await;
    lacks(admin.counts().await.unwrap_err(), "~bull:q:*");
    // What is granted as told works.
    set_user(&bench, "fleet-inspector", &["~bull:q:*".to_owned()]).await;
    assert_eq!(admin.counts().await.unwrap().waiting, 1);
}
