//! The handle: one shared connection for scripts, dedicated ones for blocking
//! commands, both made by a deadpool manager.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use deadpool_redis::{Manager, Pool};
use redis::{AsyncConnectionConfig, RedisError, aio::MultiplexedConnection};
use tokio::sync::Mutex;

use crate::{ConnectError, RedisUrl, is_broken};

/// How long a reply may take before the connection counts as broken. Far above
/// any script's time, so that it only fires when the server hangs.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle on one Redis server; clones share its connection.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    url: RedisUrl,
    pool: Pool,
    shared: Mutex<Option<Shared>>,
    generations: AtomicU64,
}

/// The shared connection, with the generation it belongs to.
#[derive(Clone)]
pub struct Shared {
    /// For scripts and short commands; never for blocking ones.
    pub conn: MultiplexedConnection,
    generation: u64,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("endpoint", &self.inner.url.endpoint()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Redis {
    /// A handle on the server behind `url`; connects on first use.
    ///
    /// # Errors
    /// [`ConnectError::Url`].
    pub fn open(url: &str) -> Result<Self, ConnectError> {
        let url: RedisUrl = url.parse()?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let bad = |why: String| ConnectError::Url { url: url.endpoint().to_owned(), why };
        let manager = Manager::new_with_config(url.info.clone(), config).map_err(|e| bad(e.to_string()))?;
        // Connections are taken out for good, so the size bounds only how many
        // are being made at once.
        let pool = Pool::builder(manager).max_size(8).build().map_err(|e| bad(e.to_string()))?;
        Ok(Self {
            inner: Arc::new(Inner { url, pool, shared: Mutex::new(None), generations: AtomicU64::new(0) }),
        })
    }

    /// Host and port, for messages.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.inner.url.endpoint()
    }

    async fn connect(&self) -> Result<MultiplexedConnection, ConnectError> {
        let conn = self.inner.pool.get().await.map_err(|e| match e {
            deadpool_redis::PoolError::Backend(source) => ConnectError::from_redis(self.endpoint(), source),
            other => ConnectError::Unreachable {
                endpoint: self.endpoint().to_owned(),
                source: RedisError::from((redis::ErrorKind::Io, "pool", other.to_string())),
            },
        })?;
        Ok(deadpool_redis::Connection::take(conn))
    }

    /// The connection for scripts, made when there is none.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn shared(&self) -> Result<Shared, ConnectError> {
        let mut slot = self.inner.shared.lock().await;
        if let Some(shared) = slot.as_ref() {
            return Ok(shared.clone());
        }
        let conn = self.connect().await?;
        let generation = self.inner.generations.fetch_add(1, Ordering::Relaxed);
        let shared = Shared { conn, generation };
        *slot = Some(shared.clone());
        Ok(shared)
    }

    /// The connection for scripts to the node that serves `key`; with a single
    /// server the same as [`Redis::shared`].
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn shared_for(&self, key: &str) -> Result<Shared, ConnectError> {
        let _ = key;
        self.shared().await
    }

    /// Tells what happened on a shared connection. After an error that breaks it
    /// ([`is_broken`]) the next [`Redis::shared`] connects anew.
    pub async fn report(&self, shared: &Shared, error: &RedisError) {
        if !is_broken(error) {
            return;
        }
        let mut slot = self.inner.shared.lock().await;
        if slot.as_ref().is_some_and(|current| current.generation == shared.generation) {
            tracing::warn!(endpoint = self.endpoint(), %error, "connection to Redis lost");
            *slot = None;
        }
    }

    /// A connection of one's own to the node that serves `key`, for blocking
    /// commands; `name` appears in CLIENT LIST, `response_timeout` must exceed the
    /// longest block.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn dedicated(
        &self,
        key: &str,
        name: Option<&str>,
        response_timeout: Duration,
    ) -> Result<MultiplexedConnection, ConnectError> {
        let _ = key;
        let mut conn = self.connect().await?;
        conn.set_response_timeout(response_timeout);
        if let Some(name) = name {
            redis::cmd("CLIENT")
                .arg("SETNAME")
                .arg(name)
                .query_async::<()>(&mut conn)
                .await
                .map_err(|source| ConnectError::from_redis(self.endpoint(), source))?;
        }
        Ok(conn)
    }

    /// Asks the server for a sign of life, as someone whom it lets in.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn check(&self) -> Result<(), ConnectError> {
        let mut shared = self.shared().await?;
        match redis::cmd("PING").query_async::<()>(&mut shared.conn).await {
            Ok(()) => Ok(()),
            Err(source) => {
                self.report(&shared, &source).await;
                Err(ConnectError::from_redis(self.endpoint(), source))
            }
        }
    }

    /// Waits until the server answers; says so while it does not.
    ///
    /// # Errors
    /// What waiting does not mend: a bad URL, refused credentials.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_until_up(&self) -> Result<(), ConnectError> {
        let mut pauses = reconnect_pauses();
        loop {
            let Err(error) = self.check().await else { return Ok(()) };
            if !error.is_retryable() {
                return Err(error);
            }
            let pause = pauses.next().unwrap_or(Duration::from_secs(2));
            tracing::warn!(%error, retry_in_ms = pause.as_millis(), "waiting for Redis");
            tokio::time::sleep(pause).await;
        }
    }
}

/// Pauses between attempts to reconnect: 50 ms doubling to 2 s, with jitter, for ever.
fn reconnect_pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build()
}
