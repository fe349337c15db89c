//! Who calls: the bearer token of a request.

use axum::{extract::FromRequestParts, http::request::Parts};
use uuid::Uuid;

use super::{ApiState, problem::Problem};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The tenant that it acts for; `None` is an administrator.
    pub tenant_id: Option<Uuid>,
    /// The user behind it.
    pub user_id: Option<Uuid>,
    /// What it is called.
    pub name: Option<String>,
}

impl Caller {
    /// Whether it may see what belongs to a tenant.
    #[must_use]
    pub fn may_see(&self, tenant_id: Uuid) -> bool {
        self.tenant_id.is_none_or(|own| own == tenant_id)
    }

    /// What is written down as who asked.
    #[must_use]
    pub fn requested_by(&self) -> String {
        match (&self.user_id, &self.name) {
            (Some(user), _) => user.to_string(),
            (None, Some(name)) => name.clone(),
            (None, None) => "api".to_owned(),
        }
    }

    /// Whose idempotency keys it uses.
    #[must_use]
    pub fn scope(&self) -> String {
        self.tenant_id.map_or_else(|| "admin".to_owned(), |id| format!("tenant:{id}"))
    }
}

impl FromRequestParts<ApiState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        let header = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        token.and_then(|token| state.caller(token)).ok_or(Problem::Unauthorized)
    }
}
