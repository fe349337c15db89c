//! The handle: for each server one shared connection for scripts, and dedicated
//! ones for blocking commands. Finds the server anew whenever one is needed.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use deadpool_redis::Pool;
use mpanel_protocol::keys::slot;
use redis::{RedisError, aio::MultiplexedConnection};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    ConnectError, RedisUrl,
    conn::{Conn, Link, Routes},
    dial::{Dialer, pool_of, taken},
    is_broken,
    node::NodeAddr,
    sentinel::{self, Sentinels, is_primary},
    slots::redirection,
    url::Topology,
    watch::{ClusterView, Watch},
};

/// How long a single server may take to let us in; there is no other to turn to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where another server may have taken over.
const CONNECT_TIMEOUT_OF_MANY: Duration = Duration::from_secs(2);

/// A handle on Redis: one server, the primary behind Sentinels, or a Cluster.
/// Clones share its connections.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

/// Which server a connection leads to: the single one or the primary of the
/// Sentinels, whichever that is, or a node of a Cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place(pub(crate) Option<NodeAddr>);

/// How a server is found.
pub(crate) enum Route {
    Single(Pool),
    Sentinel { sentinels: Sentinels, dialer: Dialer, home: Mutex<Option<sentinel::Candidate>> },
    Cluster { view: ClusterView, dialer: Dialer },
}

/// One server's shared connection, and the word that ends all to it.
#[derive(Default)]
struct Slot {
    shared: tokio::sync::Mutex<Option<Link>>,
    cut: Mutex<CancellationToken>,
}

pub(crate) struct Inner {
    url: RedisUrl,
    pub(crate) route: Route,
    slots: Mutex<HashMap<Place, Arc<Slot>>>,
    generations: AtomicU64,
    /// Asks for a look at the topology now.
    pub(crate) look: Arc<Notify>,
    watch: Watch,
}

/// The shared connection to a server.
#[derive(Debug, Clone)]
pub struct Shared {
    /// For scripts and short commands; never for blocking ones.
    pub conn: Conn,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("endpoint", &self.inner.url.endpoint()).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(crate) fn endpoint(&self) -> &str {
        self.url.endpoint()
    }

    fn slot(&self, place: &Place) -> Arc<Slot> {
        locked(&self.slots).entry(place.clone()).or_default().clone()
    }

    /// A new connection to a server.
    async fn dial(self: &Arc<Self>, place: &Place) -> Result<MultiplexedConnection, ConnectError> {
        let unreachable = |e| ConnectError::from_redis(self.endpoint(), e);
        match (&self.route, place) {
            (Route::Single(pool), _) => taken(pool.clone()).await.map_err(unreachable),
            (Route::Sentinel { .. }, _) => {
                self.watch.keep(self);
                self.dial_primary().await
            }
            (Route::Cluster { dialer, .. }, Place(Some(node))) => {
                self.watch.keep(self);
                dialer.dial(node).await.map_err(|error| {
                    self.look.notify_one();
                    ConnectError::from_redis(&node.to_string(), error)
                })
            }
            (Route::Cluster { .. }, Place(None)) => Err(ConnectError::NoPrimary {
                endpoint: self.endpoint().to_owned(),
                why: "a Cluster has no primary of its own".to_owned(),
            }),
        }
    }

    /// Whom the Sentinels name, if it says so itself.
    async fn dial_primary(&self) -> Result<MultiplexedConnection, ConnectError> {
        let Route::Sentinel { sentinels, dialer, home } = &self.route else {
            return Err(ConnectError::NoPrimary { endpoint: self.endpoint().to_owned(), why: String::new() });
        };
        let mut failures = Vec::new();
        for candidate in sentinels.candidates(self.endpoint()).await? {
            let node = &candidate.node;
            let met = async {
                let mut conn = dialer.dial(node).await?;
                Ok::<_, RedisError>(is_primary(&mut conn).await?.then_some(conn))
            };
            // A server may freeze after it has let us in.
            let met = tokio::time::timeout(CONNECT_TIMEOUT_OF_MANY, met).await;
            let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time").into();
            match met.unwrap_or_else(|_| Err(late())) {
                Ok(Some(conn)) => {
                    *locked(home) = Some(candidate);
                    return Ok(conn);
                }
                Ok(None) => failures.push(format!("{node} says that it is a replica")),
                Err(error) => match ConnectError::from_redis(&node.to_string(), error) {
                    refused @ ConnectError::Refused { .. } => return Err(refused),
                    other => failures.push(other.to_string()),
                },
            }
        }
        Err(ConnectError::NoPrimary { endpoint: self.endpoint().to_owned(), why: failures.join("; ") })
    }

