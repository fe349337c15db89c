//! What the reconciler found (`fleet_drift`): seen, believed, dealt with, gone.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

/// Closed findings are kept this long.
const KEPT_DAYS: i32 = 30;
/// Most old findings that one round removes.
const FORGOTTEN_AT_ONCE: i64 = 1000;

/// Kind and subject: what makes two findings the same.
pub type Key = (String, String);

/// A finding of this round.
#[derive(Debug, Clone, PartialEq)]
pub struct Sighting {
    /// What kind.
    pub kind: &'static str,
    /// What it is about.
    pub subject: String,
    /// What must be seen to close it.
    pub scope: String,
    /// The pod, where it is about one.
    pub pod_id: Option<Uuid>,
    /// Whether it is believed, or must be seen again first.
    pub believed: bool,
    /// One sentence.
    pub what: String,
    /// What the operator should do; empty for nothing.
    pub advice: String,
    /// Figures.
    pub data: Value,
}

/// What is on record of an open finding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// How long ago it was first seen, seconds.
    pub age_s: f64,
    /// Whether something was done about it.
    pub acted: bool,
}

/// A finding as the operator sees it.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct DriftRow {
    /// What kind.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// The pod, where it is about one.
    pub pod_id: Option<Uuid>,
    /// `suspected`, `open`, `repaired`, `gone`.
    pub state: String,
    /// One sentence.
    pub what: String,
    /// What the operator should do; empty for nothing.
    pub advice: String,
    /// Figures.
    pub data: Value,
    /// What the reconciler did.
    pub action: Option<String>,
    /// When it was first seen.
    pub first_seen_at: DateTime<Utc>,
    /// When it was last seen.
    pub last_seen_at: DateTime<Utc>,
    /// When it was closed.
    pub closed_at: Option<DateTime<Utc>>,
}

/// Findings that are not closed.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn known(pool: &PgPool) -> Result<BTreeMap<Key, Known>, DbError> {
    let rows: Vec<(String, String, f64, bool)> = sqlx::query_as(
        "SELECT kind, subject, GREATEST(extract(epoch FROM now() - first_seen_at), 0)::float8,
                action IS NOT NULL
         FROM fleet_drift WHERE closed_at IS NULL",
    )
    .fetch_all(pool)
    .await
    .attempting("read what was found before")?;
    Ok(rows
        .into_iter()
        .map(|(kind, subject, age_s, acted)| ((kind, subject), Known { age_s, acted }))
        .collect())
}

/// What recording a round's findings changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Findings that are believed from now on.
    pub opened: Vec<Key>,
    /// Findings that were believed and are no more there.
    pub closed: Vec<Key>,
}

