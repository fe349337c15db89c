//! `cloud_pod_nodes`, what we add to them, and the projection of our
//! reservations into `cloud_pod_allocations`.

use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

/// A node with everything that placement needs.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct NodeRecord {
    /// `cloud_pod_nodes.id`.
    pub id: i32,
    /// The operator's name for it.
    pub name: String,
    /// `proxmox`.
    pub provider: String,
    /// Its API.
    pub api_url: String,
    /// Its name in Proxmox.
    pub node_name: String,
    /// `active`, `maintenance`, `disabled`.
    pub status: String,
    /// Physical cores.
    pub total_cpu_cores: i32,
    /// Memory, MiB.
    pub total_memory_mb: i32,
    /// Disk, GiB.
    pub total_disk_gb: i32,
    /// Its region, if one was given.
    pub region: Option<String>,
    /// Its cluster.
    pub cluster_id: i32,
    /// Cores that may be promised for each physical one.
    pub cpu_ratio: f64,
    /// The same for memory.
    pub mem_ratio: f64,
    /// The same for disk.
    pub disk_ratio: f64,
    /// Physical cores kept for the node itself.
    pub cpu_reserved: f64,
    /// Memory kept for the node itself, MiB.
    pub mem_reserved_mb: i32,
    /// Disk kept for the node itself, GiB.
    pub disk_reserved_gb: i32,
    /// Whether it takes no new pods.
    pub drain: bool,
    /// Promised cores, guests that are not ours included.
    pub used_cores: i64,
    /// Promised memory, MiB.
    pub used_memory_mb: i64,
    /// Promised disk, GiB.
    pub used_disk_gb: i64,
    /// Pods of ours on it.
    pub pods: i64,
}

/// The columns of [`NodeRecord`]; what the node's allocations said before our
/// first reservation counts as used by others.
const NODES: &str = "SELECT n.id, n.name, n.provider, n.api_url, n.node_name, n.status,
        n.total_cpu_cores, n.total_memory_mb, n.total_disk_gb,
        COALESCE(x.region, c.region) AS region, COALESCE(x.cluster_id, 1) AS cluster_id,
        COALESCE(x.cpu_ratio, 4.0) AS cpu_ratio, COALESCE(x.mem_ratio, 1.0) AS mem_ratio,
        COALESCE(x.disk_ratio, 1.0) AS disk_ratio, COALESCE(x.cpu_reserved, 0) AS cpu_reserved,
        COALESCE(x.mem_reserved_mb, 0) AS mem_reserved_mb,
        COALESCE(x.disk_reserved_gb, 0) AS disk_reserved_gb, COALESCE(x.drain, false) AS drain,
        COALESCE(x.cpu_base, a.used_cpu_cores, 0) + r.cores AS used_cores,
        COALESCE(x.mem_base_mb, a.used_memory_mb, 0) + r.memory_mb AS used_memory_mb,
        COALESCE(x.disk_base_gb, a.used_disk_gb, 0) + r.disk_gb AS used_disk_gb,
        r.pods
   FROM cloud_pod_nodes n
   LEFT JOIN fleet_node_ext x ON x.node_id = n.id
   LEFT JOIN fleet_pve_clusters c ON c.id = COALESCE(x.cluster_id, 1)
   LEFT JOIN LATERAL (SELECT * FROM cloud_pod_allocations WHERE node_id = n.id ORDER BY id LIMIT 1) a ON true
   CROSS JOIN LATERAL (
     SELECT COALESCE(sum(cpu_cores), 0) AS cores, COALESCE(sum(mem_mb), 0) AS memory_mb,
            COALESCE(sum(disk_gb), 0) AS disk_gb, count(*) AS pods
     FROM fleet_reservations WHERE node_id = n.id AND state <> 'released') r";

/// All nodes, lowest id first.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn all(pool: &PgPool) -> Result<Vec<NodeRecord>, DbError> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{NODES} ORDER BY n.id")))
        .fetch_all(pool)
        .await
        .attempting("read the nodes")
}

