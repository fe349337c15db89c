//! How much waited in each queue at each tick: what the panel's queue figures come from.

use chrono::{DateTime, Utc};

use super::{Attempted, DbError, Tx};

/// A queue at a tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRow {
    /// Its name.
    pub queue: String,
    /// Jobs that have yet to run.
    pub waiting: i64,
    /// Jobs that run.
    pub active: i64,
    /// Failed jobs that are kept.
    pub failed: i64,
    /// Jobs completed since the first sample.
    pub completed_total: i64,
}

/// Writes a tick's samples of queues.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn write(tx: &mut Tx, at: DateTime<Utc>, rows: &[QueueRow]) -> Result<(), DbError> {
    let column = |of: fn(&QueueRow) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
    sqlx::query(
        "INSERT INTO fleet_queue_samples (queue, at, waiting, active, failed, completed_total)
         SELECT q, $6, w, a, f, c
         FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) AS v(q, w, a, f, c)
         ON CONFLICT (queue, at) DO NOTHING",
    )
    .bind(rows.iter().map(|row| row.queue.as_str()).collect::<Vec<&str>>())
    .bind(column(|row| row.waiting))
    .bind(column(|row| row.active))
    .bind(column(|row| row.failed))
    .bind(column(|row| row.completed_total))
    .bind(at)
    .execute(&mut **tx)
    .await
    .attempting("write the queues' samples")
    .map(|_| ())
}
