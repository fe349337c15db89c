//! The listener: its bounds, its probes, its description of itself.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{ApiState, problem::Problem, tokens::Tokens};
use crate::{
    adapters::db,
    config::Config,
    exit::{Exit, Failed},
    migrate,
    services::cloudpods,
    signals,
};

/// The description of the service, as it is served.
pub const OPENAPI: &str = include_str!("openapi.json");
/// Longest body, bytes.
const BODY_MAX: usize = 64 * 1024;
/// Requests at once; more are told to come again.
const AT_ONCE: usize = 64;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long requests under way may take after the order to stop.
const DRAIN: Duration = Duration::from_secs(20);

/// All routes.
pub fn router(state: ApiState) -> Router {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    Router::new()
        .merge(cloudpods::routes::routes())
        .layer(middleware::from_fn_with_state(slots, bounded))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/openapi.json", get(openapi))
        .fallback(async || Problem::NotFound("route"))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(state)
}

/// Bounds what runs at once, and how long.
async fn bounded(State(slots): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Ok(_slot) = slots.try_acquire() else { return Problem::Busy.into_response() };
    match timeout(PATIENCE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::Busy.into_response(),
    }
}

async fn ready(State(state): State<ApiState>) -> (StatusCode, Json<Value>) {
    match timeout(Duration::from_secs(5), migrate::check_current(&state.db)).await {
        Ok(Ok(())) => (StatusCode::OK, Json(json!({ "ready": true }))),
        Ok(Err(error)) => {
            tracing::warn!(%error, "not ready");
            let why = "the database does not answer, or is not migrated";
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "why": why })))
        }
        Err(_) => {
            let why = "the database does not answer";
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "why": why })))
        }
    }
}

async fn openapi() -> Response {
    ([("content-type", "application/json")], OPENAPI).into_response()
}

/// Serves until told to stop.
///
/// # Errors
/// With the exit code of what made it impossible.
pub async fn serve(config: Config, listen: SocketAddr, tokens: &Path) -> Result<(), Failed> {
    let known = Tokens::read(tokens)?;
    let db = db::pool(config.database.options.clone(), config.database.max_connections);
    let state = ApiState::new(db.clone(), config.cloudpods, known);
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Failed::new(Exit::Configuration, format!("--listen {listen}: {error}"))
    })?;
    let address = listener.local_addr().map_err(|error| Failed::new(Exit::Failure, error.to_string()))?;
    let stop = signals::listen().stop;
    let reload = tokio::spawn(reload_tokens(state.clone(), tokens.to_owned(), stop.clone()));
    tracing::info!(%address, "ready: http://{address}");
    let server = axum::serve(listener, router(state)).with_graceful_shutdown(stop.clone().cancelled_owned());
    let served = tokio::select! {
        served = server => served,
        // cancel-safe: what is cut off here is a request that has had its time.
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    };
    reload.abort();
    db.close().await;
    served.map_err(|error| Failed::new(Exit::Failure, format!("cannot serve: {error}")))
}

/// SIGHUP reads the token file again; one that is wrong changes nothing.
async fn reload_tokens(state: ApiState, path: std::path::PathBuf, stop: CancellationToken) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(()) = hangup.recv() => {}
        }
        match Tokens::read(&path) {
            Ok(tokens) => {
                state.set_tokens(tokens);
                tracing::info!("the token file was read again");
            }
            Err(error) => tracing::error!(%error, "the token file is wrong; the tokens known before stay valid"),
        }
    }
}
