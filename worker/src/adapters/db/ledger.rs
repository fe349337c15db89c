//! The fleet's own book of jobs: fences, steps, effects, outcomes.
//!
//! Every write of an attempt passes by the fence: it locks the job's row and
//! does nothing unless the fence is still the attempt's own.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

/// A job, and the fence of the attempt that works on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The queue.
    pub queue: String,
    /// The job.
    pub job_id: String,
    /// Grows with each start.
    pub number: i64,
}

/// A start of a job that wants the fence.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The queue.
    pub queue: &'a str,
    /// The job.
    pub job_id: &'a str,
    /// Which start this is.
    pub attempt: u32,
    /// Tells it from every other.
    pub attempt_id: &'a str,
}

impl Fence {
    /// The error of an attempt that has been overtaken.
    #[must_use]
    pub fn lost(&self) -> DbError {
        DbError::Fenced { queue: self.queue.clone(), job_id: self.job_id.clone() }
    }
}

/// What is on record about a job.
#[derive(Debug, Clone, FromRow)]
pub struct JobRecord {
    /// The current fence.
    pub fence: i64,
    /// The `cloud_pod_jobs` row that we inserted ourselves.
    pub own_row_id: Option<Uuid>,
    /// `success` or `failed`, once it ended.
    pub outcome: Option<String>,
    /// The pod that it is about.
    pub pod_id: Option<Uuid>,
}

/// A step of a job on record.
#[derive(Debug, Clone, FromRow)]
pub struct StepRecord {
    /// `sent`, `observed`, `done`, `failed`.
    pub state: String,
    /// How often the call left.
    pub sends: i32,
    /// The task that it became.
    pub upid: Option<String>,
    /// When the call last left.
    pub started_at: DateTime<Utc>,
    /// How long ago that is by the database's clock.
    pub age_s: f64,
    /// What is known beside: warnings, an error, tasks of earlier requests.
    pub result: Option<Value>,
}

impl StepRecord {
    /// Whether a task belongs to an earlier request of this step.
    #[must_use]
    pub fn is_earlier(&self, upid: &str) -> bool {
        let earlier = self.result.as_ref().and_then(|result| result.get("earlier")).and_then(Value::as_array);
        earlier.is_some_and(|earlier| earlier.iter().any(|known| known.as_str() == Some(upid)))
    }
}

/// Starts an attempt: the next fence. Earlier attempts can write no more.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn take_fence(pool: &PgPool, start: Start<'_>) -> Result<Fence, DbError> {
    let Start { queue, job_id, attempt, attempt_id } = start;
    let number = sqlx::query_scalar(
        "INSERT INTO fleet_job_fence (queue, job_id, fence, attempt, attempt_id) VALUES ($1, $2, 1, $3, $4)
         ON CONFLICT (queue, job_id) DO UPDATE
         SET fence = fleet_job_fence.fence + 1, attempt = EXCLUDED.attempt, attempt_id = EXCLUDED.attempt_id
         RETURNING fence",
    )
    .bind(queue)
    .bind(job_id)
    .bind(i32::try_from(attempt).unwrap_or(i32::MAX))
    .bind(attempt_id)
    .fetch_one(pool)
    .await
    .attempting("take the job's fence")?;
    Ok(Fence { queue: queue.to_owned(), job_id: job_id.to_owned(), number })
}

/// As [`take_fence`], but only if no newer attempt has started: for what is
/// done after an attempt, which may have been overtaken without noticing.
/// (An attempt that could not even take its fence finds an older one here.)
///
/// # Errors
/// [`DbError::Fenced`] when one has, else [`DbError::Sql`].
pub async fn take_fence_if_latest(pool: &PgPool, start: Start<'_>) -> Result<Fence, DbError> {
    let Start { queue, job_id, attempt, attempt_id } = start;
    let newer: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM fleet_job_fence
                        WHERE queue = $1 AND job_id = $2 AND attempt_id <> $4 AND attempt >= $3)",
    )
    .bind(queue)
    .bind(job_id)
    .bind(i32::try_from(attempt).unwrap_or(i32::MAX))
    .bind(attempt_id)
    .fetch_one(pool)
    .await
    .attempting("look for a newer attempt")?;
    if newer {
        return Err(DbError::Fenced { queue: queue.to_owned(), job_id: job_id.to_owned() });
    }
    take_fence(pool, start).await
}

