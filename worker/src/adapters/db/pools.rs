//! Address pools and the addresses in them.

use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

/// Most addresses in one pool: each is a row.
pub const POOL_SIZE_MAX: u64 = 65_536;

/// An address for a pod.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct PoolAddress {
    /// The address, without prefix length.
    pub ip: String,
    /// The pool's prefix length.
    pub prefix: i32,
    /// The pool's gateway.
    pub gateway: Option<String>,
    /// The pool's bridge, if it has its own.
    pub bridge: Option<String>,
    /// The pool's VLAN.
    pub vlan: Option<i32>,
}

/// Whether an address could be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Here it is.
    Address(PoolAddress),
    /// The cluster has no pool, or none that holds the wanted address.
    NoPool,
    /// Every address of the cluster's pools is in use.
    Exhausted,
    /// The wanted address belongs to someone else.
    Used(String),
}

/// Takes the lowest free address of the cluster's pools. Addresses of other
/// live pods are passed over, wherever those came from.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn take_any(tx: &mut Tx, cluster_id: i32, pod_id: Uuid, generation: i32) -> Result<Taken, DbError> {
    let taken: Option<PoolAddress> = sqlx::query_as(
        "UPDATE fleet_ips i
         SET state = 'held', pod_id = $2, generation = $3, cooldown_until = NULL, updated_at = now()
         FROM fleet_ip_pools p
         WHERE p.id = i.pool_id AND (i.pool_id, i.ip) = (
           SELECT f.pool_id, f.ip FROM fleet_ips f JOIN fleet_ip_pools q ON q.id = f.pool_id
           WHERE q.cluster_id = $1
             AND (f.state = 'free' OR (f.state = 'cooldown' AND f.cooldown_until < now()))
             AND NOT EXISTS (SELECT 1 FROM cloud_pods c
                             WHERE c.deleted_at IS NULL AND split_part(c.ip, '/', 1) = host(f.ip))
           ORDER BY f.pool_id, f.ip LIMIT 1 FOR UPDATE OF f SKIP LOCKED)
         RETURNING host(i.ip) AS ip, masklen(p.cidr) AS prefix, host(p.gateway) AS gateway, p.bridge, p.vlan",
    )
    .bind(cluster_id)
    .bind(pod_id)
    .bind(generation)
    .fetch_optional(&mut **tx)
    .await
    .attempting("take an address")?;
    if let Some(address) = taken {
        return Ok(Taken::Address(address));
    }
    let pools: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM fleet_ip_pools WHERE cluster_id = $1)")
            .bind(cluster_id)
            .fetch_one(&mut **tx)
            .await
            .attempting("look for address pools")?;
    Ok(if pools { Taken::Exhausted } else { Taken::NoPool })
}

/// Takes one certain address; out of a pool when one of the cluster's holds it.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn take_this(
    tx: &mut Tx,
    cluster_id: i32,
    ip: &str,
    pod_id: Uuid,
    generation: i32,
) -> Result<Taken, DbError> {
    let other: Option<Uuid> = sqlx::query_scalar(
        "SELECT id FROM cloud_pods
         WHERE deleted_at IS NULL AND status <> 'failed' AND split_part(ip, '/', 1) = $1 AND id <> $2 LIMIT 1",
    )
    .bind(ip)
    .bind(pod_id)
    .fetch_optional(&mut **tx)
    .await
    .attempting("look who has the address")?;
    if let Some(other) = other {
        return Ok(Taken::Used(format!("pod {other}")));
    }
    let pool: Option<i32> = sqlx::query_scalar(
        "SELECT id FROM fleet_ip_pools WHERE cluster_id = $1 AND cidr >> $2::inet ORDER BY id LIMIT 1",
    )
    .bind(cluster_id)
    .bind(ip)
    .fetch_optional(&mut **tx)
    .await
    .attempting("look for the address's pool")?;
    let Some(pool_id) = pool else { return Ok(Taken::NoPool) };
    // An address outside the pool's handed-out range gets its row now.
    sqlx::query("INSERT INTO fleet_ips (pool_id, ip) VALUES ($1, $2::inet) ON CONFLICT DO NOTHING")
        .bind(pool_id)
        .bind(ip)
        .execute(&mut **tx)
        .await
        .attempting("note the address")?;
    let taken: Option<PoolAddress> = sqlx::query_as(
        "UPDATE fleet_ips i
         SET state = 'held', pod_id = $3, generation = $4, cooldown_until = NULL, updated_at = now()
         FROM fleet_ip_pools p
         WHERE p.id = i.pool_id AND i.pool_id = $1 AND i.ip = $2::inet
           AND (i.state IN ('free', 'cooldown') OR i.pod_id = $3)
         RETURNING host(i.ip) AS ip, masklen(p.cidr) AS prefix, host(p.gateway) AS gateway, p.bridge, p.vlan",
    )
    .bind(pool_id)
    .bind(ip)
    .bind(pod_id)
    .bind(generation)
    .fetch_optional(&mut **tx)
    .await
    .attempting("take the address")?;
    Ok(taken.map_or_else(|| Taken::Used("another reservation".to_owned()), Taken::Address))
}