    /// The shared connection to a server, made when there is none.
    pub(crate) async fn link(self: &Arc<Self>, place: &Place) -> Result<Link, ConnectError> {
        let slot = self.slot(place);
        let mut shared = slot.shared.lock().await;
        if let Some(link) = shared.as_ref().filter(|link| !link.cut.is_cancelled()) {
            return Ok(link.clone());
        }
        let link = self.new_link(place, &slot).await?;
        *shared = Some(link.clone());
        Ok(link)
    }

    async fn new_link(self: &Arc<Self>, place: &Place, slot: &Slot) -> Result<Link, ConnectError> {
        // Taken first: a cut while we connect holds for this connection too.
        let cut = locked(&slot.cut).clone();
        // Boxed, as it is rare: callers' futures stay small.
        let conn = Box::pin(self.dial(place)).await?;
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        Ok(Link { conn, place: place.clone(), generation, cut })
    }

    /// Ends every connection to a server: it is no primary any more.
    pub(crate) fn cut(&self, place: &Place) {
        let slot = self.slot(place);
        let cut = std::mem::take(&mut *locked(&slot.cut));
        cut.cancel();
    }

    /// Servers to which there may be connections.
    pub(crate) fn places(&self) -> Vec<Place> {
        locked(&self.slots).keys().cloned().collect()
    }

    /// Remembers what a MOVED tells; gives the node it names.
    pub(crate) fn note(&self, error: &RedisError, from: &Place) -> Option<Place> {
        let Route::Cluster { view, .. } = &self.route else { return None };
        if error.code() != Some("MOVED") {
            return None;
        }
        let (slot, node) = redirection(error, from.0.as_ref())?;
        view.moved(slot, node.clone());
        self.look.notify_one();
        Some(Place(Some(node)))
    }

    fn routes(self: &Arc<Self>, follow: bool) -> Routes {
        match &self.route {
            Route::Single(_) => Routes::None,
            Route::Sentinel { .. } => Routes::Watched,
            Route::Cluster { .. } if follow => Routes::Follow(self.clone()),
            Route::Cluster { .. } => Routes::Note(self.clone()),
        }
    }

    async fn place_of(self: &Arc<Self>, key: &str) -> Result<Place, ConnectError> {
        let Route::Cluster { view, dialer } = &self.route else { return Ok(Place(None)) };
        let slot = slot(key);
        let node = view.owner(slot, dialer, self.endpoint()).await?;
        node.map(|node| Place(Some(node))).ok_or_else(|| {
            self.look.notify_one();
            let why = format!("no node serves slot {slot} of `{key}`");
            ConnectError::NoPrimary { endpoint: self.endpoint().to_owned(), why }
        })
    }

    /// All servers that take writes.
    async fn primaries(&self) -> Result<Vec<Place>, ConnectError> {
        let Route::Cluster { view, dialer } = &self.route else { return Ok(vec![Place(None)]) };
        let nodes = view.primaries(dialer, self.endpoint()).await?;
        Ok(nodes.into_iter().map(|node| Place(Some(node))).collect())
    }
}

