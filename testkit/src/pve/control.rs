//! The control listener (plain HTTP): what is inside, faults, nodes going down and up.
//!
//! | Request | Does |
//! |---|---|
//! | `GET /state`, `/requests`, `/invariants` | shows guests, nodes, tasks and volumes; arrived requests; findings |
//! | `GET`, `POST`, `DELETE /faults` | lists, arms (one or an array), disarms all |
//! | `POST /nodes/{n}/down`, `/nodes/{n}/up` | takes a node's power, boots it |
//! | `POST /quorum/lost`, `/quorum/restored` | writes fail, writes work |
//! | `POST /guests/{vmid}/unlock` | removes a left-over lock |
//!
//! Separate from the API listener, so that the API's surface stays as it is on a real host.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::faults::{self, Fault};
use super::requests::RequestView;
use super::views::{self, Invariants, StateView};
use super::{Core, lock};

type Failure = (StatusCode, Json<Value>);

/// All control endpoints.
pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/state", get(state))
        .route("/requests", get(requests))
        .route("/invariants", get(invariants))
        .route("/faults", get(list_faults).post(add_faults).delete(clear_faults))
        .route("/nodes/{node}/down", post(node_down))
        .route("/nodes/{node}/up", post(node_up))
        .route("/quorum/{state}", post(quorum))
        .route("/guests/{vmid}/unlock", post(unlock))
        .with_state(core)
}

async fn state(State(core): State<Arc<Core>>) -> Json<StateView> {
    Json(views::state(&lock(&core.state)))
}

async fn requests(State(core): State<Arc<Core>>) -> Json<Vec<RequestView>> {
    Json(lock(&core.log).all())
}

async fn invariants(State(core): State<Arc<Core>>) -> Json<Invariants> {
    Json(views::invariants(&lock(&core.state)))
}

async fn list_faults(State(core): State<Arc<Core>>) -> Json<Vec<Fault>> {
    Json(lock(&core.faults).list())
}

async fn add_faults(State(core): State<Arc<Core>>, body: String) -> Result<Json<Value>, Failure> {
    let parsed =
        faults::parse(&body).map_err(|why| (StatusCode::BAD_REQUEST, Json(json!({ "error": why }))))?;
    let count = parsed.len();
    let mut armed = lock(&core.faults);
    parsed.into_iter().for_each(|fault| armed.add(fault));
    Ok(Json(json!({ "armed": count })))
}

async fn clear_faults(State(core): State<Arc<Core>>) -> Json<Value> {
    lock(&core.faults).clear();
    Json(json!({ "armed": 0 }))
}

async fn node_down(State(core): State<Arc<Core>>, Path(node): Path<String>) -> Result<Json<Value>, Failure> {
    known(lock(&core.state).node_down(&node), &node)
}

async fn node_up(State(core): State<Arc<Core>>, Path(node): Path<String>) -> Result<Json<Value>, Failure> {
    known(lock(&core.state).node_up(&node), &node)
}

async fn quorum(State(core): State<Arc<Core>>, Path(state): Path<String>) -> Result<Json<Value>, Failure> {
    let quorate = match state.as_str() {
        "lost" => false,
        "restored" => true,
        _ => return Err((StatusCode::NOT_FOUND, Json(json!({ "error": "quorum is lost or restored" })))),
    };
    lock(&core.state).quorate = quorate;
    Ok(Json(json!({ "quorate": quorate })))
}

/// What root does on a node with a guest whose lock nobody holds any more.
async fn unlock(State(core): State<Arc<Core>>, Path(vmid): Path<u32>) -> Result<Json<Value>, Failure> {
    match lock(&core.state).guests.get_mut(&vmid) {
        Some(guest) => {
            guest.lock = None;
            Ok(Json(json!({ "vmid": vmid })))
        }
        None => Err((StatusCode::NOT_FOUND, Json(json!({ "error": format!("no guest {vmid}") })))),
    }
}

fn known(found: bool, node: &str) -> Result<Json<Value>, Failure> {
    if found {
        Ok(Json(json!({ "node": node })))
    } else {
        Err((StatusCode::NOT_FOUND, Json(json!({ "error": format!("no node '{node}'") }))))
    }
}
