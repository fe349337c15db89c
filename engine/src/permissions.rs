//! Whether the Redis user may do what a worker does. Asked before the first job is
//! taken or rescued: a script that is refused a command half way leaves a job in two
//! places, or in none.

use mpanel_protocol::{
    calls::permissions::{Role, refused_commands},
    keys::QueueKeys,
    script::ScriptError,
};

use crate::{
    engine::{EngineError, EngineInner},
    exchange::is_transient,
    worker::Shared,
};

/// Waits for nothing: asks, unless it is known already that the user may.
///
/// # Errors
/// [`EngineError::Forbidden`], or that it cannot be asked now.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn granted(shared: &Shared) -> Result<(), EngineError> {
    let ask = async || match check(&shared.engine, &shared.keys).await {
        Err(EngineError::Script(error)) if !is_transient(&error) => {
            tracing::warn!(queue = %shared.keys.queue(), %error, "permissions could not be checked; going on");
            Ok(())
        }
        asked => asked,
    };
    shared.permitted.get_or_try_init(ask).await.copied()
}

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
