//! What the tests of the producer share.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part; a failed unwrap is a failed test"
)]

use std::time::Duration;

use mpanel_producer::Producer;
use mpanel_testkit::RedisServer;
use redis::aio::MultiplexedConnection;

pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn start() -> (RedisServer, Producer, MultiplexedConnection) {
    let server = RedisServer::start().await.unwrap();
    let producer = Producer::connect(&server.url()).await.unwrap();
    let conn = connect(&server).await;
    (server, producer, conn)
}

pub async fn connect(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

pub async fn ask<T: redis::FromRedisValue>(conn: &mut MultiplexedConnection, command: &str) -> T {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        cmd.arg(word);
    });
    cmd.query_async(conn).await.unwrap()
}

/// Every key but the queues' `meta`.
pub async fn stored_keys(conn: &mut MultiplexedConnection) -> Vec<String> {
    let mut keys: Vec<String> = ask(conn, "KEYS *").await;
    keys.retain(|key| !key.ends_with(":meta"));
    keys.sort();
    keys
}