impl Redis {
    /// A handle on what is behind `url`; connects on first use.
    ///
    /// # Errors
    /// [`ConnectError::Url`].
    pub fn open(url: &str) -> Result<Self, ConnectError> {
        let url: RedisUrl = url.parse()?;
        let bad = |why: String| ConnectError::Url { url: url.endpoint().to_owned(), why };
        let dialer = |patience| Dialer::new(url.login.clone(), url.tls.as_ref(), patience).map_err(bad);
        let route = match &url.topology {
            Topology::Single(node) => {
                Route::Single(dialer(CONNECT_TIMEOUT)?.pool(node).map_err(|e| bad(e.to_string()))?)
            }
            Topology::Unix(info) => {
                let pool = pool_of(info.as_ref().clone(), CONNECT_TIMEOUT);
                Route::Single(pool.map_err(|e| bad(e.to_string()))?)
            }
            Topology::Sentinel { sentinels, master, login } => {
                let dialer = dialer(CONNECT_TIMEOUT_OF_MANY)?;
                let to_sentinels = dialer.with_login(login.clone(), sentinel::PATIENCE);
                let sentinels = Sentinels::new(to_sentinels, sentinels.clone(), master.clone());
                Route::Sentinel { sentinels, dialer, home: Mutex::default() }
            }
            Topology::Cluster { seeds } => {
                let view = ClusterView::new(seeds.clone());
                Route::Cluster { view, dialer: dialer(CONNECT_TIMEOUT_OF_MANY)? }
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                url,
                route,
                slots: Mutex::default(),
                generations: AtomicU64::new(0),
                look: Arc::default(),
                watch: Watch::default(),
            }),
        })
    }

    /// What the URL leads to, for messages: no password.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.inner.endpoint()
    }

    /// A connection for scripts to a server: the single one, the primary, any
    /// primary of a Cluster. Made when there is none.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn shared(&self) -> Result<Shared, ConnectError> {
        let mut last = None;
        for place in self.inner.primaries().await? {
            match self.at(&place).await {
                Ok(shared) => return Ok(shared),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| ConnectError::NoPrimary {
            endpoint: self.endpoint().to_owned(),
            why: "no node serves any slot".to_owned(),
        }))
    }

    /// The connection for scripts to the server that has `key`.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn shared_for(&self, key: &str) -> Result<Shared, ConnectError> {
        let place = self.place_of(key).await?;
        self.at(&place).await
    }

    /// The connections to every server that takes writes, for what has no key.
    ///
    /// # Errors
    /// [`ConnectError`], when one of them is not to be had.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn shared_all(&self) -> Result<Vec<Shared>, ConnectError> {
        let mut all = Vec::new();
        for place in self.inner.primaries().await? {
            all.push(self.at(&place).await?);
        }
        Ok(all)
    }

    async fn at(&self, place: &Place) -> Result<Shared, ConnectError> {
        let link = self.inner.link(place).await?;
        Ok(Shared { conn: Conn { link, routes: self.inner.routes(true) } })
    }

    /// Which server has `key` now. Keys of one place can share a dedicated
    /// connection.
    ///
    /// # Errors
    /// [`ConnectError`], when nobody has it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn place_of(&self, key: &str) -> Result<Place, ConnectError> {
        self.inner.place_of(key).await
    }

    /// Tells what happened on a shared connection. After an error that breaks it
    /// ([`is_broken`]) the next call connects anew, to whoever is the primary then.
    pub async fn report(&self, shared: &Shared, error: &RedisError) {
        if !is_broken(error) {
            return;
        }
        self.inner.look.notify_one();
        let link = &shared.conn.link;
        let slot = self.inner.slot(&link.place);
        let mut current = slot.shared.lock().await;
        if current.as_ref().is_some_and(|current| current.generation == link.generation) {
            tracing::warn!(endpoint = self.endpoint(), place = ?link.place, %error, "connection to Redis lost");
            *current = None;
        }
    }

    /// A connection of one's own to the server that has `key`, for blocking
    /// commands; `name` appears in CLIENT LIST, `response_timeout` must exceed the
    /// longest block. It stays with its server: when that loses the key, or is no
    /// primary any more, its calls fail, and another is to be asked for.
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
    ) -> Result<Conn, ConnectError> {
        let place = self.place_of(key).await?;
        let mut link = self.inner.new_link(&place, &self.inner.slot(&place)).await?;
        link.conn.set_response_timeout(response_timeout);
        let mut conn = Conn { link, routes: self.inner.routes(false) };
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

    /// Asks for a sign of life, as someone whom the server lets in.
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

    /// Whether the servers are a Cluster: because the URL says so, or the server,
    /// reached by another URL. One that does not say so is none.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn is_cluster(&self) -> Result<bool, ConnectError> {
        if self.inner.url.is_cluster() {
            return Ok(true);
        }
        let mut shared = self.shared().await?;
        let hello: Result<HashMap<String, redis::Value>, _> =
            redis::cmd("HELLO").query_async(&mut shared.conn).await;
        if let Err(error) = &hello {
            self.report(&shared, error).await;
        }
        let mode = hello.ok().and_then(|mut hello| hello.remove("mode"));
        let mode = mode.and_then(|mode| redis::from_redis_value::<String>(mode).ok());
        Ok(mode.is_some_and(|mode| mode == "cluster"))
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
