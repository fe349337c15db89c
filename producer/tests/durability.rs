//! Enqueue with replicas: real ones, a frozen one, none, and callers of both kinds.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::{PATIENCE, ask, connect};
use futures_util::future::join_all;
use mpanel_connect::Redis;
use mpanel_producer::{
    BulkJob, Durability, EnqueueError, EnqueueOptions, FlowJob, JobId, Outcome, Producer, QueueName, Refusal,
};
use mpanel_testkit::{RedisServer, eventually};
use serde_json::json;

async fn with_replica() -> (RedisServer, RedisServer, Producer) {
    let primary = RedisServer::start().await.unwrap();
    let replica = RedisServer::builder()
        .config(&format!("replicaof 127.0.0.1 {}", primary.port()))
        .config("repl-diskless-load on-empty-db")
        .start()
        .await
        .unwrap();
    let mut conn = connect(&primary).await;
    let _: () = ask(&mut conn, "CONFIG SET repl-diskless-sync-delay 0").await;
    let conn = std::sync::Arc::new(tokio::sync::Mutex::new(conn));
    eventually("a replica in step", PATIENCE, || async {
        let info: String = ask(&mut *conn.lock().await, "INFO replication").await;
        if info.contains("state=online") { Ok(()) } else { Err(info) }
    })
    .await
    .unwrap();
    let producer = Producer::connect(&primary.url()).await.unwrap();
    (primary, replica, producer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_acknowledged_when_the_replica_has_it() {
    let (primary, replica, producer) = with_replica().await;
    let queue = producer.queue("q").unwrap().durability(Durability::replicated(1, PATIENCE));
    let jobs = (0..20).map(|n| {
        let queue = queue.clone();
        async move { queue.enqueue("a", &n, EnqueueOptions::new().job_id(format!("own-{n}"))).await.unwrap() }
    });
    let jobs = join_all(jobs).await;
    assert!(jobs.iter().all(|job| job.replicas() == Some(1) && job.is_new()));
    // The primary is gone with everything it had: the replica has what was acknowledged.
    primary.kill9();
    let mut conn = connect(&replica).await;
    for job in &jobs {
        let there: bool = ask(&mut conn, &format!("EXISTS bull:q:{}", job.id())).await;
        assert!(there, "{}", job.id());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_replicas_is_an_error_that_says_the_job_is_stored() {
    let (primary, _replica, producer) = with_replica().await;
    // Long enough for the one replica on a busy machine; the second never comes.
    let within = Duration::from_secs(3);
    let queue = producer.queue("q").unwrap().durability(Durability::replicated(2, within));
    let options = || EnqueueOptions::new().job_id("order-1");
    let error = queue.enqueue("a", &1, options()).await.unwrap_err();
    let EnqueueError::NotReplicated { jobs, wanted: 2, got: 1, .. } = &error else { panic!("{error:?}") };
    assert!(jobs.len() == 1 && jobs[0].is_new() && jobs[0].id().as_str() == "order-1");
    assert!(error.to_string().starts_with("the job is stored on the primary, but 1 of 2"), "{error}");
    assert!(!error.is_retryable(), "a second call may store a second job");
    let mut conn = connect(&primary).await;
    let line: Vec<String> = ask(&mut conn, "LRANGE bull:q:wait 0 -1").await;
    assert_eq!(line, ["order-1"]);
    // With an id of one's own the call asks again for the same job.
    let one = queue.durability(Durability::replicated(1, PATIENCE));
    let again = one.enqueue("a", &1, options()).await.unwrap();
    assert_eq!((again.outcome(), again.replicas()), (Outcome::Duplicate, Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_replica_delays_only_those_who_wait_for_it() {
    let (_primary, replica, producer) = with_replica().await;
    let plain = producer.queue("q").unwrap();
    let within = Duration::from_millis(1500);
    let durable = plain.clone().durability(Durability::replicated(1, within));
    durable.enqueue("warm", &0, EnqueueOptions::new()).await.unwrap();
    plain.enqueue("warm", &0, EnqueueOptions::new()).await.unwrap();
    replica.sigstop().unwrap();
    let waiting = {
        let durable = durable.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            let result = durable.enqueue_bulk((0..3).map(|n| BulkJob::new("d", n))).await;
            (result, began.elapsed())
        })
    };
    // Meanwhile a hundred others do not notice.
    let began = Instant::now();
    for n in 0..100 {
        let job = plain.enqueue("p", &n, EnqueueOptions::new()).await.unwrap();
        assert_eq!(job.replicas(), None);
    }
    let took = began.elapsed();
    let (result, waited) = waiting.await.unwrap();
    assert!(took < within, "{took:?}");
    assert!(waited >= within, "{waited:?}");
    let EnqueueError::NotReplicated { jobs, got: 0, wanted: 1, .. } = result.unwrap_err() else { panic!() };
    assert_eq!(jobs.len(), 3);
    replica.sigcont().unwrap();
    let patient = durable.durability(Durability::replicated(1, PATIENCE));
    assert_eq!(patient.enqueue("d", &4, EnqueueOptions::new()).await.unwrap().replicas(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_ask_for_replicas_and_others_do_not_mix() {
    let (primary, _replica, producer) = with_replica().await;
    let plain = producer.queue("q").unwrap();
    let durable = plain.clone().durability(Durability::replicated(1, PATIENCE));
    let impossible = plain.clone().durability(Durability::replicated(9, Duration::from_millis(50)));
    let calls = (0..300).map(|n| {
        let queue = [&plain, &durable, &impossible][n % 3].clone();
        async move {
            let id = format!("own-{n}");
            let result = queue.enqueue("a", &n, EnqueueOptions::new().job_id(&id)).await;
            match (n % 3, result) {
                (0, Ok(job)) => assert!(job.replicas().is_none() && job.id().as_str() == id),
                (1, Ok(job)) => assert!(job.replicas() == Some(1) && job.id().as_str() == id),
                (2, Err(EnqueueError::NotReplicated { jobs, wanted: 9, .. })) => {
                    assert!(jobs.len() == 1 && jobs[0].id().as_str() == id);
                }
                other => panic!("{other:?}"),
            }
        }
    });
    join_all(calls).await;
    let line: u32 = ask(&mut connect(&primary).await, "LLEN bull:q:wait").await;
    assert_eq!(line, 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_jobs_and_flows_keep_their_answers() {
    let (primary, _replica, _) = with_replica().await;
    let redis = Redis::open(&primary.url()).unwrap();
    let durability = Durability::replicated(1, PATIENCE);
    let producer = Producer::builder(redis).durability(durability).connect().await.unwrap();
    let flow = FlowJob::new("p", "q").child(FlowJob::new("c", "r"));
    let node = producer.enqueue_flow(flow).await.unwrap();
    assert!(node.outcome.is_ok() && node.children[0].outcome.is_ok());
    let orphan = EnqueueOptions::new().parent(QueueName::new("q").unwrap(), JobId::stored("none"));
    let error = producer.queue("q").unwrap().enqueue("a", &json!({}), orphan).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Rejected(Refusal::MissingParent)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_dies_while_replicas_are_awaited_is_told() {
    let (primary, replica, producer) = with_replica().await;
    let queue = producer.queue("q").unwrap().durability(Durability::replicated(1, PATIENCE));
    queue.enqueue("warm", &0, EnqueueOptions::new()).await.unwrap();
    replica.sigstop().unwrap();
    let waiting = tokio::spawn(async move { queue.enqueue("a", &1, EnqueueOptions::new()).await });
    let conn = std::sync::Arc::new(tokio::sync::Mutex::new(connect(&primary).await));
    eventually("a client in WAIT", PATIENCE, || async {
        let clients: String = ask(&mut *conn.lock().await, "CLIENT LIST").await;
        if clients.contains("cmd=wait ") { Ok(()) } else { Err(clients) }
    })
    .await
    .unwrap();
    primary.kill9();
    let error = waiting.await.unwrap().unwrap_err();
    let EnqueueError::NotReplicated { got: 0, trouble: Some(_), .. } = &error else { panic!("{error:?}") };
    assert!(error.to_string().contains("could not be counted"), "{error}");
}

#[tokio::test]
async fn what_wait_would_take_for_something_else_is_refused() {
    let server = RedisServer::start().await.unwrap();
    let producer = Producer::connect(&server.url()).await.unwrap();
    for durability in
        [Durability::replicated(0, PATIENCE), Durability::replicated(1, Duration::from_micros(1))]
    {
        let queue = producer.queue("q").unwrap().durability(durability);
        let error = queue.enqueue("a", &1, EnqueueOptions::new()).await.unwrap_err();
        assert!(matches!(error, EnqueueError::Option { option: "durability", .. }), "{error:?}");
        let redis = Redis::open(&server.url()).unwrap();
        assert!(Producer::builder(redis).durability(durability).connect().await.is_err());
    }
}
