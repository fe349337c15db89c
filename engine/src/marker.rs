//! Waiting for work without asking for it: a blocking pop of the queue's marker
//! on a connection of its own, named as BullMQ names its workers'.
//!
//! Who pops a marker must fetch; the pump does, even with no slot free.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mpanel_connect::{Conn, Redis};
use mpanel_protocol::{ids::Prefix, keys::QueueKeys, time::TimestampMs};
use tokio::{sync::mpsc, task::AbortHandle};

/// Longest block; BullMQ's drainDelay.
pub(crate) const BLOCK_MAX: Duration = Duration::from_secs(5);
/// Shortest block: 0 would block for ever.
const BLOCK_MIN: Duration = Duration::from_millis(2);
/// A reply later than the block plus this breaks the connection.
const GRACE: Duration = Duration::from_secs(1);
/// How long, and how far apart, the server is asked to end a wait.
const CALL_BACK_WITHIN: Duration = Duration::from_secs(1);
const CALL_BACK_PAUSE: Duration = Duration::from_millis(50);
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

/// The pump's side of the wait. Dropped, it ends the connection at once, so that
/// no marker is taken for a worker that is gone.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// Each request, how long to wait at most, is answered by one wake.
    pub(crate) requests: mpsc::Sender<Duration>,
    pub(crate) wakes: mpsc::Receiver<Wake>,
    /// CLIENT ID of the waiting connection; 0 while there is none.
    client: Arc<AtomicI64>,
    redis: Redis,
    key: String,
    client_name: String,
    task: AbortHandle,
}

impl Waiter {
    /// Starts waiting on request for the marker `key`.
    pub(crate) fn start(redis: Redis, key: String, client_name: String) -> Self {
        let (requests, asked) = mpsc::channel(1);
        let (wake, wakes) = mpsc::channel(1);
        let client = Arc::new(AtomicI64::new(0));
        let listener = Listener {
            redis: redis.clone(),
            key: key.clone(),
            client_name: client_name.clone(),
            client: client.clone(),
        };
        let task = tokio::spawn(wait_for_markers(listener, asked, wake)).abort_handle();
        Self { requests, wakes, client, redis, key, client_name, task }
    }

    /// Ends the wait that is under way, within a second or so. What it has taken from
    /// the marker is the caller's to put back.
    ///
    /// A wait that cannot be ended (the user may not, or the server does not answer) is
    /// handed out: what it still takes is the caller's too. Another waiter is here then.
    pub(crate) async fn end(&mut self) -> Option<Self> {
        let ended = async {
            loop {
                self.call_back().await;
                // cancel-safe: a wake that is not taken stays in the channel.
                if tokio::time::timeout(CALL_BACK_PAUSE, self.wakes.recv()).await.is_ok() {
                    return;
                }
            }
        };
        if tokio::time::timeout(CALL_BACK_WITHIN, ended).await.is_ok() {
            return None;
        }
        let fresh = Self::start(self.redis.clone(), self.key.clone(), self.client_name.clone());
        Some(std::mem::replace(self, fresh))
    }

    /// Waits until the wait that is under way is over.
    pub(crate) async fn over(mut self) {
        // An answer that does not come breaks the connection, which is an answer too.
        let _ = tokio::time::timeout(BLOCK_MAX + GRACE * 2, self.wakes.recv()).await;
    }

    /// Asks the server to end the wait that is under way, if one is.
    async fn call_back(&self) {
        let client = self.client.load(Ordering::Relaxed);
        if client == 0 {
            return;
        }
        let Ok(mut shared) = self.redis.shared_for(&self.key).await else { return };
        let unblock = redis::cmd("CLIENT").arg("UNBLOCK").arg(client).query_async(&mut shared.conn).await;
        if let Err::<i64, _>(error) = unblock {
            self.redis.report(&shared, &error).await;
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the waiting task needs.
struct Listener {
    redis: Redis,
    key: String,
    client_name: String,
    client: Arc<AtomicI64>,
}

/// Answers each request to wait with one [`Wake`]; ends with its requests.
async fn wait_for_markers(
    listener: Listener,
    mut requests: mpsc::Receiver<Duration>,
    wakes: mpsc::Sender<Wake>,
) {
    let mut conn: Option<Conn> = None;
    let mut pause = PAUSE_MIN;
    while let Some(longest) = requests.recv().await {
        let block = longest.clamp(BLOCK_MIN, BLOCK_MAX);
        let wake = match listener.pop(&mut conn, block).await {
            Ok(wake) => {
                pause = PAUSE_MIN;
                wake
            }
            Err(error) => {
                if error.contains("no permissions") {
                    tracing::error!(
                        key = listener.key,
                        error,
                        "the Redis user may not wait for work; the queue is polled instead"
                    );
                } else {
                    tracing::debug!(
                        key = listener.key,
                        error,
                        "waiting for work failed; the connection is replaced"
                    );
                }
                conn = None;
                listener.client.store(0, Ordering::Relaxed);
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

impl Listener {
    async fn pop(&self, slot: &mut Option<Conn>, block: Duration) -> Result<Wake, String> {
        let conn = match slot {
            Some(conn) => conn,
            None => slot.insert(self.connect().await?),
        };
        let popped: Option<(String, String, f64)> = redis::cmd("BZPOPMIN")
            .arg(&self.key)
            .arg(block.as_secs_f64())
            .query_async(conn)
            .await
            .map_err(|e| e.to_string())?;
        #[expect(clippy::cast_possible_truncation, reason = "epoch ms; saturates")]
        let wake =
            popped.map_or(Wake::TimedOut, |(_, _, score)| Wake::Marker(TimestampMs(score.ceil() as i64)));
        Ok(wake)
    }

    async fn connect(&self) -> Result<Conn, String> {
        let fresh = self.redis.dedicated(&self.key, Some(&self.client_name), BLOCK_MAX + GRACE).await;
        let mut conn = fresh.map_err(|e| e.to_string())?;
        // Only a stop needs it; without the permission it does without.
        let id = redis::cmd("CLIENT").arg("ID").query_async::<i64>(&mut conn).await;
        self.client.store(id.unwrap_or(0), Ordering::Relaxed);
        Ok(conn)
    }
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
