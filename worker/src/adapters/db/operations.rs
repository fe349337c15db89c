//! Jobs about a pod that exists: the pod as they find it, what they decided at
//! their start, and the lease by which they keep out of each other's way.

use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError, Tx, ledger::Fence, pods::InstanceRow};

/// How long a lease lives without renewal, seconds: longer than a worker needs
/// to be missed, and than a request of it may still take effect.
const LEASE_S: f64 = 120.0;

/// A row of `cloud_pods`.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct PodRecord {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant_id: Uuid,
    /// The guest's id.
    pub vmid: i32,
    /// Its host name.
    pub hostname: String,
    /// `provisioning`, `active`, …
    pub status: String,
    /// Whether it was deleted (softly).
    pub deleted: bool,
    /// Its address.
    pub ip: Option<String>,
    /// CPU cores.
    pub cores: i32,
    /// Memory, MiB.
    pub memory_mb: i32,
    /// Disk, GiB.
    pub disk_gb: i32,
}

/// A pod's row, locked until the transaction ends.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn lock_pod(tx: &mut Tx, pod_id: Uuid) -> Result<Option<PodRecord>, DbError> {
    sqlx::query_as(
        "SELECT id, tenant_id, vmid, hostname, status, (deleted_at IS NOT NULL OR status = 'deleted') AS deleted,
                ip, cores, memory_mb, disk_gb
         FROM cloud_pods WHERE id = $1 FOR UPDATE",
    )
    .bind(pod_id)
    .fetch_optional(&mut **tx)
    .await
    .attempting("read the pod's row")
}

/// Pods that a sweep looks at: those that are to work.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn active_pods(pool: &PgPool) -> Result<Vec<PodRecord>, DbError> {
    sqlx::query_as(
        "SELECT id, tenant_id, vmid, hostname, status, false AS deleted, ip, cores, memory_mb, disk_gb
         FROM cloud_pods WHERE status = 'active' AND deleted_at IS NULL ORDER BY vmid",
    )
    .fetch_all(pool)
    .await
    .attempting("read the active pods")
}

/// A pod's living instance: where its guest is.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn instance_of(tx: &mut Tx, pod_id: Uuid) -> Result<Option<InstanceRow>, DbError> {
    sqlx::query_as(
        "SELECT p.pod_id, p.generation, p.tenant_id, p.cluster_id, p.node_id, p.vmid, p.phase, p.spec, n.api_url
         FROM fleet_pods p LEFT JOIN cloud_pod_nodes n ON n.id = p.node_id
         WHERE p.pod_id = $1 AND p.phase NOT IN ('quarantined', 'released')",
    )
    .bind(pod_id)
    .fetch_optional(&mut **tx)
    .await
    .attempting("look where the pod's guest is")
}

/// Whether we have ever made a guest for a pod; one that we have not made may
/// be a Node worker's, and carries no tag.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn is_in_our_books(tx: &mut Tx, pod_id: Uuid) -> Result<bool, DbError> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM fleet_pods WHERE pod_id = $1)")
        .bind(pod_id)
        .fetch_one(&mut **tx)
        .await
        .attempting("look whether the pod is in our books")
}

/// Takes or renews the lease of a pod; otherwise the job that has it.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn take_lease(tx: &mut Tx, fence: &Fence, pod_id: Uuid) -> Result<Result<(), String>, DbError> {
    let taken = sqlx::query(
        "INSERT INTO fleet_pod_leases (pod_id, queue, job_id, expires_at)
         VALUES ($1, $2, $3, now() + make_interval(secs => $4))
         ON CONFLICT (pod_id) DO UPDATE
         SET queue = EXCLUDED.queue, job_id = EXCLUDED.job_id, expires_at = EXCLUDED.expires_at
         WHERE fleet_pod_leases.expires_at < now()
            OR (fleet_pod_leases.queue = EXCLUDED.queue AND fleet_pod_leases.job_id = EXCLUDED.job_id)",
    )
    .bind(pod_id)
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .bind(LEASE_S)
    .execute(&mut **tx)
    .await
    .attempting("take the pod's lease")?;
    if taken.rows_affected() > 0 {
        return Ok(Ok(()));
    }
    let holder: Option<String> =
        sqlx::query_scalar("SELECT queue || '/' || job_id FROM fleet_pod_leases WHERE pod_id = $1")
            .bind(pod_id)
            .fetch_optional(&mut **tx)
            .await
            .attempting("look who has the pod's lease")?;
    Ok(Err(holder.unwrap_or_else(|| "another job".to_owned())))
}

/// Makes the lease last on; false when another job has taken it.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn renew_lease(pool: &PgPool, fence: &Fence, pod_id: Uuid) -> Result<bool, DbError> {
    let renewed = sqlx::query(
        "UPDATE fleet_pod_leases SET expires_at = now() + make_interval(secs => $4)
         WHERE pod_id = $1 AND queue = $2 AND job_id = $3",
    )
    .bind(pod_id)
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .bind(LEASE_S)
    .execute(pool)
    .await
    .attempting("renew the pod's lease")?;
    Ok(renewed.rows_affected() > 0)
}

/// Gives the job's lease back, whatever pod it is of.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn release_lease(tx: &mut Tx, fence: &Fence) -> Result<(), DbError> {
    sqlx::query("DELETE FROM fleet_pod_leases WHERE queue = $1 AND job_id = $2")
        .bind(&fence.queue)
        .bind(&fence.job_id)
        .execute(&mut **tx)
        .await
        .attempting("give the pod's lease back")
        .map(|_| ())
}

/// What a job found at its start.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct Begun {
    /// The pod.
    pub pod_id: Uuid,
    /// Its status before.
    pub prior_status: String,
    /// Its cores before.
    pub prior_cores: i32,
    /// Its memory before, MiB.
    pub prior_memory_mb: i32,
    /// When the job began, epoch milliseconds.
    pub began_ms: i64,
    /// How long ago that is, seconds.
    pub age_s: f64,
}

/// Keeps what a job finds at its start; an earlier attempt's finding stays.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn begin(tx: &mut Tx, fence: &Fence, kind: &str, pod: &PodRecord) -> Result<Begun, DbError> {
    sqlx::query(
        "INSERT INTO fleet_operations (queue, job_id, pod_id, kind, prior_status, prior_cores, prior_memory_mb)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .bind(pod.id)
    .bind(kind)
    .bind(&pod.status)
    .bind(pod.cores)
    .bind(pod.memory_mb)
    .execute(&mut **tx)
    .await
    .attempting("record the operation")?;
    begun(tx, fence).await?.ok_or_else(|| fence.lost())
}

/// What a job found at its start, if it has begun.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn begun(tx: &mut Tx, fence: &Fence) -> Result<Option<Begun>, DbError> {
    sqlx::query_as(
        "SELECT pod_id, prior_status, prior_cores, prior_memory_mb,
                (extract(epoch FROM began_at) * 1000)::bigint AS began_ms,
                GREATEST(extract(epoch FROM now() - began_at), 0)::float8 AS age_s
         FROM fleet_operations WHERE queue = $1 AND job_id = $2",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .fetch_optional(&mut **tx)
    .await
    .attempting("read the operation")
}
