//! Duties that one process at a time does for all of them (`fleet_rounds`):
//! who has the round, until when, and what the last one did.
//!
//! A row instead of an advisory lock: it also keeps the pace (one round an
//! interval, however many processes there are), works behind a pooler that
//! shares sessions, and is there to be looked at.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError};

/// A round that is ours until its time is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// The duty.
    pub name: String,
    /// Tells this round from every other.
    pub holder: Uuid,
}

/// What is known of a duty's last round.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct LastRound {
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended; `None` while it is under way.
    pub finished_at: Option<DateTime<Utc>>,
    /// What the last finished one did.
    pub report: Option<Value>,
    /// Why the last one failed, if it did.
    pub error: Option<String>,
}

/// Takes the next round of a duty, if it is due (`every` after the last one
/// began) and nobody is at it. A holder that is silent for `hold` has lost it.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn claim(
    pool: &PgPool,
    name: &str,
    every: Duration,
    hold: Duration,
) -> Result<Option<Round>, DbError> {
    let holder = Uuid::new_v4();
    let claimed = sqlx::query(
        "INSERT INTO fleet_rounds (name, holder, until) VALUES ($1, $2, now() + make_interval(secs => $4))
         ON CONFLICT (name) DO UPDATE
         SET holder = EXCLUDED.holder, started_at = now(), until = EXCLUDED.until, finished_at = NULL
         WHERE (fleet_rounds.finished_at IS NOT NULL OR fleet_rounds.until < now())
           AND fleet_rounds.started_at + make_interval(secs => $3) <= now()",
    )
    .bind(name)
    .bind(holder)
    .bind(every.as_secs_f64())
    .bind(hold.as_secs_f64())
    .execute(pool)
    .await
    .attempting("take the next round")?;
    Ok((claimed.rows_affected() > 0).then(|| Round { name: name.to_owned(), holder }))
}

/// Whether a round is still its holder's.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn is_ours(pool: &PgPool, round: &Round) -> Result<bool, DbError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM fleet_rounds
                        WHERE name = $1 AND holder = $2 AND finished_at IS NULL AND until > now())",
    )
    .bind(&round.name)
    .bind(round.holder)
    .fetch_one(pool)
    .await
    .attempting("check the round")
}

/// Ends a round: with what it did, or with why it failed. One that was lost
/// meanwhile stays the other's.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn finish(pool: &PgPool, round: &Round, result: Result<&Value, &str>) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE fleet_rounds
         SET finished_at = now(), until = now(), report = COALESCE($3, report), error = $4
         WHERE name = $1 AND holder = $2",
    )
    .bind(&round.name)
    .bind(round.holder)
    .bind(result.ok())
    .bind(result.err())
    .execute(pool)
    .await
    .attempting("end the round")
    .map(|_| ())
}

/// The last round of a duty, if there ever was one.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn last(pool: &PgPool, name: &str) -> Result<Option<LastRound>, DbError> {
    sqlx::query_as("SELECT started_at, finished_at, report, error FROM fleet_rounds WHERE name = $1")
        .bind(name)
        .fetch_optional(pool)
        .await
        .attempting("read the last round")
}
