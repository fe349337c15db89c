//! What our books and mPanel's rows say, read whole for the reconciler. Each
//! list is one statement, so that it is of one moment.

use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError};

/// A pod: mPanel's row and our record of its guest, as far as each exists.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct PodBook {
    /// `cloud_pods.id`.
    pub pod_id: Uuid,
    /// Whose it is.
    pub tenant_id: Uuid,
    /// Its host name.
    pub hostname: String,
    /// The guest's id.
    pub vmid: i32,
    /// mPanel's status; `None` when it has no such row.
    pub status: Option<String>,
    /// Whether mPanel has no such pod any more.
    pub deleted: bool,
    /// Its address.
    pub ip: Option<String>,
    /// The generation of our record; `None` for a guest that we did not make.
    pub generation: Option<i32>,
    /// Its cluster, by our record.
    pub cluster_id: Option<i32>,
    /// How far our record is.
    pub phase: Option<String>,
    /// Whether its guest is on record as lost.
    pub lost: bool,
    /// Whether a job works on it.
    pub leased: bool,
}

/// What a node's allocation row says, and what it should say.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct AllocationBook {
    /// `cloud_pod_nodes.id`.
    pub node_id: i32,
    /// The operator's name for it.
    pub name: String,
    /// Cores, MiB and GiB of the row; `None` when there is no row.
    pub says: Option<Vec<i64>>,
    /// The same as the sum of our reservations and of what others use.
    pub should: Vec<i64>,
}

/// Capacity that is held for a creation that has not ended.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct HoldBook {
    /// The pod.
    pub pod_id: Uuid,
    /// Its generation.
    pub generation: i32,
    /// The guest's id.
    pub vmid: i32,
    /// The job's queue.
    pub queue: String,
    /// The job.
    pub job_id: String,
    /// Whether a request may have left for Proxmox.
    pub sent: bool,
    /// How long nothing was written about it, seconds.
    pub idle_s: f64,
}

/// A lease whose time is over.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct LeaseBook {
    /// The pod.
    pub pod_id: Uuid,
    /// The job's queue.
    pub queue: String,
    /// The job.
    pub job_id: String,
    /// For how long, seconds.
    pub over_s: f64,
}

/// An address that a pool has given to a pod.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct AddressBook {
    /// The address.
    pub ip: String,
    /// The pod.
    pub pod_id: Uuid,
}

/// A tenant's counters and the sums of its pods, each pods, cores, MiB, GiB.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct QuotaBook {
    /// The tenant.
    pub tenant_id: Uuid,
    /// What the row says.
    pub says: Vec<i64>,
    /// What its pods come to.
    pub should: Vec<i64>,
    /// Whether jobs of the tenant may be at work, so that both change.
    pub busy: bool,
    /// Whether it has pods in a state that our counting does not know.
    pub odd: bool,
}

/// Everything at once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Books {
    /// Pods that mPanel has or that we hold something for.
    pub pods: Vec<PodBook>,
    /// Every pod with a live lease, also one that nobody knows any more.
    pub leased: Vec<Uuid>,
    /// Nodes whose allocation row is ours to write.
    pub allocations: Vec<AllocationBook>,
    /// Creations that hold capacity.
    pub holds: Vec<HoldBook>,
    /// Leases that are over.
    pub leases: Vec<LeaseBook>,
    /// Addresses of pools in use.
    pub addresses: Vec<AddressBook>,
    /// Tenants' counters.
    pub quotas: Vec<QuotaBook>,
}

const QUOTAS: &str = "SELECT q.tenant_id,
        ARRAY[q.used_cloud_pods, q.used_cpu_cores, q.used_ram_mb, q.used_disk_gb]::bigint[] AS says,
        ARRAY[s.pods, s.cores, s.memory_mb, s.disk_gb]::bigint[] AS should,
        (s.busy OR EXISTS (SELECT 1 FROM cloud_pod_jobs j
                           WHERE j.tenant_id = q.tenant_id AND j.status IN ('queued', 'running')
                             AND j.created_at > timezone('utc', now()) - interval '1 day')) AS busy,
        s.odd
   FROM cloud_pod_quotas q
   CROSS JOIN LATERAL (
     SELECT count(*) FILTER (WHERE c.status = 'active') AS pods,
            COALESCE(sum(c.cores) FILTER (WHERE c.status = 'active'), 0) AS cores,
            COALESCE(sum(c.memory_mb) FILTER (WHERE c.status = 'active'), 0) AS memory_mb,
            COALESCE(sum(c.disk_gb) FILTER (WHERE c.status = 'active'), 0) AS disk_gb,
            COALESCE(bool_or(c.status IN ('provisioning', 'deleting') OR l.pod_id IS NOT NULL), false) AS busy,
            COALESCE(bool_or(c.status NOT IN ('active', 'provisioning', 'deleting', 'failed')), false) AS odd
     FROM cloud_pods c
     LEFT JOIN fleet_pod_leases l ON l.pod_id = c.id AND l.expires_at > now()
     WHERE c.tenant_id = q.tenant_id AND c.deleted_at IS NULL AND c.status <> 'deleted') s";