/// Records what a round has seen, and closes what it has not seen in the parts
/// of the world that it looked at.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn record(tx: &mut Tx, seen: &[Sighting], judged: &[String]) -> Result<Recorded, DbError> {
    let kinds: Vec<&str> = seen.iter().map(|s| s.kind).collect();
    let subjects: Vec<&str> = seen.iter().map(|s| s.subject.as_str()).collect();
    let opened: Vec<Key> = sqlx::query_as(
        "WITH given AS (
           SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::bool[], $6::text[],
                                $7::text[], $8::text[])
             AS g (kind, subject, scope, pod_id, believed, what, advice, data)),
         before AS (
           SELECT d.kind, d.subject, d.state FROM fleet_drift d JOIN given USING (kind, subject)
           WHERE d.closed_at IS NULL),
         written AS (
           INSERT INTO fleet_drift AS d (kind, subject, scope, pod_id, state, what, advice, data, opened_at)
           SELECT kind, subject, scope, pod_id, CASE WHEN believed THEN 'open' ELSE 'suspected' END, what,
                  advice, data::jsonb, CASE WHEN believed THEN now() END
           FROM given
           ON CONFLICT (kind, subject) WHERE closed_at IS NULL DO UPDATE
           SET last_seen_at = now(), sightings = d.sightings + 1, what = EXCLUDED.what,
               advice = EXCLUDED.advice, data = EXCLUDED.data, scope = EXCLUDED.scope,
               state = CASE WHEN d.state = 'open' THEN 'open' ELSE EXCLUDED.state END,
               opened_at = COALESCE(d.opened_at, EXCLUDED.opened_at)
           RETURNING d.kind, d.subject, d.state)
         SELECT w.kind, w.subject FROM written w LEFT JOIN before b USING (kind, subject)
         WHERE w.state = 'open' AND b.state IS DISTINCT FROM 'open'",
    )
    .bind(&kinds)
    .bind(&subjects)
    .bind(seen.iter().map(|s| s.scope.as_str()).collect::<Vec<_>>())
    .bind(seen.iter().map(|s| s.pod_id).collect::<Vec<_>>())
    .bind(seen.iter().map(|s| s.believed).collect::<Vec<_>>())
    .bind(seen.iter().map(|s| s.what.as_str()).collect::<Vec<_>>())
    .bind(seen.iter().map(|s| s.advice.as_str()).collect::<Vec<_>>())
    .bind(seen.iter().map(|s| s.data.to_string()).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await
    .attempting("record what was found")?;
    // What nobody ever believed leaves no trace.
    sqlx::query(
        "DELETE FROM fleet_drift d
         WHERE closed_at IS NULL AND state = 'suspected' AND scope = ANY($3)
           AND NOT EXISTS (SELECT 1 FROM unnest($1::text[], $2::text[]) AS g (kind, subject)
                           WHERE g.kind = d.kind AND g.subject = d.subject)",
    )
    .bind(&kinds)
    .bind(&subjects)
    .bind(judged)
    .execute(&mut **tx)
    .await
    .attempting("forget suspicions")?;
    let closed = sqlx::query_as(
        "UPDATE fleet_drift d
         SET closed_at = now(), state = CASE WHEN action IS NULL THEN 'gone' ELSE 'repaired' END
         WHERE closed_at IS NULL AND scope = ANY($3)
           AND NOT EXISTS (SELECT 1 FROM unnest($1::text[], $2::text[]) AS g (kind, subject)
                           WHERE g.kind = d.kind AND g.subject = d.subject)
         RETURNING kind, subject",
    )
    .bind(&kinds)
    .bind(&subjects)
    .bind(judged)
    .fetch_all(&mut **tx)
    .await
    .attempting("close what is not there any more")?;
    sqlx::query(
        "DELETE FROM fleet_drift WHERE id IN (
           SELECT id FROM fleet_drift WHERE closed_at < now() - make_interval(days => $1) LIMIT $2)",
    )
    .bind(KEPT_DAYS)
    .bind(FORGOTTEN_AT_ONCE)
    .execute(&mut **tx)
    .await
    .attempting("forget old findings")?;
    Ok(Recorded { opened, closed })
}

/// Notes what is done about an open finding, in the transaction that does it.
/// False when the same was noted before: then it must not be done again.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn act(
    tx: &mut Tx,
    kind: &str,
    subject: &str,
    action: &str,
    settled: bool,
) -> Result<bool, DbError> {
    let noted = sqlx::query(
        "UPDATE fleet_drift
         SET action = $3, state = CASE WHEN $4 THEN 'repaired' ELSE state END,
             closed_at = CASE WHEN $4 THEN now() ELSE closed_at END
         WHERE kind = $1 AND subject = $2 AND closed_at IS NULL AND action IS DISTINCT FROM $3",
    )
    .bind(kind)
    .bind(subject)
    .bind(action)
    .bind(settled)
    .execute(&mut **tx)
    .await
    .attempting("note what is done about a finding")?;
    Ok(noted.rows_affected() > 0)
}

/// Findings for the operator: open ones first, then those closed in the last
/// day, newest first.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn list(pool: &PgPool) -> Result<Vec<DriftRow>, DbError> {
    sqlx::query_as(
        "SELECT kind, subject, pod_id, state, what, advice, data, action, first_seen_at, last_seen_at, closed_at
         FROM fleet_drift WHERE closed_at IS NULL OR closed_at > now() - interval '1 day'
         ORDER BY closed_at IS NOT NULL, state <> 'open', COALESCE(closed_at, first_seen_at) DESC, id DESC
         LIMIT 1000",
    )
    .fetch_all(pool)
    .await
    .attempting("read the findings")
}
