//! What keeps telemetry's tables bounded. Each step deletes one batch by an
//! index and says how many rows it was, so that it holds no lock for long.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgPool};

use super::{Attempted, DbError, slow_queries::interval};

/// Rows in a batch.
const BATCH: i64 = 5000;

/// Takes the upkeep, when nobody did since `every`.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn take(pool: &PgPool, at: DateTime<Utc>, every: Duration) -> Result<bool, DbError> {
    sqlx::query(
        "INSERT INTO fleet_telemetry_upkeep (what, done_at) VALUES ('all', $1)
         ON CONFLICT (what) DO UPDATE SET done_at = EXCLUDED.done_at
         WHERE fleet_telemetry_upkeep.done_at <= EXCLUDED.done_at - $2",
    )
    .bind(at)
    .bind(interval(every))
    .execute(pool)
    .await
    .attempting("take the upkeep of telemetry's tables")
    .map(|done| done.rows_affected() == 1)
}

/// Turns a batch of status rows from before `limit` into hours. A row is
/// counted in the statement that deletes it: never twice, never not at all.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn status_to_hours(pool: &PgPool, limit: DateTime<Utc>) -> Result<u64, DbError> {
    // No index begins with the time. Ids grow with it, so only the lowest are looked at.
    sqlx::query_scalar::<_, i64>(
        "WITH oldest AS (
           SELECT id, checked_at FROM monitoring_service_status ORDER BY id LIMIT $2
         ), gone AS (
           DELETE FROM monitoring_service_status s USING oldest o
           WHERE s.id = o.id AND o.checked_at < timezone('utc', $1)
           RETURNING s.service_name, s.status, s.latency_ms, s.checked_at
         ), hours AS (
           INSERT INTO fleet_telemetry_status_hourly AS h
             (service_name, hour, up, degraded, down, latency_count, latency_sum_ms, latency_max_ms)
           SELECT service_name, date_trunc('hour', checked_at) AT TIME ZONE 'utc',
                  count(*) FILTER (WHERE status = 'up'), count(*) FILTER (WHERE status = 'degraded'),
                  count(*) FILTER (WHERE status = 'down'), count(latency_ms),
                  COALESCE(sum(latency_ms::bigint), 0), max(latency_ms)
           FROM gone GROUP BY 1, 2
           ON CONFLICT (service_name, hour) DO UPDATE
           SET up = h.up + EXCLUDED.up, degraded = h.degraded + EXCLUDED.degraded,
               down = h.down + EXCLUDED.down, latency_count = h.latency_count + EXCLUDED.latency_count,
               latency_sum_ms = h.latency_sum_ms + EXCLUDED.latency_sum_ms,
               latency_max_ms = GREATEST(h.latency_max_ms, EXCLUDED.latency_max_ms)
         )
         SELECT count(*) FROM gone",
    )
    .bind(limit)
    .bind(BATCH)
    .fetch_one(pool)
    .await
    .attempting("turn old status rows into hours")
    .map(i64::unsigned_abs)
}

/// Tables whose old rows are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aging {
    /// `monitoring_slow_queries`, not seen since.
    SlowQueries,
    /// What ticks added to slow queries.
    QueryDeltas,
    /// Booked ticks.
    Ticks,
    /// Samples of queues.
    QueueSamples,
    /// Figures that are not collected any more.
    Samples,
    /// States of services that are not looked at any more.
    Services,
    /// Hours of status rows.
    Hours,
}

/// Deletes a batch of rows from before `limit`.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn delete(pool: &PgPool, what: Aging, limit: DateTime<Utc>) -> Result<u64, DbError> {
    let (table, column) = match what {
        Aging::SlowQueries => ("monitoring_slow_queries", "last_seen_at"),
        Aging::QueryDeltas => ("fleet_telemetry_query_deltas", "tick_at"),
        Aging::Ticks => ("fleet_telemetry_collections", "tick_at"),
        Aging::QueueSamples => ("fleet_queue_samples", "at"),
        Aging::Samples => ("fleet_telemetry_samples", "tick_at"),
        Aging::Services => ("fleet_telemetry_services", "tick_at"),
        Aging::Hours => ("fleet_telemetry_status_hourly", "hour"),
    };
    let limit_of = if what == Aging::SlowQueries { "timezone('utc', $1)" } else { "$1" };
    let sql = format!(
        "DELETE FROM {table} WHERE ctid = ANY (ARRAY(
           SELECT ctid FROM {table} WHERE {column} < {limit_of} ORDER BY {column} LIMIT $2))"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(limit)
        .bind(BATCH)
        .execute(pool)
        .await
        .attempting("delete old rows of telemetry")
        .map(|done| done.rows_affected())
}
