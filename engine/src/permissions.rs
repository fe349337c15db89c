//! Whether the Redis user may do what a worker does. Asked before the first job is
//! taken or rescued: a script that is refused a command half way leaves a job in two
//! places, or in none.

use std::time::{Duration, Instant};

use mpanel_protocol::{
    calls::permissions::{Role, refused_commands},
    keys::QueueKeys,
    script::ScriptError,
};

use crate::{
    engine::{EngineError, EngineInner},
    exchange::is_transient,
    trouble::Trouble,
    worker::Shared,
};

/// Between two questions that could not be asked, doubling.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Until it is asked again whether it has been granted.
const FORBIDDEN_PAUSE: Duration = Duration::from_secs(5);

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

/// Waits until the Redis user may do what we do, or the worker is stopped.
pub(crate) async fn until_granted(shared: &Shared) {
    let (mut pause, mut trouble) = (PAUSE, Trouble::default());
    loop {
        let retry = match granted(shared).await {
            Ok(()) => return,
            Err(error @ EngineError::Forbidden { .. }) => {
                if trouble.is_news(&error.to_string(), Instant::now()) {
                    tracing::error!(%error, "asking again until it is granted");
                }
                FORBIDDEN_PAUSE
            }
            Err(error) => {
                let queue = shared.keys.queue();
                if trouble.is_news("not to be asked", Instant::now()) {
                    tracing::warn!(%queue, %error, "permissions cannot be checked yet; trying on");
                }
                pause = (pause * 2).min(PAUSE_MAX);
                pause
            }
        };
        // cancel-safe: both branches only wait.
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(retry) => {}
        }
    }
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
