//! The optional HTTP service: a reverse proxy mounts it where mPanel's own routes
//! are missing. It writes rows and jobs as mPanel's routes would, and does
//! nothing on Proxmox.
//!
//! | file | subject |
//! |---|---|
//! | `tokens` | who may call: the token file |
//! | `auth` | who calls |
//! | `idempotency` | a request that is repeated |
//! | `problem` | errors as clients read them |
//! | `server` | the listener, its bounds, its probes |
//!
//! Each service brings its own routes (`services/*/routes.rs`); this module knows
//! none of them but by merging them in [`server`].

mod auth;
pub mod idempotency;
pub mod problem;
mod server;
pub mod tokens;

use std::sync::{Arc, PoisonError, RwLock};

use sqlx::PgPool;

pub use self::{
    auth::Caller,
    server::{OPENAPI, router, serve},
};
use self::tokens::Tokens;
use crate::config::CloudpodsConfig;

/// What every route may use.
#[derive(Debug, Clone)]
pub struct ApiState {
    /// Postgres.
    pub db: PgPool,
    /// Defaults of pods.
    pub cloudpods: CloudpodsConfig,
    tokens: Arc<RwLock<Tokens>>,
}

impl ApiState {
    /// State with these tokens.
    #[must_use]
    pub fn new(db: PgPool, cloudpods: CloudpodsConfig, tokens: Tokens) -> Self {
        Self { db, cloudpods, tokens: Arc::new(RwLock::new(tokens)) }
    }

    /// Takes other tokens from now on.
    pub fn set_tokens(&self, tokens: Tokens) {
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    fn caller(&self, token: &str) -> Option<Caller> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).caller(token)
    }
}
