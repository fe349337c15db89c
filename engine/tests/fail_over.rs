//! Behind Sentinels: workers, producers, event readers and waits go over to the new
//! primary by themselves, however the old one went.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use mpanel_connect::Redis;
use mpanel_engine::{
    Engine, JobContext, JobError,
    events::{Notice, QueueEvent, Start},
    handler_fn,
};
use mpanel_producer::{EnqueueOptions, Producer, QueueProducer};
use mpanel_protocol::ids::JobId;
use mpanel_testkit::{
    RedisServer, Sentinel, eventually,
    history::{Event, Journal, Snapshot, check, open_jobs},
    tls::Authority,
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
/// G4 of the design: after the new primary answers.
const SOON: Duration = Duration::from_secs(2);

/// Enqueues under ids of its own until one is acknowledged; those whose outcome is
/// unknown, and those that were surely refused, are noted as such.
async fn one_more(queue: &QueueProducer, journal: &Journal, number: &mut u32) -> String {
    eventually("an acknowledged job", PATIENCE, || {
        *number += 1;
        let id = format!("j{number}");
        async move {
            let enqueued = queue.enqueue("a", &json!({}), EnqueueOptions::new().job_id(id.clone())).await;
            let note = |event| journal.record(&event).unwrap();
            match enqueued {
                Ok(_) => {
                    note(Event::EnqueueAck { id: id.clone() });
                    Ok(id)
                }
                Err(error) if error.is_not_stored() => {
                    note(Event::EnqueueRefused { id });
                    Err(error.to_string())
                }
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    note(Event::EnqueueUnknown { id });
                    Err(error.to_string())
                }
            }
        }
    })
    .await
    .unwrap()
}

