//! Pods: mPanel's row, our instance of it, what it reserves, and its events.

use serde_json::Value;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{
    Attempted, DbError, Tx,
    ledger::Fence,
    pools::{self, AddressState},
};

/// A row of `cloud_pods`, as far as ownership is concerned.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct PodRow {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant_id: Uuid,
    /// Its host name.
    pub hostname: String,
    /// `provisioning`, `active`, …
    pub status: String,
    /// Whether it was deleted (softly: it still holds its VMID).
    pub deleted: bool,
}

/// The row that holds a VMID, deleted or not; locked.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn by_vmid(tx: &mut Tx, vmid: i32) -> Result<Option<PodRow>, DbError> {
    sqlx::query_as(
        "SELECT id, tenant_id, hostname, status, (deleted_at IS NOT NULL OR status = 'deleted') AS deleted
         FROM cloud_pods WHERE vmid = $1 FOR UPDATE",
    )
    .bind(vmid)
    .fetch_optional(&mut **tx)
    .await
    .attempting("look who holds the VMID")
}

/// The pod that a job owns by mPanel's own book: the one its job row names.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn of_job_row(tx: &mut Tx, fence: &Fence, kind: &str) -> Result<Option<Uuid>, DbError> {
    sqlx::query_scalar(
        "SELECT p.id FROM cloud_pod_jobs j
         JOIN cloud_pods p ON p.id = j.cloud_pod_id AND p.tenant_id = j.tenant_id
         WHERE j.bull_job_id = $1 AND j.type = $2 ORDER BY j.created_at LIMIT 1",
    )
    .bind(&fence.job_id)
    .bind(kind)
    .fetch_optional(&mut **tx)
    .await
    .attempting("look which pod the job's row names")
}

/// What a new pod row says.
#[derive(Debug, Clone)]
pub struct NewPod<'a> {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant_id: Uuid,
    /// Its VMID.
    pub vmid: i32,
    /// Its host name.
    pub hostname: &'a str,
    /// Its address, if it is known already.
    pub ip: Option<&'a str>,
    /// Its region.
    pub region: &'a str,
    /// Its resource pool; empty for none.
    pub pool: &'a str,
    /// CPU cores.
    pub cores: i32,
    /// Memory, MiB.
    pub memory_mb: i32,
    /// Swap, MiB.
    pub swap_mb: i32,
    /// Disk, GiB.
    pub disk_gb: i32,
    /// Its storage.
    pub storage: &'a str,
    /// Its bridge.
    pub bridge: &'a str,
    /// The plan it was sold as.
    pub plan: Option<Value>,
    /// Its blueprint.
    pub blueprint_id: Option<Uuid>,
}

/// Writes the pod's row as `provisioning`: new, or over the row that the same
/// job left behind.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn upsert(tx: &mut Tx, pod: &NewPod<'_>) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO cloud_pods (id, tenant_id, vmid, hostname, ip, region, status, pool, cores, memory_mb,
           swap_mb, disk_gb, storage, bridge, plan_snapshot, blueprint_id, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, 'provisioning', $7, $8, $9, $10, $11, $12, $13, $14, $15,
                 timezone('utc', now()), timezone('utc', now()))
         ON CONFLICT (id) DO UPDATE
         SET vmid = EXCLUDED.vmid, hostname = EXCLUDED.hostname, ip = EXCLUDED.ip, region = EXCLUDED.region,
             status = 'provisioning', pool = EXCLUDED.pool, cores = EXCLUDED.cores,
             memory_mb = EXCLUDED.memory_mb, swap_mb = EXCLUDED.swap_mb, disk_gb = EXCLUDED.disk_gb,
             storage = EXCLUDED.storage, bridge = EXCLUDED.bridge, updated_at = EXCLUDED.updated_at",
    )
    .bind(pod.id)
    .bind(pod.tenant_id)
    .bind(pod.vmid)
    .bind(pod.hostname)
    .bind(pod.ip)
    .bind(pod.region)
    .bind(pod.pool)
    .bind(pod.cores)
    .bind(pod.memory_mb)
    .bind(pod.swap_mb)
    .bind(pod.disk_gb)
    .bind(pod.storage)
    .bind(pod.bridge)
    .bind(&pod.plan)
    .bind(pod.blueprint_id)
    .execute(&mut **tx)
    .await
    .attempting("write the pod's row")
    .map(|_| ())
}

