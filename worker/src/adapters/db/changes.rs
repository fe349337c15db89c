//! What operations write about a pod that exists.

use sqlx::PgPool;
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

/// Sets a pod's status.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_status(tx: &mut Tx, pod_id: Uuid, status: &str) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE cloud_pods SET status = $2, updated_at = timezone('utc', now())
         WHERE id = $1 AND deleted_at IS NULL",
    )
    .bind(pod_id)
    .bind(status)
    .execute(&mut **tx)
    .await
    .attempting("set the pod's status")
    .map(|_| ())
}

/// Sets a pod to deleted. Its row stays, and holds its VMID.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_deleted(tx: &mut Tx, pod_id: Uuid) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE cloud_pods
         SET status = 'deleted', deleted_at = COALESCE(deleted_at, timezone('utc', now())),
             updated_at = timezone('utc', now())
         WHERE id = $1",
    )
    .bind(pod_id)
    .execute(&mut **tx)
    .await
    .attempting("set the pod to deleted")
    .map(|_| ())
}

/// mPanel's route enqueues, then sets `deleting`: over the `deleted` of a fast
/// worker. Sets such pods right and answers how many there were.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn repair_deleted(pool: &PgPool) -> Result<u64, DbError> {
    let repaired = sqlx::query(
        "UPDATE cloud_pods SET status = 'deleted', updated_at = timezone('utc', now())
         WHERE status = 'deleting' AND deleted_at IS NOT NULL",
    )
    .execute(pool)
    .await
    .attempting("repair pods that were set to deleting too late")?;
    Ok(repaired.rows_affected())
}

/// How big a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodSize {
    /// CPU cores.
    pub cores: i32,
    /// Memory, MiB.
    pub memory_mb: i32,
    /// Disk, GiB.
    pub disk_gb: i32,
}

/// Writes a pod's new size.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_size(tx: &mut Tx, pod_id: Uuid, size: PodSize) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE cloud_pods SET cores = $2, memory_mb = $3, disk_gb = $4, updated_at = timezone('utc', now())
         WHERE id = $1",
    )
    .bind(pod_id)
    .bind(size.cores)
    .bind(size.memory_mb)
    .bind(size.disk_gb)
    .execute(&mut **tx)
    .await
    .attempting("write the pod's size")
    .map(|_| ())
}

/// What a pod's instance reserves on its node. The node's allocation must be
/// projected afterwards.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_reservation(
    tx: &mut Tx,
    pod_id: Uuid,
    generation: i32,
    size: PodSize,
) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE fleet_reservations SET cpu_cores = $3, mem_mb = $4, disk_gb = $5, updated_at = now()
         WHERE pod_id = $1 AND generation = $2",
    )
    .bind(pod_id)
    .bind(generation)
    .bind(size.cores)
    .bind(size.memory_mb)
    .bind(size.disk_gb)
    .execute(&mut **tx)
    .await
    .attempting("change what the pod reserves")
    .map(|_| ())
}

/// The pod's instance has another size: a later repair must not undo it.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_spec_size(tx: &mut Tx, pod_id: Uuid, generation: i32, size: PodSize) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE fleet_pods
         SET spec = spec || jsonb_build_object('cores', $3::int, 'memoryMb', $4::int, 'diskGb', $5::int),
             updated_at = now()
         WHERE pod_id = $1 AND generation = $2",
    )
    .bind(pod_id)
    .bind(generation)
    .bind(size.cores)
    .bind(size.memory_mb)
    .bind(size.disk_gb)
    .execute(&mut **tx)
    .await
    .attempting("note the instance's size")
    .map(|_| ())
}

/// A backup that was made.
#[derive(Debug, Clone)]
pub struct BackupRow<'a> {
    /// `snapshot` or `vzdump`.
    pub kind: &'a str,
    /// The volume's id, or the snapshot's name.
    pub location: &'a str,
    /// Its size, GiB, where it is known.
    pub size_gb: Option<f64>,
}

/// Writes that a pod was backed up.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn backed_up(tx: &mut Tx, pod_id: Uuid, backup: &BackupRow<'_>) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE cloud_pods SET last_backup_at = timezone('utc', now()), updated_at = timezone('utc', now())
         WHERE id = $1",
    )
    .bind(pod_id)
    .execute(&mut **tx)
    .await
    .attempting("note the pod's backup")?;
    sqlx::query(
        "INSERT INTO cloud_pod_backups
           (id, pod_id, backup_type, location, status, size_gb, created_at, completed_at)
         VALUES (gen_random_uuid(), $1, $2, $3, 'completed', $4, timezone('utc', now()), timezone('utc', now()))",
    )
    .bind(pod_id)
    .bind(backup.kind)
    .bind(backup.location)
    .bind(backup.size_gb)
    .execute(&mut **tx)
    .await
    .attempting("write the backup's row")
    .map(|_| ())
}

/// Writes how pods are; `ok`, `warning` or `critical` for each.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_health(tx: &mut Tx, pods: &[Uuid], health: &[&str]) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE cloud_pods p
         SET last_health_status = h.health, last_health_checked = timezone('utc', now()),
             updated_at = timezone('utc', now())
         FROM unnest($1::uuid[], $2::text[]) AS h (id, health)
         WHERE p.id = h.id AND p.deleted_at IS NULL",
    )
    .bind(pods)
    .bind(health)
    .execute(&mut **tx)
    .await
    .attempting("write the pods' health")
    .map(|_| ())
}

/// Notes what a pod's owner wants of its power.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_power(tx: &mut Tx, pod_id: Uuid, wanted: &str) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO fleet_pod_power (pod_id, wanted) VALUES ($1, $2)
         ON CONFLICT (pod_id) DO UPDATE SET wanted = EXCLUDED.wanted, updated_at = now()",
    )
    .bind(pod_id)
    .bind(wanted)
    .execute(&mut **tx)
    .await
    .attempting("note the pod's power")
    .map(|_| ())
}

/// Pods whose owners want them not to run.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn not_to_run(pool: &PgPool) -> Result<Vec<Uuid>, DbError> {
    sqlx::query_scalar("SELECT pod_id FROM fleet_pod_power WHERE wanted <> 'running'")
        .fetch_all(pool)
        .await
        .attempting("read which pods are not to run")
}
