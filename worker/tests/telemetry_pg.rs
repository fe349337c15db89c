//! Postgres seen by telemetry: slow statements counted exactly, across resets
//! and evictions; nothing secret stored; missing extension and rights explained.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::telemetry::Watch;
use mpanel_testkit::Postgres;
use mpanel_worker::services::telemetry::clock::{Collector, Tick};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// Every row: text, calls, and whether the mean is at least so many ms.
async fn slow(watch: &Watch, mean_ms: u32) -> String {
    watch
        .one(&format!(
            "SELECT string_agg(sample_query || ' ' || calls || ' ' || (avg_duration_ms >= {mean_ms}), '; '
                               ORDER BY sample_query) FROM monitoring_slow_queries"
        ))
        .await
}

async fn with_extension(settings: &[(&str, &str)]) -> (Postgres, Watch) {
    let postgres = Postgres::builder()
        .setting("shared_preload_libraries", "pg_stat_statements")
        .setting("pg_stat_statements.max", "200")
        .start()
        .await
        .unwrap();
    let watch = Watch::on(&postgres, settings).await;
    watch.execute("CREATE EXTENSION pg_stat_statements").await;
    (postgres, watch)
}

/// The workload's own session.
struct Session(PgConnection);

impl Session {
    async fn open(watch: &Watch) -> Self {
        let mut connection = PgConnection::connect(&watch.url).await.unwrap();
        sqlx::raw_sql("CREATE TABLE IF NOT EXISTS work (id int, word text)")
            .execute(&mut connection)
            .await
            .unwrap();
        Self(connection)
    }

    async fn run(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.0).await.unwrap();
    }
}

/// Only what is slow by itself, so that the tests' own statements are not told of.
const BY_MEAN: (&str, &str) = ("MPANEL_FLEET_TELEMETRY__SLOW_QUERY_MS", "40");
const ROWS: &str = "SELECT count(*) FROM monitoring_slow_queries WHERE sample_query LIKE '%work%'";

#[tokio::test]
async fn calls_are_counted_exactly_across_ticks_resets_and_evictions() {
    let (_postgres, watch) = with_extension(&[BY_MEAN]).await;
    let mut session = Session::open(&watch).await;
    let work = |n: u32| format!("SELECT pg_sleep(0.05), {n} FROM (SELECT 1) work");
    session.run(&work(0)).await;
    // What was before the first tick is not of the window.
    watch.tick(Collector::Pg).await;
    assert_eq!(watch.one(ROWS).await, "0");
    for n in 0..3 {
        session.run(&work(n)).await;
    }
    watch.tick(Collector::Pg).await;
    let row = "SELECT string_agg(calls || ' ' || (avg_duration_ms BETWEEN 50 AND 500), ';')
               FROM monitoring_slow_queries WHERE sample_query LIKE '%work%'";
    assert_eq!(watch.one(row).await, "3 true");
    // Nothing happened, and then a reset with fewer calls after it than before.
    watch.tick(Collector::Pg).await;
    assert_eq!(watch.one(row).await, "3 true");
    watch.execute("SELECT pg_stat_statements_reset()").await;
    session.run(&work(7)).await;
    watch.tick(Collector::Pg).await;
    assert_eq!(watch.one(row).await, "4 true");
    // More statements than there is room for: the entry goes, and comes back.
    for n in 0..400 {
        session.run(&format!("SELECT {} FROM work", "id, ".repeat(n % 350 + 1) + "1")).await;
    }
    watch.tick(Collector::Pg).await;
    assert!(watch.figure("pg_statement_evictions_total", "").await.unwrap() > 0.0);
    for n in 0..2 {
        session.run(&work(n)).await;
    }
    watch.tick(Collector::Pg).await;
    assert_eq!(watch.one(row).await, "6 true");
    let seen = "SELECT bool_and(last_seen_at > '2027-01-15') FROM monitoring_slow_queries";
    assert_eq!(watch.one(seen).await, "true");
}

#[tokio::test]
async fn two_ticks_at_once_count_nothing_twice() {
    let (_postgres, watch) = with_extension(&[BY_MEAN]).await;
    let other = watch.another(&[BY_MEAN]);
    let mut session = Session::open(&watch).await;
    session.run("SELECT pg_sleep(0.05) FROM (SELECT 1) work").await;
    watch.tick(Collector::Pg).await;
    let mut ran = 0;
    for _ in 0..6 {
        session.run("SELECT pg_sleep(0.05) FROM (SELECT 1) work").await;
        ran += 1;
        let first = watch.due(Collector::Pg);
        let second = Tick { due_ms: first.due_ms + 1, ..first };
        let (one, two) = tokio::join!(watch.service.tick(first), other.tick(second));
        // As the job would: again.
        for (done, tick) in [(one, first), (two, second)] {
            if done.is_err() {
                watch.service.tick(tick).await.unwrap();
            }
        }
        watch.set_clock(first.due_ms + 2000);
    }
    let calls = "SELECT sum(d.calls) FROM fleet_telemetry_query_deltas d
                 JOIN monitoring_slow_queries q USING (query_hash) WHERE q.sample_query LIKE '%work%'";
    watch.tick(Collector::Pg).await;
    assert_eq!(watch.one(calls).await, ran.to_string());
}