/// Moves the addresses of one generation of a pod to another state.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_state(
    tx: &mut Tx,
    pod_id: Uuid,
    generation: i32,
    state: AddressState,
) -> Result<(), DbError> {
    let (word, keep_owner, cooldown) = match state {
        AddressState::Used => ("used", true, false),
        AddressState::Quarantined => ("quarantined", true, false),
        AddressState::Cooldown => ("cooldown", false, true),
        AddressState::Free => ("free", false, false),
    };
    sqlx::query(
        "UPDATE fleet_ips
         SET state = $3, pod_id = CASE WHEN $4 THEN pod_id END, generation = CASE WHEN $4 THEN generation END,
             cooldown_until = CASE WHEN $5 THEN now() + interval '24 hours' END, updated_at = now()
         WHERE pod_id = $1 AND generation = $2",
    )
    .bind(pod_id)
    .bind(generation)
    .bind(word)
    .bind(keep_owner)
    .bind(cooldown)
    .execute(&mut **tx)
    .await
    .attempting("move the pod's address")
    .map(|_| ())
}

/// What becomes of a pod's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressState {
    /// A working pod has it.
    Used,
    /// Nobody knows whether a guest still uses it.
    Quarantined,
    /// A guest used it; nobody gets it for a day.
    Cooldown,
    /// No guest ever used it.
    Free,
}

/// A pool as listed.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct PoolRecord {
    /// Its id.
    pub id: i32,
    /// Its cluster.
    pub cluster: String,
    /// Its network.
    pub cidr: String,
    /// Its gateway.
    pub gateway: Option<String>,
    /// Its bridge.
    pub bridge: Option<String>,
    /// Its VLAN.
    pub vlan: Option<i32>,
    /// Addresses that can be handed out.
    pub total: i64,
    /// Those that are free now.
    pub free: i64,
}

/// All pools.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn all(pool: &PgPool) -> Result<Vec<PoolRecord>, DbError> {
    sqlx::query_as(
        "SELECT p.id, c.name AS cluster, p.cidr::text AS cidr, host(p.gateway) AS gateway, p.bridge, p.vlan,
                count(i.ip) AS total,
                count(i.ip) FILTER (WHERE i.state = 'free'
                                    OR (i.state = 'cooldown' AND i.cooldown_until < now())) AS free
         FROM fleet_ip_pools p JOIN fleet_pve_clusters c ON c.id = p.cluster_id
         LEFT JOIN fleet_ips i ON i.pool_id = p.id
         GROUP BY p.id, c.name ORDER BY p.id",
    )
    .fetch_all(pool)
    .await
    .attempting("read the address pools")
}

/// A pool to be added.
#[derive(Debug, Clone)]
pub struct NewPool {
    /// Its cluster's name.
    pub cluster: String,
    /// Its network.
    pub cidr: String,
    /// Its gateway.
    pub gateway: Option<String>,
    /// Its bridge.
    pub bridge: Option<String>,
    /// Its VLAN.
    pub vlan: Option<i32>,
    /// First address to hand out.
    pub first: String,
    /// How many addresses follow, the first included.
    pub count: i64,
}

/// Adds a pool and its addresses, without the gateway. `None`: no such cluster.
///
/// # Errors
/// [`DbError::Sql`]; constraint `fleet_ip_pools_no_overlap` when it overlaps another.
pub async fn add(pool: &PgPool, new: &NewPool) -> Result<Option<i32>, DbError> {
    let mut tx = super::begin(pool).await?;
    let id: Option<i32> = sqlx::query_scalar(
        "INSERT INTO fleet_ip_pools (cluster_id, cidr, gateway, bridge, vlan)
         SELECT id, $2::cidr, $3::inet, $4, $5 FROM fleet_pve_clusters WHERE name = $1 RETURNING id",
    )
    .bind(&new.cluster)
    .bind(&new.cidr)
    .bind(&new.gateway)
    .bind(&new.bridge)
    .bind(new.vlan)
    .fetch_optional(&mut *tx)
    .await
    .attempting("add the address pool")?;
    let Some(id) = id else { return Ok(None) };
    sqlx::query(
        "INSERT INTO fleet_ips (pool_id, ip)
         SELECT $1, $2::inet + n FROM generate_series(0, $3::bigint - 1) AS n
         WHERE $4::inet IS NULL OR $2::inet + n <> $4::inet",
    )
    .bind(id)
    .bind(&new.first)
    .bind(new.count)
    .bind(&new.gateway)
    .execute(&mut *tx)
    .await
    .attempting("add the pool's addresses")?;
    super::commit(tx).await?;
    Ok(Some(id))
}

/// What came of removing a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Yes,
    /// There is none of that id.
    NotFound,
    /// So many of its addresses are in use.
    InUse(i64),
}

/// Removes a pool of which no address is in use.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn remove(pool: &PgPool, id: i32) -> Result<Removed, DbError> {
    let mut tx = super::begin(pool).await?;
    let found: Option<i32> = sqlx::query_scalar("SELECT id FROM fleet_ip_pools WHERE id = $1 FOR UPDATE")
        .bind(id)
        .fetch_optional(&mut *tx)
        .await
        .attempting("lock the address pool")?;
    if found.is_none() {
        return Ok(Removed::NotFound);
    }
    // Locks every address, so that none can be taken between the look and the removal.
    let in_use: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT state FROM fleet_ips WHERE pool_id = $1 FOR UPDATE) i
         WHERE state IN ('held', 'used', 'quarantined')",
    )
    .bind(id)
    .fetch_one(&mut *tx)
    .await
    .attempting("count the pool's addresses in use")?;
    if in_use > 0 {
        return Ok(Removed::InUse(in_use));
    }
    sqlx::query("DELETE FROM fleet_ip_pools WHERE id = $1")
        .bind(id)
        .execute(&mut *tx)
        .await
        .attempting("remove the address pool")?;
    super::commit(tx).await?;
    Ok(Removed::Yes)
}
