//! Rows of `cloud_pod_jobs` whose jobs have not ended: those that say `queued`,
//! whoever left them so, and those that a worker of ours has begun.
//!
//! Knows what the books say of them; where their jobs are in Redis is asked
//! elsewhere.

use std::collections::HashMap;

use mpanel_producer::{EnqueueOptions, outbox::Outbox};
use serde_json::Value;
use sqlx::{FromRow, PgPool, types::chrono::NaiveDateTime};
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

/// A kind of row, and the queue of its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// `cloud_pod_jobs.type`.
    pub kind: &'static str,
    /// The queue.
    pub queue: &'static str,
}

/// A row whose job has not ended, with what the books know of it.
#[derive(Debug, Clone, FromRow)]
pub struct QueuedRow {
    /// The row.
    pub id: Uuid,
    /// Whose.
    pub tenant_id: Uuid,
    /// About which pod, where the row says.
    pub cloud_pod_id: Option<Uuid>,
    /// `CREATE`, `BACKUP`, …
    pub kind: String,
    /// The queue of such jobs.
    pub queue: String,
    /// `queued` or `running`.
    pub status: String,
    /// What the job is to do.
    pub payload: Value,
    /// The job, where the row names one.
    pub bull_job_id: Option<String>,
    /// When the row was made; orders pages.
    pub created_at: NaiveDateTime,
    /// How long ago that is by the database's clock, seconds.
    pub age_s: f64,
    /// How long ago its job was started, as the row says, seconds.
    pub started_age_s: Option<f64>,
    /// Whether one of our workers has begun the job.
    pub begun: bool,
    /// How it ended there: `success`, `failed`.
    pub outcome: Option<String>,
    /// The worker made a row of its own, since this one was not there yet.
    pub late: bool,
    /// `pending`, `sent`, `parked`: the row of `fleet_outbox` with this job.
    pub outbox: Option<String>,
    /// Why it is parked.
    pub outbox_reason: Option<String>,
    /// How long ago it was sent or parked, seconds.
    pub outbox_age_s: Option<f64>,
}

/// Where a page begins: after this row.
pub type Cursor = (NaiveDateTime, Uuid);

/// Another row of the same job that a Node worker made.
#[derive(Debug, Clone, FromRow)]
pub struct Sibling {
    /// `running`, `success`, `failed`.
    pub status: String,
    /// Its result.
    pub result: Option<Value>,
    /// Its error.
    pub error: Option<String>,
    /// Its pod.
    pub cloud_pod_id: Option<Uuid>,
    bull_job_id: String,
    #[sqlx(rename = "type")]
    kind: String,
}

const COLUMNS: &str = "
    SELECT j.id, j.tenant_id, j.cloud_pod_id, j.type AS kind, q.queue, j.status, j.payload, j.bull_job_id, j.created_at,
           extract(epoch FROM timezone('utc', now()) - j.created_at)::float8 AS age_s,
           extract(epoch FROM timezone('utc', now()) - j.started_at)::float8 AS started_age_s,
           f.job_id IS NOT NULL AS begun, f.outcome, f.own_row_id IS NOT NULL AS late,
           o.state AS outbox, o.reason AS outbox_reason,
           extract(epoch FROM now() - o.settled_at)::float8 AS outbox_age_s
    FROM cloud_pod_jobs j
    JOIN unnest($1::text[], $2::text[]) AS q (kind, queue) ON q.kind = j.type
    LEFT JOIN fleet_job_fence f ON f.queue = q.queue AND f.job_id = j.bull_job_id
    LEFT JOIN fleet_outbox o ON o.queue = q.queue AND o.job_id = j.bull_job_id
    WHERE (j.status = 'queued' OR j.status = 'running' AND f.job_id IS NOT NULL AND f.outcome IS NULL)";

fn columns(kinds: &[Kind]) -> (Vec<&str>, Vec<&str>) {
    kinds.iter().map(|Kind { kind, queue }| (*kind, *queue)).unzip()
}

/// The oldest rows after `after`, at most `limit`.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn page(
    pool: &PgPool,
    kinds: &[Kind],
    after: Option<Cursor>,
    limit: i64,
) -> Result<Vec<QueuedRow>, DbError> {
    let (kinds, queues) = columns(kinds);
    let (at, id) = after.map_or((None, None), |(at, id)| (Some(at), Some(id)));
    let sql = sqlx::AssertSqlSafe(format!(
        "{COLUMNS} AND ($3::timestamp IS NULL OR (j.created_at, j.id) > ($3, $4))
         ORDER BY j.created_at, j.id LIMIT $5"
    ));
    sqlx::query_as(sql)
        .bind(kinds)
        .bind(queues)
        .bind(at)
        .bind(id)
        .bind(limit)
        .fetch_all(pool)
        .await
        .attempting("look for open job rows")
}

