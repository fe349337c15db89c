//! Notices that running jobs were cancelled from elsewhere.
//!
//! A request to cancel stands in the job's hash, where it outlives everyone who
//! could miss a message. Attempts that are over before they are looked at, as most
//! are, cost nothing.

use std::{sync::Arc, time::Duration};

use mpanel_protocol::{
    calls::cancel::{LOOK_MAX, find_cancelled},
    ids::JobId,
    script::ScriptError,
};

use crate::{
    cancellation::{CancelCause, Cancellation},
    worker::Shared,
};

/// How often running jobs are looked at, and how old the youngest of them is.
const INTERVAL: Duration = Duration::from_millis(300);

/// Looks for cancelled jobs until it is aborted.
pub(crate) async fn watch_for_ever(shared: Arc<Shared>) {
    let mut turns = tokio::time::interval(INTERVAL);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let running = shared.locks.older_than(INTERVAL);
        for some in running.chunks(LOOK_MAX) {
            look(&shared, some).await;
        }
    }
}

async fn look(shared: &Shared, running: &[(JobId, Cancellation)]) {
    let redis = &shared.engine.redis;
    let Ok(mut conn) = redis.shared_for(shared.keys.meta()).await else { return };
    let ids: Vec<&JobId> = running.iter().map(|(id, _)| id).collect();
    match find_cancelled(&mut conn.conn, &shared.keys, &ids).await {
        Ok(found) => {
            for (place, reason) in found {
                let Some((id, attempt)) = running.get(place) else { continue };
                if attempt.cause().is_none() {
                    tracing::warn!(queue = %shared.keys.queue(), job.id = %id, reason, "the attempt is cancelled");
                }
                attempt.cancel(CancelCause::Requested(reason));
            }
        }
        Err(error) => {
            if let ScriptError::Redis { source, .. } = &error {
                redis.report(&conn, source).await;
            }
            tracing::debug!(%error, "cancelled jobs cannot be looked for yet");
        }
    }
}
