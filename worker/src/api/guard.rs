//! What holds for every request: an id, a bound on how many run at once, a time
//! limit, a log line. The line has no query, no body and no header.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, header::CACHE_CONTROL},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::{sync::Semaphore, time::timeout};
use tracing::Instrument as _;
use uuid::Uuid;

use super::{ApiError, Caller};

const ID_HEADER: &str = "x-request-id";
/// Longest id that is taken from a client, bytes.
const ID_MAX: usize = 64;
/// Longest path in the log, bytes.
const PATH_MAX: usize = 200;

/// The limits.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    permits: Arc<Semaphore>,
    limit: Duration,
}

impl Guard {
    pub(super) fn new(requests_max: usize, limit: Duration) -> Self {
        Self { permits: Arc::new(Semaphore::new(requests_max)), limit }
    }
}

pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();
    let mut path = request.uri().path().to_owned();
    // Percent-encoded, so ASCII.
    path.truncate(PATH_MAX);
    // Probes must be answered when everything else is too much.
    let probe = matches!(path.as_str(), "/livez" | "/readyz");
    let span = tracing::info_span!("request", id);
    let mut response = run(&guard, probe, request, next).instrument(span).await;
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::try_from(id.as_str()) {
        headers.insert(ID_HEADER, value);
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let status = response.status().as_u16();
    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    if probe {
        tracing::debug!(id, %method, path, status, ms, "answered");
    } else {
        let by = response.extensions().get::<Caller>().map(Caller::requested_by);
        tracing::info!(id, %method, path, status, ms, by, "answered");
    }
    response
}

async fn run(guard: &Guard, probe: bool, request: Request, next: Next) -> Response {
    let permit = match guard.permits.try_acquire() {
        Ok(permit) => Some(permit),
        Err(_) if probe => None,
        Err(_) => {
            let message = "too many requests are under way; ask again";
            return ApiError::unavailable("overloaded", message, 1).into_response();
        }
    };
    let served = timeout(guard.limit, next.run(request)).await;
    drop(permit);
    served.unwrap_or_else(|_| {
        let message = "this took too long, and may have been done all the same: ask again with the same Idempotency-Key";
        ApiError::unavailable("timed_out", message, 2).into_response()
    })
}

/// The client's id, when it is one that can be logged, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(ID_HEADER).and_then(|value| value.to_str().ok());
    let fits = |id: &&str| {
        (1..=ID_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    given.filter(fits).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}
