//! Redis, Postgres or Proxmox away, at start and in mid-creation; and credentials
//! that are wrong.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::{
    QUEUE, payload, sim_config,
    stage::{SOON, Stage, ends},
};
use mpanel_testkit::{
    Postgres, RedisServer, eventually,
    pve::{Fault, FaultAction, PveSimConfig},
};

/// Wrong credentials must be told well within this.
const FEW_SECONDS: Duration = Duration::from_secs(10);
const SENT: &str = "SELECT upid IS NOT NULL FROM fleet_job_steps WHERE step = 'create'";

async fn own_postgres() -> Postgres {
    Postgres::builder().fsync(true).start().await.unwrap()
}

async fn redis() -> RedisServer {
    RedisServer::builder().config("appendfsync always").start().await.unwrap()
}

#[tokio::test]
async fn redis_and_postgres_that_are_down_at_start_are_waited_for() {
    let postgres = own_postgres().await;
    let stage = Stage::on(&postgres, redis().await, sim_config(2)).await;
    stage.queue().open_events().await.unwrap();
    let id = stage.enqueue(payload(121)).await;
    postgres.stop().await.unwrap();
    stage.redis.stop().await.unwrap();
    let worker = stage.program(&["run", "--queues", QUEUE], &[]).start().unwrap();
    let line = worker.wait_line("waiting for Postgres (DATABASE_URL)", SOON).await.unwrap();
    assert!(line.contains("WARN"), "{line}");
    // More than once, with pauses between that grow.
    eventually("three looks", SOON, || async {
        let looks = worker.lines().iter().filter(|l| l.text.contains("waiting for Postgres")).count();
        if looks >= 3 { Ok(()) } else { Err(format!("{looks}")) }
    })
    .await
    .unwrap();
    postgres.restart().await.unwrap();
    let line = worker.wait_line("waiting for Redis", SOON).await.unwrap();
    assert!(line.contains("WARN"), "{line}");
    assert_eq!(worker.exited(), None);
    stage.redis.restart().await.unwrap();
    worker.wait_line(" ready ", SOON).await.unwrap();
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
}

async fn redis_restarts() {
    let stage = Stage::on(
        Postgres::shared().await.unwrap(),
        redis().await,
        PveSimConfig { task_ms: 1500, ..sim_config(2) },
    )
    .await;
    stage.queue().open_events().await.unwrap();
    let worker = stage.worker().await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(SENT, "true").await;
    stage.redis.kill9();
    // Away for longer than a lock lives: the attempt gives up, since another worker might have the job.
    worker.wait_line("lock lost", SOON).await.unwrap();
    stage.redis.restart().await.unwrap();
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
    assert_eq!(worker.exited(), None);
    // And it goes on serving.
    let next = stage.enqueue(payload(122)).await;
    stage.finished(&next).await;
}

async fn postgres_restarts() {
    let postgres = own_postgres().await;
    let stage = Stage::on(&postgres, redis().await, PveSimConfig { task_ms: 1000, ..sim_config(2) }).await;
    stage.queue().open_events().await.unwrap();
    let worker = stage.worker().await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(SENT, "true").await;
    postgres.crash().await.unwrap();
    // The creation's task ends, and what comes next cannot be recorded.
    worker.wait_line("database: ", SOON).await.unwrap();
    postgres.restart().await.unwrap();
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
    assert_eq!(worker.exited(), None);
}

async fn postgres_stays_away_for_every_attempt() {
    let postgres = own_postgres().await;
    let stage = Stage::on(&postgres, redis().await, sim_config(2)).await;
    stage.queue().open_events().await.unwrap();
    let worker = stage.worker().await;
    postgres.stop().await.unwrap();
    // Its only attempt fails; even that cannot be recorded.
    let opts = serde_json::json!({"jobId": "once", "attempts": 1});
    stage.queue().add("create", payload(121), opts).await.unwrap();
    worker.wait_line("final failure could not be recorded", SOON).await.unwrap();
    postgres.restart().await.unwrap();
    stage.finished("once").await;
    stage.assert_one_pod("once", 121).await;
}

