//! The operator's side of address pools: listing, adding, excluding, releasing.

use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

/// Most addresses of an IPv4 pool: each is a row.
pub const POOL_SIZE_MAX: u64 = 65_536;

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
    /// Those that were released and rest.
    pub resting: i64,
    /// Those of which nobody knows whether a guest uses them.
    pub quarantined: i64,
    /// How many ranges are excluded.
    pub exclusions: i64,
    /// How long a released address rests, seconds.
    pub rest_s: i32,
}

/// All pools.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn all(pool: &PgPool) -> Result<Vec<PoolRecord>, DbError> {
    sqlx::query_as(
        "SELECT p.id, c.name AS cluster, p.cidr::text AS cidr, host(p.gateway) AS gateway, p.bridge, p.vlan,
                p.rest_s, x.ranges AS exclusions, i.total + x.unseen AS total, i.free + x.unseen AS free,
                i.resting, i.quarantined
         FROM fleet_ip_pools p JOIN fleet_pve_clusters c ON c.id = p.cluster_id
         CROSS JOIN LATERAL (
           SELECT count(*) FILTER (WHERE NOT excluded OR state IN ('held', 'used', 'quarantined')) AS total,
                  count(*) FILTER (WHERE NOT excluded AND (state = 'free'
                                    OR (state = 'cooldown' AND cooldown_until < now()))) AS free,
                  count(*) FILTER (WHERE state = 'cooldown' AND cooldown_until >= now()) AS resting,
                  count(*) FILTER (WHERE state = 'quarantined') AS quarantined
           FROM (SELECT state, cooldown_until, EXISTS (
                   SELECT 1 FROM fleet_ip_exclusions e
                   WHERE e.pool_id = p.id AND f.ip BETWEEN e.first_ip AND e.last_ip) AS excluded
                 FROM fleet_ips f WHERE f.pool_id = p.id) s) i
         CROSS JOIN LATERAL (
           -- Addresses that have no row yet: what is left of the range, without what is excluded.
           SELECT count(e.first_ip) AS ranges,
                  CASE WHEN p.next_ip IS NULL THEN 0 ELSE
                    p.range_last - p.next_ip + 1
                    - (COALESCE(p.gateway BETWEEN p.next_ip AND p.range_last, false))::int
                    - COALESCE(sum(LEAST(e.last_ip, p.range_last) - GREATEST(e.first_ip, p.next_ip) + 1)
                        FILTER (WHERE e.last_ip >= p.next_ip AND e.first_ip <= p.range_last), 0)::bigint
                  END AS unseen
           FROM (SELECT 1) one LEFT JOIN fleet_ip_exclusions e ON e.pool_id = p.id) x
         ORDER BY p.id",
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
    /// Last address to hand out.
    pub last: String,
    /// Whether each address has a row from the beginning (IPv4), or gets it when it is first taken.
    pub rows: bool,
    /// Ranges that are not handed out.
    pub exclusions: Vec<(String, String)>,
    /// How long a released address rests, seconds.
    pub rest_s: i32,
}

