//! [`Producer`]: where jobs go, and what holds for all of them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use mpanel_connect::{Conn, Redis, ServerClock};
use mpanel_protocol::{
    calls::permissions::{Role, refused_commands},
    ids::Prefix,
    keys::QueueKeys,
    peer::Peer,
    script::ScriptError,
    seal::Keyring,
    time::Clock,
};

use crate::{
    batch::Lane,
    durability::Durability,
    error::EnqueueError,
    queue::QueueProducer,
    rules::{Rules, SIZE_LIMIT},
    testing::Recorder,
};

/// Where jobs go: one Redis, one prefix. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Producer {
    pub(crate) backend: Backend,
    pub(crate) peer: Peer,
    pub(crate) rules: Rules,
    pub(crate) lane: Lane,
    /// Queues, with prefix, on which the Redis user is known to have its permissions.
    pub(crate) permitted: Arc<Mutex<HashSet<String>>>,
    /// Handles for [`Producer::enqueue_kind`], so that its calls travel together.
    pub(crate) handles: Arc<Mutex<HashMap<&'static str, QueueProducer>>>,
}

/// Who takes the jobs.
#[derive(Debug, Clone)]
pub(crate) enum Backend {
    Redis(Redis),
    Recorder(Arc<Recorder>),
}

/// Settings of a [`Producer`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `connect`"]
pub struct ProducerBuilder {
    redis: Redis,
    prefix: Prefix,
    peer: Peer,
    clock: Option<Arc<dyn Clock>>,
    size_limit: usize,
    keyring: Option<Arc<Keyring>>,
    lane: Lane,
    as_node: bool,
    skip_meta: bool,
}

impl ProducerBuilder {
    /// The key prefix; default `bull`.
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = prefix;
        self
    }

    /// The BullMQ generation of the other writers; default 5.x.
    pub fn peer(mut self, peer: Peer) -> Self {
        self.peer = peer;
        self
    }

    /// Another source of time; default: the server's.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Largest payload, bytes; default 16 MiB.
    pub fn size_limit(mut self, bytes: usize) -> Self {
        self.size_limit = bytes;
        self
    }

    /// The keys that [`crate::EnqueueOptions::seal`] encrypts with; default: none.
    pub fn keyring(mut self, keyring: Arc<Keyring>) -> Self {
        self.keyring = Some(keyring);
        self
    }

    /// How safely jobs are stored unless a queue's handle says otherwise; default:
    /// on the primary.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.lane.durability = durability;
        self
    }

    /// Refuses jobs while so many are waiting or delayed in their queue; see
    /// [`QueueProducer::max_waiting`]. Default: no limit.
    ///
    /// ```no_run
    /// # async fn run(redis: mpanel_connect::Redis) -> Result<(), mpanel_producer::EnqueueError> {
    /// use mpanel_producer::{EnqueueError, EnqueueOptions, Producer};
    ///
    /// let producer = Producer::builder(redis).max_waiting(1_000_000).connect().await?;
    /// match producer.queue("scans")?.enqueue("scan", &7, EnqueueOptions::new()).await {
    ///     Err(EnqueueError::QueueFull { limit, .. }) => println!("{limit} jobs wait: later"),
    ///     other => println!("job {}", other?.id()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_waiting(mut self, jobs: u64) -> Self {
        self.lane.max_waiting = Some(jobs);
        self
    }

    /// Takes what Node's producer takes even where it can only harm: names of any
    /// length, negative delays, priorities and creation times, deduplication of a
    /// schedule's jobs, flows whose jobs wait for themselves or lie in queues whose
    /// names hold a colon. For
    /// comparisons with Node and for programs that relay foreign jobs.
    pub fn as_node(mut self) -> Self {
        self.as_node = true;
        self
    }

    /// Leaves the queues' `meta` alone, as Node's option `skipMetasUpdate` does: no
    /// version and no length of the event stream is noted there.
    pub fn skip_metas_update(mut self) -> Self {
        self.skip_meta = true;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// [`EnqueueError::Connect`]; [`EnqueueError::Option`] for a setting that cannot be.
    pub async fn connect(self) -> Result<Producer, EnqueueError> {
        self.lane.durability.check()?;
        self.redis.check().await?;
        let mut shared = self.redis.shared().await?;
        let cluster = self.redis.is_cluster().await?;
        if cluster && !self.prefix.has_hash_tag() {
            let why = format!(
                "in a Redis Cluster it needs a hash tag, so that all keys of a queue are on one node: use {{{}}} (such as {{bull}})",
                self.prefix
            );
            return Err(EnqueueError::option("prefix", why));
        }
        let clock = match self.clock {
            Some(clock) => clock,
            None => {
                let clock = ServerClock::default();
                // A server that does not tell the time leaves us with our own.
                if let Err(error) = clock.measure(&mut shared.conn).await {
                    self.redis.report(&shared, &error).await;
                }
                Arc::new(clock)
            }
        };
        Ok(Producer {
            backend: Backend::Redis(self.redis),
            peer: self.peer,
            rules: Rules {
                prefix: self.prefix,
                clock,
                size_limit: self.size_limit,
                keyring: self.keyring,
                as_node: self.as_node,
                skip_meta: self.skip_meta,
                cluster,
            },
            lane: self.lane,
            permitted: Arc::default(),
            handles: Arc::default(),
        })
    }
}

/// Asks once for each queue whether the Redis user may do what a producer does: a
/// script that is refused a command half way leaves half a job.
pub(crate) async fn permitted(
    known: &Mutex<HashSet<String>>,
    conn: &mut Conn,
    keys: &QueueKeys,
) -> Result<(), ScriptError> {
    let known = || known.lock().unwrap_or_else(PoisonError::into_inner);
    if known().contains(keys.qualified_name()) {
        return Ok(());
    }
    let refused = refused_commands(conn, keys, Role::Producer).await?;
    if refused.is_empty() {
        known().insert(keys.qualified_name().to_owned());
        return Ok(());
    }
    let why = format!("it may not run {} on `{}:*`", refused.join(", "), keys.qualified_name());
    let error = redis::make_extension_error("NOPERM".to_owned(), Some(why));
    Err(ScriptError::Redis { script: "checkPermissions", source: error })
}

impl Producer {
    /// Connects with default settings.
    ///
    /// # Errors
    /// [`EnqueueError::Connect`]: the URL is wrong, the server does not answer or refuses.
    pub async fn connect(url: &str) -> Result<Self, EnqueueError> {
        Self::builder(Redis::open(url)?).connect().await
    }

    /// Settings for a producer on `redis`.
    pub fn builder(redis: Redis) -> ProducerBuilder {
        ProducerBuilder {
            redis,
            prefix: Prefix::default(),
            peer: Peer::default(),
            clock: None,
            size_limit: SIZE_LIMIT,
            keyring: None,
            as_node: false,
            skip_meta: false,
            lane: Lane::default(),
        }
    }

    /// A handle on one queue. Keep it: calls through one handle travel together.
    ///
    /// # Errors
    /// [`EnqueueError::Name`], [`EnqueueError::NameTooLong`].
    pub fn queue(&self, name: &str) -> Result<QueueProducer, EnqueueError> {
        let queue = self.rules.queue(name)?;
        Ok(QueueProducer::new(self, queue))
    }

    pub(crate) fn keys(&self, queue: &mpanel_protocol::ids::QueueName) -> QueueKeys {
        QueueKeys::new(&self.rules.prefix, queue)
    }
}
