//! Looking at a queue and managing it, as operators, a CLI or a console need it.
//!
//! ```no_run
//! use mpanel_engine::{Engine, admin::Listing};
//! use mpanel_protocol::state::JobState;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::connect("redis://127.0.0.1:6379").await?;
//! let mails = engine.admin("mails")?;
//! println!("{:?}", mails.counts().await?);
//! for job in mails.list(Listing::of(JobState::Failed).first(20)).await?.jobs {
//!     println!("{} {}", job.job.id, job.failed_reason.unwrap_or_default());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Reading never changes a key. What moves jobs goes through the scripts, each
//! call of which is short; what concerns many jobs is a [`Bulk`]: chunk by chunk,
//! with progress, cancellable, and safe to call again where it stopped.
//!
//! One subject a file: [`counts`](QueueAdmin::counts), listing, job detail, logs,
//! flows, workers, metrics, limits, single jobs (`manage`), many jobs (`sweep`),
//! dead letters, the upkeep of the queue's keys; the partitions of a queue.

mod bulk;
mod counts;
mod dead_letters;
mod flow;
mod job;
mod limits;
mod listing;
mod logs;
mod manage;
mod metrics;
mod partitions;
mod permissions;
mod sweep;
mod upkeep;
mod workers;

use std::{sync::Arc, time::Duration};

use mpanel_connect::{ConnectError, Redis, ServerClock, Shared};
use mpanel_protocol::{
    ids::{JobId, Prefix, QueueName},
    keys::QueueKeys,
    outcome::JobOpError,
    partition::PARTITIONS_MAX,
    peer::Peer,
    script::ScriptError,
    time::{Clock, TimestampMs},
};
use redis::{Cmd, FromRedisValue, Pipeline, RedisError};
use tokio::{sync::Mutex, time::Instant};

use crate::reading::read;

pub use mpanel_protocol::calls::cancel::Cancelling;

pub use self::{
    bulk::{Bulk, Progress},
    counts::Counts,
    dead_letters::{DeadLetterFilter, DeadLetterPage, DeadLetters, Handled, Position},
    flow::{
        Dependency, DependencyCounts, DependencyKind, DependencyPage, FlowLimits, FlowTree, JobRef, Subtree,
    },
    job::{JobDetail, JobProblem, JobReport},
    limits::{GlobalRateLimit, QueueMeta},
    listing::{JobPage, Listing, Order},
    logs::JobLogs,
    metrics::{Ended, Metrics},
    partitions::{NotEmpty, PartitionCounts, PartitionInfo, PartitionedPage, Partitions, Retirement},
    sweep::{CleanSweep, DrainSweep, ObliterateSweep, RequeueSweep},
    upkeep::{OrphanSweep, TrimSweep},
    workers::ConnectedClient,
};

pub(crate) use self::workers::EVENTS_SUFFIX;

/// How often the clock is compared with the server's.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);