/// What weighs when a node is chosen, beside its room.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct NodeSigns {
    /// `cloud_pod_nodes.id`.
    pub node_id: i32,
    /// Pods of the tenant on it.
    pub tenant_pods: i64,
    /// Pods that are being made on it.
    pub in_flight: i64,
    /// Creations that failed on it in the last half hour.
    pub failures: i64,
}

/// The signs of all nodes that have any.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn signs(pool: &PgPool, tenant_id: Option<Uuid>) -> Result<Vec<NodeSigns>, DbError> {
    sqlx::query_as(
        "SELECT p.node_id,
                count(*) FILTER (WHERE p.tenant_id = $1 AND p.phase <> 'released') AS tenant_pods,
                count(*) FILTER (WHERE p.phase NOT IN ('active', 'quarantined', 'released')) AS in_flight,
                count(*) FILTER (WHERE (p.phase = 'quarantined' AND p.updated_at > now() - interval '30 minutes')
                  OR EXISTS (SELECT 1 FROM fleet_job_steps s
                             WHERE s.queue = p.queue AND s.job_id = p.job_id AND s.generation = p.generation
                               AND s.state = 'failed' AND s.updated_at > now() - interval '30 minutes'
                               AND COALESCE(s.result ->> 'error', '') NOT LIKE 'taken by %')) AS failures
         FROM fleet_pods p
         WHERE p.phase <> 'released' OR p.updated_at > now() - interval '1 hour'
         GROUP BY p.node_id",
    )
    .bind(tenant_id)
    .fetch_all(pool)
    .await
    .attempting("read what weighs for and against the nodes")
}

/// Locks a node and reads it anew; `None` when it is gone.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn lock(tx: &mut Tx, node_id: i32) -> Result<Option<NodeRecord>, DbError> {
    let found: Option<i32> = sqlx::query_scalar("SELECT id FROM cloud_pod_nodes WHERE id = $1 FOR UPDATE")
        .bind(node_id)
        .fetch_optional(&mut **tx)
        .await
        .attempting("lock the node")?;
    if found.is_none() {
        return Ok(None);
    }
    // A second statement: its snapshot is younger than the lock.
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{NODES} WHERE n.id = $1")))
        .bind(node_id)
        .fetch_optional(&mut **tx)
        .await
        .attempting("read the node")
}

/// Writes the sum of our reservations on a node (and what others use) into its
/// allocation row, the one with the lowest id. The node must be locked.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn project(tx: &mut Tx, node_id: i32) -> Result<(), DbError> {
    let updated = sqlx::query(
        "UPDATE cloud_pod_allocations a
         SET used_cpu_cores = COALESCE(x.cpu_base, 0) + r.cores,
             used_memory_mb = COALESCE(x.mem_base_mb, 0) + r.memory_mb,
             used_disk_gb = COALESCE(x.disk_base_gb, 0) + r.disk_gb,
             updated_at = timezone('utc', now())
         FROM (SELECT COALESCE(sum(cpu_cores), 0) AS cores, COALESCE(sum(mem_mb), 0) AS memory_mb,
                      COALESCE(sum(disk_gb), 0) AS disk_gb
               FROM fleet_reservations WHERE node_id = $1 AND state <> 'released') r,
              (SELECT max(cpu_base) AS cpu_base, max(mem_base_mb) AS mem_base_mb,
                      max(disk_base_gb) AS disk_base_gb
               FROM fleet_node_ext WHERE node_id = $1) x
         WHERE a.id = (SELECT min(id) FROM cloud_pod_allocations WHERE node_id = $1)",
    )
    .bind(node_id)
    .execute(&mut **tx)
    .await
    .attempting("write the node's allocation")?;
    if updated.rows_affected() > 0 {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO cloud_pod_allocations (node_id, used_cpu_cores, used_memory_mb, used_disk_gb, updated_at)
         SELECT $1, COALESCE(sum(cpu_cores), 0), COALESCE(sum(mem_mb), 0), COALESCE(sum(disk_gb), 0),
                timezone('utc', now())
         FROM fleet_reservations WHERE node_id = $1 AND state <> 'released'",
    )
    .bind(node_id)
    .execute(&mut **tx)
    .await
    .attempting("insert the node's allocation")
    .map(|_| ())
}