/// One generation of a pod: where its guest is, or will be.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct InstanceRow {
    /// `cloud_pods.id`.
    pub pod_id: Uuid,
    /// From 1; grows when a guest had to be quarantined.
    pub generation: i32,
    /// Whose it is.
    pub tenant_id: Uuid,
    /// Its cluster.
    pub cluster_id: i32,
    /// Its node.
    pub node_id: i32,
    /// The guest's id.
    pub vmid: i32,
    /// How far it is.
    pub phase: String,
    /// What it is to be, as the reservation decided.
    pub spec: Value,
    /// The node's API; `None` when the node's row is gone.
    pub api_url: Option<String>,
}

/// The live instance that a job made, if any.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn live_instance(pool: &PgPool, fence: &Fence) -> Result<Option<InstanceRow>, DbError> {
    sqlx::query_as(
        "SELECT p.pod_id, p.generation, p.tenant_id, p.cluster_id, p.node_id, p.vmid, p.phase, p.spec, n.api_url
         FROM fleet_pods p LEFT JOIN cloud_pod_nodes n ON n.id = p.node_id
         WHERE p.queue = $1 AND p.job_id = $2 AND p.phase NOT IN ('quarantined', 'released')",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .fetch_optional(pool)
    .await
    .attempting("look for the job's pod")
}

/// The VMID of the job's last generation, if that one was quarantined.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn quarantined_vmid(pool: &PgPool, fence: &Fence) -> Result<Option<i32>, DbError> {
    let last: Option<(i32, String)> = sqlx::query_as(
        "SELECT vmid, phase FROM fleet_pods WHERE queue = $1 AND job_id = $2 ORDER BY generation DESC LIMIT 1",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .fetch_optional(pool)
    .await
    .attempting("look for a quarantined guest of the job")?;
    Ok(last.filter(|(_, phase)| phase == "quarantined").map(|(vmid, _)| vmid))
}

/// The highest generation a pod has had; 0 for none.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn last_generation(tx: &mut Tx, pod_id: Uuid) -> Result<i32, DbError> {
    sqlx::query_scalar("SELECT COALESCE(max(generation), 0) FROM fleet_pods WHERE pod_id = $1")
        .bind(pod_id)
        .fetch_one(&mut **tx)
        .await
        .attempting("read the pod's generations")
}

/// Records an instance with its reservation and its VMID. The VMID must have
/// been taken by [`take_vmid`] in the same transaction.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn insert_instance(
    tx: &mut Tx,
    fence: &Fence,
    row: &InstanceRow,
    size: (i32, i32, i32),
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO fleet_pods (pod_id, generation, tenant_id, cluster_id, node_id, vmid, kind, phase, spec,
                                 queue, job_id, fence)
         VALUES ($1, $2, $3, $4, $5, $6, CASE $7::jsonb ->> 'kind' WHEN 'qemu' THEN 'vm' ELSE 'lxc' END,
                 'reserved', $7, $8, $9, $10)",
    )
    .bind(row.pod_id)
    .bind(row.generation)
    .bind(row.tenant_id)
    .bind(row.cluster_id)
    .bind(row.node_id)
    .bind(row.vmid)
    .bind(&row.spec)
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .bind(fence.number)
    .execute(&mut **tx)
    .await
    .attempting("record the pod's instance")?;
    sqlx::query(
        "INSERT INTO fleet_reservations (pod_id, generation, node_id, cpu_cores, mem_mb, disk_gb, state)
         VALUES ($1, $2, $3, $4, $5, $6, 'held')",
    )
    .bind(row.pod_id)
    .bind(row.generation)
    .bind(row.node_id)
    .bind(size.0)
    .bind(size.1)
    .bind(size.2)
    .execute(&mut **tx)
    .await
    .attempting("reserve the node's capacity")
    .map(|_| ())
}

