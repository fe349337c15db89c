//! Errors as clients read them: a status, a stable code, a sentence, and for some
//! a list. What went wrong inside is logged and not told.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use mpanel_producer::outbox::OutboxError;
use mpanel_protocol::payload::{FieldProblem, PayloadError};
use serde_json::{Value, json};

use crate::adapters::db::DbError;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No token, or one that nobody has.
    #[error("a valid token is needed: Authorization: Bearer <token>")]
    Unauthorized,
    /// Not there, or not the caller's to know of.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// Fields are missing or wrong.
    #[error("{0}")]
    Fields(#[from] PayloadError),
    /// The body is not what it should be as a whole.
    #[error("{0}")]
    Body(String),
    /// It contradicts what is.
    #[error("{0}")]
    Conflict(String),
    /// The tenant's quota does not allow it; one line for each limit.
    #[error("Quota exceeded: {}", .0.join(", "))]
    Quota(Vec<String>),
    /// Too much at once, or too slow.
    #[error("the service is busy; try again")]
    Busy,
    /// The database.
    #[error("{0}")]
    Db(#[from] DbError),
    /// The outbox.
    #[error("{0}")]
    Outbox(#[from] OutboxError),
}

impl Problem {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Fields(_) | Self::Body(_) => StatusCode::BAD_REQUEST,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Quota(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Busy | Self::Db(_) | Self::Outbox(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::NotFound(_) => "not_found",
            Self::Fields(_) => "invalid_fields",
            Self::Body(_) => "invalid_body",
            Self::Conflict(_) => "conflict",
            Self::Quota(_) => "quota_exceeded",
            Self::Busy => "busy",
            Self::Db(_) | Self::Outbox(_) => "unavailable",
        }
    }

    fn body(&self) -> Value {
        let message = match self {
            Self::Db(_) | Self::Outbox(_) => "the service cannot do this now; nothing was done; try again".to_owned(),
            told => told.to_string(),
        };
        let mut error = json!({ "code": self.code(), "message": message });
        match self {
            Self::Fields(PayloadError { problems }) => {
                let field = |FieldProblem { field, problem }: &FieldProblem| {
                    json!({ "field": field, "problem": problem })
                };
                error["fields"] = problems.iter().map(field).collect();
            }
            Self::Quota(limits) => error["limits"] = json!(limits),
            _ => {}
        }
        json!({ "error": error })
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        if matches!(self, Self::Db(_) | Self::Outbox(_)) {
            tracing::error!(error = %self, "a request could not be done");
        }
        let mut response = (self.status(), Json(self.body())).into_response();
        let (name, value) = match self {
            Self::Unauthorized => (header::WWW_AUTHENTICATE, "Bearer"),
            Self::Busy | Self::Db(_) | Self::Outbox(_) => (header::RETRY_AFTER, "1"),
            _ => return response,
        };
        response.headers_mut().insert(name, HeaderValue::from_static(value));
        response
    }
}
