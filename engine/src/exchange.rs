//! One call to Redis on a worker's behalf: outcomes in, next jobs out. Decides no
//! retry; says which errors are worth one.

use std::{borrow::Borrow, sync::Arc, time::Duration};

use mpanel_protocol::{
    calls::{
        fetch::{FetchSpec, fetch_jobs},
        finish::{Finish, Finished, finish_jobs},
    },
    ids::LockToken,
    script::ScriptError,
};

use crate::{marker::Waiter, worker::Shared};

/// How long who ends a wait stays to see that the marker is back.
const RESTORE_PATIENCE: Duration = Duration::from_secs(2);

/// Writes `finishes` and starts jobs for `slots` under `token`.
///
/// # Errors
/// [`ScriptError`]; the connection is replaced where it broke.
///
/// # Cancel safety
/// Not cancel safe: a dropped call may have taken effect.
pub(crate) async fn exchange(
    shared: &Shared,
    finishes: &[impl Borrow<Finish>],
    slots: u32,
    token: &LockToken,
) -> Result<Finished, ScriptError> {
    let (engine, keys) = (&shared.engine, &shared.keys);
    let mut link = engine.redis.shared_for(keys.meta()).await.map_err(|e| unreachable_script(&e))?;
    let spec = FetchSpec {
        slots,
        token,
        lock: shared.lock,
        limiter: shared.limiter,
        worker_name: shared.name.as_deref(),
    };
    let (conn, peer, now) = (&mut link.conn, engine.peer, engine.now());
    let outcome = if finishes.is_empty() {
        let fetched = fetch_jobs(conn, keys, peer, now, &spec).await;
        fetched.map(|fetched| Finished { results: Vec::new(), fetched: Some(fetched) })
    } else {
        let fetch = (slots > 0).then_some(&spec);
        finish_jobs(conn, keys, peer, now, finishes, fetch, shared.metrics_points).await
    };
    if let Err(ScriptError::Redis { source, .. }) = &outcome {
        engine.redis.report(&link, source).await;
    }
    outcome
}

/// How long the queue's limit lasts, ms: negative when there is none, `None` when
/// that is not to be known.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn limit_left_ms(shared: &Shared) -> Option<i64> {
    let redis = &shared.engine.redis;
    let key = shared.keys.limiter();
    let mut link = redis.shared_for(&key).await.ok()?;
    let asked = redis::cmd("PTTL").arg(&key).query_async::<i64>(&mut link.conn).await;
    if let Err(error) = &asked {
        redis.report(&link, error).await;
    }
    asked.ok()
}

/// Ends a wait for the marker that is under way; what it has taken, or still takes
/// when it cannot be ended at once, goes back for the others. Takes some seconds at
/// most, also when Redis is silent.
pub(crate) async fn end_wait(shared: &Arc<Shared>, waiter: &mut Waiter) {
    if let Some(lasting) = waiter.end().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            lasting.over().await;
            restore_marker(&shared).await;
        });
    }
    // The call is on its way when nobody waits for its answer any more.
    let _ = tokio::time::timeout(RESTORE_PATIENCE, restore_marker(shared)).await;
}

/// A fetch for no slot puts the marker back for the others, if there is work.
pub(crate) async fn restore_marker(shared: &Shared) {
    let none: &[Finish] = &[];
    if let Err(error) = exchange(shared, none, 0, &LockToken::new("none")).await {
        // They look by themselves before long.
        tracing::debug!(queue = %shared.keys.queue(), %error, "the marker could not be put back");
    }
}

/// Whether the same call may succeed later.
pub(crate) fn is_transient(error: &ScriptError) -> bool {
    match error {
        ScriptError::Redis { source, .. } => mpanel_connect::is_broken(source) || error.is_not_done(),
        ScriptError::Reply { .. } | ScriptError::Encoding(_) => false,
    }
}

/// A connection that was not to be had, as the script's error.
fn unreachable_script(error: &mpanel_connect::ConnectError) -> ScriptError {
    let io = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, error.to_string());
    ScriptError::Redis { script: "connect", source: io.into() }
}