/// Takes a VMID of a cluster for a pod. `Err(state)`: it is not to be had.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn take_vmid(
    tx: &mut Tx,
    cluster_id: i32,
    vmid: i32,
    pod_id: Uuid,
    generation: i32,
) -> Result<Result<(), String>, DbError> {
    let taken = sqlx::query(
        "INSERT INTO fleet_vmids (cluster_id, vmid, state, pod_id, generation) VALUES ($1, $2, 'held', $3, $4)
         ON CONFLICT (cluster_id, vmid) DO UPDATE
         SET state = 'held', pod_id = $3, generation = $4, cooldown_until = NULL, updated_at = now()
         WHERE fleet_vmids.state = 'foreign'
            OR (fleet_vmids.state = 'cooldown'
                AND (fleet_vmids.cooldown_until < now() OR fleet_vmids.pod_id = $3))",
    )
    .bind(cluster_id)
    .bind(vmid)
    .bind(pod_id)
    .bind(generation)
    .execute(&mut **tx)
    .await
    .attempting("take the VMID")?;
    if taken.rows_affected() > 0 {
        return Ok(Ok(()));
    }
    let state: Option<String> = sqlx::query_scalar(
        "SELECT CASE state WHEN 'cooldown'
                  THEN 'a guest destroyed a short while ago; it is free again at '
                       || to_char(timezone('utc', cooldown_until), 'YYYY-MM-DD HH24:MI') || ' UTC'
                WHEN 'quarantined' THEN 'a quarantined guest of pod ' || pod_id
                ELSE 'pod ' || pod_id END
         FROM fleet_vmids WHERE cluster_id = $1 AND vmid = $2",
    )
    .bind(cluster_id)
    .bind(vmid)
    .fetch_optional(&mut **tx)
    .await
    .attempting("look who holds the VMID")?
    .flatten();
    Ok(Err(state.unwrap_or_else(|| "another reservation".to_owned())))
}

/// The lowest VMID of a cluster's range that no row, no book and no guest holds.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn free_vmid(tx: &mut Tx, cluster_id: i32, guests: &[i32]) -> Result<Option<i32>, DbError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('fleet vmid ' || $1::text, 0))")
        .bind(cluster_id)
        .execute(&mut **tx)
        .await
        .attempting("lock the cluster's VMIDs")?;
    sqlx::query_scalar(
        "WITH range AS (SELECT vmid_lower, vmid_upper FROM fleet_pve_clusters WHERE id = $1),
              taken AS (SELECT vmid FROM cloud_pods
                        UNION SELECT vmid FROM fleet_vmids
                              WHERE cluster_id = $1
                                AND NOT (state = 'cooldown' AND cooldown_until < now())
                        UNION SELECT unnest($2::int[])),
              edge AS (SELECT vmid_lower - 1 AS vmid FROM range
                       UNION SELECT taken.vmid FROM taken, range WHERE taken.vmid >= vmid_lower)
         SELECT min(edge.vmid) + 1 FROM edge, range
         WHERE edge.vmid < vmid_upper AND NOT EXISTS (SELECT 1 FROM taken WHERE taken.vmid = edge.vmid + 1)",
    )
    .bind(cluster_id)
    .bind(guests)
    .fetch_one(&mut **tx)
    .await
    .attempting("find a free VMID")
}

/// Notes how far an instance is.
///
/// # Errors
/// [`DbError::Fenced`] or [`DbError::Sql`].
pub async fn set_phase(
    pool: &PgPool,
    fence: &Fence,
    pod_id: Uuid,
    generation: i32,
    phase: &str,
) -> Result<(), DbError> {
    let written = sqlx::query(
        "WITH mine AS (SELECT 1 FROM fleet_job_fence
                       WHERE queue = $1 AND job_id = $2 AND fence = $3 FOR UPDATE)
         UPDATE fleet_pods SET phase = $6, fence = $3, updated_at = now()
         FROM mine WHERE pod_id = $4 AND generation = $5",
    )
    .bind(&fence.queue)
    .bind(&fence.job_id)
    .bind(fence.number)
    .bind(pod_id)
    .bind(generation)
    .bind(phase)
    .execute(pool)
    .await
    .attempting("note the pod's phase")?;
    if written.rows_affected() == 0 {
        return Err(DbError::Fenced { queue: fence.queue.clone(), job_id: fence.job_id.clone() });
    }
    Ok(())
}

/// The pod works: its row, its instance, its reservation, its address.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn activate(tx: &mut Tx, row: &InstanceRow, ip: &str) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE cloud_pods SET status = 'active', ip = $2, updated_at = timezone('utc', now()) WHERE id = $1",
    )
    .bind(row.pod_id)
    .bind(ip)
    .execute(&mut **tx)
    .await
    .attempting("set the pod to active")?;
    set_books(tx, row, "active", "committed", "used").await?;
    pools::set_state(tx, row.pod_id, row.generation, AddressState::Used).await
}

