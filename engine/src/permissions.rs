//! Whether the Redis user may do what a worker does. Asked before the first job is
//! taken: a script that is refused a command half way leaves a job in two places.

use mpanel_protocol::{
    calls::permissions::{Role, refused_commands},
    keys::QueueKeys,
    script::ScriptError,
};

use crate::engine::{EngineError, EngineInner};

/// # Errors
/// [`EngineError::Forbidden`]; whatever else went wrong says nothing of permissions.
pub(crate) async fn check(engine: &EngineInner, keys: &QueueKeys) -> Result<(), EngineError> {
    let mut shared = engine.redis.shared_for(keys.meta()).await?;
    let refused = match refused_commands(&mut shared.conn, keys, Role::Worker).await {
        Ok(refused) => refused,
        Err(ScriptError::Redis { source, .. }) if source.code() == Some("NOPERM") => {
            return Err(forbidden(keys, &source.to_string()));
        }
        Err(error) => {
            if let Some(source) = error.redis() {
                engine.redis.report(&shared, source).await;
            }
            return Err(error.into());
        }
    };
    if refused.is_empty() {
        return Ok(());
    }
    Err(forbidden(keys, &format!("it may not run {}", refused.join(", "))))
}

fn forbidden(keys: &QueueKeys, why: &str) -> EngineError {
    EngineError::Forbidden {
        queue: keys.queue().clone(),
        keys: keys.qualified_name().to_owned(),
        why: why.to_owned(),
    }
}