/// Whether this attempt is still the latest.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn is_current(pool: &PgPool, fence: &Fence) -> Result<bool, DbError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM fleet_job_fence WHERE queue = $1 AND job_id = $2 AND fence = $3)",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .bind(fence.number)
    .fetch_one(pool)
    .await
    .attempting("check the job's fence")
}

/// Locks the job's row for this transaction; first statement of every effect.
///
/// # Errors
/// [`DbError::Fenced`] when a newer attempt exists, else [`DbError::Sql`].
pub async fn hold_fence(tx: &mut Tx, fence: &Fence) -> Result<JobRecord, DbError> {
    let record: Option<JobRecord> = sqlx::query_as(
        "SELECT fence, own_row_id, outcome, pod_id FROM fleet_job_fence
         WHERE queue = $1 AND job_id = $2 FOR UPDATE",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .fetch_optional(&mut **tx)
    .await
    .attempting("check the job's fence")?;
    record.filter(|record| record.fence == fence.number).ok_or_else(|| fence.lost())
}

/// Notes which pod a job is about.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn note_pod(tx: &mut Tx, fence: &Fence, pod_id: Uuid) -> Result<(), DbError> {
    sqlx::query("UPDATE fleet_job_fence SET pod_id = $3 WHERE queue = $1 AND job_id = $2")
        .bind(&fence.queue)
        .bind(&fence.job_id)
        .bind(pod_id)
        .execute(&mut **tx)
        .await
        .attempting("note the job's pod")
        .map(|_| ())
}

/// Notes how a job ended, for rows that mPanel inserts only afterwards.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn note_outcome(tx: &mut Tx, fence: &Fence, result: Result<&Value, &str>) -> Result<(), DbError> {
    let (outcome, json, error) = match result {
        Ok(json) => ("success", Some(json), None),
        Err(error) => ("failed", None, Some(error)),
    };
    sqlx::query(
        "UPDATE fleet_job_fence
         SET outcome = $3, outcome_json = $4, outcome_error = $5, finished_at = now()
         WHERE queue = $1 AND job_id = $2",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .bind(outcome)
    .bind(json)
    .bind(error)
    .execute(&mut **tx)
    .await
    .attempting("note the job's outcome")
    .map(|_| ())
}

/// Forgets an earlier outcome: the job runs again (retried by an operator).
///
/// # Errors
/// [`DbError::Sql`].
pub async fn clear_outcome(tx: &mut Tx, fence: &Fence) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE fleet_job_fence
         SET outcome = NULL, outcome_json = NULL, outcome_error = NULL, finished_at = NULL
         WHERE queue = $1 AND job_id = $2 AND outcome IS NOT NULL",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .execute(&mut **tx)
    .await
    .attempting("reopen the job")
    .map(|_| ())
}

/// The result of an effect that is already committed.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn effect(pool: &PgPool, fence: &Fence, step: &str) -> Result<Option<Value>, DbError> {
    sqlx::query_scalar("SELECT result FROM fleet_effect WHERE queue = $1 AND job_id = $2 AND step = $3")
        .bind(&fence.queue)
        .bind(&fence.job_id)
        .bind(step)
        .fetch_optional(pool)
        .await
        .attempting("look for the job's effect")
}

/// Records an effect; the primary key lets it happen once.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn insert_effect(tx: &mut Tx, fence: &Fence, step: &str, result: &Value) -> Result<(), DbError> {
    sqlx::query("INSERT INTO fleet_effect (queue, job_id, step, result) VALUES ($1, $2, $3, $4)")
        .bind(&fence.queue)
        .bind(&fence.job_id)
        .bind(step)
        .bind(result)
        .execute(&mut **tx)
        .await
        .attempting("record the job's effect")
        .map(|_| ())
}

