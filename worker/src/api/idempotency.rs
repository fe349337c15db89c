//! A request that is repeated under the same `Idempotency-Key` gets the first
//! answer; one with the same key and another body is refused. What answers a
//! request is kept in the transaction of what it did, for a day. A request that
//! was refused did nothing, and keeps nothing.

use axum::http::HeaderMap;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Caller, problem::Problem};
use crate::adapters::db::{
    Tx,
    api::{self, KeptAnswer},
};

/// Longest key, bytes.
const KEY_MAX: usize = 200;

/// A request's key, and what the request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    scope: String,
    key: String,
    request_hash: String,
}

impl Key {
    /// The key of a request, if it has one.
    ///
    /// # Errors
    /// [`Problem::Body`] for a key that is none.
    pub fn of(caller: &Caller, headers: &HeaderMap, route: &str, body: &Value) -> Result<Option<Self>, Problem> {
        let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
        let key = key.to_str().ok().filter(|key| !key.is_empty() && key.len() <= KEY_MAX).ok_or_else(|| {
            Problem::Body(format!("Idempotency-Key must be 1 to {KEY_MAX} visible ASCII characters"))
        })?;
        let digest = Sha256::digest(format!("{route}\n{body}").as_bytes());
        let request_hash = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Some(Self { scope: caller.scope(), key: key.to_owned(), request_hash }))
    }

    /// The answer that the same request got before. The key is held until the
    /// transaction ends: a repetition at the same moment waits here.
    ///
    /// # Errors
    /// [`Problem::Conflict`] when the key was used for another request.
    pub async fn answered(&self, tx: &mut Tx) -> Result<Option<KeptAnswer>, Problem> {
        let Some(kept) = api::kept_answer(tx, &self.scope, &self.key).await? else { return Ok(None) };
        if kept.request_hash != self.request_hash {
            let text = "this Idempotency-Key was used for another request; use a new one";
            return Err(Problem::Conflict(text.to_owned()));
        }
        Ok(Some(kept))
    }

    /// Keeps the answer.
    ///
    /// # Errors
    /// [`Problem::Db`].
    pub async fn keep(&self, tx: &mut Tx, status: u16, answer: &Value) -> Result<(), Problem> {
        Ok(api::keep_answer(tx, &self.scope, &self.key, &self.request_hash, status, answer).await?)
    }
}
