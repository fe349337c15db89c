//! Health of the configured targets, from real servers to mPanel's rows: what
//! counts as up, degraded and down, and that each tick is written once.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::telemetry::{Answer, Page, START_MS, Watch};
use mpanel_testkit::tls::Authority;
use mpanel_worker::services::telemetry::{Done, Written, clock::Collector};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

const UP: &str = r#"{"status":"ok"}"#;

#[tokio::test]
async fn mpanels_targets_get_rows_under_mpanels_names() {
    let page = Page::serve(Answer::page("200 OK", UP)).await;
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let db_host = port.local_addr().unwrap().to_string();
    let watch = Watch::new(&[
        ("NODE_MPANEL_CORE_URL", &page.url()),
        ("NODE_DB_CORE_HOST", &db_host),
        ("MPANEL_FLEET_TELEMETRY__TCP_SLOW_MS", "2000"),
    ])
    .await;
    assert_eq!(watch.tick(Collector::Health).await, Done::Written(Written::Rows(2)));
    assert_eq!(watch.statuses("mpanel-core").await, "up");
    assert_eq!(watch.statuses("db-core").await, "up");
    let written = "SELECT checked_at::text || ' ' || (latency_ms > 0) FROM monitoring_service_status
                   WHERE service_name = 'mpanel-core'";
    assert_eq!(watch.one(written).await, "2027-01-15 08:00:00 true");
    assert_eq!(watch.figure("probe_http_status", "mpanel-core").await, Some(200.0));
    for part in ["probe_dns_seconds", "probe_connect_seconds", "probe_first_byte_seconds"] {
        let seconds = watch.figure(part, "mpanel-core").await.unwrap();
        assert!((0.0..5.0).contains(&seconds), "{part} {seconds}");
    }
}