/// Adds a pool and its addresses, without the gateway. `None`: no such cluster.
///
/// # Errors
/// [`DbError::Sql`]; constraint `fleet_ip_pools_no_overlap` when it overlaps another.
pub async fn add(pool: &PgPool, new: &NewPool) -> Result<Option<i32>, DbError> {
    let mut tx = super::begin(pool).await?;
    let id: Option<i32> = sqlx::query_scalar(
        "INSERT INTO fleet_ip_pools (cluster_id, cidr, gateway, bridge, vlan, rest_s, next_ip, range_last)
         SELECT id, $2::cidr, $3::inet, $4, $5, $6, CASE WHEN $9 THEN NULL ELSE $7::inet END,
                CASE WHEN $9 THEN NULL ELSE $8::inet END
         FROM fleet_pve_clusters WHERE name = $1 RETURNING id",
    )
    .bind(&new.cluster)
    .bind(&new.cidr)
    .bind(&new.gateway)
    .bind(&new.bridge)
    .bind(new.vlan)
    .bind(new.rest_s)
    .bind(&new.first)
    .bind(&new.last)
    .bind(new.rows)
    .fetch_optional(&mut *tx)
    .await
    .attempting("add the address pool")?;
    let Some(id) = id else { return Ok(None) };
    if new.rows {
        sqlx::query(
            "INSERT INTO fleet_ips (pool_id, ip)
             SELECT $1, $2::inet + n FROM generate_series(0, $3::inet - $2::inet) AS n
             WHERE $4::inet IS NULL OR $2::inet + n <> $4::inet",
        )
        .bind(id)
        .bind(&new.first)
        .bind(&new.last)
        .bind(&new.gateway)
        .execute(&mut *tx)
        .await
        .attempting("add the pool's addresses")?;
    }
    for (first, last) in &new.exclusions {
        insert_exclusion(&mut tx, id, first, last, None).await?;
    }
    super::commit(tx).await?;
    Ok(Some(id))
}

async fn insert_exclusion(
    tx: &mut Tx,
    pool_id: i32,
    first: &str,
    last: &str,
    note: Option<&str>,
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO fleet_ip_exclusions (pool_id, first_ip, last_ip, note)
         VALUES ($1, $2::inet, $3::inet, $4)",
    )
    .bind(pool_id)
    .bind(first)
    .bind(last)
    .bind(note)
    .execute(&mut **tx)
    .await
    .attempting("exclude the range")
    .map(|_| ())
}

/// What came of excluding a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Excluded {
    /// It is excluded; so many of its addresses are in use and stay so.
    Yes(i64),
    /// There is no pool of that id.
    NotFound,
    /// It is not within the pool's network, which is this.
    Outside(String),
    /// It overlaps another range, which begins so.
    Overlaps(String),
}

/// Excludes a range of a pool from being handed out.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn exclude(
    pool: &PgPool,
    id: i32,
    first: &str,
    last: &str,
    note: Option<&str>,
) -> Result<Excluded, DbError> {
    let mut tx = super::begin(pool).await?;
    let network: Option<(String, bool)> = sqlx::query_as(
        "SELECT cidr::text, cidr >> $2::inet AND cidr >> $3::inet FROM fleet_ip_pools WHERE id = $1 FOR UPDATE",
    )
    .bind(id)
    .bind(first)
    .bind(last)
    .fetch_optional(&mut *tx)
    .await
    .attempting("lock the address pool")?;
    match network {
        None => return Ok(Excluded::NotFound),
        Some((cidr, false)) => return Ok(Excluded::Outside(cidr)),
        Some((_, true)) => {}
    }
    let other: Option<String> = sqlx::query_scalar(
        "SELECT host(first_ip) FROM fleet_ip_exclusions
         WHERE pool_id = $1 AND first_ip <= $3::inet AND last_ip >= $2::inet LIMIT 1",
    )
    .bind(id)
    .bind(first)
    .bind(last)
    .fetch_optional(&mut *tx)
    .await
    .attempting("look for exclusion ranges")?;
    if let Some(other) = other {
        return Ok(Excluded::Overlaps(other));
    }
    insert_exclusion(&mut tx, id, first, last, note).await?;
    let in_use = sqlx::query_scalar(
        "SELECT count(*) FROM fleet_ips
         WHERE pool_id = $1 AND ip BETWEEN $2::inet AND $3::inet AND state IN ('held', 'used', 'quarantined')",
    )
    .bind(id)
    .bind(first)
    .bind(last)
    .fetch_one(&mut *tx)
    .await
    .attempting("count the range's addresses in use")?;
    super::commit(tx).await?;
    Ok(Excluded::Yes(in_use))
}

