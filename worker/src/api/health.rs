//! `/livez`: the process answers. `/readyz`: it can take requests. Redis is no
//! part of that: what is accepted meanwhile waits in the outbox.

use axum::{extract::State, http::StatusCode};
use serde_json::json;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::Answer;
use crate::adapters::db::api_requests;

#[derive(Debug, Clone)]
pub(super) struct Health {
    pub(super) db: PgPool,
    pub(super) stop: CancellationToken,
}

pub(super) async fn livez() -> Answer {
    Answer::ok(json!({ "status": "live" }))
}

pub(super) async fn readyz(State(health): State<Health>) -> Answer {
    let not_ready = |why: &str| Answer {
        status: StatusCode::SERVICE_UNAVAILABLE,
        body: json!({ "status": "not ready", "reason": why }),
        location: None,
    };
    if health.stop.is_cancelled() {
        return not_ready("the service is stopping");
    }
    match api_requests::outbox_backlog(&health.db).await {
        Ok((pending, oldest_s)) => Answer::ok(json!({
            "status": "ready", "outbox": { "pending": pending, "oldestSeconds": oldest_s.round() },
        })),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            not_ready("Postgres does not answer")
        }
    }
}
