//! Waiting for work without asking for it: a blocking pop of the queue's marker
//! on a connection of its own, named as BullMQ names its workers'.
//!
//! Who pops a marker must fetch; the pump does, even with no slot free.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mpanel_connect::Redis;
use mpanel_protocol::{ids::Prefix, keys::QueueKeys, time::TimestampMs};
use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;

/// Longest block; BullMQ's drainDelay.
pub(crate) const BLOCK_MAX: Duration = Duration::from_secs(5);
/// Shortest block: 0 would block for ever.
const BLOCK_MIN: Duration = Duration::from_millis(2);
/// A reply later than the block plus this breaks the connection.
const GRACE: Duration = Duration::from_secs(1);
/// Pauses after a failure, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why the pump is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The marker says that work is available at this time (0: now).
    Marker(TimestampMs),
    /// Nothing came in time.
    TimedOut,
    /// The connection broke; it was given a pause.
    Broken,
}

/// The name of a worker's blocking connection, by which `queue.getWorkers()` in
/// Node finds it.
pub(crate) fn client_name(prefix: &Prefix, keys: &QueueKeys, worker: Option<&str>) -> String {
    let queue = STANDARD.encode(keys.queue().as_str());
    match worker {
        Some(worker) => format!("{prefix}:{queue}:w:{worker}"),
        None => format!("{prefix}:{queue}"),
    }
}

/// Answers each request to wait with one [`Wake`]; ends with its requests.
pub(crate) async fn wait_for_markers(
    redis: Redis,
    key: String,
    client_name: String,
    mut requests: mpsc::Receiver<Duration>,
    wakes: mpsc::Sender<Wake>,
) {
    let mut conn: Option<MultiplexedConnection> = None;
    let mut pause = PAUSE_MIN;
    while let Some(longest) = requests.recv().await {
        let block = longest.clamp(BLOCK_MIN, BLOCK_MAX);
        let wake = match pop(&redis, &mut conn, &client_name, &key, block).await {
            Ok(wake) => {
                pause = PAUSE_MIN;
                wake
            }
            Err(error) => {
                tracing::debug!(key, error, "waiting for work failed; the connection is replaced");
                conn = None;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
                Wake::Broken
            }
        };
        if wakes.send(wake).await.is_err() {
            return;
        }
    }
}

async fn pop(
    redis: &Redis,
    slot: &mut Option<MultiplexedConnection>,
    client_name: &str,
    key: &str,
    block: Duration,
) -> Result<Wake, String> {
    let conn = match slot {
        Some(conn) => conn,
        None => {
            let fresh = redis.dedicated(Some(client_name), BLOCK_MAX + GRACE).await;
            slot.insert(fresh.map_err(|e| e.to_string())?)
        }
    };
    let popped: Option<(String, String, f64)> = redis::cmd("BZPOPMIN")
        .arg(key)
        .arg(block.as_secs_f64())
        .query_async(conn)
        .await
        .map_err(|e| e.to_string())?;
    #[expect(clippy::cast_possible_truncation, reason = "epoch ms; saturates")]
    let wake = popped.map_or(Wake::TimedOut, |(_, _, score)| Wake::Marker(TimestampMs(score.ceil() as i64)));
    Ok(wake)
}

#[cfg(test)]
mod tests {
    use mpanel_protocol::ids::QueueName;

    use super::*;

    #[test]
    fn connections_are_named_as_node_names_them() {
        let prefix = Prefix::default();
        let keys = QueueKeys::new(&prefix, &QueueName::new("cloudpods-create").unwrap());
        assert_eq!(client_name(&prefix, &keys, None), "bull:Y2xvdWRwb2RzLWNyZWF0ZQ==");
        assert_eq!(client_name(&prefix, &keys, Some("a")), "bull:Y2xvdWRwb2RzLWNyZWF0ZQ==:w:a");
    }
}
