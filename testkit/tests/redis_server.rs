//! The private Redis: its life, and that data outlive a restart.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::time::Duration;

use mpanel_testkit::{RedisServer, TestkitError, eventually};
use redis::aio::MultiplexedConnection;

async fn connect(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn command(connection: &mut MultiplexedConnection, args: &[&str]) -> redis::RedisResult<String> {
    redis::cmd(args[0]).arg(&args[1..]).query_async(connection).await
}

#[tokio::test]
async fn a_restart_keeps_port_and_data() {
    let redis = RedisServer::start().await.unwrap();
    let (port, pid) = (redis.port(), redis.pid().unwrap());
    command(&mut connect(&redis.url()).await, &["SET", "k", "v"]).await.unwrap();
    redis.restart().await.unwrap();
    assert_eq!(redis.port(), port);
    assert_ne!(redis.pid(), Some(pid));
    assert_eq!(command(&mut connect(&redis.url()).await, &["GET", "k"]).await.unwrap(), "v");
}

#[tokio::test]
async fn acknowledged_writes_survive_sigkill() {
    let redis = RedisServer::start().await.unwrap();
    command(&mut connect(&redis.url()).await, &["SET", "k", "v"]).await.unwrap();
    redis.kill9();
    assert_eq!(redis.pid(), None);
    redis.restart().await.unwrap();
    assert_eq!(command(&mut connect(&redis.url()).await, &["GET", "k"]).await.unwrap(), "v");
}

#[tokio::test]
async fn a_frozen_server_answers_nothing_until_it_goes_on() {
    let redis = RedisServer::start().await.unwrap();
    let mut connection = connect(&redis.url()).await;
    redis.sigstop().unwrap();
    let ping = redis::cmd("PING").query_async::<String>(&mut connection).await;
    assert!(ping.unwrap_err().is_timeout());
    redis.sigcont().unwrap();
    let answered = eventually("PONG", Duration::from_secs(5), || {
        let url = redis.url();
        async move { command(&mut connect(&url).await, &["PING"]).await.map_err(|error| error.to_string()) }
    });
    assert_eq!(answered.await.unwrap(), "PONG");
}

#[tokio::test]
async fn config_lines_and_password_are_in_force() {
    let redis = RedisServer::builder()
        .password("s3cret")
        .appendonly(false)
        .config("maxmemory 12mb")
        .start()
        .await
        .unwrap();
    let mut connection = connect(&redis.url()).await;
    let value: Vec<String> =
        redis::cmd("CONFIG").arg("GET").arg("maxmemory").query_async(&mut connection).await.unwrap();
    assert_eq!(value[1], "12582912");
    let open_url = format!("redis://127.0.0.1:{}/0", redis.port());
    let refused = redis::Client::open(open_url).unwrap().get_multiplexed_async_connection().await;
    let refused = match refused {
        Ok(mut connection) => command(&mut connection, &["GET", "k"]).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(refused.to_string().contains("NOAUTH"), "{refused}");
}

#[tokio::test]
async fn a_wrong_config_line_is_reported_with_the_server_s_own_words() {
    let error = RedisServer::builder().config("maxmemory plenty").start().await.unwrap_err();
    assert!(matches!(error, TestkitError::Failed { .. }));
    assert!(error.to_string().contains("maxmemory plenty"), "{error}");
}

#[tokio::test]
async fn a_stopped_server_refuses_connections_and_signals() {
    let redis = RedisServer::start().await.unwrap();
    redis.stop().await.unwrap();
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", redis.port())).await.is_err());
    assert!(redis.sigstop().is_err());
    redis.stop().await.unwrap();
}
