//! What all workers of a process share: the Redis handle, the clock, the lock
//! renewal, the source of random numbers.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use mpanel_connect::{ConnectError, Redis, ServerClock, local_zone};
use mpanel_protocol::{
    ids::{NameError, Prefix, QueueName},
    job_kind::JobKind,
    keys::QueueKeys,
    partition::Partition,
    peer::Peer,
    schedule::Zone,
    script::ScriptError,
    seal::Keyring,
    time::{Clock, TimestampMs},
};

use crate::{
    admin::{Partitions, QueueAdmin},
    events::{FinishWatch, QueueEvents, Start, Watches},
    handler::KindHandler,
    locks::LockKeeper,
    worker::WorkerBuilder,
};

/// How often the clock is compared with the server's.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);

/// The engine of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) inner: Arc<EngineInner>,
}

pub(crate) struct EngineInner {
    pub(crate) redis: Redis,
    pub(crate) prefix: Prefix,
    pub(crate) peer: Peer,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) keeper: Arc<LockKeeper>,
    pub(crate) keyring: Option<Arc<Keyring>>,
    /// In which cron patterns are read that name none.
    pub(crate) zone: Zone,
    random: Option<fn() -> f64>,
    watches: Watches,
}

impl std::fmt::Debug for EngineInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("redis", &self.redis)
            .field("prefix", &self.prefix)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl EngineInner {
    /// The same over the same connections for keys under another prefix.
    pub(crate) fn under(&self, prefix: Prefix) -> Self {
        Self {
            redis: self.redis.clone(),
            prefix,
            peer: self.peer,
            clock: self.clock.clone(),
            keeper: self.keeper.clone(),
            keyring: self.keyring.clone(),
            zone: self.zone,
            random: self.random,
            watches: Watches::default(),
        }
    }

    pub(crate) fn now(&self) -> TimestampMs {
        self.clock.now()
    }

    pub(crate) fn admin(&self, queue: &QueueName) -> QueueAdmin {
        let admin = QueueAdmin::new(self.redis.clone(), &self.prefix, queue, self.peer);
        admin.with_clock(self.clock.clone())
    }

    /// In [0, 1).
    pub(crate) fn random(&self) -> f64 {
        self.random.map_or_else(fastrand::f64, |random| random())
    }
}

/// Why an engine or worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A name breaks BullMQ's rules.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A setting cannot be used.
    #[error("{0}")]
    Setting(String),
    /// The Redis user lacks permissions that a worker needs.
    #[error(
        "the Redis user may not serve queue {queue}: {why}; a worker needs its commands on the keys `{keys}:*`, \
         see docs/guide/topologies.md for the ACL; no job was taken"
    )]
    Forbidden {
        /// The queue.
        queue: QueueName,
        /// What its keys begin with.
        keys: String,
        /// What is missing.
        why: String,
    },
    /// A call to Redis failed.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The renewal thread could not be started.
    #[error("the lock renewal thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Settings of an [`Engine`].
#[derive(Debug)]
pub struct EngineBuilder {
    redis: Redis,
    prefix: Prefix,
    peer: Peer,
    clock: Option<Arc<dyn Clock>>,
    keyring: Option<Arc<Keyring>>,
    zone: Option<Zone>,
    random: Option<fn() -> f64>,
}

impl EngineBuilder {
    /// The key prefix; default `bull`.
    #[must_use]
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = prefix;
        self
    }

    /// The BullMQ generation of the other writers; default 5.x.
    #[must_use]
    pub fn peer(mut self, peer: Peer) -> Self {
        self.peer = peer;
        self
    }

    /// Another source of time; default: the server's.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The keys that open sealed fields of payloads; default: none.
    #[must_use]
    pub fn keyring(mut self, keyring: Arc<Keyring>) -> Self {
        self.keyring = Some(keyring);
        self
    }

    /// In which zone cron patterns of schedules are read that name none; default:
    /// the machine's.
    #[must_use]
    pub fn time_zone(mut self, zone: Zone) -> Self {
        self.zone = Some(zone);
        self
    }

    /// Another source of random numbers in [0, 1), for backoff jitter.
    #[must_use]
    pub fn random(mut self, random: fn() -> f64) -> Self {
        self.random = Some(random);
        self
    }

    /// Connects; waits while Redis does not answer, and says so.
    ///
    /// # Errors
    /// [`EngineError::Connect`] when waiting does not help.
    pub async fn connect(self) -> Result<Engine, EngineError> {
        self.redis.wait_until_up().await?;
        if !self.prefix.has_hash_tag() && self.redis.is_cluster().await? {
            return Err(EngineError::Setting(format!(
                "in a Redis Cluster the prefix `{0}` needs a hash tag, so that all keys of a queue are on one node: \
                 use `{{{0}}}` (such as `{{bull}}`) here and in every Node producer and worker of these queues",
                self.prefix
            )));
        }
        let clock: Arc<dyn Clock> = match self.clock {
            Some(clock) => clock,
            None => {
                let clock = Arc::new(ServerClock::default());
                measure(&self.redis, &clock).await;
                // Ends when the engine is gone.
                tokio::spawn(keep_measuring(self.redis.clone(), Arc::downgrade(&clock)));
                clock
            }
        };
        let keeper = LockKeeper::start(self.redis.clone())?;
        Ok(Engine {
            inner: Arc::new(EngineInner {
                redis: self.redis,
                prefix: self.prefix,
                peer: self.peer,
                clock,
                keeper,
                keyring: self.keyring,
                zone: self.zone.unwrap_or_else(local_zone),
                random: self.random,
                watches: Watches::default(),
            }),
        })
    }
}