/// Before our first reservation on a node: keeps what its allocation row says
/// as used by others. The node must be locked.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn keep_base(tx: &mut Tx, node_id: i32) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO fleet_node_ext (node_id, cpu_base, mem_base_mb, disk_base_gb)
         SELECT $1, COALESCE(a.used_cpu_cores, 0), COALESCE(a.used_memory_mb, 0), COALESCE(a.used_disk_gb, 0)
         FROM (SELECT 1) one
         LEFT JOIN LATERAL (
           SELECT * FROM cloud_pod_allocations WHERE node_id = $1 ORDER BY id LIMIT 1) a ON true
         ON CONFLICT (node_id) DO UPDATE
         SET cpu_base = COALESCE(fleet_node_ext.cpu_base, EXCLUDED.cpu_base),
             mem_base_mb = COALESCE(fleet_node_ext.mem_base_mb, EXCLUDED.mem_base_mb),
             disk_base_gb = COALESCE(fleet_node_ext.disk_base_gb, EXCLUDED.disk_base_gb)",
    )
    .bind(node_id)
    .execute(&mut **tx)
    .await
    .attempting("keep what others use of the node")
    .map(|_| ())
}

/// A node to be added.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// The operator's name for it.
    pub name: String,
    /// Its API.
    pub api_url: String,
    /// Its name in Proxmox.
    pub node_name: String,
    /// Physical cores.
    pub cores: i32,
    /// Memory, MiB.
    pub memory_mb: i32,
    /// Disk, GiB.
    pub disk_gb: i32,
    /// Its region; `None` leaves the default.
    pub region: Option<String>,
    /// Its cluster, made when there is none of that name.
    pub cluster: Option<String>,
}

/// Adds a node with its allocation. Answers its id, or `None` when a node of
/// that name is there already.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn add(pool: &PgPool, node: &NewNode) -> Result<Option<i32>, DbError> {
    let mut tx = super::begin(pool).await?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('fleet nodes', 0))")
        .execute(&mut *tx)
        .await
        .attempting("lock the list of nodes")?;
    let id: Option<i32> = sqlx::query_scalar(
        "INSERT INTO cloud_pod_nodes (name, provider, api_url, node_name, status, total_cpu_cores,
                                      total_memory_mb, total_disk_gb, created_at, updated_at)
         SELECT $1, 'proxmox', $2, $3, 'active', $4, $5, $6, timezone('utc', now()), timezone('utc', now())
         WHERE NOT EXISTS (SELECT 1 FROM cloud_pod_nodes WHERE name = $1)
         RETURNING id",
    )
    .bind(&node.name)
    .bind(&node.api_url)
    .bind(&node.node_name)
    .bind(node.cores)
    .bind(node.memory_mb)
    .bind(node.disk_gb)
    .fetch_optional(&mut *tx)
    .await
    .attempting("add the node")?;
    let Some(id) = id else { return Ok(None) };
    let cluster = node.cluster.as_deref().unwrap_or("default");
    let cluster_id: i32 = sqlx::query_scalar(
        "INSERT INTO fleet_pve_clusters (name) VALUES ($1)
         ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name RETURNING id",
    )
    .bind(cluster)
    .fetch_one(&mut *tx)
    .await
    .attempting("find the cluster")?;
    sqlx::query("INSERT INTO fleet_node_ext (node_id, cluster_id, region) VALUES ($1, $2, $3)")
        .bind(id)
        .bind(cluster_id)
        .bind(&node.region)
        .execute(&mut *tx)
        .await
        .attempting("note the node's cluster")?;
    project(&mut tx, id).await?;
    super::commit(tx).await?;
    Ok(Some(id))
}