/// What is on record of one step of a generation.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn step(
    pool: &PgPool,
    fence: &Fence,
    generation: i32,
    step: &str,
) -> Result<Option<StepRecord>, DbError> {
    sqlx::query_as(
        "SELECT state, sends, upid, started_at,
                GREATEST(extract(epoch FROM now() - started_at), 0)::float8 AS age_s, result
         FROM fleet_job_steps WHERE queue = $1 AND job_id = $2 AND generation = $3 AND step = $4",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .bind(generation)
    .bind(step)
    .fetch_optional(pool)
    .await
    .attempting("read the job's step")
}

/// Records that a call is about to leave. Must be committed before it does.
///
/// # Errors
/// [`DbError::Fenced`]: do not send. Else [`DbError::Sql`]: do not send either.
pub async fn record_sent(
    pool: &PgPool,
    fence: &Fence,
    generation: i32,
    step: &str,
    request_hash: &str,
) -> Result<(), DbError> {
    let written = sqlx::query(
        "WITH mine AS (SELECT 1 FROM fleet_job_fence
                       WHERE queue = $1 AND job_id = $2 AND fence = $3 FOR UPDATE)
         INSERT INTO fleet_job_steps (queue, job_id, generation, step, state, sends, request_hash, fence)
         SELECT $1, $2, $4, $5, 'sent', 1, $6, $3 FROM mine
         ON CONFLICT (queue, job_id, generation, step) DO UPDATE
         SET state = 'sent', sends = fleet_job_steps.sends + 1, upid = NULL,
             result = CASE WHEN fleet_job_steps.upid IS NULL THEN fleet_job_steps.result
                           ELSE COALESCE(fleet_job_steps.result, '{}') || jsonb_build_object('earlier',
                                COALESCE(fleet_job_steps.result -> 'earlier', '[]') || to_jsonb(fleet_job_steps.upid))
                      END,
             request_hash = EXCLUDED.request_hash, fence = EXCLUDED.fence,
             started_at = now(), updated_at = now()",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .bind(fence.number)
    .bind(generation)
    .bind(step)
    .bind(request_hash)
    .execute(pool)
    .await
    .attempting("record a call before it is sent")?;
    if written.rows_affected() == 0 { Err(fence.lost()) } else { Ok(()) }
}

/// Records what became of a step: the task it is, or how it ended.
///
/// # Errors
/// [`DbError::Fenced`] or [`DbError::Sql`].
pub async fn record_step(
    pool: &PgPool,
    fence: &Fence,
    generation: i32,
    step: &str,
    state: &str,
    upid: Option<&str>,
    result: Option<&Value>,
) -> Result<(), DbError> {
    let written = sqlx::query(
        "WITH mine AS (SELECT 1 FROM fleet_job_fence
                       WHERE queue = $1 AND job_id = $2 AND fence = $3 FOR UPDATE)
         INSERT INTO fleet_job_steps (queue, job_id, generation, step, state, upid, result, fence)
         SELECT $1, $2, $4, $5, $6, $7, $8, $3 FROM mine
         ON CONFLICT (queue, job_id, generation, step) DO UPDATE
         SET state = EXCLUDED.state, upid = COALESCE(EXCLUDED.upid, fleet_job_steps.upid),
             result = CASE WHEN EXCLUDED.result IS NULL THEN fleet_job_steps.result
                           ELSE COALESCE(fleet_job_steps.result, '{}') || EXCLUDED.result END,
             fence = EXCLUDED.fence, updated_at = now()",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .bind(fence.number)
    .bind(generation)
    .bind(step)
    .bind(state)
    .bind(upid)
    .bind(result)
    .execute(pool)
    .await
    .attempting("record a step")?;
    if written.rows_affected() == 0 { Err(fence.lost()) } else { Ok(()) }
}
