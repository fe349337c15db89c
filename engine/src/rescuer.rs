//! The stalled check: jobs whose worker died go back in line. Every worker runs
//! it; a key in Redis lets one sweep through per interval.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mpanel_protocol::{
    calls::locks::{Sweep, rescue_stalled},
    script::ScriptError,
};

use crate::{
    permissions,
    trouble::{Trouble, kind},
    worker::Shared,
};

/// Longest pause before permissions are asked for again.
const ASK_PAUSE: Duration = Duration::from_secs(5);

/// Sweeps once the Redis user may, and then once an interval, until it is aborted.
pub(crate) async fn rescue_for_ever(shared: Arc<Shared>) {
    while let Err(error) = permissions::granted(&shared).await {
        // Whoever takes the jobs tells the operator.
        tracing::debug!(queue = %shared.keys.queue(), %error, "stalled jobs are not looked for yet");
        tokio::time::sleep(shared.stalled_interval.min(ASK_PAUSE)).await;
    }
    let mut trouble = Trouble::default();
    let mut turns = tokio::time::interval(shared.stalled_interval);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        sweep(&shared, &mut trouble).await;
    }
}

async fn sweep(shared: &Shared, trouble: &mut Trouble) {
    let engine = &shared.engine;
    let Ok(mut conn) = engine.redis.shared_for(shared.keys.meta()).await else { return };
    let swept = rescue_stalled(
        &mut conn.conn,
        &shared.keys,
        engine.peer,
        engine.now(),
        shared.stalled_interval,
        shared.stalls_allowed,
    )
    .await;
    match swept {
        Ok(Sweep::Rescued(ids)) if !ids.is_empty() => {
            tracing::warn!(queue = %shared.keys.queue(), jobs = ?ids, "stalled jobs are back in line");
        }
        Ok(_) => {}
        Err(error) => {
            if let ScriptError::Redis { source, .. } = &error {
                engine.redis.report(&conn, source).await;
            }
            if trouble.is_news(kind(error.redis()), Instant::now()) {
                tracing::warn!(queue = %shared.keys.queue(), %error, "the stalled check failed; each interval tries again");
            }
        }
    }
}
