//! mPanel's `cloud_pod_jobs`.
//!
//! The route enqueues first and inserts its row afterwards, so the row may come
//! while the job runs or after it ended. One row must remain, the route's: it is
//! the id that the client holds.

use serde_json::Value;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError, Tx, ledger::Fence};

/// What mPanel's cancel route writes.
const CANCELLED: &str = "Cancelled by admin";

#[derive(FromRow)]
struct Row {
    id: Uuid,
    status: String,
    error: Option<String>,
}

/// Whether the row says that an operator cancelled the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopted {
    /// The row says `running` now.
    Running,
    /// An operator cancelled it before it started.
    Cancelled,
}

/// Sets the job's row to `running`: mPanel's if it is there, else one of ours.
/// The tenant must exist.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn adopt(
    tx: &mut Tx,
    fence: &Fence,
    own_row_id: Option<Uuid>,
    kind: &str,
    tenant_id: Uuid,
    payload: &Value,
    attempt: u32,
) -> Result<Adopted, DbError> {
    if let Some(adopted) = start(tx, fence, own_row_id, kind, attempt).await? {
        return Ok(adopted);
    }
    let id = insert(tx, fence, kind, tenant_id, payload, attempt).await?;
    sqlx::query("UPDATE fleet_job_fence SET own_row_id = $3 WHERE queue = $1 AND job_id = $2")
        .bind(&fence.queue)
        .bind(&fence.job_id)
        .bind(id)
        .execute(&mut **tx)
        .await
        .attempting("note our own job row")?;
    Ok(Adopted::Running)
}

/// Sets the job's row to `running`, if there is one.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn start(
    tx: &mut Tx,
    fence: &Fence,
    own_row_id: Option<Uuid>,
    kind: &str,
    attempt: u32,
) -> Result<Option<Adopted>, DbError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, status, error FROM cloud_pod_jobs WHERE bull_job_id = $1 AND type = $2
         ORDER BY created_at, id FOR UPDATE",
    )
    .bind(&fence.job_id)
    .bind(kind)
    .fetch_all(&mut **tx)
    .await
    .attempting("look for the job's row")?;
    if rows.iter().any(|row| row.status == "failed" && row.error.as_deref() == Some(CANCELLED)) {
        return Ok(Some(Adopted::Cancelled));
    }
    if rows.is_empty() {
        return Ok(None);
    }
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    drop_own(tx, fence, kind, own_row_id).await?;
    sqlx::query(
        "UPDATE cloud_pod_jobs
         SET status = 'running', started_at = COALESCE(started_at, timezone('utc', now())),
             finished_at = NULL, error = NULL, attempts = $2
         WHERE id = ANY($1)",
    )
    .bind(&ids)
    .bind(i32::try_from(attempt).unwrap_or(i32::MAX))
    .execute(&mut **tx)
    .await
    .attempting("set the job's row to running")?;
    Ok(Some(Adopted::Running))
}

async fn insert(
    tx: &mut Tx,
    fence: &Fence,
    kind: &str,
    tenant_id: Uuid,
    payload: &Value,
    attempt: u32,
) -> Result<Uuid, DbError> {
    sqlx::query_scalar(
        "INSERT INTO cloud_pod_jobs
           (id, tenant_id, type, status, payload, attempts, bull_job_id, created_at, started_at)
         VALUES (gen_random_uuid(), $1, $2, 'running', $3, $4, $5,
                 timezone('utc', now()), timezone('utc', now()))
         RETURNING id",
    )
    .bind(tenant_id)
    .bind(kind)
    .bind(payload)
    .bind(i32::try_from(attempt).unwrap_or(i32::MAX))
    .bind(&fence.job_id)
    .fetch_one(&mut **tx)
    .await
    .attempting("insert the job's row")
}

/// Removes the row that we inserted, once mPanel's own is there.
async fn drop_own(tx: &mut Tx, fence: &Fence, kind: &str, own_row_id: Option<Uuid>) -> Result<(), DbError> {
    let Some(own) = own_row_id else { return Ok(()) };
    let dropped = sqlx::query(
        "DELETE FROM cloud_pod_jobs WHERE id = $1 AND EXISTS (
           SELECT 1 FROM cloud_pod_jobs WHERE bull_job_id = $2 AND type = $3 AND id <> $1)",
    )
    .bind(own)
    .bind(&fence.job_id)
    .bind(kind)
    .execute(&mut **tx)
    .await
    .attempting("drop our own job row")?;
    if dropped.rows_affected() > 0 {
        sqlx::query("UPDATE fleet_job_fence SET own_row_id = NULL WHERE queue = $1 AND job_id = $2")
            .bind(&fence.queue)
            .bind(&fence.job_id)
            .execute(&mut **tx)
            .await
            .attempting("forget our own job row")?;
    }
    Ok(())
}

