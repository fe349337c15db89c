//! Addresses of pools: taken for pods, released, resting.

use sqlx::FromRow;
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

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

/// No exclusion range of the address's pool holds it.
const NOT_EXCLUDED: &str = "NOT EXISTS (SELECT 1 FROM fleet_ip_exclusions e
                 WHERE e.pool_id = f.pool_id AND f.ip BETWEEN e.first_ip AND e.last_ip)";

/// Takes the lowest free IPv4 address of the cluster's pools. Addresses of other
/// live pods are passed over, wherever those came from, and so are exclusion ranges.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn take_any(tx: &mut Tx, cluster_id: i32, pod_id: Uuid, generation: i32) -> Result<Taken, DbError> {
    let taken: Option<PoolAddress> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "UPDATE fleet_ips i
         SET state = 'held', pod_id = $2, generation = $3, cooldown_until = NULL, updated_at = now()
         FROM fleet_ip_pools p
         WHERE p.id = i.pool_id AND (i.pool_id, i.ip) = (
           SELECT f.pool_id, f.ip FROM fleet_ips f JOIN fleet_ip_pools q ON q.id = f.pool_id
           WHERE q.cluster_id = $1 AND family(q.cidr) = 4 AND {NOT_EXCLUDED}
             AND (f.state = 'free' OR (f.state = 'cooldown' AND f.cooldown_until < now()))
             AND NOT EXISTS (SELECT 1 FROM cloud_pods c
                             WHERE c.deleted_at IS NULL AND split_part(c.ip, '/', 1) = host(f.ip))
           ORDER BY f.pool_id, f.ip LIMIT 1 FOR UPDATE OF f SKIP LOCKED)
         RETURNING host(i.ip) AS ip, masklen(p.cidr) AS prefix, host(p.gateway) AS gateway, p.bridge, p.vlan"
    )))
    .bind(cluster_id)
    .bind(pod_id)
    .bind(generation)
    .fetch_optional(&mut **tx)
    .await
    .attempting("take an address")?;
    if let Some(address) = taken {
        return Ok(Taken::Address(address));
    }
    let pools: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM fleet_ip_pools WHERE cluster_id = $1 AND family(cidr) = 4)",
    )
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
    let excluded: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM fleet_ip_exclusions
                        WHERE pool_id = $1 AND $2::inet BETWEEN first_ip AND last_ip)",
    )
    .bind(pool_id)
    .bind(ip)
    .fetch_one(&mut **tx)
    .await
    .attempting("look for exclusion ranges")?;
    if excluded {
        return Ok(Taken::Used(format!("an exclusion range of pool {pool_id}")));
    }
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

/// Takes an IPv6 address of the cluster's pools on this bridge and VLAN (`None`: the pods' own).
///
/// # Errors
/// [`DbError::Sql`].
pub async fn take_v6(
    tx: &mut Tx,
    cluster_id: i32,
    (bridge, vlan): (Option<&str>, Option<i32>),
    pod_id: Uuid,
    generation: i32,
) -> Result<Taken, DbError> {
    // Addresses that were handed out before first: the range lasts longer.
    let taken: Option<PoolAddress> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "UPDATE fleet_ips i
         SET state = 'held', pod_id = $4, generation = $5, cooldown_until = NULL, updated_at = now()
         FROM fleet_ip_pools p
         WHERE p.id = i.pool_id AND (i.pool_id, i.ip) = (
           SELECT f.pool_id, f.ip FROM fleet_ips f JOIN fleet_ip_pools q ON q.id = f.pool_id
           WHERE q.cluster_id = $1 AND family(q.cidr) = 6 AND {NOT_EXCLUDED}
             AND q.bridge IS NOT DISTINCT FROM $2 AND q.vlan IS NOT DISTINCT FROM $3
             AND (f.state = 'free' OR (f.state = 'cooldown' AND f.cooldown_until < now()))
           ORDER BY f.pool_id, f.ip LIMIT 1 FOR UPDATE OF f SKIP LOCKED)
         RETURNING host(i.ip) AS ip, masklen(p.cidr) AS prefix, host(p.gateway) AS gateway, p.bridge, p.vlan"
    )))
    .bind(cluster_id)
    .bind(bridge)
    .bind(vlan)
    .bind(pod_id)
    .bind(generation)
    .fetch_optional(&mut **tx)
    .await
    .attempting("take an IPv6 address")?;
    if let Some(address) = taken {
        return Ok(Taken::Address(address));
    }
    let pools: Vec<i32> = sqlx::query_scalar(
        "SELECT id FROM fleet_ip_pools
         WHERE cluster_id = $1 AND family(cidr) = 6
           AND bridge IS NOT DISTINCT FROM $2 AND vlan IS NOT DISTINCT FROM $3 ORDER BY id",
    )
    .bind(cluster_id)
    .bind(bridge)
    .bind(vlan)
    .fetch_all(&mut **tx)
    .await
    .attempting("look for IPv6 pools")?;
    for pool_id in &pools {
        if let Some(address) = take_next(tx, *pool_id, pod_id, generation).await? {
            return Ok(Taken::Address(address));
        }
    }
    Ok(if pools.is_empty() { Taken::NoPool } else { Taken::Exhausted })
}

