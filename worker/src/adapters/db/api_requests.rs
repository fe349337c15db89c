//! Requests to the HTTP service that carry an idempotency key, with their answers.

use serde_json::Value;
use sqlx::PgPool;

use super::{Attempted, DbError, Tx};

/// How long an answer is kept.
const KEPT: &str = "24 hours";
/// Rows removed in one statement.
const SWEEP: i64 = 1000;

/// What is known of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// It is new, and ours once the transaction commits.
    New,
    /// The same request was answered so.
    Answered {
        /// The status.
        status: i16,
        /// The body.
        body: Value,
        /// The `Location` header.
        location: Option<String>,
    },
    /// It belongs to another request.
    Other,
}

type Stored = (String, Option<i16>, Option<Value>, Option<String>);

/// Claims a key. Waits for a transaction that has claimed it.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn claim(tx: &mut Tx, scope: &str, key: &str, fingerprint: &str) -> Result<Claim, DbError> {
    let claimed = sqlx::query(sqlx::AssertSqlSafe(format!(
        "INSERT INTO fleet_api_requests (scope, key, fingerprint) VALUES ($1, $2, $3)
         ON CONFLICT (scope, key) DO UPDATE
         SET fingerprint = EXCLUDED.fingerprint, status = NULL, answer = NULL, location = NULL, created_at = now()
         WHERE fleet_api_requests.created_at < now() - interval '{KEPT}'"
    )))
    .bind(scope)
    .bind(key)
    .bind(fingerprint)
    .execute(&mut **tx)
    .await
    .attempting("claim an idempotency key")?;
    if claimed.rows_affected() > 0 {
        return Ok(Claim::New);
    }
    let stored: Option<Stored> = sqlx::query_as(
        "SELECT fingerprint, status, answer, location FROM fleet_api_requests WHERE scope = $1 AND key = $2",
    )
    .bind(scope)
    .bind(key)
    .fetch_optional(&mut **tx)
    .await
    .attempting("read the answer to an earlier request")?;
    Ok(match stored {
        Some((known, Some(status), Some(body), location)) if known == fingerprint => {
            Claim::Answered { status, body, location }
        }
        _ => Claim::Other,
    })
}

/// Marks the point that [`back_to_mark`] goes back to.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn mark(tx: &mut Tx) -> Result<(), DbError> {
    run(tx, "SAVEPOINT request").await
}

/// Takes back what was written since the mark, also after a statement failed.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn back_to_mark(tx: &mut Tx) -> Result<(), DbError> {
    run(tx, "ROLLBACK TO SAVEPOINT request").await
}

async fn run(tx: &mut Tx, statement: &'static str) -> Result<(), DbError> {
    sqlx::query(statement).execute(&mut **tx).await.attempting("mark a point of a request").map(|_| ())
}

/// Keeps the answer to a claimed key.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn answer(
    tx: &mut Tx,
    scope: &str,
    key: &str,
    status: i16,
    body: &Value,
    location: Option<&str>,
) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE fleet_api_requests SET status = $3, answer = $4, location = $5 WHERE scope = $1 AND key = $2",
    )
    .bind(scope)
    .bind(key)
    .bind(status)
    .bind(body)
    .bind(location)
    .execute(&mut **tx)
    .await
    .attempting("keep the answer to a request")
    .map(|_| ())
}

/// Removes answers that are no longer kept; says whether there may be more.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn sweep(pool: &PgPool) -> Result<bool, DbError> {
    let gone = sqlx::query(sqlx::AssertSqlSafe(format!(
        "DELETE FROM fleet_api_requests WHERE (scope, key) IN
           (SELECT scope, key FROM fleet_api_requests WHERE created_at < now() - interval '{KEPT}'
            ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)"
    )))
    .bind(SWEEP)
    .execute(pool)
    .await
    .attempting("remove old answers")?;
    Ok(gone.rows_affected() >= SWEEP.unsigned_abs())
}

/// Jobs that wait in the outbox, and for how long the oldest does, seconds.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn outbox_backlog(pool: &PgPool) -> Result<(i64, f64), DbError> {
    sqlx::query_as(
        "SELECT count(*), COALESCE(extract(epoch FROM now() - min(created_at)), 0)::float8
         FROM fleet_outbox WHERE state = 'pending'",
    )
    .fetch_one(pool)
    .await
    .attempting("look how much waits in the outbox")
}
