//! The private Postgres: databases, mPanel's schema, durability switch, restart.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use mpanel_testkit::{Postgres, TestkitError};
use sqlx::{Connection, PgConnection, Row};

async fn value(url: &str, sql: &'static str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let row = sqlx::query(sql).fetch_one(&mut connection).await.unwrap();
    row.get(0)
}

const TABLES: &str = "SELECT count(*)::text FROM information_schema.tables WHERE table_schema = 'public'";

#[tokio::test]
async fn mpanel_s_database_has_its_28_tables_and_no_rows() {
    let postgres = Postgres::shared().await.unwrap();
    let url = postgres.mpanel_database().await.unwrap();
    assert_eq!(value(&url, TABLES).await, "28");
    assert_eq!(value(&url, "SELECT count(*)::text FROM tenants").await, "0");
    assert_eq!(value(&url, "SELECT length(uuid_generate_v4()::text)::text").await, "36");
}

#[tokio::test]
async fn each_database_is_its_own() {
    let postgres = Postgres::shared().await.unwrap();
    let (one, two) = tokio::join!(postgres.mpanel_database(), postgres.mpanel_database());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one, two);
    let mut connection = PgConnection::connect(&one).await.unwrap();
    sqlx::raw_sql("CREATE TABLE only_here ()").execute(&mut connection).await.unwrap();
    assert_eq!((value(&one, TABLES).await, value(&two, TABLES).await), ("29".into(), "28".into()));
    let empty = postgres.database("Empty").await.unwrap();
    assert!(empty.contains("/empty_"), "{empty}");
    assert_eq!(value(&empty, TABLES).await, "0");
}

#[tokio::test]
async fn durable_writes_survive_a_crash_and_a_restart() {
    let postgres = Postgres::builder().fsync(true).setting("work_mem", "1MB").start().await.unwrap();
    let url = postgres.database("crash").await.unwrap();
    assert_eq!(value(&url, "SHOW fsync").await, "on");
    assert_eq!(value(&url, "SHOW work_mem").await, "1MB");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let sql = "CREATE TABLE t (v text); INSERT INTO t VALUES ('kept')";
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    postgres.crash().await.unwrap();
    assert!(PgConnection::connect(&url).await.is_err());
    postgres.restart().await.unwrap();
    assert_eq!(value(&url, "SELECT v FROM t").await, "kept");
    postgres.restart().await.unwrap();
    assert_eq!(value(&url, "SELECT v FROM t").await, "kept");
}

#[tokio::test]
async fn tests_run_without_fsync_unless_they_ask_for_it() {
    let postgres = Postgres::shared().await.unwrap();
    let url = postgres.database("speed").await.unwrap();
    assert_eq!(value(&url, "SHOW fsync").await, "off");
}

#[tokio::test]
async fn a_wrong_setting_is_reported_with_the_server_s_own_words() {
    let error = Postgres::builder().setting("max_connections", "plenty").start().await.unwrap_err();
    assert!(matches!(error, TestkitError::Failed { .. }));
    assert!(error.to_string().contains("max_connections"), "{error}");
}
