//! Schedules as a producer stores and lists them, and what it refuses.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::time::Duration;

use mpanel_connect::Redis;
use mpanel_producer::{
    Deduplication, EnqueueError, EnqueueOptions, JobTemplate, Page, Peer, Producer, Repeat, ScheduleError,
};
use mpanel_testkit::{BullVersion, NodeSidecar, RedisServer};
use serde_json::{Map, json};

async fn start() -> (RedisServer, Producer) {
    let server = RedisServer::start().await.unwrap();
    let producer = Producer::connect(&server.url()).await.unwrap();
    (server, producer)
}

#[tokio::test]
async fn node_lists_ours_and_we_list_nodes() {
    let (server, producer) = start().await;
    let node = NodeSidecar::start(&server.url()).await.unwrap();
    let ours = producer.schedules("q").unwrap();
    let far = Repeat::cron("0 0 1 1 *").time_zone("Europe/Berlin").limit(9);
    let template = JobTemplate::new("report")
        .data(json!({"k": [1, "ü/x"]}))
        .unwrap()
        .options(EnqueueOptions::new().attempts(3))
        .unwrap();
    let scheduled = ours.upsert("a:b", far, template).await.unwrap().unwrap();
    assert!(scheduled.delay > Duration::from_secs(1));
    for version in [BullVersion::V5, BullVersion::V6] {
        let theirs = node.queue(version, "q");
        let seen = theirs.queue_call("getJobScheduler", vec![json!("a:b")]).await.unwrap();
        assert_eq!(seen["pattern"], "0 0 1 1 *");
        assert_eq!(
            (&seen["tz"], &seen["limit"], &seen["iterationCount"]),
            (&json!("Europe/Berlin"), &json!(9), &json!(1))
        );
        assert_eq!(seen["template"], json!({"data": {"k": [1, "ü/x"]}, "opts": {"attempts": 3}}));
        let id = format!("node-{}", version.alias());
        let every = json!({"every": 3_600_000, "offset": 5});
        theirs
            .queue_call("upsertJobScheduler", vec![json!(id), every, json!({"data": {"n": 1}})])
            .await
            .unwrap();
        let listed = ours.get(&id).await.unwrap().unwrap();
        assert_eq!((listed.every, listed.offset, listed.name), (Some(3_600_000), Some(5), id.clone()));
        assert_eq!(listed.template_data, Some(json!({"n": 1})));
    }
    assert_eq!(ours.count().await.unwrap(), 3);
    let soonest = ours.list(Page { soonest_first: true, ..Page::default() }).await.unwrap();
    assert_eq!(soonest.last().unwrap().key, "a:b");
    assert_eq!(ours.list(Page { start: 0, end: 0, soonest_first: false }).await.unwrap()[0].key, "a:b");
    let removed =
        node.queue(BullVersion::V6, "q").queue_call("removeJobScheduler", vec![json!("a:b")]).await.unwrap();
    assert_eq!(removed, true);
    assert!(!ours.remove("a:b").await.unwrap());
    assert_eq!(ours.get("a:b").await.unwrap(), None);
}

#[tokio::test]
async fn scheduler_dedup_refused() {
    let (_server, producer) = start().await;
    let schedules = producer.schedules("q").unwrap();
    let dedup =
        EnqueueOptions::new().deduplication(Deduplication { id: "d".into(), ..Deduplication::default() });
    let template = JobTemplate::new("t").options(dedup.clone()).unwrap();
    let refused = schedules.upsert("s", Repeat::every(Duration::from_secs(1)), template).await;
    assert!(matches!(refused, Err(EnqueueError::Schedule(ScheduleError::Deduplicated))), "{refused:?}");
    let refused =
        schedules.add_repeatable("t", &json!({}), dedup, &Repeat::every(Duration::from_secs(1))).await;
    assert!(matches!(refused, Err(EnqueueError::Schedule(ScheduleError::Deduplicated))), "{refused:?}");
    let unique = JobTemplate::new("t").options(EnqueueOptions::new().unique_by(&["a"]));
    assert!(matches!(unique, Err(EnqueueError::Option { option: "unique", .. })), "{unique:?}");
    assert_eq!(schedules.count().await.unwrap(), 0);
}

