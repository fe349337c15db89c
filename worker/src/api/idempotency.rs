//! The same request twice is done once. The key is claimed in the transaction
//! that does the work: a second request with it waits for that transaction, then
//! gets its answer; after a crash neither work nor answer is there.

use axum::http::StatusCode;

use super::{Answer, ApiError, Caller, Posted};
use crate::adapters::db::{
    self, Tx,
    api_requests::{self, Claim},
};

/// A transaction in which a request is carried out.
#[derive(Debug)]
pub struct Work {
    /// The transaction.
    pub tx: Tx,
    claimed: Option<(String, String)>,
}

/// What is known when a request begins.
#[derive(Debug)]
pub enum Begun {
    /// It was carried out before; this was its answer.
    Before(Answer),
    /// It is to be carried out.
    Now(Work),
}

/// Begins: claims the request's key, if it has one.
///
/// # Errors
/// 409 when the key was used for another request; 503 when the database is away.
///
/// # Cancel safety
/// Nothing is claimed unless the transaction commits.
pub async fn begin(pool: &sqlx::PgPool, caller: &Caller, posted: &Posted) -> Result<Begun, ApiError> {
    let mut tx = db::begin(pool).await?;
    let Some(key) = posted.key.clone() else { return Ok(Begun::Now(Work { tx, claimed: None })) };
    let scope = caller.key_scope();
    match api_requests::claim(&mut tx, &scope, &key, &posted.fingerprint).await? {
        Claim::New => {
            // What the work writes is taken back when it is refused; the claim stays.
            api_requests::mark(&mut tx).await?;
            Ok(Begun::Now(Work { tx, claimed: Some((scope, key)) }))
        }
        Claim::Answered { status, body, location } => {
            let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
            let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(Begun::Before(Answer { status, body, location }))
        }
        Claim::Other => Err(ApiError::conflict(
            "key_reused",
            "this Idempotency-Key was used for another request within the last 24 hours; use a new one",
        )),
    }
}

impl Work {
    /// Ends: the work is committed together with its answer. A refusal takes the
    /// work back, and is remembered when the request itself was judged.
    ///
    /// # Errors
    /// The refusal, or 503 when the database went away: then it is not known
    /// whether the request was carried out, and repeating it with its key tells.
    ///
    /// # Cancel safety
    /// A commit that was under way may have happened.
    pub async fn end(mut self, result: Result<Answer, ApiError>) -> Result<Answer, ApiError> {
        let Some((scope, key)) = self.claimed else {
            let answer = result?;
            db::commit(self.tx).await?;
            return Ok(answer);
        };
        let told = match &result {
            Ok(answer) => answer.clone(),
            Err(error) if error.is_judged() => {
                api_requests::back_to_mark(&mut self.tx).await?;
                Answer::from(error)
            }
            // Dropping the transaction takes everything back.
            Err(_) => return result,
        };
        let Answer { status, body, location } = told;
        let status = i16::try_from(status.as_u16()).unwrap_or(500);
        api_requests::answer(&mut self.tx, &scope, &key, status, &body, location.as_deref()).await?;
        db::commit(self.tx).await?;
        result
    }
}
