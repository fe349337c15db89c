//! The relay of `fleet_outbox` inside `run`: jobs that were written in somebody's
//! transaction go to Redis. Every process has one; they share the rows.

use std::time::Duration;

use mpanel_connect::Redis;
use mpanel_producer::{
    Peer, Prefix, Producer,
    outbox::{OutboxError, OutboxRelay, RelayOptions},
};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

/// Between two attempts to start.
const PAUSE: Duration = Duration::from_secs(5);

/// Relays until `stop`. Without the table there is nothing to do.
pub async fn relay(db: PgPool, redis: Redis, prefix: Prefix, peer: Peer, stop: CancellationToken) {
    loop {
        let start = async {
            let producer =
                Producer::builder(redis.clone()).prefix(prefix.clone()).peer(peer).connect().await?;
            OutboxRelay::start(db.clone(), producer, RelayOptions::default()).await
        };
        let started = tokio::select! {
            // cancel-safe: a relay that was just started stops when it is dropped.
            () = stop.cancelled() => return,
            started = start => started,
        };
        match started {
            Ok(relay) => {
                stop.cancelled().await;
                relay.stop().await;
                return;
            }
            Err(OutboxError::NoTable) => {
                tracing::info!("no table fleet_outbox: nothing is relayed");
                return;
            }
            Err(error) => tracing::warn!(%error, "the outbox cannot be relayed yet"),
        }
        tokio::select! {
            // cancel-safe: both only wait.
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}
