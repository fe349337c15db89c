//! Migrations on the database as mPanel left it: additive, repeatable, safe in
//! parallel, and refused where the database is not mPanel's.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use mpanel_testkit::Postgres;
use mpanel_worker::{
    adapters::db,
    config::database::connect_options,
    exit::{Exit, Failed},
    migrate,
};
use sqlx::{AssertSqlSafe, PgPool};

async fn mpanel() -> (sqlx::postgres::PgConnectOptions, PgPool) {
    let url = Postgres::shared().await.unwrap().mpanel_database().await.unwrap();
    let options = connect_options(&url).unwrap();
    (options.clone(), db::pool(options, 4))
}

/// Every column, constraint, index and trigger of tables that are not ours; extras of ours aside.
async fn foreign_shape(db: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT 'column ' || table_name || '.' || column_name || ' ' || data_type || ' ' || coalesce(column_default, '')
           FROM information_schema.columns
           WHERE table_schema = 'public' AND table_name NOT LIKE 'fleet%'
         UNION ALL SELECT 'constraint ' || conrelid::regclass || ' ' || conname FROM pg_constraint
           WHERE conrelid <> 0 AND conrelid::regclass::text NOT LIKE 'fleet%'
             AND connamespace = 'public'::regnamespace
         UNION ALL SELECT 'index ' || tablename || ' ' || indexdef FROM pg_indexes
           WHERE schemaname = 'public' AND tablename NOT LIKE 'fleet%' AND indexname NOT LIKE 'fleet%'
         UNION ALL SELECT 'trigger ' || tgrelid::regclass || ' ' || tgname FROM pg_trigger
           WHERE tgrelid::regclass::text NOT LIKE 'fleet%' AND NOT tgisinternal
             AND tgname NOT LIKE 'fleet%'
         ORDER BY 1",
    )
    .fetch_all(db)
    .await
    .unwrap()
}

#[tokio::test]
async fn mpanels_tables_are_left_as_they_were() {
    let (options, db) = mpanel().await;
    let before = foreign_shape(&db).await;
    assert_eq!(migrate::up(&options).await.unwrap(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(foreign_shape(&db).await, before);
    assert_eq!(migrate::up(&options).await.unwrap(), [0_i64; 0]);
    migrate::check_current(&db).await.unwrap();
    assert!(migrate::status(&options).await.unwrap().iter().all(|row| row.applied_at.is_some()));
}

#[tokio::test]
async fn the_phase_3_tables_are_made_where_they_are_missing() {
    let (options, db) = mpanel().await;
    let before = foreign_shape(&db).await;
    let drop =
        "DROP TABLE cloud_pod_allocations, cloud_pod_nodes, cloud_pod_metrics, monitoring_service_status,
                monitoring_slow_queries";
    sqlx::query(drop).execute(&db).await.unwrap();
    migrate::up(&options).await.unwrap();
    assert_eq!(foreign_shape(&db).await, before);
}

#[tokio::test]
async fn several_processes_at_once_migrate_once() {
    let (options, db) = mpanel().await;
    let results = futures_util::future::join_all((0..6).map(|_| migrate::up(&options))).await;
    let applied: usize = results.into_iter().map(|result| result.unwrap().len()).sum();
    assert_eq!(applied, migrate::status(&options).await.unwrap().len());
    migrate::check_current(&db).await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_not_mpanels_is_refused_and_left_alone() {
    let url = Postgres::shared().await.unwrap().database("empty").await.unwrap();
    let options = connect_options(&url).unwrap();
    let error = migrate::up(&options).await.unwrap_err();
    assert!(error.to_string().contains("not mPanel's database: tables tenants, cloud_pods"), "{error}");
    assert_eq!(Failed::from(error).exit, Exit::Configuration);
    let db = db::pool(options, 2);
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(tables, 0);
}

#[tokio::test]
async fn the_conflicting_variants_of_two_tables_are_refused_clearly() {
    let variants = [
        "DROP TABLE cloud_pod_events; CREATE TABLE cloud_pod_events (id uuid PRIMARY KEY, subscription_id uuid,
           event_type text, payload jsonb, triggered_by text, created_at timestamp)",
        "DROP TABLE cloud_pod_backups; CREATE TABLE cloud_pod_backups (id uuid PRIMARY KEY, subscription_id uuid,
           backup_path text)",
    ];
    for variant in variants {
        let (options, db) = mpanel().await;
        sqlx::raw_sql(AssertSqlSafe(variant.to_owned())).execute(&db).await.unwrap();
        let error = migrate::up(&options).await.unwrap_err();
        assert!(error.to_string().contains("20251128_cloud_pods.sql"), "{error}");
        assert_eq!(Failed::from(error).exit, Exit::Precondition);
    }
}

#[tokio::test]
async fn work_does_not_begin_before_the_migrations() {
    let (_, db) = mpanel().await;
    let error = migrate::check_current(&db).await.unwrap_err();
    assert!(error.to_string().contains("run `mpanel-worker migrate` first"), "{error}");
    assert_eq!(Failed::from(error).exit, Exit::Precondition);
}

#[tokio::test]
async fn the_views_show_the_documents_words_with_all_columns() {
    let (_, db) = common::database().await;
    let columns = |table: &'static str| {
        let db = db.clone();
        async move {
            sqlx::query_scalar::<_, Vec<String>>(
                "SELECT array_agg(column_name::text ORDER BY ordinal_position) FROM information_schema.columns
                 WHERE table_name = $1",
            )
            .bind(table)
            .fetch_one(&db)
            .await
            .unwrap()
        }
    };
    assert_eq!(columns("fleet_cloud_pods").await, columns("cloud_pods").await);
    assert_eq!(columns("fleet_cloud_pod_jobs").await, columns("cloud_pod_jobs").await);
}

/// The names of our extras on mPanel's tables.
async fn extras(db: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT indexname::text FROM pg_indexes WHERE tablename = 'cloud_pod_jobs' AND indexname LIKE 'fleet%'
         UNION ALL SELECT tgname::text FROM pg_trigger WHERE tgrelid = 'cloud_pod_jobs'::regclass AND tgname LIKE 'fleet%'
         ORDER BY 1",
    )
    .fetch_all(db)
    .await
    .unwrap()
}

#[tokio::test]
async fn extras_on_mpanels_tables_are_made_where_the_role_may_and_missed_nowhere() {
    let (options, db) = mpanel().await;
    // Everything that the fleet needs, and none of mPanel's tables its own.
    let name = format!("fleet_{}", uuid::Uuid::new_v4().simple());
    for statement in [
        format!("CREATE ROLE {name} LOGIN"),
        format!("GRANT USAGE, CREATE ON SCHEMA public TO {name}"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE, REFERENCES ON ALL TABLES IN SCHEMA public TO {name}"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&db).await.unwrap();
    }
    migrate::up(&options.clone().username(&name)).await.unwrap();
    migrate::check_current(&db).await.unwrap();
    assert_eq!(extras(&db).await, [""; 0]);
    // Who owns the tables makes them, once.
    for _ in 0..2 {
        migrate::up(&options).await.unwrap();
        assert_eq!(extras(&db).await, ["fleet_cloud_pod_jobs_bull", "fleet_queued_row"]);
    }
}