#[tokio::test]
async fn redis_or_postgres_away_in_mid_creation_cost_no_job() {
    tokio::join!(redis_restarts(), postgres_restarts(), postgres_stays_away_for_every_attempt());
}

/// No answer from Proxmox at the moment, for longer than two attempts with their backoff.
async fn proxmox_goes(moment: Option<(&str, &str)>, config: PveSimConfig) {
    let stage = Stage::with(config).await;
    stage.queue().open_events().await.unwrap();
    let worker = stage.worker().await;
    let away = || stage.world.sim.add_fault(Fault::new("*", "**", FaultAction::DropBefore));
    if moment.is_none() {
        away();
    }
    let id = stage.enqueue(payload(121)).await;
    if let Some((sql, value)) = moment {
        stage.until(sql, value).await;
        away();
    }
    let since = Instant::now();
    worker.wait_line("Proxmox does not answer", SOON).await.unwrap();
    eventually("the end of the outage", SOON, || async {
        let left = Duration::from_secs(14).checked_sub(since.elapsed());
        left.map_or(Ok(()), |left| Err(format!("{left:?} left")))
    })
    .await
    .unwrap();
    assert_eq!(stage.queue().state(&id).await.unwrap(), "active");
    stage.world.sim.clear_faults();
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
}

#[tokio::test]
async fn proxmox_goes_away_before_and_while_it_creates_and_while_it_starts() {
    let started = "SELECT upid IS NOT NULL FROM fleet_job_steps WHERE step = 'start'";
    let slow = || PveSimConfig { task_ms: 800, ..sim_config(2) };
    tokio::join!(
        proxmox_goes(None, sim_config(2)),
        proxmox_goes(Some((SENT, "true")), slow()),
        proxmox_goes(Some((started, "true")), slow()),
    );
}

#[tokio::test]
async fn it_can_be_stopped_while_it_waits() {
    let stage = Stage::new().await;
    for (name, url, line) in [
        ("DATABASE_URL", "postgres://fleet@127.0.0.1:1/none", "waiting for Postgres"),
        ("REDIS_URL", "redis://127.0.0.1:1", "waiting for Redis"),
    ] {
        let worker = stage.program(&["run"], &[(name, url)]).start().unwrap();
        worker.wait_line(line, SOON).await.unwrap();
        worker.sigterm().unwrap();
        assert_eq!(worker.wait(SOON).await.unwrap().code(), Some(0));
    }
}