/// Reads everything.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn read(pool: &PgPool) -> Result<Books, DbError> {
    let pods = sqlx::query_as(
        "SELECT COALESCE(f.pod_id, c.id) AS pod_id, COALESCE(c.tenant_id, f.tenant_id) AS tenant_id,
                COALESCE(c.hostname, f.spec ->> 'hostname', '') AS hostname, COALESCE(f.vmid, c.vmid) AS vmid,
                c.status, (c.id IS NULL OR c.deleted_at IS NOT NULL OR lower(c.status) = 'deleted') AS deleted,
                c.ip, f.generation, f.cluster_id, f.phase, f.lost_at IS NOT NULL AS lost,
                COALESCE(l.expires_at > now(), false) AS leased
         FROM (SELECT * FROM fleet_pods WHERE phase <> 'released') f
         FULL JOIN (SELECT * FROM cloud_pods
                    WHERE (deleted_at IS NULL AND lower(status) <> 'deleted')
                       OR id IN (SELECT pod_id FROM fleet_pods WHERE phase <> 'released')) c
           ON c.id = f.pod_id
         LEFT JOIN fleet_pod_leases l ON l.pod_id = COALESCE(f.pod_id, c.id)",
    )
    .fetch_all(pool)
    .await
    .attempting("read the books of pods")?;
    let leased = sqlx::query_scalar("SELECT pod_id FROM fleet_pod_leases WHERE expires_at > now()")
        .fetch_all(pool)
        .await
        .attempting("read the leases")?;
    Ok(Books {
        pods,
        leased,
        allocations: allocations(pool).await?,
        holds: holds(pool).await?,
        leases: leases(pool).await?,
        addresses: addresses(pool).await?,
        quotas: sqlx::query_as(QUOTAS).fetch_all(pool).await.attempting("read the tenants' counters")?,
    })
}

/// One tenant's counters, read anew under the tenant's lock.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn quota(tx: &mut super::Tx, tenant_id: Uuid) -> Result<Option<QuotaBook>, DbError> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("{QUOTAS} WHERE q.tenant_id = $1")))
        .bind(tenant_id)
        .fetch_optional(&mut **tx)
        .await
        .attempting("read the tenant's counters")
}

/// Nodes on which we never reserved anything have a row that is others'.
async fn allocations(pool: &PgPool) -> Result<Vec<AllocationBook>, DbError> {
    sqlx::query_as(
        "SELECT n.id AS node_id, n.name,
                CASE WHEN a.id IS NULL THEN NULL
                     ELSE ARRAY[a.used_cpu_cores, a.used_memory_mb, a.used_disk_gb]::bigint[] END AS says,
                ARRAY[x.cpu_base + r.cores, COALESCE(x.mem_base_mb, 0) + r.memory_mb,
                      COALESCE(x.disk_base_gb, 0) + r.disk_gb]::bigint[] AS should
         FROM cloud_pod_nodes n
         JOIN fleet_node_ext x ON x.node_id = n.id AND x.cpu_base IS NOT NULL
         LEFT JOIN LATERAL (SELECT * FROM cloud_pod_allocations WHERE node_id = n.id ORDER BY id LIMIT 1) a
           ON true
         CROSS JOIN LATERAL (
           SELECT COALESCE(sum(cpu_cores), 0) AS cores, COALESCE(sum(mem_mb), 0) AS memory_mb,
                  COALESCE(sum(disk_gb), 0) AS disk_gb
           FROM fleet_reservations WHERE node_id = n.id AND state <> 'released') r
         ORDER BY n.id",
    )
    .fetch_all(pool)
    .await
    .attempting("read the nodes' allocations")
}

async fn holds(pool: &PgPool) -> Result<Vec<HoldBook>, DbError> {
    sqlx::query_as(
        "SELECT p.pod_id, p.generation, p.vmid, p.queue, p.job_id, s.last_at IS NOT NULL AS sent,
                GREATEST(extract(epoch FROM now() - GREATEST(r.updated_at, p.updated_at,
                  COALESCE(s.last_at, '-infinity'))), 0)::float8 AS idle_s
         FROM fleet_reservations r
         JOIN fleet_pods p ON p.pod_id = r.pod_id AND p.generation = r.generation
         CROSS JOIN LATERAL (SELECT max(updated_at) AS last_at FROM fleet_job_steps
                             WHERE queue = p.queue AND job_id = p.job_id AND generation = p.generation
                              AND step <> 'reserve') s
         WHERE r.state = 'held' AND p.phase NOT IN ('active', 'quarantined', 'released')",
    )
    .fetch_all(pool)
    .await
    .attempting("read what is held")
}

async fn leases(pool: &PgPool) -> Result<Vec<LeaseBook>, DbError> {
    sqlx::query_as(
        "SELECT pod_id, queue, job_id, extract(epoch FROM now() - expires_at)::float8 AS over_s
         FROM fleet_pod_leases WHERE expires_at < now()",
    )
    .fetch_all(pool)
    .await
    .attempting("read leases that are over")
}

async fn addresses(pool: &PgPool) -> Result<Vec<AddressBook>, DbError> {
    sqlx::query_as(
        "SELECT host(ip) AS ip, pod_id FROM fleet_ips
         WHERE state IN ('held', 'used', 'quarantined') AND pod_id IS NOT NULL",
    )
    .fetch_all(pool)
    .await
    .attempting("read the addresses in use")
}
