//! What the HTTP service reads and writes beside what the workers do: answers
//! that are kept, pods and jobs as clients see them, jobs that clients ask for.

use serde_json::Value;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

/// An answer that was given before.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct KeptAnswer {
    /// Of the request that it answers.
    pub request_hash: String,
    /// Its HTTP status.
    pub status: i16,
    /// Its body.
    pub answer: Value,
}

/// Holds a key until the transaction ends, and reads what is kept under it.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn kept_answer(tx: &mut Tx, scope: &str, key: &str) -> Result<Option<KeptAnswer>, DbError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('fleet api ' || $1 || ' ' || $2, 0))")
        .bind(scope)
        .bind(key)
        .execute(&mut **tx)
        .await
        .attempting("hold an idempotency key")?;
    sqlx::query_as(
        "SELECT request_hash, status, answer FROM fleet_api_answers
         WHERE scope = $1 AND key = $2 AND created_at > now() - interval '24 hours'",
    )
    .bind(scope)
    .bind(key)
    .fetch_optional(&mut **tx)
    .await
    .attempting("look for an answer that was given before")
}

/// Keeps an answer; some that are a day old go.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn keep_answer(
    tx: &mut Tx,
    scope: &str,
    key: &str,
    request_hash: &str,
    status: u16,
    answer: &Value,
) -> Result<(), DbError> {
    sqlx::query(
        "DELETE FROM fleet_api_answers WHERE (scope, key) IN (
           SELECT scope, key FROM fleet_api_answers WHERE created_at < now() - interval '24 hours'
           LIMIT 100 FOR UPDATE SKIP LOCKED)",
    )
    .execute(&mut **tx)
    .await
    .attempting("remove old answers")?;
    sqlx::query(
        "INSERT INTO fleet_api_answers (scope, key, request_hash, status, answer) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (scope, key) DO UPDATE
         SET request_hash = EXCLUDED.request_hash, status = EXCLUDED.status, answer = EXCLUDED.answer,
             created_at = now()",
    )
    .bind(scope)
    .bind(key)
    .bind(request_hash)
    .bind(i16::try_from(status).unwrap_or(i16::MAX))
    .bind(answer)
    .execute(&mut **tx)
    .await
    .attempting("keep an answer")
    .map(|_| ())
}

/// A job that a client asks for, as its row.
#[derive(Debug, Clone)]
pub struct NewJob<'a> {
    /// The row, and the end of the job's id.
    pub id: Uuid,
    /// Whose.
    pub tenant_id: Uuid,
    /// About which pod.
    pub pod_id: Uuid,
    /// `CREATE`, `ACTION`, …
    pub kind: &'a str,
    /// What the job is to do.
    pub payload: &'a Value,
    /// The job.
    pub bull_job_id: &'a str,
}

/// Writes a job's row as `queued`.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn insert_job(tx: &mut Tx, job: &NewJob<'_>) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO cloud_pod_jobs (id, tenant_id, cloud_pod_id, type, status, payload, bull_job_id, created_at)
         VALUES ($1, $2, $3, $4, 'queued', $5, $6, timezone('utc', now()))",
    )
    .bind(job.id)
    .bind(job.tenant_id)
    .bind(job.pod_id)
    .bind(job.kind)
    .bind(job.payload)
    .bind(job.bull_job_id)
    .execute(&mut **tx)
    .await
    .attempting("write the job's row")
    .map(|_| ())
}

const POD: &str = "json_build_object('id', id, 'tenantId', tenant_id, 'vmid', vmid, 'hostname', hostname, 'ip', ip,
  'region', region, 'status', status,
  'phase', CASE status WHEN 'active' THEN 'running' ELSE status END,
  'cores', cores, 'memoryMb', memory_mb, 'swapMb', swap_mb, 'diskGb', disk_gb,
  'lastBackupAt', last_backup_at AT TIME ZONE 'UTC', 'lastHealthStatus', last_health_status,
  'lastHealthChecked', last_health_checked AT TIME ZONE 'UTC',
  'createdAt', created_at AT TIME ZONE 'UTC', 'updatedAt', updated_at AT TIME ZONE 'UTC')::jsonb";

/// A pod as clients see it. Deleted ones are gone.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn pod(pool: &PgPool, id: Uuid) -> Result<Option<(Uuid, Value)>, DbError> {
    let sql = format!(
        "SELECT tenant_id, {POD} FROM cloud_pods WHERE id = $1 AND deleted_at IS NULL AND status <> 'deleted'"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(pool).await.attempting("read a pod")
}

/// Pods as clients see them, by id; after `after`, of one tenant or of all.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn pods(
    pool: &PgPool,
    tenant_id: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Value>, DbError> {
    let sql = format!(
        "SELECT {POD} FROM cloud_pods
         WHERE deleted_at IS NULL AND status <> 'deleted' AND ($1::uuid IS NULL OR tenant_id = $1)
           AND ($2::uuid IS NULL OR id > $2)
         ORDER BY id LIMIT $3"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(tenant_id)
        .bind(after)
        .bind(limit)
        .fetch_all(pool)
        .await
        .attempting("read pods")
}

/// A job as clients see it.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn job(pool: &PgPool, id: Uuid) -> Result<Option<(Uuid, Value)>, DbError> {
    sqlx::query_as(
        "SELECT tenant_id, json_build_object('id', id, 'podId', cloud_pod_id, 'type', type, 'status', status,
           'phase', CASE status WHEN 'success' THEN 'completed' ELSE status END, 'result', result, 'error', error,
           'attempts', attempts, 'createdAt', created_at AT TIME ZONE 'UTC',
           'startedAt', started_at AT TIME ZONE 'UTC', 'finishedAt', finished_at AT TIME ZONE 'UTC')::jsonb
         FROM cloud_pod_jobs WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(pool)
    .await
    .attempting("read a job")
}

/// A cluster of a region, by its active nodes: the one with the lowest number.
/// `None`: no node is there.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn cluster_of_region(tx: &mut Tx, region: &str, default: &str) -> Result<Option<i32>, DbError> {
    sqlx::query_scalar(
        "SELECT min(COALESCE(x.cluster_id, 1)) FROM cloud_pod_nodes n
         LEFT JOIN fleet_node_ext x ON x.node_id = n.id
         LEFT JOIN fleet_pve_clusters c ON c.id = COALESCE(x.cluster_id, 1)
         WHERE COALESCE(x.region, c.region, $2) = $1",
    )
    .bind(region)
    .bind(default)
    .fetch_one(&mut **tx)
    .await
    .attempting("look for the region's cluster")
}