#[tokio::test]
async fn a_wrong_redis_password_is_told_once() {
    let redis = RedisServer::builder().password("right").start().await.unwrap();
    let stage = Stage::on(Postgres::shared().await.unwrap(), redis, sim_config(1)).await;
    let port = stage.redis.port().to_string();
    for (name, value) in [("REDIS_PASSWORD", Some("wrong")), ("REDIS_PASSWORD", None)] {
        let started = Instant::now();
        let mut builder = common::stage::program(&["run"]);
        for (name, value) in stage.environment().into_iter().filter(|(name, _)| *name != "REDIS_URL") {
            builder = builder.env(name, value);
        }
        builder = builder.env("REDIS_HOST", "127.0.0.1").env("REDIS_PORT", &port);
        if let Some(value) = value {
            builder = builder.env(name, value);
        }
        let (code, text) = ends(builder).await;
        assert_eq!(code, 77, "{text}");
        let line = text.lines().find(|line| line.starts_with("mpanel-worker: ")).unwrap();
        assert!(line.contains(name), "{line}");
        assert!(!text.contains("wrong"), "the password is shown: {text}");
        assert!(started.elapsed() < FEW_SECONDS, "{:?}", started.elapsed());
    }
    let client = redis::Client::open(stage.redis.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let errors: String = redis::cmd("INFO").arg("errorstats").query_async(&mut redis).await.unwrap();
    let count = |code: &str| {
        let line = errors.lines().find(|line| line.starts_with(code)).unwrap_or("count=0");
        line.rsplit("count=").next().unwrap().trim().parse::<u32>().unwrap()
    };
    assert!(count("errorstat_WRONGPASS") <= 2, "{errors}");
    assert!(count("errorstat_NOAUTH") <= 6, "{errors}");
}

#[tokio::test]
async fn a_wrong_postgres_password_is_told_once() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = std::env::temp_dir().join(format!("fleet-hba-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let hba = dir.join("pg_hba.conf");
    std::fs::write(&hba, "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        .unwrap();
    let postgres = Postgres::builder()
        .setting("hba_file", hba.to_str().unwrap())
        .setting("log_connections", "on")
        .start()
        .await;
    std::fs::remove_dir_all(&dir).unwrap();
    let postgres = postgres.unwrap();
    let stage = Stage::on(&postgres, RedisServer::start().await.unwrap(), sim_config(1)).await;
    stage.world.execute("CREATE ROLE fleet LOGIN PASSWORD 'right'").await;
    for user in ["fleet:wrong", "nobody:wrong"] {
        let url = stage.world.url.replace("postgres@", &format!("{user}@"));
        let started = Instant::now();
        for command in [&["run"][..], &["migrate"], &["cloudpods", "nodes", "list"]] {
            let (code, text) = ends(stage.program(command, &[("DATABASE_URL", &url)])).await;
            assert_eq!(code, 77, "{command:?}: {text}");
            let line = text.lines().find(|line| line.starts_with("mpanel-worker: ")).unwrap();
            assert!(line.contains("DATABASE_URL"), "{command:?}: {line}");
            assert!(!text.contains("wrong"), "the password is shown: {text}");
        }
        assert!(started.elapsed() < FEW_SECONDS, "{:?}", started.elapsed());
    }
    // A role that may connect, but not read.
    let url = stage.world.url.replace("postgres@", "fleet:right@");
    let (code, text) = ends(stage.program(&["run"], &[("DATABASE_URL", &url)])).await;
    assert_eq!(code, 77, "{text}");
}

#[tokio::test]
async fn a_wrong_proxmox_secret_is_told_once() {
    let stage = Stage::new().await;
    let started = Instant::now();
    let secret = "00000000-0000-4000-8000-000000000000";
    let (code, text) = ends(stage.program(&["run"], &[("PROXMOX_TOKEN_SECRET", secret)])).await;
    assert_eq!(code, 77, "{text}");
    let line = text.lines().find(|line| line.starts_with("mpanel-worker: ")).unwrap();
    assert!(line.contains("PROXMOX_TOKEN_SECRET"), "{line}");
    assert!(!text.contains(secret), "{text}");
    assert!(started.elapsed() < FEW_SECONDS, "{:?}", started.elapsed());
    let refused = stage.world.sim.requests().iter().filter(|r| r.status == Some(401)).count();
    assert_eq!(refused, 1);
    // Another certificate than the pinned one is no better.
    let other = ["00"; 32].join(":");
    let (code, text) = ends(stage.program(&["run"], &[("PROXMOX_TLS_FINGERPRINT", &other)])).await;
    assert_eq!(code, 77, "{text}");
    assert!(text.contains("PROXMOX_TLS_FINGERPRINT"), "{text}");
}

#[tokio::test]
async fn settings_that_contradict_and_a_database_that_is_not_ready() {
    let stage = Stage::new().await;
    let (code, text) = ends(stage.program(&["run"], &[("REDIS_HOST", "10.9.8.7")])).await;
    assert_eq!(code, 78, "{text}");
    let port = stage.redis.port();
    assert!(text.contains("10.9.8.7:6379") && text.contains(&format!("127.0.0.1:{port}")), "{text}");
    let url = Postgres::shared().await.unwrap().mpanel_database().await.unwrap();
    let (code, text) = ends(stage.program(&["run"], &[("DATABASE_URL", &url)])).await;
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("`mpanel-worker migrate`"), "{text}");
    let missing = format!("{}_none", stage.world.url);
    let (code, text) = ends(stage.program(&["run"], &[("DATABASE_URL", &missing)])).await;
    assert_eq!(code, 78, "{text}");
    assert!(text.contains("DATABASE_URL"), "{text}");
}