#[tokio::test]
async fn a_tick_is_written_once_by_however_many_workers() {
    let page = Page::serve(Answer::page("200 OK", UP)).await;
    let settings = [("NODE_MPANEL_CORE_URL", page.url())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let watch = Watch::new(&settings).await;
    let tick = watch.due(Collector::Health);
    let workers: Vec<_> = (0..4).map(|_| watch.another(&settings)).collect();
    let done = futures_util::future::join_all(workers.iter().map(|worker| worker.tick(tick))).await;
    let rows = done.into_iter().filter(|done| matches!(done, Ok(Done::Written(Written::Rows(1))))).count();
    assert_eq!(rows, 1);
    assert_eq!(watch.service.tick(tick).await.unwrap(), Done::Written(Written::Already));
    assert_eq!(watch.statuses("mpanel-core").await, "up");
}

#[tokio::test]
async fn late_ticks_are_passed_over_and_older_ones_change_nothing() {
    let page = Page::serve(Answer::page("200 OK", UP)).await;
    let watch = Watch::new(&[("NODE_MPANEL_CORE_URL", &page.url())]).await;
    let old = watch.due(Collector::Health);
    watch.set_clock(START_MS + 1000);
    let newer = watch.due(Collector::Health);
    let late = watch.due(Collector::Health);
    assert_eq!(watch.service.tick(newer).await.unwrap(), Done::Written(Written::Rows(1)));
    // Its worker was slow, and the next one quicker.
    assert_eq!(watch.service.tick(old).await.unwrap(), Done::Written(Written::Overtaken));
    watch.set_clock(START_MS + 60_000);
    let late = mpanel_worker::services::telemetry::clock::Tick { due_ms: late.due_ms + 1, ..late };
    let asked = page.asked();
    assert_eq!(watch.service.tick(late).await.unwrap(), Done::Late);
    assert_eq!((page.asked(), watch.statuses("mpanel-core").await.as_str()), (asked, "up"));
    let skipped = "SELECT string_agg(outcome, ' ' ORDER BY tick_at) FROM fleet_telemetry_collections";
    assert_eq!(watch.one(skipped).await, "skipped written skipped");
}

#[tokio::test]
async fn an_outage_shows_after_three_failures_and_ends_after_two_successes() {
    let page = Page::serve(Answer::page("200 OK", UP)).await;
    let watch = Watch::new(&[("NODE_SRV1_WEB_URL", &page.url())]).await;
    watch.tick(Collector::Health).await;
    page.answer(Answer::page("503 Service Unavailable", "no"));
    // A short interval may leave time to ask a failed target again.
    for _ in 0..3 {
        watch.tick(Collector::Health).await;
    }
    page.answer(Answer::page("200 OK", UP));
    for _ in 0..2 {
        watch.tick(Collector::Health).await;
    }
    let seen = watch.statuses("srv1-web").await;
    assert!(seen.starts_with("up ") && seen.contains("down down") && seen.ends_with("down up"), "{seen}");
    let latency =
        "SELECT count(*) FROM monitoring_service_status WHERE status = 'down' AND latency_ms IS NOT NULL";
    assert_eq!(watch.one(latency).await, "0");
}

#[tokio::test]
async fn an_outage_is_confirmed_within_one_tick_where_the_interval_leaves_room() {
    let page = Page::serve(Answer::page("200 OK", UP)).await;
    let settings = [("NODE_DNS_CORE_URL", page.url()), ("TELEMETRY_INTERVAL_SECONDS", "10".to_owned())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let watch = Watch::new(&settings).await;
    watch.tick(Collector::Health).await;
    page.answer(Answer::page("500 Oops", ""));
    watch.tick(Collector::Health).await;
    assert_eq!(watch.statuses("dns-core").await, "up down");
    assert_eq!(page.asked(), 4);
    assert_eq!(watch.why("dns-core").await, "it answers 500");
}

#[tokio::test]
async fn what_this_worker_is_not_configured_for_is_left_to_others() {
    let watch = Watch::new(&[]).await;
    assert_eq!(watch.service.collectors(), [Collector::Pg, Collector::Redis, Collector::Queues]);
    assert_eq!(watch.service.tick(watch.due(Collector::Pods)).await.unwrap(), Done::NotHere);
    assert_eq!(watch.one("SELECT count(*) FROM fleet_telemetry_collections").await, "0");
}

#[tokio::test]
async fn endpoints_that_misbehave_are_told_apart_and_delay_nobody() {
    let hang = Page::serve(Answer::Hang).await;
    let stream = Page::serve(Answer::Stream).await;
    let garbage = Page::serve(Answer::Text("\u{1}garbage\r\n\r\n".to_owned())).await;
    let away = Page::serve(Answer::redirect("http://169.254.169.254/latest/meta-data/")).await;
    let home = Page::serve(Answer::page("200 OK", "welcome")).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let targets = format!(
        "hang={},stream={},garbage={},away={},body={}|body=welcome,nobody={}|body=goodbye,closed=127.0.0.1:{closed},name=http://no.such.host.invalid/",
        hang.url(),
        stream.url(),
        garbage.url(),
        away.url(),
        home.url(),
        home.url(),
    );
    let watch = Watch::new(&[
        ("MPANEL_FLEET_TELEMETRY__TARGETS", &targets),
        ("TELEMETRY_INTERVAL_SECONDS", "8"),
        ("MPANEL_FLEET_TELEMETRY__TIMEOUT_MS", "1500"),
        ("MPANEL_FLEET_TELEMETRY__SLOW_MS", "5000"),
    ])
    .await;
    let begun = Instant::now();
    watch.tick(Collector::Health).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for (service, status, why) in [
        ("hang", "down", "an answer was waited for"),
        ("stream", "up", "-"),
        ("garbage", "down", "no HTTP answer"),
        ("away", "degraded", "redirects elsewhere (http://169.254.169.254/"),
        ("body", "up", "-"),
        ("nobody", "down", "do not contain `goodbye`"),
        ("closed", "down", "does not take the connection"),
        ("name", "down", "cannot be resolved"),
    ] {
        let seen = watch.why(service).await;
        assert_eq!(watch.statuses(service).await, status, "{service}: {seen}");
        assert!(seen.contains(why), "{service}: {seen}");
    }
}

#[tokio::test]
async fn certificates_are_looked_at_and_only_believed_when_they_should_be() {
    let authority = Authority::new().unwrap();
    let (certificate, key) = authority.client("server").unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(certificate).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/health", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 2048];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    let ca = authority.ca();
    let ca = ca.to_str().unwrap();
    let watch = Watch::new(&[("NODE_MAIL_CORE_URL", &url), ("MPANEL_FLEET_TELEMETRY__CA_FILE", ca)]).await;
    watch.tick(Collector::Health).await;
    assert_eq!(watch.statuses("mail-core").await, "up", "{}", watch.why("mail-core").await);
    assert!(watch.figure("probe_certificate_days", "mail-core").await.unwrap() > 365.0);
    assert!(watch.figure("probe_tls_seconds", "mail-core").await.unwrap() > 0.0);
    // Its authority is nobody's any more: its end is still known.
    let stranger = Watch::new(&[("NODE_MAIL_CORE_URL", &url)]).await;
    stranger.tick(Collector::Health).await;
    assert_eq!(stranger.statuses("mail-core").await, "down");
    assert!(stranger.why("mail-core").await.starts_with("TLS: "));
    assert!(stranger.figure("probe_certificate_days", "mail-core").await.unwrap() > 365.0);
}