/// Waits until the handle leads to the server with this port.
async fn leads_to(redis: &Redis, port: u16) {
    eventually("the new primary", PATIENCE, || async {
        let mut shared = redis.shared().await.map_err(|e| e.to_string())?;
        let mut cmd = redis::cmd("CONFIG");
        let asked = cmd.arg("GET").arg("port").query_async::<(String, u16)>(&mut shared.conn).await;
        let (_, at) = asked.map_err(|e| e.to_string())?;
        if at == port { Ok(()) } else { Err(format!("at {at}")) }
    })
    .await
    .unwrap();
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Planned,
    Killed,
    Frozen,
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_goes_over_in_a_planned_fail_over() {
    with_sentinels(Fault::Planned).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_goes_over_when_the_primary_is_killed() {
    with_sentinels(Fault::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_goes_over_when_the_primary_freezes() {
    with_sentinels(Fault::Frozen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_goes_over_with_tls_everywhere() {
    let authority = Authority::new().unwrap();
    let topology = Sentinel::tls(&authority).await.unwrap();
    let (cert, key) = authority.client("worker").unwrap();
    let files = format!("ca={}&cert={}&key={}", authority.ca().display(), cert.display(), key.display());
    let url = format!("{}?{files}", topology.url());
    assert!(url.starts_with("rediss+sentinel://"), "{url}");
    everybody_goes_over(Fault::Killed, topology, &url).await;
}

async fn with_sentinels(fault: Fault) {
    let topology = Sentinel::start().await.unwrap();
    let url = topology.url();
    everybody_goes_over(fault, topology, &url).await;
}

async fn everybody_goes_over(fault: Fault, topology: Sentinel, url: &str) {
    let redis = Redis::open(url).unwrap();
    let engine = Engine::builder(redis.clone()).connect().await.unwrap();
    let producer = Producer::builder(redis.clone()).connect().await.unwrap();
    let queue = producer.queue("q").unwrap();
    let journal = Arc::new(Journal::new().unwrap());
    let handler = handler_fn({
        let journal = journal.clone();
        move |ctx: JobContext, _: Value| {
            let journal = journal.clone();
            async move {
                journal.start(ctx.id().as_str(), "w").unwrap();
                journal.effect(ctx.id().as_str(), "w").unwrap();
                Ok::<_, JobError>(())
            }
        }
    });
    let worker = engine.worker("q").unwrap().concurrency(4).handle_any(handler);
    let worker =
        worker.lock(Duration::from_secs(5)).stalled_interval(Duration::from_secs(1)).stalls_allowed(9);
    let worker = worker.start().unwrap();
    let watch = engine.finish_watch("q").unwrap();
    let mut events = engine.events("q", Start::Oldest).unwrap();
    events.ready().await.unwrap();
    let heard: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let listener = tokio::spawn({
        let heard = heard.clone();
        async move {
            loop {
                if let Notice::Event(entry) = events.next().await.unwrap()
                    && let QueueEvent::Completed { id, .. } = entry.event
                {
                    heard.lock().unwrap().insert(id.to_string());
                }
            }
        }
    });
    let mut number = 0;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(one_more(&queue, &journal, &mut number).await);
    }
    // Idle: what waits for work, and for events, waits at the old primary.
    let last = JobId::stored(ids.last().unwrap().as_str());
    watch.wait(&last, PATIENCE).await.unwrap();
    topology.in_step().await.unwrap();
    let old = topology.primary().await.unwrap();
    match fault {
        Fault::Planned => topology.fail_over().await.unwrap(),
        Fault::Killed => old.kill9(),
        Fault::Frozen => old.sigstop().unwrap(),
    }
    let new = topology.primary_after(old.port()).await.unwrap().port();
    let since = Instant::now();
    if fault == Fault::Planned {
        // The old primary lives, and acknowledges what will be lost, until we have left it.
        leads_to(&redis, new).await;
        println!("planned: gone over {:?} after the Sentinels told", since.elapsed());
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    }
    let id = one_more(&queue, &journal, &mut number).await;
    let acknowledged = since.elapsed();
    watch.wait(&JobId::stored(id.as_str()), PATIENCE).await.unwrap();
    let done = since.elapsed();
    println!("{fault:?}: acknowledged {acknowledged:?}, done {done:?} after the new primary answered");
    assert!(acknowledged < SOON * 2 && done < SOON * 3, "{fault:?}: {acknowledged:?}, {done:?}");
    ids.push(id);
    // The old one comes back.
    match fault {
        Fault::Killed => old.restart().await.unwrap(),
        Fault::Frozen => old.sigcont().unwrap(),
        Fault::Planned => {}
    }
    for _ in 0..20 {
        ids.push(one_more(&queue, &journal, &mut number).await);
    }
    let snapshot = eventually("the end of all jobs", PATIENCE, || async {
        let mut shared = redis.shared_for("bull:q").await.map_err(|e| e.to_string())?;
        let snapshot = Snapshot::read(&mut shared.conn, "bull:q").await.map_err(|e| e.to_string())?;
        let events = journal.events().unwrap();
        let open = open_jobs(&events, &snapshot) + snapshot.open();
        if open == 0 { Ok(snapshot) } else { Err(format!("{open} open: {:?}", check(&events, &snapshot))) }
    })
    .await
    .unwrap();
    assert_eq!(check(&journal.events().unwrap(), &snapshot), []);
    eventually("an event of every job", PATIENCE, || async {
        let heard = heard.lock().unwrap();
        let silent: Vec<_> = ids.iter().filter(|id| !heard.contains(*id)).collect();
        if silent.is_empty() { Ok(()) } else { Err(format!("{silent:?}")) }
    })
    .await
    .unwrap();
    // The Sentinels take ten seconds to make it one.
    if fault == Fault::Killed && std::env::var("FLEET_TEST_TIER").is_ok_and(|tier| tier == "full") {
        topology.follows(old, PATIENCE).await.unwrap();
    }
    listener.abort();
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fail_over_in_the_middle_of_scripts() {
    let topology = Sentinel::start().await.unwrap();
    let redis = Redis::open(&topology.url()).unwrap();
    let engine = Engine::builder(redis.clone()).connect().await.unwrap();
    let queue = Producer::builder(redis.clone()).connect().await.unwrap().queue("q").unwrap();
    let journal = Arc::new(Journal::new().unwrap());
    let mut number = 0;
    for _ in 0..200 {
        one_more(&queue, &journal, &mut number).await;
    }
    let handler = handler_fn({
        let journal = journal.clone();
        move |ctx: JobContext, _: Value| {
            let journal = journal.clone();
            async move {
                journal.start(ctx.id().as_str(), "w").unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
                journal.effect(ctx.id().as_str(), "w").unwrap();
                Ok::<_, JobError>(())
            }
        }
    });
    let worker = engine.worker("q").unwrap().concurrency(4).handle_any(handler);
    let worker =
        worker.lock(Duration::from_secs(5)).stalled_interval(Duration::from_secs(1)).stalls_allowed(9);
    let worker = worker.start().unwrap();
    eventually("some effects", PATIENCE, || async {
        let effects = journal.events().unwrap().iter().filter(|e| matches!(e, Event::Effect { .. })).count();
        if effects >= 20 { Ok(()) } else { Err(format!("{effects}")) }
    })
    .await
    .unwrap();
    // A script of somebody else keeps the primary busy, ours are in its input; then it dies.
    let old = topology.primary().await.unwrap();
    let client = redis::Client::open(old.url()).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let busy = tokio::spawn(async move {
        redis::cmd("EVAL").arg("while true do end").arg(0).query_async::<redis::Value>(&mut conn).await
    });
    let data = json!({});
    let enqueued = queue.enqueue("a", &data, EnqueueOptions::new().job_id("in-the-middle"));
    let killed = async {
        eventually("a server that does not answer", PATIENCE, || async {
            let looked = client.get_multiplexed_async_connection().await;
            if looked.is_err() { Ok(()) } else { Err("it answers".to_owned()) }
        })
        .await
        .unwrap();
        old.kill9();
    };
    let (enqueued, ()) = tokio::join!(enqueued, killed);
    journal
        .record(&match enqueued {
            Ok(_) => Event::EnqueueAck { id: "in-the-middle".into() },
            Err(error) if error.is_not_stored() => Event::EnqueueRefused { id: "in-the-middle".into() },
            Err(_) => Event::EnqueueUnknown { id: "in-the-middle".into() },
        })
        .unwrap();
    assert!(busy.await.unwrap().is_err());
    let snapshot = eventually("the end of all jobs", PATIENCE, || async {
        let mut shared = redis.shared_for("bull:q").await.map_err(|e| e.to_string())?;
        let snapshot = Snapshot::read(&mut shared.conn, "bull:q").await.map_err(|e| e.to_string())?;
        let events = journal.events().unwrap();
        let open = open_jobs(&events, &snapshot) + snapshot.open();
        if open == 0 { Ok(snapshot) } else { Err(format!("{open} open: {:?}", check(&events, &snapshot))) }
    })
    .await
    .unwrap();
    assert_eq!(check(&journal.events().unwrap(), &snapshot), []);
    worker.stop(PATIENCE).await;
}

/// What the guide says of `min-replicas-to-write`.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_still_loads_counts_for_min_replicas_to_write() {
    let primary = RedisServer::builder().config("repl-diskless-sync-delay 0").start().await.unwrap();
    // 1 ms for each key: it loads for some seconds.
    let replica = RedisServer::builder().appendonly(false).config("key-load-delay 1000");
    let replica = replica.config("loading-process-events-interval-bytes 1024").start().await.unwrap();
    let connect = async |server: &RedisServer| {
        let client = redis::Client::open(server.url()).unwrap();
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    };
    let (mut at_primary, mut at_replica) = (connect(&primary).await, connect(&replica).await);
    let mut fill = redis::pipe();
    (0..4000).for_each(|n| {
        fill.set(format!("k{n}"), "x".repeat(100)).ignore();
    });
    fill.query_async::<()>(&mut at_primary).await.unwrap();
    let set = |key: &str| redis::cmd("SET").arg(key).arg(1).to_owned();
    let mut minimum = redis::cmd("CONFIG");
    minimum.arg("SET").arg("min-replicas-to-write").arg(1);
    minimum.query_async::<()>(&mut at_primary).await.unwrap();
    let error = set("alone").query_async::<()>(&mut at_primary).await.unwrap_err();
    assert_eq!(error.code(), Some("NOREPLICAS"));
    let mut follow = redis::cmd("REPLICAOF");
    follow.arg("127.0.0.1").arg(primary.port());
    follow.query_async::<()>(&mut at_replica).await.unwrap();
    eventually("a write that is acknowledged while the replica loads", PATIENCE, || {
        let (mut at_primary, mut at_replica) = (at_primary.clone(), at_replica.clone());
        async move {
            let mut loads = async || {
                let get =
                    redis::cmd("GET").arg("acknowledged").query_async::<Option<u8>>(&mut at_replica).await;
                match get {
                    Err(error) if error.code() == Some("LOADING") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            };
            loads().await?;
            set("acknowledged").query_async::<()>(&mut at_primary).await.map_err(|e| e.to_string())?;
            // Nobody but the primary has it.
            loads().await
        }
    })
    .await
    .unwrap();
}
