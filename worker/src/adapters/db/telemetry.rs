//! Telemetry's ticks, services and figures: mPanel's `monitoring_service_status`
//! and our side tables. Slow queries are in [`super::slow_queries`], queues in [`super::queue_samples`], what keeps
//! the tables bounded in [`super::telemetry_upkeep`].

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgPool};

use super::{Attempted, DbError, Tx};

/// A tick as it is booked.
#[derive(Debug, Clone, Copy)]
pub struct TickRow<'a> {
    /// Whose.
    pub collector: &'a str,
    /// When it was due.
    pub at: DateTime<Utc>,
    /// Whether its rows are written with it; `false`: it was passed over.
    pub written: bool,
    /// How long collecting took.
    pub took: Duration,
    /// What could not be collected, or why it was passed over.
    pub problem: Option<&'a str>,
}

/// Whether a tick is booked already.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn is_booked(pool: &PgPool, collector: &str, at: DateTime<Utc>) -> Result<bool, DbError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM fleet_telemetry_collections WHERE collector = $1 AND tick_at = $2)",
    )
    .bind(collector)
    .bind(at)
    .fetch_one(pool)
    .await
    .attempting("look whether the tick was written")
}

/// Lets one transaction of a collector write at a time, and tells its newest
/// tick that was written.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn lock(tx: &mut Tx, collector: &str) -> Result<Option<DateTime<Utc>>, DbError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('fleet telemetry ' || $1, 0))")
        .bind(collector)
        .execute(&mut **tx)
        .await
        .attempting("wait for the other writers of the collector")?;
    sqlx::query_scalar(
        "SELECT max(tick_at) FROM fleet_telemetry_collections WHERE collector = $1 AND outcome = 'written'",
    )
    .bind(collector)
    .fetch_one(&mut **tx)
    .await
    .attempting("find the collector's newest tick")
}

/// Books a tick. `false`: it is booked already, and nothing may be written for it.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn book(tx: &mut Tx, tick: &TickRow<'_>) -> Result<bool, DbError> {
    sqlx::query(
        "INSERT INTO fleet_telemetry_collections (collector, tick_at, outcome, took_ms, problem)
         VALUES ($1, $2, CASE WHEN $3 THEN 'written' ELSE 'skipped' END, $4, $5)
         ON CONFLICT (collector, tick_at) DO NOTHING",
    )
    .bind(tick.collector)
    .bind(tick.at)
    .bind(tick.written)
    .bind(i32::try_from(tick.took.as_millis()).unwrap_or(i32::MAX))
    .bind(tick.problem)
    .execute(&mut **tx)
    .await
    .attempting("book the tick")
    .map(|done| done.rows_affected() == 1)
}

/// What stands behind a service's newest row.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct ServiceRow {
    /// Its name.
    pub service_name: String,
    /// What is held to be true.
    pub status: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Failures in a row.
    pub failures: i32,
    /// Successes in a row.
    pub successes: i32,
    /// The last results.
    pub recent: String,
    /// Why it is not up.
    pub why: Option<String>,
    /// Of the newest result.
    pub latency_ms: Option<i32>,
    /// The newest tick.
    pub tick_at: DateTime<Utc>,
    /// The tick of the newest row.
    pub row_at: DateTime<Utc>,
}

const SERVICE: &str = "SELECT service_name, status, since, failures, successes, recent, why, latency_ms,
                              tick_at, row_at FROM fleet_telemetry_services";

/// What is known of these services.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn services(tx: &mut Tx, names: &[String]) -> Result<Vec<ServiceRow>, DbError> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{SERVICE} WHERE service_name = ANY($1)")))
        .bind(names)
        .fetch_all(&mut **tx)
        .await
        .attempting("read the services' states")
}

/// What is known of all services, by name.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn all_services(pool: &PgPool) -> Result<Vec<ServiceRow>, DbError> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{SERVICE} ORDER BY service_name")))
        .fetch_all(pool)
        .await
        .attempting("read the services' states")
}

