//! The HTTP service: what every route shares, whatever service it belongs to.
//! Names no table of mPanel's and no service.
//!
//! | file | subject |
//! |---|---|
//! | `tokens`, `auth` | who calls: the token file, the `Authorization` header |
//! | `posted` | a request that changes something: its JSON body, its key |
//! | `idempotency` | the same request twice is done once, and answered alike |
//! | `answer`, `error` | what is answered; every refusal has a stable code |
//! | `guard` | limits on every request, and its log line |
//! | `health` | `/livez`, `/readyz` |
//! | `openapi` | one document out of what each part says of its routes |
//! | `server` | connections, and their end |
//!
//! A service takes part by a [`Part`]: its routes, all of which need a token,
//! and their description. Nothing else has to be changed for a new one.

pub mod answer;
pub mod auth;
pub mod error;
mod guard;
mod health;
pub mod idempotency;
pub mod openapi;
pub mod posted;
pub mod server;
pub mod tokens;

use std::{sync::Arc, time::Duration};

use axum::{Router, middleware, routing::get};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

pub use self::{
    answer::Answer,
    auth::{Caller, Scope},
    error::ApiError,
    posted::Posted,
};
use self::{guard::Guard, health::Health, tokens::Tokens};

/// What a service adds to the server.
#[derive(Debug)]
pub struct Part {
    /// Its routes, with their whole paths and their own state.
    pub routes: Router,
    /// An OpenAPI document of these routes alone.
    pub openapi: &'static str,
}

/// What the server needs beside its parts.
#[derive(Debug)]
pub struct Base {
    /// For `/readyz`, and for requests that come twice.
    pub db: PgPool,
    /// Who may call.
    pub tokens: Arc<Tokens>,
    /// Requests at once; those beyond are refused.
    pub requests_max: usize,
    /// How long one request may take.
    pub timeout: Duration,
    /// When it fires the service is no longer ready.
    pub stop: CancellationToken,
}

/// All routes: those of the parts behind tokens, and those that need none.
///
/// # Errors
/// When a part's description is no JSON, or two describe the same thing.
pub fn router(base: Base, parts: Vec<Part>) -> Result<Router, openapi::DocumentError> {
    let document: Arc<str> = openapi::document(parts.iter().map(|part| part.openapi))?.into();
    let mut routes = Router::new();
    for part in parts {
        routes = routes.merge(part.routes);
    }
    let routes = routes.layer(middleware::from_fn_with_state(base.tokens, auth::authenticate));
    let open = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .with_state(Health { db: base.db, stop: base.stop })
        .route("/openapi.json", get(move || openapi::serve(Arc::clone(&document))));
    let guard = Guard::new(base.requests_max, base.timeout);
    Ok(routes
        .merge(open)
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(middleware::from_fn_with_state(guard, guard::guard)))
}
