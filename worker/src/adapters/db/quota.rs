//! Tenants and their quotas.

use sqlx::FromRow;
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

/// A tenant's limits as the row has them; below zero means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct LimitRow {
    /// Pods.
    pub max_cloud_pods: i32,
    /// CPU cores.
    pub max_cpu_cores: i32,
    /// Memory, MiB.
    pub max_ram_mb: i32,
    /// Disk, GiB.
    pub max_disk_gb: i32,
}

/// What a tenant's pods use, summed from the pods, without one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct UsageRow {
    /// Pods.
    pub pods: i64,
    /// CPU cores.
    pub cores: i64,
    /// Memory, MiB.
    pub memory_mb: i64,
    /// Disk, GiB.
    pub disk_gb: i64,
}

/// Whether the tenant exists and is not deleted.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn tenant_exists(tx: &mut Tx, tenant_id: Uuid) -> Result<bool, DbError> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tenants WHERE id = $1 AND deleted_at IS NULL)")
        .bind(tenant_id)
        .fetch_one(&mut **tx)
        .await
        .attempting("look for the tenant")
}

/// Locks the tenant's quota until the transaction ends, and reads its limits.
/// Tenants without a row are locked too, by an advisory lock.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn lock_limits(tx: &mut Tx, tenant_id: Uuid) -> Result<Option<LimitRow>, DbError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('fleet quota ' || $1::text, 0))")
        .bind(tenant_id)
        .execute(&mut **tx)
        .await
        .attempting("lock the tenant's quota")?;
    sqlx::query_as(
        "SELECT max_cloud_pods, max_cpu_cores, max_ram_mb, max_disk_gb
         FROM cloud_pod_quotas WHERE tenant_id = $1 FOR UPDATE",
    )
    .bind(tenant_id)
    .fetch_optional(&mut **tx)
    .await
    .attempting("read the tenant's quota")
}

/// What the tenant's pods use, without `except`.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn usage(tx: &mut Tx, tenant_id: Uuid, except: Option<Uuid>) -> Result<UsageRow, DbError> {
    sqlx::query_as(
        "SELECT count(*) AS pods, COALESCE(sum(cores), 0) AS cores,
                COALESCE(sum(memory_mb), 0) AS memory_mb, COALESCE(sum(disk_gb), 0) AS disk_gb
         FROM cloud_pods
         WHERE tenant_id = $1 AND deleted_at IS NULL AND status IN ('provisioning', 'active')
           AND ($2::uuid IS NULL OR id <> $2)",
    )
    .bind(tenant_id)
    .bind(except)
    .fetch_one(&mut **tx)
    .await
    .attempting("sum the tenant's pods")
}

/// What a change adds to a tenant's `used_*`, or takes from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Pods.
    pub pods: i32,
    /// CPU cores.
    pub cores: i32,
    /// Memory, MiB.
    pub memory_mb: i32,
    /// Disk, GiB.
    pub disk_gb: i32,
}

/// Changes the tenant's `used_*`, which never fall below zero; the row is made
/// where there is none.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn change_used(tx: &mut Tx, tenant_id: Uuid, by: Change) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO cloud_pod_quotas
           (id, tenant_id, used_cloud_pods, used_cpu_cores, used_ram_mb, used_disk_gb, created_at, updated_at)
         VALUES (gen_random_uuid(), $1, GREATEST($2, 0), GREATEST($3, 0), GREATEST($4, 0), GREATEST($5, 0),
                 timezone('utc', now()), timezone('utc', now()))
         ON CONFLICT (tenant_id) DO UPDATE
         SET used_cloud_pods = GREATEST(cloud_pod_quotas.used_cloud_pods + $2, 0),
             used_cpu_cores = GREATEST(cloud_pod_quotas.used_cpu_cores + $3, 0),
             used_ram_mb = GREATEST(cloud_pod_quotas.used_ram_mb + $4, 0),
             used_disk_gb = GREATEST(cloud_pod_quotas.used_disk_gb + $5, 0),
             updated_at = timezone('utc', now())",
    )
    .bind(tenant_id)
    .bind(by.pods)
    .bind(by.cores)
    .bind(by.memory_mb)
    .bind(by.disk_gb)
    .execute(&mut **tx)
    .await
    .attempting("change what the tenant uses")
    .map(|_| ())
}
