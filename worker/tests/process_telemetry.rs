//! The program serves the telemetry queue: it makes its own ticks, shares them
//! with other workers, goes on after one dies, and says when Redis is away.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::time::Duration;

use common::{
    database_on,
    stage::{SOON, program},
    telemetry::{Answer, Page},
};
use mpanel_testkit::{BullVersion, NodeSidecar, Postgres, RedisServer, WorkerProcess, eventually};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};

struct Setting {
    url: String,
    db: PgPool,
    redis: RedisServer,
    page: Page,
}

impl Setting {
    async fn new() -> Self {
        Self::on(Postgres::shared().await.unwrap()).await
    }

    async fn on(postgres: &Postgres) -> Self {
        let (url, db) = database_on(postgres).await;
        let redis = RedisServer::start().await.unwrap();
        let page = Page::serve(Answer::page("200 OK", "fine")).await;
        Self { url, db, redis, page }
    }

    async fn worker(&self) -> WorkerProcess {
        // No Proxmox: telemetry does without.
        let worker = program(&["run", "--queues", "telemetry-collect"])
            .env("DATABASE_URL", &self.url)
            .env("REDIS_URL", self.redis.url())
            .env("TELEMETRY_INTERVAL_SECONDS", "2")
            .env("NODE_MPANEL_CORE_URL", self.page.url())
            .env("MPANEL_FLEET_RUN__LOCK_MS", "2000")
            .env("MPANEL_FLEET_RUN__STALLED_MS", "1000")
            .start()
            .unwrap();
        worker.wait_line(" ready ", SOON).await.unwrap();
        worker
    }

    async fn one(&self, sql: &str) -> String {
        let sql = format!("SELECT COALESCE((SELECT ({sql})::text), '-')");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.db).await.unwrap()
    }

    async fn until(&self, sql: &str, wanted: &str, within: Duration) {
        eventually(sql, within, || async {
            let found = self.one(sql).await;
            if found == wanted { Ok(()) } else { Err(found) }
        })
        .await
        .unwrap();
    }
}

const SERVICES: &str = "SELECT string_agg(DISTINCT service_name, ' ' ORDER BY service_name)
                        FROM monitoring_service_status WHERE status = 'up'";
const TWICE: &str = "SELECT count(*) FROM (SELECT 1 FROM monitoring_service_status
                     GROUP BY service_name, checked_at HAVING count(*) > 1) x";

#[tokio::test]
async fn workers_make_ticks_share_them_and_go_on_when_one_dies() {
    let setting = Setting::new().await;
    let first = setting.worker().await;
    let _second = setting.worker().await;
    setting.until(SERVICES, "mpanel-core postgres-core redis-core", SOON).await;
    // Node sees the schedulers, each once.
    let node = NodeSidecar::start(&setting.redis.url()).await.unwrap();
    let queue = node.queue(BullVersion::V5, "telemetry-collect");
    let schedulers = queue.queue_call("getJobSchedulers", vec![json!(0), json!(-1)]).await.unwrap();
    let mut ids: Vec<&str> =
        schedulers.as_array().unwrap().iter().map(|scheduler| scheduler["key"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["health", "pg", "queues", "redis"]);
    // The clock of ticks goes on without the one, and nothing is written twice.
    first.kill9();
    let at = setting.one("SELECT max(tick_at) FROM fleet_telemetry_collections").await;
    let since = format!(
        "SELECT count(DISTINCT tick_at) > 3 FROM fleet_telemetry_collections
         WHERE collector = 'health' AND outcome = 'written' AND tick_at > '{at}'"
    );
    setting.until(&since, "true", SOON).await;
    assert_eq!(setting.one(TWICE).await, "0");
    // Ticks keep their distance.
    let gaps = "SELECT bool_and(g >= interval '2 s') FROM (
                  SELECT tick_at - lag(tick_at) OVER (ORDER BY tick_at) AS g FROM fleet_telemetry_collections
                  WHERE collector = 'health') x WHERE g IS NOT NULL";
    assert_eq!(setting.one(gaps).await, "true");
}

#[tokio::test]
async fn a_redis_that_is_away_is_down_in_the_panel_and_nothing_piles_up() {
    let setting = Setting::new().await;
    let _worker = setting.worker().await;
    setting.until(SERVICES, "mpanel-core postgres-core redis-core", SOON).await;
    setting.redis.stop().await.unwrap();
    let newest = "SELECT status FROM monitoring_service_status WHERE service_name = 'redis-core'
                  ORDER BY checked_at DESC LIMIT 1";
    setting.until(newest, "down", Duration::from_secs(60)).await;
    let before =
        setting.one("SELECT count(*) FROM fleet_telemetry_collections WHERE collector = 'health'").await;
    setting.redis.restart().await.unwrap();
    setting.until(newest, "up", Duration::from_secs(60)).await;
    let after =
        setting.one("SELECT count(*) FROM fleet_telemetry_collections WHERE collector = 'health'").await;
    // At most the tick that was waiting, and those since.
    let (before, after): (u32, u32) = (before.parse().unwrap(), after.parse().unwrap());
    assert!(after - before <= 12, "{before} {after}");
    assert_eq!(setting.one(TWICE).await, "0");
}

#[tokio::test]
async fn a_postgres_that_is_away_is_told_once_and_ticks_go_on() {
    let postgres = Postgres::start().await.unwrap();
    let setting = Setting::on(&postgres).await;
    let worker = setting.worker().await;
    setting.until(SERVICES, "mpanel-core postgres-core redis-core", SOON).await;
    postgres.stop().await.unwrap();
    worker.wait_line("the tick is not written", Duration::from_secs(60)).await.unwrap();
    let asked = setting.page.asked();
    let node = NodeSidecar::start(&setting.redis.url()).await.unwrap();
    let queue = node.queue(BullVersion::V5, "telemetry-collect");
    // Several ticks go by.
    let before = queue.counts(&["completed"]).await.unwrap()["completed"];
    eventually("ticks that are given up", Duration::from_secs(90), || async {
        let now = queue.counts(&["completed"]).await.unwrap()["completed"];
        if now >= 20.min(before + 5) { Ok(()) } else { Err(format!("{now} of {before}")) }
    })
    .await
    .unwrap();
    postgres.restart().await.unwrap();
    eventually("the page is looked at again", Duration::from_secs(60), || async {
        let now = setting.page.asked();
        if now > asked + 1 { Ok(()) } else { Err(now.to_string()) }
    })
    .await
    .unwrap();
    let told = worker.lines().iter().filter(|line| line.text.contains("the tick is not written")).count();
    assert!((1..=4).contains(&told), "said {told} times");
    assert_eq!(queue.counts(&["failed"]).await.unwrap()["failed"], 0);
    assert_eq!(setting.one(TWICE).await, "0");
}

#[tokio::test]
async fn schedulers_that_were_removed_come_back() {
    let setting = Setting::new().await;
    let _worker = setting.worker().await;
    setting.until(SERVICES, "mpanel-core postgres-core redis-core", SOON).await;
    let node = NodeSidecar::start(&setting.redis.url()).await.unwrap();
    let queue = node.queue(BullVersion::V5, "telemetry-collect");
    queue.queue_call("removeJobScheduler", vec![json!("health")]).await.unwrap();
    eventually("the scheduler", SOON, || async {
        let found = queue.queue_call("getJobScheduler", vec![json!("health")]).await.unwrap();
        if found["every"] == 2000 { Ok(()) } else { Err(found.to_string()) }
    })
    .await
    .unwrap();
}