async fn measure(redis: &Redis, clock: &ServerClock) {
    let Ok(mut shared) = redis.shared().await else { return };
    if let Err(error) = clock.measure(&mut shared.conn).await {
        redis.report(&shared, &error).await;
        tracing::debug!(%error, "the server's time could not be read");
    }
}

async fn keep_measuring(redis: Redis, clock: Weak<ServerClock>) {
    loop {
        tokio::time::sleep(CLOCK_INTERVAL).await;
        let Some(clock) = clock.upgrade() else { return };
        measure(&redis, &clock).await;
    }
}

impl Engine {
    /// Connects with default settings.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn connect(url: &str) -> Result<Self, EngineError> {
        Self::builder(Redis::open(url)?).connect().await
    }

    /// Settings for an engine on `redis`.
    #[must_use]
    pub fn builder(redis: Redis) -> EngineBuilder {
        EngineBuilder {
            redis,
            prefix: Prefix::default(),
            peer: Peer::default(),
            clock: None,
            keyring: None,
            zone: None,
            random: None,
        }
    }

    /// A worker for a queue, to be configured and started.
    ///
    /// # Errors
    /// [`EngineError::Name`].
    pub fn worker(&self, queue: &str) -> Result<WorkerBuilder, EngineError> {
        let queue = QueueName::new(queue)?;
        let keys = QueueKeys::new(&self.inner.prefix, &queue);
        Ok(WorkerBuilder::new(self.inner.clone(), keys))
    }

    /// A worker for the queue of one kind of job, with its handler.
    ///
    /// # Errors
    /// [`EngineError::Name`].
    pub fn worker_of<K: JobKind, H: KindHandler<K>>(&self, handler: H) -> Result<WorkerBuilder, EngineError> {
        Ok(self.worker(K::QUEUE)?.handle(K::NAME, handler))
    }

    /// A handle to look at and manage a queue, by this engine's clock.
    ///
    /// # Errors
    /// [`EngineError::Name`].
    pub fn admin(&self, queue: &str) -> Result<QueueAdmin, EngineError> {
        Ok(self.inner.admin(&QueueName::new(queue)?))
    }

    /// A handle to look at and manage the partitions of a queue.
    ///
    /// # Errors
    /// [`EngineError::Name`].
    pub fn partitions(&self, queue: &str) -> Result<Partitions, EngineError> {
        let EngineInner { redis, prefix, peer, clock, .. } = &*self.inner;
        Ok(Partitions::new(redis.clone(), prefix, &QueueName::new(queue)?, *peer)?.with_clock(clock.clone()))
    }

    /// This engine for one partition: its events, and waiting for its jobs.
    #[must_use]
    pub fn at(&self, partition: &Partition) -> Self {
        Self { inner: Arc::new(self.inner.under(partition.prefix().clone())) }
    }

    /// A reader of a queue's events.
    ///
    /// # Errors
    /// [`EngineError::Name`].
    pub fn events(&self, queue: &str, start: Start) -> Result<QueueEvents, EngineError> {
        let queue = QueueName::new(queue)?;
        Ok(QueueEvents::new(self.inner.redis.clone(), &self.inner.prefix, &queue, start))
    }

    /// Waits for jobs of a queue to end. Calls for one queue share a reader while
    /// one of the watches they gave lives.
    ///
    /// # Errors
    /// [`EngineError::Name`].
    pub fn finish_watch(&self, queue: &str) -> Result<FinishWatch, EngineError> {
        let queue = QueueName::new(queue)?;
        Ok(self
            .inner
            .watches
            .open(&queue, || FinishWatch::start(self.inner.redis.clone(), &self.inner.prefix, &queue)))
    }

    /// The Redis handle all workers share.
    #[must_use]
    pub fn redis(&self) -> &Redis {
        &self.inner.redis
    }

    /// The key prefix.
    #[must_use]
    pub fn prefix(&self) -> &Prefix {
        &self.inner.prefix
    }
}
