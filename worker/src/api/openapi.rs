//! The OpenAPI document: written by hand beside the routes, one part a service,
//! and put together at start. Tests hold every answer against it.

use std::sync::Arc;

use axum::{
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};

/// What every part shares: security, refusals, probes.
const BASE: &str = include_str!("openapi.json");
/// Sections of `components` that parts may add to.
const SECTIONS: [&str; 3] = ["schemas", "parameters", "responses"];

/// The parts cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// A part is no JSON.
    #[error("a part of the OpenAPI document is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Two parts say something about the same thing.
    #[error("two parts of the OpenAPI document describe {0}")]
    Twice(String),
}

/// One document out of all parts.
///
/// # Errors
/// [`DocumentError`].
pub fn document<'a>(parts: impl IntoIterator<Item = &'a str>) -> Result<String, DocumentError> {
    let mut whole: Value = serde_json::from_str(BASE)?;
    whole["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    for part in parts {
        let part: Value = serde_json::from_str(part)?;
        merge(&mut whole["paths"], &part["paths"])?;
        for section in SECTIONS {
            merge(&mut whole["components"][section], &part["components"][section])?;
        }
    }
    Ok(whole.to_string())
}

fn merge(into: &mut Value, from: &Value) -> Result<(), DocumentError> {
    let Some(from) = from.as_object() else { return Ok(()) };
    if into.is_null() {
        *into = Value::Object(Map::new());
    }
    if let Some(into) = into.as_object_mut() {
        for (name, value) in from {
            if into.insert(name.clone(), value.clone()).is_some() {
                return Err(DocumentError::Twice(name.clone()));
            }
        }
    }
    Ok(())
}

pub(super) async fn serve(document: Arc<str>) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "public, max-age=300")];
    (headers, document.to_string()).into_response()
}
