//! When a job is due: exactly when it was asked for.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{ask, connect};
use mpanel_connect::Redis;
use mpanel_producer::{EnqueueOptions, Producer};
use mpanel_protocol::time::{Clock, TimestampMs};
use mpanel_testkit::RedisServer;

#[derive(Debug)]
struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> TimestampMs {
        TimestampMs(1_700_000_000_000)
    }
}

fn at(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

#[tokio::test]
async fn a_time_is_kept_to_the_millisecond() {
    let server = RedisServer::start().await.unwrap();
    let redis = Redis::open(&server.url()).unwrap();
    let producer = Producer::builder(redis).clock(Arc::new(Fixed)).connect().await.unwrap();
    let queue = producer.queue("q").unwrap();
    let mut conn = connect(&server).await;
    let new = EnqueueOptions::new;
    let due = 1_700_000_012_345;
    let first = queue.enqueue_at(at(due), "a", &1, new()).await.unwrap();
    let second = queue.enqueue_at(at(due), "a", &2, new().priority(3)).await.unwrap();
    // The creation time is another: the due time stays.
    let third = queue.enqueue_at(at(due), "a", &3, new().timestamp_ms(1_600_000_000_000)).await.unwrap();
    let after = queue.enqueue_in(Duration::from_millis(1), "a", &4, new()).await.unwrap();
    let scores: Vec<(String, i64)> = ask(&mut conn, "ZRANGE bull:q:delayed 0 -1 WITHSCORES").await;
    let expected = [
        (after.id().to_string(), 1_700_000_000_001 * 4096),
        (first.id().to_string(), 1_700_000_012_345 * 4096),
        (second.id().to_string(), 1_700_000_012_345 * 4096 + 1),
        (third.id().to_string(), 1_700_000_012_345 * 4096 + 2),
    ];
    assert_eq!(scores, expected);
    let delay: i64 = ask(&mut conn, &format!("HGET bull:q:{} delay", first.id())).await;
    assert_eq!(delay, 12_345);
    // A time that has passed, now, and before the epoch: at once.
    for past in [at(1), at(1_700_000_000_000), UNIX_EPOCH - Duration::from_secs(1)] {
        queue.enqueue_at(past, "now", &5, new()).await.unwrap();
    }
    let waiting: u32 = ask(&mut conn, "LLEN bull:q:wait").await;
    assert_eq!(waiting, 3);
}
