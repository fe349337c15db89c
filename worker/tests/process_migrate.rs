//! `mpanel-worker migrate` as a process: at once, again, and beside what is there.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::stage::{ends, program};
use mpanel_testkit::Postgres;
use mpanel_worker::{adapters::db, config::database::connect_options};
use sqlx::PgPool;

async fn mpanel() -> (String, PgPool) {
    let url = Postgres::shared().await.unwrap().mpanel_database().await.unwrap();
    let db = db::pool(connect_options(&url).unwrap(), 4);
    (url, db)
}

async fn migrate(url: &str, args: &[&str]) -> (i32, String) {
    let args: Vec<&str> = ["migrate"].iter().chain(args).copied().collect();
    let process = program(&args).env("DATABASE_URL", url).start().unwrap();
    let status = process.wait(common::stage::SOON).await.unwrap();
    let text = process.lines().iter().map(|line| format!("{}\n", line.text)).collect();
    (status.code().unwrap_or(-1), text)
}

/// Everything there is to mPanel's tables: columns with types, defaults and nullability,
/// constraints, indexes, triggers, comments, owners, privileges. The index and the trigger that
/// are ours, and optional, are not theirs.
async fn shape(db: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "WITH theirs AS (SELECT c.oid, c.relname, c.relowner, c.relacl, c.relrowsecurity, c.reloptions
           FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
             AND c.relname NOT LIKE 'fleet%')
         SELECT concat_ws(' ', 'table', relname, relowner, relacl::text, relrowsecurity, reloptions::text) FROM theirs
         UNION ALL SELECT concat_ws(' ', 'column', relname, attnum, attname, format_type(atttypid, atttypmod),
             attnotnull, pg_get_expr(adbin, adrelid), col_description(theirs.oid, attnum))
           FROM theirs JOIN pg_attribute ON attrelid = theirs.oid AND attnum > 0
           LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
         UNION ALL SELECT concat_ws(' ', 'constraint', relname, conname, pg_get_constraintdef(con.oid))
           FROM theirs JOIN pg_constraint con ON conrelid = theirs.oid
         UNION ALL SELECT concat_ws(' ', 'index', relname, pg_get_indexdef(indexrelid))
           FROM theirs JOIN pg_index ON indrelid = theirs.oid
           WHERE indexrelid::regclass::text NOT LIKE 'fleet%'
         UNION ALL SELECT concat_ws(' ', 'trigger', relname, pg_get_triggerdef(t.oid))
           FROM theirs JOIN pg_trigger t ON tgrelid = theirs.oid AND NOT tgisinternal
           WHERE tgname NOT LIKE 'fleet%'
         UNION ALL SELECT concat_ws(' ', 'extension', extname) FROM pg_extension
         ORDER BY 1",
    )
    .fetch_all(db)
    .await
    .unwrap()
}

#[tokio::test]
async fn four_processes_at_once_then_once_more_and_mpanels_tables_are_as_before() {
    let (url, db) = mpanel().await;
    sqlx::query("INSERT INTO tenants (id, name, domain, slug, updated_at) VALUES (gen_random_uuid(), 'A', 'a', 'a', now())")
        .execute(&db)
        .await
        .unwrap();
    let before = shape(&db).await;
    assert!(before.len() > 200, "{} facts", before.len());
    let results = futures_util::future::join_all((0..4).map(|_| migrate(&url, &[]))).await;
    let mut applied = 0;
    for (code, text) in &results {
        assert_eq!(*code, 0, "{text}");
        applied += usize::from(text.contains("applied migration"));
    }
    assert_eq!(applied, 1, "{results:?}");
    let (code, text) = migrate(&url, &["up"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("nothing to do"), "{text}");
    assert_eq!(shape(&db).await, before);
    let (code, text) = migrate(&url, &["status"]).await;
    assert_eq!(code, 0, "{text}");
    let foreign: Vec<String> = sqlx::query_scalar(
        "SELECT conname::text FROM pg_constraint WHERE contype = 'f' AND conrelid::regclass::text LIKE 'fleet%'
           AND confrelid::regclass::text NOT LIKE 'fleet%'",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    assert!(foreign.is_empty(), "a key on mPanel's table would keep it from changing: {foreign:?}");
}

#[tokio::test]
async fn the_phase_3_tables_are_made_the_same_where_mpanel_has_none() {
    let (url, db) = mpanel().await;
    let before = shape(&db).await;
    sqlx::query(
        "DROP TABLE cloud_pod_allocations, cloud_pod_nodes, cloud_pod_metrics, monitoring_service_status,
           monitoring_slow_queries",
    )
    .execute(&db)
    .await
    .unwrap();
    let (code, text) = migrate(&url, &["status"]).await;
    assert_eq!(code, 4, "{text}");
    let results = futures_util::future::join_all((0..4).map(|_| migrate(&url, &[]))).await;
    assert!(results.iter().all(|(code, _)| *code == 0), "{results:?}");
    assert_eq!(shape(&db).await, before);
}

#[tokio::test]
async fn another_database_is_refused_by_the_program_and_left_alone() {
    let url = Postgres::shared().await.unwrap().database("empty").await.unwrap();
    let (code, text) = ends(program(&["migrate"]).env("DATABASE_URL", &url)).await;
    assert_eq!(code, 78, "{text}");
    assert!(text.contains("not mPanel's database"), "{text}");
    let db = db::pool(connect_options(&url).unwrap(), 2);
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace")
            .fetch_one(&db)
            .await
            .unwrap();
    assert_eq!(tables, 0);
}