/// How much of a node may be promised. `None` leaves what is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NodeLimits {
    /// Cores that may be promised for each physical one.
    pub cpu_ratio: Option<f64>,
    /// The same for memory.
    pub mem_ratio: Option<f64>,
    /// The same for disk.
    pub disk_ratio: Option<f64>,
    /// Physical cores kept for the node itself.
    pub cpu_reserved: Option<f64>,
    /// Memory kept for the node itself, MiB.
    pub mem_reserved_mb: Option<i32>,
    /// Disk kept for the node itself, GiB.
    pub disk_reserved_gb: Option<i32>,
}

/// Sets the limits of all rows of that name. Answers how many.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_limits(pool: &PgPool, name: &str, limits: &NodeLimits) -> Result<u64, DbError> {
    sqlx::query(
        "INSERT INTO fleet_node_ext (node_id, cpu_ratio, mem_ratio, disk_ratio, cpu_reserved,
                                     mem_reserved_mb, disk_reserved_gb)
         SELECT id, COALESCE($2, 4.0), COALESCE($3, 1.0), COALESCE($4, 1.0), COALESCE($5, 0),
                COALESCE($6, 0), COALESCE($7, 0)
         FROM cloud_pod_nodes WHERE name = $1
         ON CONFLICT (node_id) DO UPDATE
         SET cpu_ratio = COALESCE($2, fleet_node_ext.cpu_ratio),
             mem_ratio = COALESCE($3, fleet_node_ext.mem_ratio),
             disk_ratio = COALESCE($4, fleet_node_ext.disk_ratio),
             cpu_reserved = COALESCE($5, fleet_node_ext.cpu_reserved),
             mem_reserved_mb = COALESCE($6, fleet_node_ext.mem_reserved_mb),
             disk_reserved_gb = COALESCE($7, fleet_node_ext.disk_reserved_gb), updated_at = now()",
    )
    .bind(name)
    .bind(limits.cpu_ratio)
    .bind(limits.mem_ratio)
    .bind(limits.disk_ratio)
    .bind(limits.cpu_reserved)
    .bind(limits.mem_reserved_mb)
    .bind(limits.disk_reserved_gb)
    .execute(pool)
    .await
    .attempting("set the node's limits")
    .map(|done| done.rows_affected())
}

/// What an operator does to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeMove {
    /// Takes pods again.
    Activate,
    /// Takes no new pods; the row stays `active`.
    Drain,
    /// Takes no new pods and is not to be worked on.
    Maintenance,
}

/// Moves all rows of that name (a seed run twice leaves two). Answers how many.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_state(pool: &PgPool, name: &str, to: NodeMove) -> Result<u64, DbError> {
    let mut tx = super::begin(pool).await?;
    let (status, drain) = match to {
        NodeMove::Activate => (Some("active"), false),
        NodeMove::Drain => (None, true),
        NodeMove::Maintenance => (Some("maintenance"), false),
    };
    let ids: Vec<i32> = sqlx::query_scalar(
        "UPDATE cloud_pod_nodes SET status = COALESCE($2, status), updated_at = timezone('utc', now())
         WHERE name = $1 RETURNING id",
    )
    .bind(name)
    .bind(status)
    .fetch_all(&mut *tx)
    .await
    .attempting("set the node's status")?;
    sqlx::query(
        "INSERT INTO fleet_node_ext (node_id, drain) SELECT id, $2 FROM unnest($1) AS id
         ON CONFLICT (node_id) DO UPDATE SET drain = EXCLUDED.drain, updated_at = now()",
    )
    .bind(&ids)
    .bind(drain)
    .execute(&mut *tx)
    .await
    .attempting("set whether the node drains")?;
    super::commit(tx).await?;
    Ok(ids.len() as u64)
}
