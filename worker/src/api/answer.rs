//! An answer that is not a refusal: a status and JSON.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
};
use serde_json::Value;

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Value,
    /// Where to look for what becomes of it.
    pub location: Option<String>,
}

impl Answer {
    /// What was asked for.
    #[must_use]
    pub fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body, location: None }
    }

    /// It will be done; `location` tells what becomes of it.
    #[must_use]
    pub fn accepted(body: Value, location: String) -> Self {
        Self { status: StatusCode::ACCEPTED, body, location: Some(location) }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if let Some(location) = self.location.and_then(|text| HeaderValue::try_from(text).ok()) {
            response.headers_mut().insert(LOCATION, location);
        }
        response
    }
}