/// Takes the next address of a pool that no row stands for yet.
async fn take_next(
    tx: &mut Tx,
    pool_id: i32,
    pod_id: Uuid,
    generation: i32,
) -> Result<Option<PoolAddress>, DbError> {
    sqlx::query("SELECT 1 FROM fleet_ip_pools WHERE id = $1 FOR UPDATE")
        .bind(pool_id)
        .execute(&mut **tx)
        .await
        .attempting("lock the IPv6 pool")?;
    loop {
        // Each round gets past one exclusion, the gateway, or an address that has its row already.
        let next: Option<(String, bool)> = sqlx::query_as(
            "SELECT host(GREATEST(p.next_ip, e.last_ip + 1, g.last_ip + 1)),
                    e.last_ip IS NOT NULL OR g.last_ip IS NOT NULL
             FROM fleet_ip_pools p
             LEFT JOIN LATERAL (SELECT max(x.last_ip) AS last_ip FROM fleet_ip_exclusions x
                                WHERE x.pool_id = p.id AND p.next_ip BETWEEN x.first_ip AND x.last_ip) e ON true
             LEFT JOIN LATERAL (SELECT p.next_ip AS last_ip WHERE host(p.gateway) = host(p.next_ip)) g ON true
             WHERE p.id = $1 AND p.next_ip <= p.range_last",
        )
        .bind(pool_id)
        .fetch_optional(&mut **tx)
        .await
        .attempting("look for the next IPv6 address")?;
        let Some((ip, moved)) = next else { return Ok(None) };
        let taken: Option<PoolAddress> = if moved {
            None
        } else {
            sqlx::query_as(
                "WITH taken AS (
                   INSERT INTO fleet_ips (pool_id, ip, state, pod_id, generation)
                   VALUES ($1, $2::inet, 'held', $3, $4) ON CONFLICT DO NOTHING RETURNING pool_id, ip)
                 SELECT host(t.ip) AS ip, masklen(p.cidr) AS prefix, host(p.gateway) AS gateway, p.bridge, p.vlan
                 FROM taken t JOIN fleet_ip_pools p ON p.id = t.pool_id",
            )
            .bind(pool_id)
            .bind(&ip)
            .bind(pod_id)
            .bind(generation)
            .fetch_optional(&mut **tx)
            .await
            .attempting("take the next IPv6 address")?
        };
        sqlx::query("UPDATE fleet_ip_pools SET next_ip = $2::inet + $3::bigint WHERE id = $1")
            .bind(pool_id)
            .bind(&ip)
            .bind(i64::from(!moved))
            .execute(&mut **tx)
            .await
            .attempting("move the IPv6 pool on")?;
        if taken.is_some() {
            return Ok(taken);
        }
    }
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
             cooldown_until = CASE WHEN $5 THEN now() + make_interval(secs => (
               SELECT p.rest_s FROM fleet_ip_pools p WHERE p.id = fleet_ips.pool_id)) END,
             updated_at = now()
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
    /// A guest used it; nobody gets it while it rests, which is a day unless its pool says.
    Cooldown,
    /// No guest ever used it.
    Free,
}
