//! Behind Sentinels: the primary is found, wherever it is, and whoever says what.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::{Duration, Instant};

use mpanel_connect::{ConnectError, Redis};
use mpanel_testkit::{Sentinel, eventually, tls::Authority};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The port of the server that a handle leads to.
async fn port(redis: &Redis) -> Result<u16, String> {
    let mut shared = redis.shared().await.map_err(|e| e.to_string())?;
    let found: Result<Vec<String>, _> =
        redis::cmd("CONFIG").arg("GET").arg("port").query_async(&mut shared.conn).await;
    match found {
        Ok(found) => Ok(found[1].parse().unwrap()),
        Err(error) => {
            redis.report(&shared, &error).await;
            Err(error.to_string())
        }
    }
}

#[tokio::test]
async fn connections_go_over_to_the_new_primary() {
    let topology = Sentinel::start().await.unwrap();
    let redis = Redis::open(&topology.url()).unwrap();
    let old = topology.primary().await.unwrap();
    assert_eq!(port(&redis).await.unwrap(), old.port());
    let mut blocked = redis.dedicated("k", None, Duration::from_secs(60)).await.unwrap();
    let blocked = tokio::spawn(async move {
        redis::cmd("BLPOP").arg("k").arg(50).query_async::<redis::Value>(&mut blocked).await
    });
    // Frozen, not gone: nothing tells its clients but the Sentinels.
    old.sigstop().unwrap();
    let new = topology.primary_after(old.port()).await.unwrap();
    let since = Instant::now();
    let ended = tokio::time::timeout(PATIENCE, blocked).await.unwrap().unwrap();
    assert!(mpanel_connect::is_broken(&ended.unwrap_err()));
    let found = eventually("the new primary", PATIENCE, || port(&redis)).await.unwrap();
    assert_eq!(found, new.port());
    assert!(since.elapsed() < Duration::from_secs(4), "{:?} after the fail-over", since.elapsed());

    // The old one comes back, and believes for some seconds that it is the primary.
    old.sigcont().unwrap();
    assert_eq!(port(&Redis::open(&topology.url()).unwrap()).await.unwrap(), new.port());
}

#[tokio::test]
async fn sentinels_and_servers_with_tls_fail_over_too() {
    let authority = Authority::new().unwrap();
    let topology = Sentinel::tls(&authority).await.unwrap();
    let (cert, key) = authority.client("worker").unwrap();
    let files = format!("ca={}&cert={}&key={}", authority.ca().display(), cert.display(), key.display());
    let url = topology.url();
    assert!(url.starts_with("rediss+sentinel://"), "{url}");
    let redis = Redis::open(&format!("{url}?{files}")).unwrap();
    let old = topology.primary().await.unwrap();
    assert_eq!(port(&redis).await.unwrap(), old.port());
    old.kill9();
    let new = topology.primary_after(old.port()).await.unwrap();
    let found = eventually("the new primary", PATIENCE, || port(&redis)).await.unwrap();
    assert_eq!(found, new.port());

    // Whoever shows no certificate, or speaks no TLS, is told so.
    for url in [format!("{url}?ca={}", authority.ca().display()), url.replace("rediss", "redis")] {
        let error = Redis::open(&url).unwrap().check().await.unwrap_err();
        assert!(matches!(error, ConnectError::NoPrimary { .. }), "{error:?}");
    }
}

/// Answers every command as a Sentinel that calls `port` the primary.
async fn liar(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..read]).to_ascii_uppercase();
                    let mut answer = "+OK\r\n".repeat(text.matches("SETINFO").count());
                    if text.contains("GET-MASTER-ADDR-BY-NAME") {
                        answer =
                            format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.to_string().len());
                    } else if text.contains("SENTINEL") {
                        "-ERR no\r\n".clone_into(&mut answer);
                    }
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    own
}

#[tokio::test]
async fn a_sentinel_that_names_a_replica_does_not_trap_us() {
    let topology = Sentinel::start().await.unwrap();
    let primary = topology.primary().await.unwrap().port();
    let replica = topology.servers().iter().find(|s| s.port() != primary).unwrap();
    let liar = liar(replica.port()).await;
    let (sentinels, name) = topology
        .url()
        .trim_start_matches("redis+sentinel://")
        .to_owned()
        .split_once('/')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let redis = Redis::open(&format!("redis+sentinel://127.0.0.1:{liar},{sentinels}/{name}")).unwrap();
    assert_eq!(port(&redis).await.unwrap(), primary);

    // Alone it leads nowhere, and the message says why.
    let redis = Redis::open(&format!("redis+sentinel://127.0.0.1:{liar}/{name}")).unwrap();
    let error = redis.check().await.unwrap_err();
    assert!(matches!(error, ConnectError::NoPrimary { .. }) && error.is_retryable());
    assert!(error.to_string().contains("says that it is a replica"), "{error}");
}

#[tokio::test]
async fn one_sentinel_of_the_url_is_enough_and_the_others_are_learnt() {
    let topology = Sentinel::start().await.unwrap();
    let first = &topology.sentinels()[0];
    let redis = Redis::open(&format!("redis+sentinel://127.0.0.1:{}/fleet", first.port())).unwrap();
    let old = topology.primary().await.unwrap();
    assert_eq!(port(&redis).await.unwrap(), old.port());
    first.kill9();
    old.kill9();
    let new = topology.primary_after(old.port()).await.unwrap().port();
    assert_eq!(eventually("the new primary", PATIENCE, || port(&redis)).await.unwrap(), new);

    let unknown = Redis::open(&topology.url().replace("/fleet", "/flee")).unwrap();
    let error = unknown.check().await.unwrap_err().to_string();
    assert!(error.contains("knows no `flee`"), "{error}");
}