/// How a job ended, for its row.
#[derive(Debug, Clone, Copy)]
pub enum Ending<'a> {
    /// With this result.
    Success(&'a Value),
    /// With this reason.
    Failed(&'a str),
}

/// Sets the job's row to its end.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn finish(
    tx: &mut Tx,
    fence: &Fence,
    own_row_id: Option<Uuid>,
    kind: &str,
    pod_id: Option<Uuid>,
    ending: Ending<'_>,
) -> Result<(), DbError> {
    drop_own(tx, fence, kind, own_row_id).await?;
    let (status, result, error) = match ending {
        Ending::Success(result) => ("success", Some(result), None),
        Ending::Failed(reason) => ("failed", None, Some(reason)),
    };
    sqlx::query(
        "UPDATE cloud_pod_jobs
         SET status = $3, result = $4, error = $5, cloud_pod_id = COALESCE($6, cloud_pod_id),
             started_at = COALESCE(started_at, timezone('utc', now())),
             finished_at = timezone('utc', now())
         WHERE bull_job_id = $1 AND type = $2",
    )
    .bind(&fence.job_id)
    .bind(kind)
    .bind(status)
    .bind(result)
    .bind(error)
    .bind(pod_id)
    .execute(&mut **tx)
    .await
    .attempting("write the job's end")
    .map(|_| ())
}

/// Links the job's rows with its pod.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn link_pod(tx: &mut Tx, fence: &Fence, kind: &str, pod_id: Uuid) -> Result<(), DbError> {
    sqlx::query("UPDATE cloud_pod_jobs SET cloud_pod_id = $3 WHERE bull_job_id = $1 AND type = $2")
        .bind(&fence.job_id)
        .bind(kind)
        .bind(pod_id)
        .execute(&mut **tx)
        .await
        .attempting("link the job with its pod")
        .map(|_| ())
}

#[derive(FromRow)]
struct Late {
    job_id: String,
    own_row_id: Option<Uuid>,
    outcome: Option<String>,
    outcome_json: Option<Value>,
    outcome_error: Option<String>,
    pod_id: Option<Uuid>,
}

/// Brings rows up to date that mPanel inserted after their job had started or
/// ended. A row that was adopted, failed, and says `queued` again was set back by
/// an operator and is left alone. Answers how many jobs were mended.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn reconcile_late_rows(pool: &PgPool, queue: &str, kind: &str) -> Result<u64, DbError> {
    let late: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT j.bull_job_id FROM cloud_pod_jobs j
         JOIN fleet_job_fence f ON f.queue = $1 AND f.job_id = j.bull_job_id
         WHERE j.status = 'queued' AND j.type = $2 AND j.started_at IS NULL AND j.finished_at IS NULL
           AND (f.own_row_id IS NOT NULL OR f.outcome IS DISTINCT FROM 'failed')
         LIMIT 500",
    )
    .bind(queue)
    .bind(kind)
    .fetch_all(pool)
    .await
    .attempting("look for late job rows")?;
    for job_id in &late {
        reconcile_one(pool, queue, kind, job_id).await?;
    }
    Ok(late.len() as u64)
}

async fn reconcile_one(pool: &PgPool, queue: &str, kind: &str, job_id: &str) -> Result<(), DbError> {
    let mut tx = super::begin(pool).await?;
    // The lock orders us against the attempt's own transactions.
    let late: Option<Late> = sqlx::query_as(
        "SELECT job_id, own_row_id, outcome, outcome_json, outcome_error, pod_id
         FROM fleet_job_fence WHERE queue = $1 AND job_id = $2 FOR UPDATE",
    )
    .bind(queue)
    .bind(job_id)
    .fetch_optional(&mut *tx)
    .await
    .attempting("read the job's outcome")?;
    let Some(late) = late else { return Ok(()) };
    let fence = Fence { queue: queue.to_owned(), job_id: late.job_id.clone(), number: 0 };
    match late.outcome.as_deref() {
        Some("success") => {
            let result = late.outcome_json.unwrap_or(Value::Null);
            finish(&mut tx, &fence, late.own_row_id, kind, late.pod_id, Ending::Success(&result)).await?;
        }
        Some(_) => {
            let reason = late.outcome_error.unwrap_or_default();
            finish(&mut tx, &fence, late.own_row_id, kind, late.pod_id, Ending::Failed(&reason)).await?;
        }
        None => {
            drop_own(&mut tx, &fence, kind, late.own_row_id).await?;
            sqlx::query(
                "UPDATE cloud_pod_jobs
                 SET status = 'running', started_at = timezone('utc', now()),
                     cloud_pod_id = COALESCE($3, cloud_pod_id)
                 WHERE bull_job_id = $1 AND type = $2 AND status = 'queued'",
            )
            .bind(job_id)
            .bind(kind)
            .bind(late.pod_id)
            .execute(&mut *tx)
            .await
            .attempting("set a late job row to running")?;
        }
    }
    super::commit(tx).await
}
