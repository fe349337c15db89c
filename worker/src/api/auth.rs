//! The `Authorization` header: every route of a part is behind it, and a handler
//! learns who calls by taking a [`Caller`].

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, header::AUTHORIZATION, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use uuid::Uuid;

use super::{ApiError, tokens::Tokens};

/// Longest token that is looked at, bytes.
const TOKEN_MAX: usize = 1024;

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything of one tenant; of others it sees nothing.
    Tenant(Uuid),
    /// Everything.
    Admin,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// What the token may do.
    pub scope: Scope,
    /// The user it belongs to.
    pub user: Option<Uuid>,
    /// What the operator calls it.
    pub name: Option<String>,
}

impl Caller {
    /// The only tenant that it may see; `None`: it sees all.
    #[must_use]
    pub fn tenant(&self) -> Option<Uuid> {
        match self.scope {
            Scope::Tenant(tenant) => Some(tenant),
            Scope::Admin => None,
        }
    }

    /// Whether it may see what belongs to a tenant.
    #[must_use]
    pub fn may_see(&self, tenant: Uuid) -> bool {
        self.tenant().is_none_or(|own| own == tenant)
    }

    /// Who asked, as mPanel's rows say it: a user's id, else a word.
    #[must_use]
    pub fn requested_by(&self) -> String {
        match (self.user, &self.name) {
            (Some(user), _) => user.to_string(),
            (None, Some(name)) => name.clone(),
            (None, None) => "api".to_owned(),
        }
    }

    /// Whose idempotency keys it uses: a token that is replaced keeps them.
    #[must_use]
    pub fn key_scope(&self) -> String {
        match self.scope {
            Scope::Tenant(tenant) => format!("tenant:{tenant}"),
            Scope::Admin => "admin".to_owned(),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::unauthorized)
    }
}

/// Lets through whoever has a token, and notes who it is.
pub(super) async fn authenticate(
    State(tokens): State<Arc<Tokens>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(caller) = bearer(request.headers()).and_then(|token| tokens.caller(token)) else {
        return ApiError::unauthorized().into_response();
    };
    request.extensions_mut().insert(caller.clone());
    let mut response = next.run(request).await;
    // For the log line.
    response.extensions_mut().insert(caller);
    response
}

/// The token of the one `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let fits = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_MAX;
    fits.then_some(token)
}