/// Hands out again the excluded range that begins so. Answers whether there was one.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn include(pool: &PgPool, id: i32, first: &str) -> Result<bool, DbError> {
    sqlx::query("DELETE FROM fleet_ip_exclusions WHERE pool_id = $1 AND first_ip = $2::inet")
        .bind(id)
        .bind(first)
        .execute(pool)
        .await
        .attempting("end the exclusion")
        .map(|done| done.rows_affected() > 0)
}

/// An exclusion range.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct ExclusionRecord {
    /// Its first address.
    pub first: String,
    /// Its last address.
    pub last: String,
    /// What it is kept for.
    pub note: Option<String>,
}

/// The exclusion ranges of a pool, lowest first.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn exclusions(pool: &PgPool, id: i32) -> Result<Vec<ExclusionRecord>, DbError> {
    sqlx::query_as(
        "SELECT host(first_ip) AS first, host(last_ip) AS last, note FROM fleet_ip_exclusions
         WHERE pool_id = $1 ORDER BY first_ip",
    )
    .bind(id)
    .fetch_all(pool)
    .await
    .attempting("read the exclusion ranges")
}

/// An address that is not free.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct AddressRecord {
    /// The address.
    pub ip: String,
    /// `held`, `used`, `cooldown` or `quarantined`.
    pub state: String,
    /// Whose it is, or was taken for.
    pub pod_id: Option<Uuid>,
    /// The pod's host name, while its row is there.
    pub hostname: Option<String>,
    /// Until when it rests, UTC.
    pub rests_until: Option<String>,
}

/// The addresses of a pool that are not free, lowest first.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn addresses(pool: &PgPool, id: i32) -> Result<Vec<AddressRecord>, DbError> {
    sqlx::query_as(
        "SELECT host(i.ip) AS ip, i.state, i.pod_id, c.hostname,
                to_char(timezone('utc', i.cooldown_until), 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS rests_until
         FROM fleet_ips i LEFT JOIN cloud_pods c ON c.id = i.pod_id
         WHERE i.pool_id = $1 AND i.state <> 'free'
           AND NOT (i.state = 'cooldown' AND i.cooldown_until < now())
         ORDER BY i.ip",
    )
    .bind(id)
    .fetch_all(pool)
    .await
    .attempting("read the pool's addresses")
}

/// What came of releasing an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// It is free, or rests.
    Yes,
    /// The pool has no such address, or it is free already.
    NotFound,
    /// A pod has it: the state.
    InUse(String),
}

/// Releases an address that is quarantined or rests: to rest, or with `now` at once.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn release(pool: &PgPool, id: i32, ip: &str, now: bool) -> Result<Released, DbError> {
    let mut tx = super::begin(pool).await?;
    let state: Option<String> =
        sqlx::query_scalar("SELECT state FROM fleet_ips WHERE pool_id = $1 AND ip = $2::inet FOR UPDATE")
            .bind(id)
            .bind(ip)
            .fetch_optional(&mut *tx)
            .await
            .attempting("lock the address")?;
    match state.as_deref() {
        None | Some("free") => return Ok(Released::NotFound),
        Some("quarantined" | "cooldown") => {}
        Some(other) => return Ok(Released::InUse(other.to_owned())),
    }
    sqlx::query(
        "UPDATE fleet_ips i
         SET state = CASE WHEN $3 THEN 'free' ELSE 'cooldown' END, pod_id = NULL, generation = NULL,
             cooldown_until = CASE WHEN $3 THEN NULL ELSE now() + make_interval(secs => p.rest_s) END,
             updated_at = now()
         FROM fleet_ip_pools p WHERE p.id = i.pool_id AND i.pool_id = $1 AND i.ip = $2::inet",
    )
    .bind(id)
    .bind(ip)
    .bind(now)
    .execute(&mut *tx)
    .await
    .attempting("release the address")?;
    super::commit(tx).await?;
    Ok(Released::Yes)
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