/// Why an admin call failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A plain command failed.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    /// A script failed.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The Redis user lacks a permission. A script that lacks one of its commands may
    /// have written before it came to it.
    #[error(
        "the Redis user lacks a permission on queue {queue}: {source}; an operator grants it by \
         `ACL SETUSER <user> {grant}` (docs/guide/topologies.md has the whole list)"
    )]
    Forbidden {
        /// The queue.
        queue: QueueName,
        /// The rules that are missing, as far as can be told.
        grant: String,
        /// The cause.
        #[source]
        source: RedisError,
    },
    /// The operation on a job was refused.
    #[error(transparent)]
    Job(#[from] JobOpError),
    /// A key of the queue holds something that BullMQ never puts there.
    #[error("key `{key}` holds a {found}, not a {expected}; another program uses it: rename or delete it")]
    WrongType {
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// The priority does not fit BullMQ's range.
    #[error("priority {0} is out of range; BullMQ takes 0 (none) to 2097151")]
    Priority(u32),
    /// The value is not JSON.
    #[error("the value of job {id} cannot be written as JSON: {source}")]
    Value {
        /// The job.
        id: JobId,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A queue has 1 to 256 partitions.
    #[error("a queue cannot have {0} partitions: 1 to {PARTITIONS_MAX}")]
    PartitionNumber(u32),
    /// The queue has no partitions.
    #[error("nobody has said how many partitions queue {0} has: `ensure` or `resize` does")]
    NoPartitions(QueueName),
    /// Somebody changed the partitions at the same time.
    #[error("the partitions of queue {0} were changed meanwhile by somebody else; look again, then repeat")]
    Changed(QueueName),
    /// Nobody cancels nothing.
    #[error("say who cancels the job: 1 to 200 characters, none of them control characters")]
    Who,
    /// The server does not let us see its clients (some hosted services).
    #[error("the server refuses CLIENT LIST, so connected workers cannot be seen: {0}")]
    ClientList(RedisError),
    /// A long call was cancelled; what was done stays done.
    #[error("cancelled after {done} jobs; call it again to go on")]
    Cancelled {
        /// How many jobs were handled before.
        done: u64,
    },
}

impl AdminError {
    /// The Redis error behind it, if one is.
    #[must_use]
    pub fn redis(&self) -> Option<&RedisError> {
        match self {
            Self::Redis(e) | Self::ClientList(e) | Self::Forbidden { source: e, .. } => Some(e),
            Self::Script(e) | Self::Job(JobOpError::Script(e)) => e.redis(),
            _ => None,
        }
    }
}

/// Where times come from: given, or the server's clock, measured when it is first
/// needed and each minute of use.
#[derive(Debug, Clone)]
enum AdminClock {
    Given(Arc<dyn Clock>),
    Server(Arc<(ServerClock, Mutex<Option<Instant>>)>),
}

/// A handle to look at and manage one queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct QueueAdmin {
    redis: Redis,
    prefix: Prefix,
    keys: QueueKeys,
    peer: Peer,
    clock: AdminClock,
}

impl QueueAdmin {
    /// A handle on `queue` under `prefix`, by the server's clock.
    #[must_use]
    pub fn new(redis: Redis, prefix: &Prefix, queue: &QueueName, peer: Peer) -> Self {
        Self {
            redis,
            prefix: prefix.clone(),
            keys: QueueKeys::new(prefix, queue),
            peer,
            clock: AdminClock::Server(Arc::default()),
        }
    }

    /// The same handle by another clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock: AdminClock::Given(clock), ..self }
    }

    /// The queue's name.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        self.keys.queue()
    }

    async fn now(&self) -> Result<TimestampMs, AdminError> {
        let measured = match &self.clock {
            AdminClock::Given(clock) => return Ok(clock.now()),
            AdminClock::Server(measured) => measured,
        };
        let (clock, last) = &**measured;
        let mut last = last.lock().await;
        if last.is_none_or(|at| at.elapsed() > CLOCK_INTERVAL) {
            let mut shared = self.shared().await?;
            let result = clock.measure(&mut shared.conn).await;
            self.told(&shared, result).await?;
            *last = Some(Instant::now());
        }
        Ok(clock.now())
    }

    async fn shared(&self) -> Result<Shared, AdminError> {
        Ok(self.redis.shared_for(self.keys.meta()).await?)
    }

    /// Passes a result on; a broken connection is replaced before the next call.
    async fn told<T, E: Into<AdminError>>(
        &self,
        shared: &Shared,
        result: Result<T, E>,
    ) -> Result<T, AdminError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                let error = error.into();
                if let Some(cause) = error.redis() {
                    self.redis.report(shared, cause).await;
                }
                Err(permissions::told(shared, &self.keys, error).await)
            }
        }
    }

    async fn ask<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, AdminError> {
        let mut shared = self.shared().await?;
        let result = cmd.query_async(&mut shared.conn).await;
        self.told(&shared, result).await
    }

    async fn ask_all<T: FromRedisValue>(&self, pipe: &Pipeline) -> Result<T, AdminError> {
        let mut shared = self.shared().await?;
        let result = read(pipe, &mut shared.conn).await;
        self.told(&shared, result).await
    }

    /// The error of a failed look at the queue's own keys, naming the key at fault.
    async fn explained(&self, error: AdminError) -> AdminError {
        if !job::is_wrong_type(&error) {
            return error;
        }
        let k = &self.keys;
        let expected = [
            (k.wait(), "list"),
            (k.paused(), "list"),
            (k.active(), "list"),
            (k.prioritized(), "zset"),
            (k.delayed(), "zset"),
            (k.waiting_children(), "zset"),
            (k.completed(), "zset"),
            (k.failed(), "zset"),
            (k.meta().to_owned(), "hash"),
            (k.events(), "stream"),
        ];
        let mut pipe = redis::pipe();
        for (key, _) in &expected {
            pipe.cmd("TYPE").arg(key);
        }
        let Ok(found) = self.ask_all::<Vec<String>>(&pipe).await else { return error };
        let wrong = expected.into_iter().zip(found).find(|((_, want), got)| got != "none" && got != want);
        match wrong {
            Some(((key, expected), found)) => AdminError::WrongType { key, found, expected },
            None => error,
        }
    }
}

/// Calls a script function of the protocol crate on the queue's connection.
macro_rules! script {
    ($admin:expr, |$conn:ident| $call:expr) => {{
        let mut shared = $admin.shared().await?;
        let $conn = &mut shared.conn;
        let result = $call.await;
        $admin.told(&shared, result).await
    }};
}
use script;
