//! Telemetry: looks at the machines, Postgres, Redis and the queues, and keeps
//! mPanel's `monitoring_*` tables true.
//!
//! | file | subject |
//! |---|---|
//! | `clock` | collectors, ticks, how they are spread; pure |
//! | `schedule` | the job schedulers that make the ticks |
//! | `handler`, `run` | the glue to the engine; one tick from its job to its rows |
//! | `sample` | what collectors hand over |
//! | `health`, `verdict` | pages and ports; what an answer means (pure) |
//! | `pg`, `statements`, `scrub`, `lexer` | Postgres; what slow statements did since the last tick, and their texts (pure) |
//! | `redis`, `queues`, `pods` | Redis; BullMQ's queues; Proxmox nodes |
//! | `state` | from single results to a confirmed status; pure |
//! | `store`, `upkeep` | writing a tick once; keeping the tables bounded |
//!
//! Every look is a job, so any number of workers share the work and each tick is
//! written once: its key is booked in the transaction of its rows. A collector
//! in trouble delays no other, shows as the service `telemetry-<collector>`, and
//! is explained in the log once, not every tick.

pub mod clock;
mod handler;
mod health;
mod lexer;
pub mod pg;
mod pods;
mod queues;
pub mod redis;
mod run;
pub mod sample;
pub mod schedule;
pub mod scrub;
pub mod state;
pub mod statements;
mod store;
mod upkeep;
pub mod verdict;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, Utc};
use mpanel_connect::Redis;
use mpanel_protocol::{ids::Prefix, time::Clock};
use sqlx::PgPool;

use self::{
    clock::Collector,
    sample::{Check, Samples},
};
pub use self::{handler::TelemetryHandler, store::Written};
use crate::{
    adapters::{
        db::{DbError, queue_samples::QueueRow, slow_queries::SlowRow},
        pg_stats::PgWatch,
        probe::{ProbeError, Prober},
        proxmox::Pve,
    },
    config::{ProxmoxConfig, TelemetryConfig},
};

/// The queue of the ticks.
pub const QUEUE: &str = "telemetry-collect";

/// The queues of this service.
pub fn queues() -> impl Iterator<Item = &'static str> {
    std::iter::once(QUEUE)
}

/// What a tick collected.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Collected {
    pub(crate) checks: Vec<Check>,
    pub(crate) samples: Samples,
    pub(crate) queues: Vec<QueueRow>,
    pub(crate) slow: Vec<SlowRow>,
    /// Counters to count from at the next tick.
    pub(crate) baseline: Option<NewBaseline>,
    /// What the operator should know, said once: no trouble.
    pub(crate) remark: Option<String>,
    /// What could not be collected.
    pub(crate) problem: Option<String>,
}

/// Counters of a tick, and from which ones was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewBaseline {
    pub(crate) name: &'static str,
    /// JSON.
    pub(crate) data: String,
    /// The tick of the counters before; absent at the first.
    pub(crate) from: Option<DateTime<Utc>>,
}

/// A tick cannot be collected or written now; another attempt may.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Postgres does not take the rows.
    #[error("the tick is not written: {0}; check DATABASE_URL and run `mpanel-worker migrate`")]
    Write(#[from] DbError),
    /// What happened since the tick before was counted, and another tick counts it already.
    #[error("another tick of {0} was written meanwhile; it is collected again")]
    Raced(Collector),
}

/// What became of a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It was collected and written.
    Written(Written),
    /// It came so late that the next one is due; it is booked as passed over.
    Late,
    /// This worker is not configured for it; another one may be.
    NotHere,
}

/// Collects and writes ticks. Cheap to clone.
#[derive(Clone)]
pub struct TelemetryService {
    inner: Arc<Inner>,
}

struct Inner {
    db: PgPool,
    config: TelemetryConfig,
    redis: Redis,
    prefix: Prefix,
    prober: Prober,
    clock: Arc<dyn Clock>,
    found_queues: queues::Found,
    postgres: PgWatch,
    texts: pg::Texts,
    clusters: Option<pods::Clusters>,
    /// What was last said of a collector, so that it is said once.
    said: Mutex<BTreeMap<(Collector, &'static str), String>>,
}

impl fmt::Debug for TelemetryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryService").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl TelemetryService {
    /// A service that writes to `db` and looks into `redis`. The clock is that of
    /// the ticks: the Redis server's.
    ///
    /// # Errors
    /// [`ProbeError::Setup`] when the CA file cannot be used.
    pub fn new(
        db: PgPool,
        config: TelemetryConfig,
        redis: Redis,
        prefix: Prefix,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ProbeError> {
        let prober = Prober::new(config.ca_file.as_deref(), config.timeout)?;
        let postgres = PgWatch::new(config.postgres.clone());
        let inner = Inner {
            db,
            config,
            redis,
            prefix,
            prober,
            clock,
            found_queues: queues::Found::default(),
            postgres,
            texts: pg::Texts::default(),
            clusters: None,
            said: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The same, looking at the nodes of Proxmox too. For a service that
    /// was just made: clones are not changed.
    #[must_use]
    pub fn with_proxmox(mut self, pve: Pve, config: &ProxmoxConfig) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.clusters = Some(pods::Clusters::new(pve, config));
        }
        self
    }

    /// The collectors that have something to do.
    #[must_use]
    pub fn collectors(&self) -> Vec<Collector> {
        let config = &self.inner.config;
        Collector::ALL
            .into_iter()
            .filter(|collector| match collector {
                Collector::Health => !config.targets.is_empty(),
                Collector::Pg | Collector::Redis | Collector::Queues => true,
                Collector::Pods => self.inner.clusters.is_some(),
            })
            .collect()
    }

    /// How often they do it.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.inner.config.interval
    }
}
