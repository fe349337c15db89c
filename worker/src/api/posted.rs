//! A request that changes something: a JSON body of sensible size, and the key
//! under which it may be repeated.

use std::fmt::Write as _;

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::ApiError;

/// Longest body, bytes.
const BODY_MAX: usize = 64 * 1024;
/// Longest key, bytes.
const KEY_MAX: usize = 255;
/// The header that carries it.
const KEY_HEADER: &str = "idempotency-key";

/// What was posted.
#[derive(Debug, Clone, PartialEq)]
pub struct Posted {
    /// The body.
    pub body: Value,
    /// `Idempotency-Key`, if there is one.
    pub key: Option<String>,
    /// Hash of method, path and body: two requests with the same ask for the same.
    pub fingerprint: String,
}

impl<S: Sync> FromRequest<S> for Posted {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let key = key(&parts.headers)?;
        if !is_json(&parts.headers) {
            let message = "the body must be JSON: Content-Type: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message));
        }
        let bytes = read(body).await?;
        let body: Value = serde_json::from_slice(&bytes).map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "bad_json", format!("the body is no JSON: {error}"))
        })?;
        let mut text = format!("{} {}\n", parts.method, parts.uri.path());
        write_sorted(&body, &mut text);
        let fingerprint = Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Ok(Self { body, key, fingerprint })
    }
}

async fn read(body: Body) -> Result<Vec<u8>, ApiError> {
    match Limited::new(body, BODY_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes().to_vec()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the body is larger than {BODY_MAX} bytes"),
        )),
        // Whoever sent half of it does not hear this.
        Err(_) => Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_json", "the body ended too early")),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(KEY_HEADER).iter();
    let key = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().ok().map(str::trim),
        (Some(_), Some(_)) => None,
    };
    match key {
        Some(key) if (1..=KEY_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::bad_field("Idempotency-Key", "must be one header of 1 to 255 ASCII characters")),
    }
}

/// JSON with the fields of every object in order: a client may build the same
/// body twice in different orders.
fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<(&String, &Value)> = map.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            out.push('{');
            for (name, value) in fields {
                let _ = write!(out, "{}:", Value::String(name.clone()));
                write_sorted(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_sorted(item, out);
                out.push(',');
            }
            out.push(']');
        }
        plain => {
            let _ = write!(out, "{plain}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn posted(path: &str, body: &str) -> Result<Posted, ApiError> {
        let request = Request::builder().method("POST").uri(path).header("content-type", "application/json; charset=utf-8");
        Posted::from_request(request.body(Body::from(body.to_owned())).unwrap(), &()).await
    }

    #[tokio::test]
    async fn the_fingerprint_knows_content_and_not_order_or_blanks() {
        let one = posted("/a", r#"{"a":1,"b":{"c":[1,2],"d":null}}"#).await.unwrap();
        let same = posted("/a", r#"{ "b": {"d":null, "c":[1,2]}, "a":1 }"#).await.unwrap();
        assert_eq!(one.fingerprint, same.fingerprint);
        for (path, other) in [
            ("/a", r#"{"a":1,"b":{"c":[2,1],"d":null}}"#),
            ("/a", r#"{"a":"1","b":{"c":[1,2],"d":null}}"#),
            ("/b", r#"{"a":1,"b":{"c":[1,2],"d":null}}"#),
        ] {
            assert_ne!(one.fingerprint, posted(path, other).await.unwrap().fingerprint, "{path} {other}");
        }
    }

    #[tokio::test]
    async fn what_is_no_json_or_too_large_is_refused_with_its_code() {
        assert_eq!(posted("/a", "{").await.unwrap_err().code, "bad_json");
        assert_eq!(posted("/a", &"[".repeat(500)).await.unwrap_err().code, "bad_json");
        let large = format!("\"{}\"", "x".repeat(BODY_MAX));
        assert_eq!(posted("/a", &large).await.unwrap_err().code, "too_large");
    }
}
