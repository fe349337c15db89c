//! Refusals: a status, a code that stays the same, a sentence, and what a client
//! can use beside. What went wrong inside is logged here and never told.

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use mpanel_protocol::payload::{FieldProblem, PayloadError};
use serde_json::{Map, Value, json};

use super::Answer;
use crate::adapters::db::DbError;

/// A request that is refused.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// What happened; never changes its meaning.
    pub code: &'static str,
    /// The same for a person.
    pub message: String,
    /// More, by name.
    pub details: Map<String, Value>,
    /// After how long asking again makes sense, seconds.
    pub retry_after_s: Option<u32>,
    /// The same transaction may simply be run again.
    conflict: bool,
}

impl ApiError {
    /// A refusal.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            details: Map::new(),
            retry_after_s: None,
            conflict: false,
        }
    }

    /// With one more detail.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.details.insert(name.to_owned(), value);
        self
    }

    /// No token, or one that nobody knows.
    #[must_use]
    pub fn unauthorized() -> Self {
        let message = "a valid token is needed: Authorization: Bearer <token>";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// There is no such thing, or it is somebody else's.
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"))
    }

    /// What is asked for contradicts the state of things.
    #[must_use]
    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// Fields are missing or wrong; all of them are named.
    #[must_use]
    pub fn bad_fields(problems: &[FieldProblem]) -> Self {
        let names: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        let fields: Vec<Value> = problems
            .iter()
            .map(|FieldProblem { field, problem }| json!({ "field": field, "problem": problem }))
            .collect();
        Self::new(StatusCode::BAD_REQUEST, "bad_fields", format!("check {}", names.join(", ")))
            .with("fields", fields.into())
    }

    /// One field is wrong.
    #[must_use]
    pub fn bad_field(field: &str, problem: impl Into<String>) -> Self {
        Self::bad_fields(&PayloadError::one(field, problem).problems)
    }

    /// It works again soon.
    #[must_use]
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after_s: u32) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
        error.retry_after_s = Some(retry_after_s);
        error
    }

    /// Our fault; the cause is for the log alone.
    #[must_use]
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request could not be served");
        let message = "this is our fault; the log has more under the request's id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// Whether the same transaction may simply be run again.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.conflict
    }

    /// Whether the request has been judged: asked again with the same key, the
    /// answer is the same. What may pass is not remembered.
    #[must_use]
    pub fn is_judged(&self) -> bool {
        matches!(self.status.as_u16(), 400 | 404 | 409 | 422)
    }

    /// As a client sees it.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut error = self.details.clone();
        error.insert("code".to_owned(), self.code.into());
        error.insert("message".to_owned(), self.message.as_str().into());
        json!({ "error": error })
    }
}

impl From<PayloadError> for ApiError {
    fn from(error: PayloadError) -> Self {
        Self::bad_fields(&error.problems)
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        let away = match &error {
            DbError::Sql { source, .. } => match source {
                sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Tls(_) | sqlx::Error::PoolClosed => true,
                // Too many connections, shutting down, starting up, a standby, a cancelled statement.
                sqlx::Error::Database(cause) => matches!(
                    cause.code().as_deref(),
                    Some("53300" | "57P01" | "57P02" | "57P03" | "57014" | "25006")
                ),
                _ => false,
            },
            DbError::Fenced { .. } => false,
        };
        if away || error.is_conflict() {
            tracing::warn!(%error, "the database cannot serve a request now");
            let conflict = error.is_conflict();
            let error = Self::unavailable("unavailable", "the database does not answer now; ask again", 2);
            return Self { conflict, ..error };
        }
        Self::internal(&error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"mpanel-fleet\""));
        }
        response
    }
}

/// What a refusal looks like when it is remembered.
impl From<&ApiError> for Answer {
    fn from(error: &ApiError) -> Self {
        Self { status: error.status, body: error.body(), location: None }
    }
}

/// No such path.
pub(super) async fn no_route() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no_route", "there is no such path; GET /openapi.json lists them")
}

/// The path is right, the method is not.
pub(super) async fn wrong_method() -> ApiError {
    let message = "this path has other methods; GET /openapi.json lists them";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
}
