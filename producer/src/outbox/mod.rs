//! Transactional outbox: a job is enqueued if and only if the caller's Postgres
//! transaction commits.
//!
//! [`Outbox::enqueue`] writes a row of `fleet_outbox` in that transaction; an
//! [`OutboxRelay`] (in any process, any number of them; `mpanel-worker run` has
//! one) puts it into Redis afterwards. At least once: a relay that dies between the
//! two leaves the row to the next, and the job id in the row makes the second time
//! a duplicate.
//!
//! ```no_run
//! # async fn run(pool: sqlx::PgPool, redis: mpanel_connect::Redis) -> Result<(), Box<dyn std::error::Error>> {
//! use mpanel_producer::{EnqueueOptions, Producer, outbox::{Outbox, OutboxRelay, RelayOptions}};
//! use serde_json::json;
//!
//! let outbox = Outbox::new();
//! let mut tx = pool.begin().await?;
//! sqlx::query("INSERT INTO orders (id) VALUES (7)").execute(&mut *tx).await?;
//! let options = EnqueueOptions::new().job_id("order-7");
//! outbox.enqueue(&mut tx, "orders", "confirm", &json!({ "order": 7 }), options).await?;
//! tx.commit().await?;
//!
//! // In one or more processes:
//! let producer = Producer::builder(redis).connect().await?;
//! let relay = OutboxRelay::start(pool, producer, RelayOptions::default()).await?;
//! // …
//! relay.stop().await;
//! # Ok(())
//! # }
//! ```

mod relay;
mod rows;

use std::sync::Arc;

use mpanel_protocol::{
    ids::{JobId, Prefix},
    job_kind::JobKind,
    seal::Keyring,
};
use serde::Serialize;
use sqlx::PgConnection;

pub use relay::{OutboxRelay, RelayOptions};

use crate::{
    error::EnqueueError,
    options::EnqueueOptions,
    rules::{Rules, SIZE_LIMIT, random_id},
    testing::SystemClock,
};

/// The table, for databases that `mpanel-worker migrate` does not look after.
pub const SCHEMA: &str = include_str!("../../../migrations/0005_fleet_outbox.sql");

/// A job was not put into the outbox, or a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The job would be refused.
    #[error(transparent)]
    Job(#[from] EnqueueError),
    /// Postgres refused or did not answer.
    #[error("outbox: {0}")]
    Sql(#[from] sqlx::Error),
    /// There is no table.
    #[error("table fleet_outbox is missing: run `mpanel-worker migrate`, or `outbox::SCHEMA`")]
    NoTable,
}

/// A job in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outboxed {
    /// The id under which it will be enqueued.
    pub id: JobId,
    /// `false`: a job with this id is in the outbox already, and nothing was written.
    pub is_new: bool,
}

/// The id of a wanted re-run: the job of the first run may still be kept in the
/// queue, and would swallow a second one with its id.
///
/// ```
/// use mpanel_producer::outbox::generation;
/// assert_eq!(generation("scan-7", 1), "scan-7");
/// assert_eq!(generation("scan-7", 2), "scan-7-g2");
/// ```
#[must_use]
pub fn generation(id: &str, generation: u32) -> String {
    if generation <= 1 { id.to_owned() } else { format!("{id}-g{generation}") }
}

/// Writes jobs into `fleet_outbox`. Knows no Redis.
#[derive(Debug, Clone)]
pub struct Outbox {
    rules: Rules,
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Outbox {
    /// An outbox with default settings.
    #[must_use]
    pub fn new() -> Self {
        let rules = Rules {
            prefix: Prefix::default(),
            clock: Arc::new(SystemClock),
            size_limit: SIZE_LIMIT,
            keyring: None,
            as_node: false,
            skip_meta: false,
            cluster: false,
        };
        Self { rules }
    }

    /// The prefix of the relay that will take the jobs, for those that name a
    /// parent; default `bull`.
    #[must_use]
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.rules.prefix = prefix;
        self
    }

    /// Largest payload, bytes; default 16 MiB.
    #[must_use]
    pub fn size_limit(mut self, bytes: usize) -> Self {
        self.rules.size_limit = bytes;
        self
    }

    /// The keys that [`EnqueueOptions::seal`] encrypts with: the row holds the
    /// ciphertext.
    #[must_use]
    pub fn keyring(mut self, keyring: Arc<Keyring>) -> Self {
        self.rules.keyring = Some(keyring);
        self
    }

    /// Enqueues a job when the transaction of `tx` commits. Without an id of its own
    /// it gets one that stays the same however often it is relayed. A delay counts
    /// from now.
    ///
    /// # Errors
    /// [`OutboxError::Job`] for what a producer would refuse, and for an id with `:`;
    /// [`OutboxError::Sql`], after which the transaction is Postgres's to refuse.
    ///
    /// # Cancel safety
    /// As the transaction: roll it back after a dropped call.
    pub async fn enqueue<D: Serialize + ?Sized>(
        &self,
        tx: &mut PgConnection,
        queue: &str,
        name: &str,
        data: &D,
        mut options: EnqueueOptions,
    ) -> Result<Outboxed, OutboxError> {
        let queue = self.rules.queue(queue)?;
        let run_at = options.run_at.take();
        let own_time = options.inner.timestamp.is_some();
        let id = JobId::stored(format!("outbox-{}", random_id()));
        let job = self.rules.job(&queue, name, data, options, Some(id))?;
        let id = job.id.clone().unwrap_or_else(random_id);
        for (what, text) in [("jobId", id.as_str()), ("name", name), ("queue", queue.as_str())] {
            if text.contains('\0') {
                let why = format!("the {what} holds a NUL, which Postgres refuses");
                return Err(EnqueueError::option("outbox", why).into());
            }
        }
        if id.as_str().contains(':') {
            return Err(EnqueueError::option("jobId", "in the outbox it must not hold `:`").into());
        }
        let timestamp = own_time.then_some(job.timestamp);
        let is_new = rows::insert(tx, &queue, &id, &job, timestamp, run_at).await?;
        Ok(Outboxed { id, is_new })
    }

    /// Enqueues a job of a kind when the transaction commits; what `options` leave
    /// open is the kind's.
    ///
    /// # Errors
    /// As [`Outbox::enqueue`].
    ///
    /// # Cancel safety
    /// As [`Outbox::enqueue`].
    pub async fn enqueue_kind<K: JobKind>(
        &self,
        tx: &mut PgConnection,
        job: &K,
        options: EnqueueOptions,
    ) -> Result<Outboxed, OutboxError> {
        let options = options.with_defaults(&EnqueueOptions::of_kind(job));
        self.enqueue(tx, K::QUEUE, K::NAME, job, options).await
    }

    /// Lets relays try the parked jobs of a queue again; says how many there were.
    ///
    /// # Errors
    /// [`OutboxError::Sql`].
    pub async fn unpark(&self, connection: &mut PgConnection, queue: &str) -> Result<u64, OutboxError> {
        rows::unpark(connection, queue).await
    }
}