#[tokio::test]
async fn no_secret_reaches_a_table() {
    let (_postgres, watch) = with_extension(&[("MPANEL_FLEET_TELEMETRY__SLOW_QUERY_MS", "1")]).await;
    let mut session = Session::open(&watch).await;
    watch.tick(Collector::Pg).await;
    // On Postgres 15 all of these are kept as they were typed.
    for sql in [
        "CREATE ROLE hidden LOGIN PASSWORD 'hunter2'",
        "ALTER ROLE hidden PASSWORD 'hunter2'",
        "DO $$ BEGIN PERFORM pg_sleep(0.02), 'hunter2'; END $$",
        "SET application_name = 'hunter2'",
        "COPY (SELECT pg_sleep(0.02), 'hunter2') TO '/dev/null'",
        "SELECT pg_sleep(0.02) /* hunter2 */ FROM (SELECT 'hunter2') work -- hunter2",
    ] {
        session.run(sql).await;
    }
    watch.tick(Collector::Pg).await;
    let texts = watch.one("SELECT string_agg(sample_query, '; ') FROM monitoring_slow_queries").await;
    assert!(texts.contains("work") && texts.contains("DO …") && texts.contains("COPY …"), "{texts}");
    for table in [
        "monitoring_slow_queries",
        "monitoring_service_status",
        "fleet_telemetry_services",
        "fleet_telemetry_baselines",
        "fleet_telemetry_collections",
    ] {
        let found = watch.one(&format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%hunter%'")).await;
        assert_eq!(found, "0", "{table}");
    }
    assert!(!texts.contains("mpanel-telemetry") && !texts.contains("fleet_telemetry"), "{texts}");
}

#[tokio::test]
async fn variants_are_one_row_and_the_server_is_told_of() {
    let (_postgres, watch) = with_extension(&[BY_MEAN]).await;
    let mut session = Session::open(&watch).await;
    watch.tick(Collector::Pg).await;
    session.run("SELECT pg_sleep(0.05) FROM (SELECT 1 id) work WHERE id IN (1, 2)").await;
    session.run("SELECT pg_sleep(0.05) FROM (SELECT 1 id) work WHERE id IN (1, 2, 3)").await;
    watch.tick(Collector::Pg).await;
    let found = slow(&watch, 50).await;
    assert_eq!(found, "SELECT pg_sleep(…) FROM (SELECT $2 id) work WHERE id IN (…) 2 true");
    assert_eq!(watch.statuses("postgres-core").await, "up up");
    assert!(watch.figure("pg_clients", "").await.unwrap() >= 2.0);
    assert!(watch.figure("pg_database_bytes", "").await.unwrap() > 1_000_000.0);
    assert_eq!(watch.figure("telemetry_collector_up", "pg").await, Some(1.0));
    assert_eq!(watch.statuses("telemetry-pg").await, "-");
}

#[tokio::test]
async fn a_missing_extension_is_no_trouble_and_missing_rights_are() {
    let watch = Watch::new(&[]).await;
    watch.tick(Collector::Pg).await;
    assert_eq!(watch.statuses("postgres-core").await, "up");
    assert_eq!(watch.statuses("telemetry-pg").await, "-");

    let (_postgres, watch) = with_extension(&[]).await;
    watch.execute("CREATE ROLE nobody LOGIN; GRANT CONNECT ON DATABASE mpanel_0 TO nobody").await;
    let url = watch.url.replace("postgres@", "nobody@");
    let service = watch.another(&[("MPANEL_FLEET_TELEMETRY__PG_URL", &url)]);
    service.tick(watch.due(Collector::Pg)).await.unwrap();
    assert_eq!(watch.statuses("telemetry-pg").await, "degraded");
    assert!(watch.why("telemetry-pg").await.contains("GRANT pg_monitor"));
    assert_eq!(watch.statuses("postgres-core").await, "up");
}

#[tokio::test]
async fn a_server_that_is_away_is_down_and_found_again() {
    let (other, seen) = with_extension(&[]).await;
    let watch = Watch::new(&[("MPANEL_FLEET_TELEMETRY__PG_URL", &seen.url)]).await;
    watch.tick(Collector::Pg).await;
    other.stop().await.unwrap();
    for _ in 0..3 {
        watch.tick(Collector::Pg).await;
    }
    assert_eq!(watch.statuses("postgres-core").await, "up up up down");
    other.restart().await.unwrap();
    for _ in 0..2 {
        watch.tick(Collector::Pg).await;
    }
    assert_eq!(watch.statuses("postgres-core").await, "up up up down down up");
}
