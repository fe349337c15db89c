//! What the name server was told of pods (`fleet_dns`), beside what they are.

use std::time::Duration;

use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError};

/// What was written, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct DnsRow {
    /// The zone, with its final dot.
    pub zone: String,
    /// The full name; empty when the host name is of another zone.
    pub name: String,
    /// The host name that it was made from.
    pub hostname: String,
    /// The IPv4 address.
    pub v4: Option<String>,
    /// The IPv6 address.
    pub v6: Option<String>,
}

/// A pod whose name is not up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outdated {
    /// The pod.
    pub pod_id: Uuid,
    /// Its host name.
    pub hostname: String,
    /// Its IPv4 address.
    pub v4: Option<String>,
    /// Its IPv6 address.
    pub v6: Option<String>,
    /// What was written last.
    pub written: Option<DnsRow>,
}

impl Outdated {
    /// What is to be written.
    #[must_use]
    pub fn row(&self, name: &str, zone: &str) -> DnsRow {
        DnsRow {
            zone: zone.to_owned(),
            name: name.to_owned(),
            hostname: self.hostname.clone(),
            v4: self.v4.clone(),
            v6: self.v6.clone(),
        }
    }
}

/// How far a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// About to be written.
    Pending,
    /// The name server has it.
    Written,
    /// The host name is of another zone; nothing is written.
    Elsewhere,
    /// The name belongs to someone else; looked at again after this long.
    Taken {
        /// How long.
        again: Duration,
    },
}

#[derive(FromRow)]
struct OutdatedRow {
    pod_id: Uuid,
    hostname: String,
    v4: Option<String>,
    v6: Option<String>,
    old_zone: Option<String>,
    old_name: Option<String>,
    old_hostname: Option<String>,
    old_v4: Option<String>,
    old_v6: Option<String>,
}

/// Active pods whose name was not written, or has changed since.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn outdated(pool: &PgPool, zone: &str, limit: i64) -> Result<Vec<Outdated>, DbError> {
    let rows: Vec<OutdatedRow> = sqlx::query_as(
        "SELECT now.pod_id, now.hostname, now.v4, now.v6, d.zone AS old_zone, d.name AS old_name,
                d.hostname AS old_hostname, d.v4 AS old_v4, d.v6 AS old_v6
         FROM (SELECT p.pod_id, c.hostname, NULLIF(split_part(COALESCE(c.ip, ''), '/', 1), '') AS v4,
                      p.spec -> 'net6' ->> 'ip' AS v6
               FROM fleet_pods p JOIN cloud_pods c ON c.id = p.pod_id
               WHERE p.phase = 'active' AND c.status = 'active' AND c.deleted_at IS NULL) now
         LEFT JOIN fleet_dns d ON d.pod_id = now.pod_id
         WHERE d.pod_id IS NULL OR d.state = 'pending'
            OR (d.zone, d.hostname, d.v4, d.v6) IS DISTINCT FROM ($1, now.hostname, now.v4, now.v6)
            OR (d.state = 'taken' AND d.retry_at < now())
         ORDER BY d.updated_at NULLS FIRST, now.pod_id LIMIT $2",
    )
    .bind(zone)
    .bind(limit)
    .fetch_all(pool)
    .await
    .attempting("look which names are not up to date")?;
    Ok(rows
        .into_iter()
        .map(|row| Outdated {
            pod_id: row.pod_id,
            hostname: row.hostname,
            v4: row.v4,
            v6: row.v6,
            written: row.old_zone.zip(row.old_name).zip(row.old_hostname).map(|((zone, name), hostname)| {
                DnsRow { zone, name, hostname, v4: row.old_v4, v6: row.old_v6 }
            }),
        })
        .collect())
}

/// Notes what is, or is about to be, written.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn note(
    pool: &PgPool,
    pod_id: Uuid,
    row: &DnsRow,
    state: State,
    error: Option<&str>,
) -> Result<(), DbError> {
    let (word, again) = match state {
        State::Pending => ("pending", None),
        State::Written => ("written", None),
        State::Elsewhere => ("elsewhere", None),
        State::Taken { again } => ("taken", Some(again.as_secs_f64())),
    };
    sqlx::query(
        "INSERT INTO fleet_dns (pod_id, zone, name, hostname, v4, v6, state, error, retry_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + make_interval(secs => $9))
         ON CONFLICT (pod_id) DO UPDATE
         SET zone = EXCLUDED.zone, name = EXCLUDED.name, hostname = EXCLUDED.hostname, v4 = EXCLUDED.v4,
             v6 = EXCLUDED.v6, state = EXCLUDED.state, error = EXCLUDED.error,
             retry_at = EXCLUDED.retry_at, updated_at = now()",
    )
    .bind(pod_id)
    .bind(&row.zone)
    .bind(&row.name)
    .bind(&row.hostname)
    .bind(&row.v4)
    .bind(&row.v6)
    .bind(word)
    .bind(error)
    .bind(again)
    .execute(pool)
    .await
    .attempting("note the pod's name")
    .map(|_| ())
}

#[derive(FromRow)]
struct OrphanedRow {
    pod_id: Uuid,
    #[sqlx(flatten)]
    row: DnsRow,
}

/// Names of pods that have no guest any more.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn orphaned(pool: &PgPool, limit: i64) -> Result<Vec<(Uuid, DnsRow)>, DbError> {
    let rows: Vec<OrphanedRow> = sqlx::query_as(
        "SELECT d.pod_id, d.zone, d.name, d.hostname, d.v4, d.v6 FROM fleet_dns d
         WHERE NOT EXISTS (SELECT 1 FROM fleet_pods p WHERE p.pod_id = d.pod_id AND p.phase <> 'released')
         ORDER BY d.updated_at LIMIT $1",
    )
    .bind(limit)
    .fetch_all(pool)
    .await
    .attempting("look which names lead nowhere")?;
    Ok(rows.into_iter().map(|row| (row.pod_id, row.row)).collect())
}

/// Forgets a pod whose name was taken away.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn forget(pool: &PgPool, pod_id: Uuid) -> Result<(), DbError> {
    sqlx::query("DELETE FROM fleet_dns WHERE pod_id = $1")
        .bind(pod_id)
        .execute(pool)
        .await
        .attempting("forget the pod's name")
        .map(|_| ())
}