#[tokio::test]
async fn bad_input_is_a_typed_error_and_stores_nothing() {
    let (server, producer) = start().await;
    let schedules = producer.schedules("q").unwrap();
    let repeat = |json: serde_json::Value| Repeat::from_json(json.as_object().unwrap().clone());
    for bad in [
        json!({}),
        json!({"every": 0}),
        json!({"every": -5}),
        json!({"every": 1.5}),
        json!({"every": "soon"}),
        json!({"every": 5, "pattern": "* * * * *"}),
        json!({"pattern": "61 * * * *"}),
        json!({"pattern": "* * * * *", "tz": "Mars/Phobos"}),
        json!({"pattern": "* * * * *", "startDate": "soon"}),
        json!({"every": 5, "endDate": 1}),
        json!({"every": 5, "immediately": true, "startDate": 4_000_000_000_000_i64}),
    ] {
        let refused = schedules.upsert("s", repeat(bad.clone()), JobTemplate::new("t")).await;
        assert!(matches!(refused, Err(EnqueueError::Schedule(_))), "{bad}: {refused:?}");
    }
    let every = || Repeat::every(Duration::from_secs(1));
    let long = "x".repeat(10_000);
    assert!(matches!(
        schedules.upsert(&long, every(), JobTemplate::new("t")).await,
        Err(EnqueueError::NameTooLong { .. })
    ));
    assert!(matches!(
        schedules.upsert("s", every(), JobTemplate::new(long)).await,
        Err(EnqueueError::NameTooLong { .. })
    ));
    assert!(matches!(schedules.upsert("", every(), JobTemplate::new("t")).await, Err(EnqueueError::Name(_))));
    let huge = JobTemplate::new("t").data("x".repeat(20 * 1024 * 1024)).unwrap();
    assert!(matches!(schedules.upsert("s", every(), huge).await, Err(EnqueueError::TooLarge { .. })));
    let mut options = Map::new();
    options.insert("priority".into(), json!(3_000_000));
    let refused = schedules.upsert("s", every(), JobTemplate::new("t").options_json(options)).await;
    assert!(matches!(refused, Err(EnqueueError::Option { option: "priority", .. })), "{refused:?}");
    let plain = producer.queue("q").unwrap();
    let options = mpanel_producer::JobOptions::from_json(r#"{"repeat":{"every":5}}"#).unwrap();
    let refused = plain.enqueue("t", &json!({}), options.into()).await;
    assert!(matches!(refused, Err(EnqueueError::Option { option: "repeat", .. })), "{refused:?}");
    let v6 = Producer::builder(Redis::open(&server.url()).unwrap()).peer(Peer::V6).connect().await.unwrap();
    let refused =
        v6.schedules("q").unwrap().add_repeatable("t", &json!({}), EnqueueOptions::new(), &every()).await;
    assert!(matches!(refused, Err(EnqueueError::Option { option: "repeat", .. })), "{refused:?}");
    // A limit of none is no error: there is just no run.
    assert_eq!(schedules.upsert("s", every().limit(0), JobTemplate::new("t")).await.unwrap(), None);
    let mut conn = Redis::open(&server.url()).unwrap().shared().await.unwrap().conn;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut conn).await.unwrap();
    assert_eq!(keys, Vec::<String>::new());
    // A key of a wrong type: nothing is written beside it.
    redis::cmd("SET").arg("bull:q:wait").arg("x").query_async::<()>(&mut conn).await.unwrap();
    assert!(schedules.upsert("s", every(), JobTemplate::new("t")).await.is_err());
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut conn).await.unwrap();
    assert_eq!(keys, ["bull:q:wait"]);
}

#[tokio::test]
async fn busy_slots_are_refused_with_bullmqs_code() {
    let (server, producer) = start().await;
    let schedules = producer.schedules("q").unwrap();
    let mut conn = Redis::open(&server.url()).unwrap().shared().await.unwrap().conn;
    let minute = Repeat::cron("0 0 1 1 *").time_zone("UTC");
    let first = schedules.upsert("s", minute.clone(), JobTemplate::new("t")).await.unwrap().unwrap();
    // The run is neither to come nor gone, as one that is done and kept.
    redis::cmd("ZREM")
        .arg("bull:q:delayed")
        .arg(first.id.as_str())
        .query_async::<()>(&mut conn)
        .await
        .unwrap();
    let refused = schedules.upsert("s", minute, JobTemplate::new("t")).await;
    assert!(
        matches!(refused, Err(EnqueueError::Rejected(mpanel_producer::Refusal::IterationExists))),
        "{refused:?}"
    );
}