/// Writes states, and the rows of those whose `row_at` is their tick.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn write_services(tx: &mut Tx, rows: &[ServiceRow]) -> Result<u64, DbError> {
    let names: Vec<&str> = rows.iter().map(|row| row.service_name.as_str()).collect();
    let statuses: Vec<&str> = rows.iter().map(|row| row.status.as_str()).collect();
    let recent: Vec<&str> = rows.iter().map(|row| row.recent.as_str()).collect();
    let whys: Vec<Option<&str>> = rows.iter().map(|row| row.why.as_deref()).collect();
    let since: Vec<DateTime<Utc>> = rows.iter().map(|row| row.since).collect();
    let ticks: Vec<DateTime<Utc>> = rows.iter().map(|row| row.tick_at).collect();
    let row_ats: Vec<DateTime<Utc>> = rows.iter().map(|row| row.row_at).collect();
    let failures: Vec<i32> = rows.iter().map(|row| row.failures).collect();
    let successes: Vec<i32> = rows.iter().map(|row| row.successes).collect();
    let latencies: Vec<Option<i32>> = rows.iter().map(|row| row.latency_ms).collect();
    sqlx::query(
        "INSERT INTO fleet_telemetry_services
           (service_name, status, since, failures, successes, recent, why, latency_ms, tick_at, row_at)
         SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::int[], $5::int[], $6::text[],
                              $7::text[], $8::int[], $9::timestamptz[], $10::timestamptz[])
         ON CONFLICT (service_name) DO UPDATE
         SET status = EXCLUDED.status, since = EXCLUDED.since, failures = EXCLUDED.failures,
             successes = EXCLUDED.successes, recent = EXCLUDED.recent, why = EXCLUDED.why,
             latency_ms = EXCLUDED.latency_ms, tick_at = EXCLUDED.tick_at, row_at = EXCLUDED.row_at",
    )
    .bind(&names)
    .bind(&statuses)
    .bind(&since)
    .bind(&failures)
    .bind(&successes)
    .bind(&recent)
    .bind(&whys)
    .bind(&latencies)
    .bind(&ticks)
    .bind(&row_ats)
    .execute(&mut **tx)
    .await
    .attempting("write the services' states")?;
    sqlx::query(
        "INSERT INTO monitoring_service_status (service_name, status, latency_ms, checked_at)
         SELECT n, s, CASE WHEN s <> 'down' THEN l END, timezone('utc', t)
         FROM unnest($1::text[], $2::text[], $3::int[], $4::timestamptz[], $5::timestamptz[]) AS v(n, s, l, t, r)
         WHERE t = r",
    )
    .bind(&names)
    .bind(&statuses)
    .bind(&latencies)
    .bind(&ticks)
    .bind(&row_ats)
    .execute(&mut **tx)
    .await
    .attempting("write the services' status rows")
    .map(|done| done.rows_affected())
}

/// A figure as it is kept: the newest value and the one before.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct SampleRow {
    /// What it is.
    pub metric: String,
    /// Of what.
    pub subject: String,
    /// The newest value.
    pub value: f64,
    /// Its tick.
    pub tick_at: DateTime<Utc>,
    /// The value before.
    pub before: Option<f64>,
    /// Its tick.
    pub before_at: Option<DateTime<Utc>>,
}

/// The newest figures, by metric and subject.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn samples(pool: &PgPool) -> Result<Vec<SampleRow>, DbError> {
    sqlx::query_as(
        "SELECT metric, subject, value, tick_at, before, before_at FROM fleet_telemetry_samples
         ORDER BY metric, subject",
    )
    .fetch_all(pool)
    .await
    .attempting("read the newest figures")
}

/// Writes figures of a tick: metrics, subjects and values side by side.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn write_samples(
    tx: &mut Tx,
    at: DateTime<Utc>,
    metrics: &[&str],
    subjects: &[&str],
    values: &[f64],
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO fleet_telemetry_samples (metric, subject, value, tick_at)
         SELECT DISTINCT ON (m, s) m, s, v, $4
         FROM unnest($1::text[], $2::text[], $3::float8[]) AS x(m, s, v)
         ON CONFLICT (metric, subject) DO UPDATE
         SET before = fleet_telemetry_samples.value, before_at = fleet_telemetry_samples.tick_at,
             value = EXCLUDED.value, tick_at = EXCLUDED.tick_at",
    )
    .bind(metrics)
    .bind(subjects)
    .bind(values)
    .bind(at)
    .execute(&mut **tx)
    .await
    .attempting("write the figures")
    .map(|_| ())
}
