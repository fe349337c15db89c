//! What callers of the producer get, and what stands in Redis after it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mpanel_connect::Redis;
use mpanel_producer::{BulkJob, EnqueueError, EnqueueOptions, Outcome, Producer};
use mpanel_testkit::{BullVersion, NodeSidecar, RedisServer, eventually};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

async fn start() -> (RedisServer, Producer, MultiplexedConnection) {
    let server = RedisServer::start().await.unwrap();
    let producer = Producer::connect(&server.url()).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    let conn = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    (server, producer, conn)
}

async fn ask<T: redis::FromRedisValue>(conn: &mut MultiplexedConnection, command: &str) -> T {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        cmd.arg(word);
    });
    cmd.query_async(conn).await.unwrap()
}

async fn script_calls(conn: &mut MultiplexedConnection) -> u64 {
    let stats: String = ask(conn, "INFO commandstats").await;
    let calls = |name: &str| {
        let prefix = format!("cmdstat_{name}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        line.and_then(|rest| rest.split(',').next()).map_or(0, |n| n.parse::<u64>().unwrap())
    };
    calls("evalsha") + calls("eval")
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_made_at_the_same_time_travel_together() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    queue.enqueue("first", &json!({}), EnqueueOptions::new()).await.unwrap();
    let before = script_calls(&mut conn).await;
    let callers = (0..500).map(|n| {
        let queue = queue.clone();
        async move {
            let options = EnqueueOptions::new().job_id(format!("own-{n}"));
            (n, queue.enqueue("a", &json!({ "n": n }), options).await.unwrap())
        }
    });
    for (n, enqueued) in join_all(callers).await {
        assert!(enqueued.is_new() && enqueued.id().as_str() == format!("own-{n}"));
        let data: String = ask(&mut conn, &format!("HGET bull:q:own-{n} data")).await;
        assert_eq!(data, format!("{{\"n\":{n}}}"));
    }
    let calls = script_calls(&mut conn).await - before;
    assert!(calls <= 25, "500 jobs took {calls} calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_refused_job_among_many_leaves_the_others_alone() {
    let (_server, producer, _conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let callers = (0..100).map(|n| {
        let queue = queue.clone();
        async move {
            let id = if n % 10 == 0 { "same".to_owned() } else { format!("own-{n}") };
            queue.enqueue("a", &json!(n), EnqueueOptions::new().job_id(id)).await.unwrap()
        }
    });
    let results = join_all(callers).await;
    assert_eq!(results.iter().filter(|r| r.is_new()).count(), 91);
    let duplicates = results.iter().filter(|r| r.outcome() == Outcome::Duplicate);
    assert_eq!(duplicates.filter(|r| r.id().as_str() == "same").count(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_of_five_thousand_keeps_its_order_in_few_calls() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let before = script_calls(&mut conn).await;
    let results = queue.enqueue_bulk((0..5000).map(|n| BulkJob::new("a", json!(n)))).await.unwrap();
    let calls = script_calls(&mut conn).await - before;
    assert!(calls <= 45, "{calls} calls");
    let ids: Vec<String> = results.iter().map(|r| r.id().to_string()).collect();
    assert_eq!(ids, (1..=5000).map(|n| n.to_string()).collect::<Vec<_>>());
    let mut line: Vec<String> = ask(&mut conn, "LRANGE bull:q:wait 0 -1").await;
    line.reverse();
    assert_eq!(line, ids);
    for n in [0, 199, 200, 4999] {
        let data: String = ask(&mut conn, &format!("HGET bull:q:{} data", ids[n])).await;
        assert_eq!(data, n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bulks_of_several_callers_do_not_mix() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let callers = (0..20).map(|caller| {
        let queue = queue.clone();
        async move {
            let jobs = (0..70).map(|n| BulkJob::new("a", json!([caller, n])));
            (caller, queue.enqueue_bulk(jobs).await.unwrap())
        }
    });
    for (caller, results) in join_all(callers).await {
        assert_eq!(results.len(), 70);
        for (n, enqueued) in results.iter().enumerate() {
            let data: String = ask(&mut conn, &format!("HGET bull:q:{} data", enqueued.id())).await;
            assert_eq!(data, format!("[{caller},{n}]"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_job_with_an_id_is_a_duplicate_and_changes_nothing() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let own = || EnqueueOptions::new().job_id("order-1");
    assert!(queue.enqueue("a", &json!("first"), own()).await.unwrap().is_new());
    let again = queue.enqueue("a", &json!("second"), own()).await.unwrap();
    assert!(again.outcome() == Outcome::Duplicate && again.id().as_str() == "order-1");
    let data: String = ask(&mut conn, "HGET bull:q:order-1 data").await;
    assert_eq!(data, "\"first\"");
    let line: u64 = ask(&mut conn, "LLEN bull:q:wait").await;
    assert_eq!(line, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bullmq_refuses_is_refused_and_nothing_is_stored() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let new = EnqueueOptions::new;
    for options in [new().job_id("123"), new().job_id("a:b"), new().job_id("")] {
        let error = queue.enqueue("a", &json!({}), options.clone()).await.unwrap_err();
        assert!(matches!(error, EnqueueError::Name(_)) && !error.is_retryable(), "{options:?}: {error}");
    }
    let error = queue.enqueue("a", &json!({}), new().priority(2_097_152)).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Option { option: "priority", .. }), "{error}");
    // One bad job in a bulk: none is stored.
    let bulk = [BulkJob::new("a", json!(1)), BulkJob::new("a", json!(2)).options(new().job_id("7"))];
    assert!(matches!(queue.enqueue_bulk(bulk).await.unwrap_err(), EnqueueError::Name(_)));
    assert!(matches!(producer.queue("a:b").unwrap_err(), EnqueueError::Name(_)));
    let keys: Vec<String> = ask(&mut conn, "KEYS *").await;
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_limit_is_to_the_byte() {
    let (server, _, _conn) = start().await;
    let redis = Redis::open(&server.url()).unwrap();
    let producer = Producer::builder(redis).size_limit(10).connect().await.unwrap();
    let queue = producer.queue("q").unwrap();
    queue.enqueue("a", "12345678", EnqueueOptions::new()).await.unwrap();
    let error = queue.enqueue("a", "123456789", EnqueueOptions::new()).await.unwrap_err();
    assert!(matches!(error, EnqueueError::TooLarge { bytes: 11, limit: 10 }), "{error}");
    assert!(error.to_string().contains("enqueue a reference"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_of_megabytes_arrives() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let large = "ü".repeat(3_000_000);
    let job = queue.enqueue("a", &large, EnqueueOptions::new()).await.unwrap();
    let stored: usize = ask(&mut conn, &format!("HSTRLEN bull:q:{} data", job.id())).await;
    assert_eq!(stored, 6_000_002);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_of_large_payloads_is_cut_into_calls_and_keeps_its_order() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let large = "x".repeat(1024 * 1024);
    let before = script_calls(&mut conn).await;
    let results = queue.enqueue_bulk((0..40).map(|_| BulkJob::new("a", &large))).await.unwrap();
    let calls = script_calls(&mut conn).await - before;
    // Two of them are the look at our permissions.
    assert!((12..=18).contains(&calls), "{calls} calls");
    let ids: Vec<String> = results.iter().map(|r| r.id().to_string()).collect();
    assert_eq!(ids, (1..=40).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn node_parses_any_payload() {
    let (server, producer, _conn) = start().await;
    let node = NodeSidecar::start(&server.url()).await.unwrap();
    let nested = (0..40).fold(json!("core"), |inner, _| json!({ "a/b": [inner] }));
    let payloads = [
        json!(null),
        json!(0),
        json!(""),
        json!([]),
        json!({}),
        json!("a/b</script>\u{2028}\u{2029}"),
        json!({"emoji": "😀", "null": "\u{0}", "quote": "\"\\", "ключ": "значение"}),
        json!([1e300, -0.5, 9_007_199_254_740_991_i64, true, null]),
        nested,
    ];
    for version in BullVersion::ALL {
        let name = format!("q-{}", version.alias().replace('.', "-"));
        let (ours, theirs) = (producer.queue(&name).unwrap(), node.queue(version, &name));
        for payload in &payloads {
            let job = ours.enqueue("näme/1", payload, EnqueueOptions::new()).await.unwrap();
            let view = theirs.job(job.id().as_str()).await.unwrap().unwrap();
            assert_eq!((&view.data, view.name.as_str()), (payload, "näme/1"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn meta_is_set_where_it_is_missing_and_never_overwritten() {
    let (server, producer, mut conn) = start().await;
    let ours = producer.queue("ours").unwrap();
    ours.enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let version: String = ask(&mut conn, "HGET bull:ours:meta version").await;
    assert_eq!(version, concat!("mpanel-fleet:", env!("CARGO_PKG_VERSION")));
    let events: String = ask(&mut conn, "HGET bull:ours:meta opts.maxLenEvents").await;
    assert_eq!(events, "10000");

    let node = NodeSidecar::start(&server.url()).await.unwrap();
    for version in BullVersion::ALL {
        let name = format!("q-{}", version.alias().replace('.', "-"));
        node.queue(version, &name).open().await.unwrap();
        let _: () = ask(&mut conn, &format!("HSET bull:{name}:meta opts.maxLenEvents 77")).await;
        let look = format!("HGETALL bull:{name}:meta");
        let before: Vec<String> = ask(&mut conn, &look).await;
        let queue = producer.queue(&name).unwrap();
        queue.introduce().await.unwrap();
        queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
        let after: Vec<String> = ask(&mut conn, &look).await;
        assert_eq!(before, after, "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_while_redis_is_away_is_a_typed_error_and_works_again_after() {
    let (server, producer, _conn) = start().await;
    let queue = producer.queue("q").unwrap();
    queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    server.stop().await.unwrap();
    for _ in 0..5 {
        let began = Instant::now();
        let error = queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap_err();
        let typed =
            matches!(error, EnqueueError::Connect(_) | EnqueueError::Unknown(_) | EnqueueError::Refused(_));
        assert!(typed && error.is_retryable(), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(6));
    }
    server.restart().await.unwrap();
    eventually("an accepted job", PATIENCE, || async {
        queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.map_err(|e| e.to_string())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_over_a_restart_is_there_exactly_once() {
    let (server, producer, _conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let callers = (0..8).map(|caller| {
        let queue = queue.clone();
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in 0..150 {
                let id = format!("own-{caller}-{n}");
                let options = EnqueueOptions::new().job_id(&id);
                // With an id of its own a job is simply enqueued again.
                while let Err(error) = queue.enqueue("a", &json!(n), options.clone()).await {
                    assert!(error.is_retryable(), "{error:?}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                acknowledged.push(id);
            }
            acknowledged
        })
    });
    let callers: Vec<_> = callers.collect();
    server.restart().await.unwrap();
    let done = tokio::time::timeout(PATIENCE, join_all(callers)).await.expect("a call hangs");
    let mut expected: Vec<String> = done.into_iter().flat_map(Result::unwrap).collect();
    let client = redis::Client::open(server.url()).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let mut line: Vec<String> = ask(&mut conn, "LRANGE bull:q:wait 0 -1").await;
    line.sort();
    expected.sort();
    assert_eq!(line, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_into_a_frozen_redis_does_not_hang() {
    let (server, producer, _conn) = start().await;
    let queue = producer.queue("q").unwrap();
    queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    server.sigstop().unwrap();
    let call = queue.enqueue("a", &Value::Null, EnqueueOptions::new());
    let error = tokio::time::timeout(Duration::from_secs(15), call).await.expect("hangs").unwrap_err();
    assert!(matches!(error, EnqueueError::Unknown(_)), "{error:?}");
    server.sigcont().unwrap();
    eventually("an accepted job", PATIENCE, || async {
        queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.map_err(|e| e.to_string())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_scripts_cost_no_job() {
    let (_server, producer, mut conn) = start().await;
    let queue = producer.queue("q").unwrap();
    let flushing = {
        let mut conn = conn.clone();
        async move {
            for _ in 0..200 {
                ask::<()>(&mut conn, "SCRIPT FLUSH").await;
            }
        }
    };
    let bulk = async {
        let mut stored = 0;
        for _ in 0..5 {
            let jobs = (0..1000).map(|n| BulkJob::new("a", json!(n)));
            stored += queue.enqueue_bulk(jobs).await.unwrap().len();
        }
        stored
    };
    let (stored, ()) = tokio::join!(bulk, flushing);
    assert_eq!(stored, 5000);
    let line: Vec<String> = ask(&mut conn, "LRANGE bull:q:wait 0 -1").await;
    assert_eq!(line.len(), 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_the_wrong_type_is_an_error_and_not_a_lost_job() {
    let (_server, producer, mut conn) = start().await;
    let _: () = ask(&mut conn, "SET bull:q:wait x").await;
    let queue = producer.queue("q").unwrap();
    let error = queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap_err();
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");
    let other = producer.queue("other").unwrap();
    other.enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let _: () = ask(&mut conn, "DEL bull:q:wait").await;
    queue.enqueue("a", &Value::Null, EnqueueOptions::new()).await.unwrap();
}

#[tokio::test]
async fn wrong_credentials_and_urls_are_said_at_once() {
    let server = RedisServer::builder().password("right").start().await.unwrap();
    let wrong = format!("redis://:hunter2@127.0.0.1:{}/0", server.port());
    let error = Producer::connect(&wrong).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Connect(_)) && !error.is_retryable(), "{error:?}");
    assert!(error.to_string().contains("refuses the credentials"), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let open = format!("redis://127.0.0.1:{}/0", server.port());
    let error = Producer::connect(&open).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Connect(_)) && !error.is_retryable(), "{error:?}");
    assert!(matches!(Producer::connect("nonsense").await.unwrap_err(), EnqueueError::Connect(_)));
}