/// The rows of the same jobs that have begun or ended, by job id and kind; of
/// several the one that ended.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn siblings(
    pool: &PgPool,
    rows: &[QueuedRow],
) -> Result<HashMap<(String, String), Sibling>, DbError> {
    let ids: Vec<&str> = rows.iter().filter_map(|row| row.bull_job_id.as_deref()).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let found: Vec<Sibling> = sqlx::query_as(
        "SELECT status, result, error, cloud_pod_id, bull_job_id, type FROM cloud_pod_jobs
         WHERE bull_job_id = ANY($1) AND status IN ('running', 'success', 'failed')
         ORDER BY status = 'running' DESC, finished_at",
    )
    .bind(ids)
    .fetch_all(pool)
    .await
    .attempting("look for other rows of the same jobs")?;
    Ok(found.into_iter().map(|row| ((row.bull_job_id.clone(), row.kind.clone()), row)).collect())
}

/// The row, locked, if it still says what was seen and names the same job.
/// Another process that is at it has it alone.
async fn hold(tx: &mut Tx, row: &QueuedRow) -> Result<bool, DbError> {
    let held: Option<Uuid> = sqlx::query_scalar(
        "SELECT id FROM cloud_pod_jobs
         WHERE id = $1 AND status = $3 AND bull_job_id IS NOT DISTINCT FROM $2
         FOR UPDATE SKIP LOCKED",
    )
    .bind(row.id)
    .bind(&row.bull_job_id)
    .bind(&row.status)
    .fetch_optional(&mut **tx)
    .await
    .attempting("lock an open job row")?;
    Ok(held.is_some())
}

/// What came of enqueueing a row's job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// It is in the outbox, and the row names it.
    Yes,
    /// A job of that id was there before.
    IdUsed,
    /// Somebody else is at it, or was.
    NotOurs,
}

/// Enqueues the row's job when the database commits, and lets the row name it.
///
/// # Errors
/// [`EnqueueRowError`].
pub async fn enqueue(
    pool: &PgPool,
    row: &QueuedRow,
    name: &str,
    job_id: &str,
    options: EnqueueOptions,
) -> Result<Enqueued, EnqueueRowError> {
    let mut tx = super::begin(pool).await?;
    if !hold(&mut tx, row).await? {
        return Ok(Enqueued::NotOurs);
    }
    // Under the lock, by a snapshot of its own: another process may have enqueued
    // the job under the id that the row has named all along.
    let outbox: Option<String> =
        sqlx::query_scalar("SELECT state FROM fleet_outbox WHERE queue = $1 AND job_id = $2")
            .bind(&row.queue)
            .bind(&row.bull_job_id)
            .fetch_optional(&mut *tx)
            .await
            .attempting("look for a queued row's job in the outbox")?;
    if outbox != row.outbox {
        return Ok(Enqueued::NotOurs);
    }
    // A job that the relay has put into Redis, and Redis has lost.
    if row.outbox.as_deref() == Some("sent") && row.bull_job_id.as_deref() == Some(job_id) {
        sqlx::query(
            "UPDATE fleet_outbox SET state = 'pending', tries = 0, not_before = '-infinity', settled_at = NULL
             WHERE queue = $1 AND job_id = $2",
        )
        .bind(&row.queue)
        .bind(job_id)
        .execute(&mut *tx)
        .await
        .attempting("let a lost job be relayed again")?;
        super::commit(tx).await?;
        return Ok(Enqueued::Yes);
    }
    let options = options.job_id(job_id);
    let outboxed = Outbox::new().enqueue(&mut tx, &row.queue, name, &row.payload, options).await?;
    if !outboxed.is_new {
        return Ok(Enqueued::IdUsed);
    }
    sqlx::query("UPDATE cloud_pod_jobs SET bull_job_id = $2 WHERE id = $1")
        .bind(row.id)
        .bind(job_id)
        .execute(&mut *tx)
        .await
        .attempting("let a job row name its job")?;
    super::commit(tx).await?;
    Ok(Enqueued::Yes)
}

/// A row's job was not enqueued.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueRowError {
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The outbox.
    #[error(transparent)]
    Outbox(#[from] mpanel_producer::outbox::OutboxError),
}

/// How a row's job has ended, learnt from elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// Well, with this result.
    Success(Value),
    /// Not, for this reason.
    Failed(String),
}

/// Writes the end of its job into a row. `false`: it says something else by now.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn end(
    pool: &PgPool,
    row: &QueuedRow,
    ended: &Ended,
    pod_id: Option<Uuid>,
) -> Result<bool, DbError> {
    let (status, result, error) = match ended {
        Ended::Success(result) => ("success", Some(result), None),
        Ended::Failed(reason) => ("failed", None, Some(reason)),
    };
    let mut tx = super::begin(pool).await?;
    if !hold(&mut tx, row).await? {
        return Ok(false);
    }
    sqlx::query(
        "UPDATE cloud_pod_jobs
         SET status = $2, result = $3, error = $4,
             cloud_pod_id = COALESCE(cloud_pod_id, (SELECT id FROM cloud_pods WHERE id = $5)),
             started_at = COALESCE(started_at, timezone('utc', now())),
             finished_at = timezone('utc', now())
         WHERE id = $1",
    )
    .bind(row.id)
    .bind(status)
    .bind(result)
    .bind(error)
    .bind(pod_id)
    .execute(&mut *tx)
    .await
    .attempting("write a job's end into its row")?;
    super::commit(tx).await?;
    Ok(true)
}
