//! One server: TLS, login, socket file, and what is said when it does not let us in.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use mpanel_connect::{ConnectError, Redis};
use mpanel_testkit::{RedisServer, tls::Authority};

async fn works(url: &str) {
    let redis = Redis::open(url).unwrap();
    redis.check().await.unwrap();
    let mut conn = redis.dedicated("k", Some("me"), std::time::Duration::from_secs(5)).await.unwrap();
    let name: String = redis::cmd("CLIENT").arg("GETNAME").query_async(&mut conn).await.unwrap();
    assert_eq!(name, "me");
}

async fn refusal(url: &str) -> ConnectError {
    Redis::open(url).unwrap().check().await.unwrap_err()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test]
async fn tls_checks_the_server_and_shows_the_client() {
    let authority = Authority::new().unwrap();
    let server = RedisServer::builder().tls(&authority).start().await.unwrap();
    let at = format!("rediss://127.0.0.1:{}/0", server.tls_port().unwrap());
    let ca = shown(&authority.ca());
    let (cert, key) = authority.client("worker").unwrap();
    let (cert, key) = (shown(&cert), shown(&key));
    works(&format!("{at}?ca={ca}&cert={cert}&key={key}")).await;
    // The server asks for a certificate; without one it hangs up.
    let error = refusal(&format!("{at}?ca={ca}")).await;
    assert!(error.is_retryable(), "{error}");
    // Nobody we trust has signed the server's.
    let other = Authority::new().unwrap();
    let error = refusal(&format!("{at}?ca={}&cert={cert}&key={key}", shown(&other.ca()))).await;
    assert!(error.to_string().contains("certificate"), "{error}");

    let open = RedisServer::builder().tls(&authority).config("tls-auth-clients no").start().await.unwrap();
    works(&format!("redis://localhost:{}?tls=1&ca={ca}", open.tls_port().unwrap())).await;
}

#[tokio::test]
async fn files_of_tls_that_cannot_be_used_are_named() {
    let dir = Authority::new().unwrap();
    let (cert, key) = dir.client("c").unwrap();
    for (parameters, why) in [
        ("ca=/nowhere/ca.pem".to_owned(), "ca file /nowhere/ca.pem cannot be read"),
        (format!("ca={}", key.display()), "the ca file holds no certificate in PEM form"),
        (format!("cert={0}&key={0}", cert.display()), "ca, cert or key cannot be used"),
    ] {
        let error = Redis::open(&format!("rediss://h?{parameters}")).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_user_is_let_in_by_its_password_and_never_shown_with_it() {
    let server = RedisServer::builder()
        .password("admin")
        .config("user fleet on >p@ss:w%rd ~bull:* +@all")
        .start()
        .await
        .unwrap();
    let at = format!("127.0.0.1:{}", server.port());
    works(&format!("redis://fleet:p%40ss%3Aw%25rd@{at}")).await;
    works(&format!("redis://:admin@{at}")).await;
    for url in
        [format!("redis://fleet:wr0ngpw@{at}"), format!("redis://:wr0ngpw@{at}"), format!("redis://{at}")]
    {
        let error = refusal(&url).await;
        assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
        assert!(!error.to_string().contains("wr0ngpw"), "{error}");
    }
}

#[tokio::test]
async fn a_socket_file_works_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    let server = RedisServer::builder().config(&format!("unixsocket {}", socket.display()));
    let _server = server.start().await.unwrap();
    works(&format!("redis+unix://{}?db=1", socket.display())).await;
}

#[tokio::test]
async fn a_url_for_another_topology_says_what_is_there() {
    let server = RedisServer::start().await.unwrap();
    let at = format!("127.0.0.1:{}", server.port());
    let error = refusal(&format!("redis+cluster://{at}")).await.to_string();
    assert!(error.contains("is no Cluster node; use redis:// for a single server"), "{error}");
    let error = refusal(&format!("redis+sentinel://{at}/m")).await;
    assert!(error.is_retryable() && error.to_string().contains("Sentinels 127.0.0.1"), "{error}");
    assert!(!Redis::open(&server.url()).unwrap().is_cluster().await.unwrap());
}
