//! The statements on `fleet_outbox`; no other file has SQL.

use std::time::Duration;

use mpanel_protocol::{
    calls::add::NewJob,
    ids::{JobId, QueueName},
    time::TimestampMs,
};
use sqlx::{FromRow, PgConnection, PgPool};

use super::OutboxError;
use crate::error::EnqueueError;

/// What NOTIFY wakes relays on.
pub(super) const CHANNEL: &str = "fleet_outbox";
/// Payload bytes read at once, the last row over it included.
const BYTES: i64 = 32 * 1024 * 1024;
/// Sent rows deleted in one statement.
const SWEEP: i64 = 5000;

/// A row that is due.
#[derive(Debug, FromRow)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) queue: String,
    pub(super) job_id: String,
    pub(super) name: String,
    pub(super) data: String,
    pub(super) options: String,
    pub(super) timestamp_ms: i64,
    pub(super) run_at_ms: Option<i64>,
    pub(super) tries: i32,
    /// How many rows were due, up to the most that was asked for.
    pub(super) due: i64,
}

/// Writes a row and the wake-up, which Postgres delivers at commit. `false`: the id
/// is taken.
pub(super) async fn insert(
    tx: &mut PgConnection,
    queue: &QueueName,
    id: &JobId,
    job: &NewJob,
    timestamp: Option<TimestampMs>,
    run_at: Option<TimestampMs>,
) -> Result<bool, OutboxError> {
    let options = serde_json::to_string(&job.options).map_err(|e| EnqueueError::Payload(e.to_string()))?;
    let done = sqlx::query(
        "INSERT INTO fleet_outbox (queue, job_id, name, data, options, run_at_ms, timestamp_ms)
         VALUES ($1, $2, $3, $4, $5, $6,
                 COALESCE($7, (extract(epoch FROM clock_timestamp()) * 1000)::bigint))
         ON CONFLICT (queue, job_id) DO NOTHING",
    )
    .bind(queue.as_str())
    .bind(id.as_str())
    .bind(&job.name)
    .bind(&job.data)
    .bind(options)
    .bind(run_at.map(|at| at.0))
    .bind(timestamp.map(|at| at.0))
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(tx).await?;
    Ok(true)
}

/// Whether the table is there.
pub(super) async fn table_exists(pool: &PgPool) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass('fleet_outbox') IS NOT NULL").fetch_one(pool).await
}

/// Takes rows that are due, few when they are large; they stay locked until the
/// transaction ends. Rows that another relay has are passed over.
pub(super) async fn take(tx: &mut PgConnection, most: u32) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as(
        "WITH due AS (
           SELECT * FROM fleet_outbox WHERE state = 'pending' AND not_before <= now()
           ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)
         SELECT id, queue, job_id, name, data, options, timestamp_ms, run_at_ms, tries, due
         FROM (SELECT *, count(*) OVER () AS due,
                      sum(octet_length(data)) OVER (ORDER BY id) - octet_length(data) AS before FROM due) sized
         WHERE before < $2 ORDER BY id",
    )
    .bind(i64::from(most))
    .bind(BYTES)
    .fetch_all(tx)
    .await
}

/// The rows are in Redis.
pub(super) async fn mark_sent(tx: &mut PgConnection, ids: &[i64]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE fleet_outbox SET state = 'sent', settled_at = now(), reason = NULL WHERE id = ANY($1)",
    )
    .bind(ids)
    .execute(tx)
    .await
    .map(drop)
}

/// The row can never be a job; a human must look.
pub(super) async fn park(tx: &mut PgConnection, id: i64, reason: &str) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE fleet_outbox SET state = 'parked', settled_at = now(), reason = $2 WHERE id = $1")
        .bind(id)
        .bind(reason)
        .execute(tx)
        .await
        .map(drop)
}

/// The row is tried again later.
pub(super) async fn put_off(
    tx: &mut PgConnection,
    id: i64,
    tries: i32,
    pause: Duration,
    reason: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE fleet_outbox SET tries = $2, reason = $4, not_before = now() + $3 * interval '1 second'
         WHERE id = $1",
    )
    .bind(id)
    .bind(tries)
    .bind(pause.as_secs_f64())
    .bind(reason)
    .execute(tx)
    .await
    .map(drop)
}

/// Deletes sent rows that are older; says whether there may be more.
pub(super) async fn sweep(pool: &PgPool, older_than: Duration) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "DELETE FROM fleet_outbox WHERE id IN
           (SELECT id FROM fleet_outbox
            WHERE state = 'sent' AND settled_at < now() - $1 * interval '1 second'
            ORDER BY settled_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(older_than.as_secs_f64())
    .bind(SWEEP)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() >= SWEEP.unsigned_abs())
}

/// Parked rows of a queue are due again.
pub(super) async fn unpark(connection: &mut PgConnection, queue: &str) -> Result<u64, OutboxError> {
    let done = sqlx::query(
        "UPDATE fleet_outbox
         SET state = 'pending', tries = 0, not_before = '-infinity', settled_at = NULL
         WHERE state = 'parked' AND queue = $1",
    )
    .bind(queue)
    .execute(&mut *connection)
    .await?;
    sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(connection).await?;
    Ok(done.rows_affected())
}