/// What becomes of an instance that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retired {
    /// No call for a guest ever left: all is free at once.
    NeverMade,
    /// Its guest was seen to be gone: VMID and address rest for a day.
    Gone,
    /// Nobody knows whether its guest lives: everything stays reserved.
    Quarantined,
}

/// Retires an instance. The node's allocation must be projected afterwards.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn retire(tx: &mut Tx, row: &InstanceRow, how: Retired) -> Result<(), DbError> {
    let (phase, reservation, vmid, address) = match how {
        Retired::NeverMade => ("released", "released", "cooldown", AddressState::Free),
        Retired::Gone => ("released", "released", "cooldown", AddressState::Cooldown),
        Retired::Quarantined => ("quarantined", "quarantined", "quarantined", AddressState::Quarantined),
    };
    set_books(tx, row, phase, reservation, vmid).await?;
    if how != Retired::Quarantined {
        let rest_s = if how == Retired::Gone { 86_400.0 } else { 0.0 };
        sqlx::query(
            "UPDATE fleet_vmids SET cooldown_until = now() + make_interval(secs => $3)
             WHERE cluster_id = $1 AND vmid = $2",
        )
        .bind(row.cluster_id)
        .bind(row.vmid)
        .bind(rest_s)
        .execute(&mut **tx)
        .await
        .attempting("let the VMID rest")?;
    }
    pools::set_state(tx, row.pod_id, row.generation, address).await
}

async fn set_books(
    tx: &mut Tx,
    row: &InstanceRow,
    phase: &str,
    reservation: &str,
    vmid: &str,
) -> Result<(), DbError> {
    sqlx::query("UPDATE fleet_pods SET phase = $3, updated_at = now() WHERE pod_id = $1 AND generation = $2")
        .bind(row.pod_id)
        .bind(row.generation)
        .bind(phase)
        .execute(&mut **tx)
        .await
        .attempting("set the pod's phase")?;
    sqlx::query(
        "UPDATE fleet_reservations SET state = $3, updated_at = now() WHERE pod_id = $1 AND generation = $2",
    )
    .bind(row.pod_id)
    .bind(row.generation)
    .bind(reservation)
    .execute(&mut **tx)
    .await
    .attempting("set the reservation's state")?;
    sqlx::query(
        "UPDATE fleet_vmids SET state = $3, updated_at = now()
         WHERE cluster_id = $1 AND vmid = $2 AND pod_id = $4",
    )
    .bind(row.cluster_id)
    .bind(row.vmid)
    .bind(vmid)
    .bind(row.pod_id)
    .execute(&mut **tx)
    .await
    .attempting("set the VMID's state")
    .map(|_| ())
}

/// Sets a pod that was being made to `failed`. One that works is left alone.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn fail(tx: &mut Tx, pod_id: Uuid) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE cloud_pods SET status = 'failed', ip = NULL, updated_at = timezone('utc', now())
         WHERE id = $1 AND status IN ('provisioning', 'failed')",
    )
    .bind(pod_id)
    .execute(&mut **tx)
    .await
    .attempting("set the pod to failed")
    .map(|_| ())
}

/// Appends an event.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn event(
    tx: &mut Tx,
    tenant_id: Uuid,
    pod_id: Option<Uuid>,
    kind: &str,
    message: &str,
    data: &Value,
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO cloud_pod_events (id, tenant_id, cloud_pod_id, type, message, data, created_at)
         VALUES (gen_random_uuid(), $1, $2, $3, $4, $5, timezone('utc', now()))",
    )
    .bind(tenant_id)
    .bind(pod_id)
    .bind(kind)
    .bind(message)
    .bind(data)
    .execute(&mut **tx)
    .await
    .attempting("write the pod's event")
    .map(|_| ())
}

/// The id of a blueprint and what it says; `None` when there is none of that id or slug.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn blueprint(pool: &PgPool, name: &str) -> Result<Option<(Uuid, Value)>, DbError> {
    sqlx::query_as(
        "SELECT id, spec FROM cloud_pod_blueprints WHERE id::text = lower($1) OR slug = $1 LIMIT 1",
    )
    .bind(name)
    .fetch_optional(pool)
    .await
    .attempting("read the blueprint")
}
