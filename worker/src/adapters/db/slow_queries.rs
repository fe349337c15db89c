//! Slow statements: what was counted at the last tick, what each tick added, and
//! mPanel's `monitoring_slow_queries`, one row a statement.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgPool, postgres::types::PgInterval};

use super::{Attempted, DbError, Tx};

/// Counters as they stood at a tick.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Baseline {
    /// The tick.
    pub tick_at: DateTime<Utc>,
    /// The counters, JSON.
    pub data: String,
}

/// The counters of the last tick.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn baseline(pool: &PgPool, name: &str) -> Result<Option<Baseline>, DbError> {
    sqlx::query_as("SELECT tick_at, data FROM fleet_telemetry_baselines WHERE name = $1")
        .bind(name)
        .fetch_optional(pool)
        .await
        .attempting("read the counters of the last tick")
}

/// The tick of the counters that are kept.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn baseline_tick(tx: &mut Tx, name: &str) -> Result<Option<DateTime<Utc>>, DbError> {
    sqlx::query_scalar("SELECT tick_at FROM fleet_telemetry_baselines WHERE name = $1")
        .bind(name)
        .fetch_optional(&mut **tx)
        .await
        .attempting("look at the tick of the counters")
}

/// Keeps the counters of this tick for the next.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn keep_baseline(tx: &mut Tx, name: &str, at: DateTime<Utc>, data: &str) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO fleet_telemetry_baselines (name, tick_at, data) VALUES ($1, $2, $3)
         ON CONFLICT (name) DO UPDATE SET tick_at = EXCLUDED.tick_at, data = EXCLUDED.data",
    )
    .bind(name)
    .bind(at)
    .bind(data)
    .execute(&mut **tx)
    .await
    .attempting("keep the counters for the next tick")
    .map(|_| ())
}

/// What a tick found of a slow statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowRow {
    /// Names the statement.
    pub hash: String,
    /// Its text, without literals.
    pub text: String,
    /// Calls since the last tick.
    pub calls: i64,
    /// Time since the last tick, µs.
    pub time_us: i64,
}

/// Adds what a tick found, and brings the rows of these statements up to date:
/// their calls and mean duration are of the window that ends with the tick.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn write(
    tx: &mut Tx,
    at: DateTime<Utc>,
    window: Duration,
    rows: &[SlowRow],
) -> Result<(), DbError> {
    let hashes: Vec<&str> = rows.iter().map(|row| row.hash.as_str()).collect();
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let calls: Vec<i64> = rows.iter().map(|row| row.calls).collect();
    let times: Vec<i64> = rows.iter().map(|row| row.time_us).collect();
    sqlx::query(
        "INSERT INTO fleet_telemetry_query_deltas (query_hash, tick_at, calls, time_us)
         SELECT h, $4, c, t FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS v(h, c, t)
         ON CONFLICT (query_hash, tick_at) DO NOTHING",
    )
    .bind(&hashes)
    .bind(&calls)
    .bind(&times)
    .bind(at)
    .execute(&mut **tx)
    .await
    .attempting("note the slow statements")?;
    // There is no unique index to conflict with, and it is not ours to add; the
    // collector's lock keeps others out.
    sqlx::query(
        "WITH sums AS (
           SELECT d.query_hash, v.text, sum(d.calls)::bigint AS calls,
                  LEAST(round(sum(d.time_us) / 1000.0 / sum(d.calls), 2), 99999999.99) AS avg_ms
           FROM fleet_telemetry_query_deltas d
           JOIN unnest($1::text[], $2::text[]) AS v(hash, text) ON v.hash = d.query_hash
           WHERE d.tick_at > $3 - $4 AND d.tick_at <= $3
           GROUP BY d.query_hash, v.text HAVING sum(d.calls) > 0
         ), newest AS (
           SELECT max(q.id) AS id, q.query_hash FROM monitoring_slow_queries q
           JOIN sums USING (query_hash) GROUP BY q.query_hash
         ), updated AS (
           UPDATE monitoring_slow_queries q
           SET sample_query = sums.text, avg_duration_ms = sums.avg_ms, calls = sums.calls,
               last_seen_at = timezone('utc', $3)
           FROM newest JOIN sums USING (query_hash)
           WHERE q.id = newest.id
           RETURNING q.query_hash
         )
         INSERT INTO monitoring_slow_queries (query_hash, sample_query, avg_duration_ms, calls, last_seen_at)
         SELECT query_hash, text, avg_ms, calls, timezone('utc', $3) FROM sums
         WHERE query_hash NOT IN (SELECT query_hash FROM updated)",
    )
    .bind(&hashes)
    .bind(&texts)
    .bind(at)
    .bind(interval(window))
    .execute(&mut **tx)
    .await
    .attempting("write the slow statements' rows")
    .map(|_| ())
}

pub(super) fn interval(span: Duration) -> PgInterval {
    let microseconds = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}
