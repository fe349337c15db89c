//! Telemetry: looks at the machines, Postgres, Redis and the queues, and keeps
//! mPanel's `monitoring_*` tables true.
//!
//! | file | subject |
//! |---|---|
//! | `clock` | collectors, ticks, how they are spread; pure |
//! | `schedule` | the job schedulers that make the ticks |
//! | `handler` | the glue to the engine |
//! | `sample` | what collectors hand over |
//! | `health`, `verdict` | pages and ports; what an answer means (pure) |
//! | `pg`, `statements`, `scrub`, `lexer` | Postgres; what slow statements did since the last tick, and their texts (pure) |
//! | `redis`, `queues`, `pods` | Redis; BullMQ's queues; Proxmox nodes and pods |
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
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use mpanel_connect::Redis;
use mpanel_protocol::{ids::Prefix, time::Clock};
use sqlx::PgPool;
use tokio::time::{Instant, sleep, timeout_at};

use self::{
    clock::{Collector, Tick},
    health::Frame,
    sample::{Check, Reading, Samples},
};
pub use self::{handler::TelemetryHandler, store::Written};
use crate::{
    adapters::{
        db::{DbError, pod_metrics::PodRow, queue_samples::QueueRow, slow_queries::SlowRow},
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
    /// Running pods.
    pub(crate) pods: Vec<PodRow>,
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

    /// The same, looking at the nodes and pods of Proxmox too. For a service that
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

    /// Collects a tick and writes it, unless that was done or it is too late.
    ///
    /// # Errors
    /// [`TelemetryError`] when it could not be written; run it again. What could
    /// not be collected is no error here: it is written.
    ///
    /// # Cancel safety
    /// May be dropped at any point: a tick is written whole or not at all.
    pub async fn tick(&self, tick: Tick) -> Result<Done, TelemetryError> {
        let Inner { db, config, .. } = &*self.inner;
        let at = store::at(&tick);
        if crate::adapters::db::telemetry::is_booked(db, tick.collector.as_str(), at).await? {
            return Ok(Done::Written(Written::Already));
        }
        let now_ms = self.inner.clock.now().0;
        if tick.is_late(now_ms, config.interval) {
            let late_s = now_ms.saturating_sub(tick.due_ms) / 1000;
            store::skip(db, &tick, &format!("{late_s} s late: the next one is due")).await?;
            return Ok(Done::Late);
        }
        let begun = Instant::now();
        let deadline = begun + clock::budget(config.interval);
        sleep(clock::start_offset(tick.collector, config.interval)).await;
        let collecting = Box::pin(self.collect(tick, now_ms, deadline));
        let mut collected = match timeout_at(deadline, collecting).await {
            Ok(collected) => collected,
            Err(_) => Collected {
                problem: Some("it did not end before the next tick was due".to_owned()),
                ..Collected::default()
            },
        };
        self.say(tick.collector, "problem", collected.problem.as_deref());
        self.say(tick.collector, "remark", collected.remark.as_deref());
        let fine = collected.problem.is_none();
        let word = tick.collector.as_str();
        collected.samples.add("telemetry_collector_up", word, if fine { 1.0 } else { 0.0 });
        let reading = match &collected.problem {
            None => Reading::up(None),
            // What it could collect is there.
            Some(why) if !collected.checks.is_empty() => Reading::degraded(None, why.clone()),
            Some(why) => Reading::down(why.clone()),
        };
        collected.checks.push(Check { quiet: true, ..Check::of(format!("telemetry-{word}"), reading) });
        let written = store::write(db, &tick, &collected, begun.elapsed(), self.rules()).await?;
        let kept = upkeep::run(db, at, config.keep, config.query_window, deadline).await;
        match kept {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(rows, "old rows of telemetry are gone"),
            // The tick is written; the next one tries again.
            Err(error) => tracing::warn!(%error, "telemetry's old rows are not deleted"),
        }
        Ok(Done::Written(written))
    }

    /// Writes that Redis is away, since there are no ticks then; once an interval,
    /// by however many workers.
    ///
    /// # Errors
    /// [`TelemetryError`] when it could not be written.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn redis_is_away(&self, now_ms: i64, why: &str) -> Result<Written, TelemetryError> {
        let Inner { db, config, .. } = &*self.inner;
        let interval_ms = i64::try_from(config.interval.as_millis()).unwrap_or(i64::MAX).max(1);
        let tick = Tick { collector: Collector::Redis, due_ms: now_ms - now_ms.rem_euclid(interval_ms) };
        // Connecting was tried for seconds: it is no single failure.
        let readings = vec![Reading::down(format!("Redis is away: {why}")); state::FAILURES as usize];
        let check = Check { readings, ..Check::of(redis::SERVICE, Reading::up(None)) };
        let collected = Collected { checks: vec![check], ..Collected::default() };
        store::write(db, &tick, &collected, Duration::ZERO, self.rules()).await
    }

    fn rules(&self) -> store::Rules {
        let config = &self.inner.config;
        store::Rules { row_every: config.row_every, query_window: config.query_window }
    }

    async fn collect(&self, tick: Tick, now_ms: i64, deadline: Instant) -> Collected {
        let Inner { db, config, prober, redis, .. } = &*self.inner;
        match tick.collector {
            Collector::Health => {
                let certificate_days = config.certificate_days;
                let frame =
                    Frame { interval: config.interval, deadline, now_s: now_ms / 1000, certificate_days };
                health::collect(prober, &config.targets, frame).await
            }
            Collector::Pg => {
                pg::collect(db, &self.inner.postgres, &self.inner.texts, config, tick.due_ms).await
            }
            Collector::Redis => redis::collect(db, redis).await,
            Collector::Queues => {
                let wanted = (config.queues.as_slice(), config.queue_age);
                queues::collect(db, redis, &self.inner.prefix, &self.inner.found_queues, wanted, now_ms).await
            }
            Collector::Pods => match &self.inner.clusters {
                Some(clusters) => pods::collect(db, clusters, tick.due_ms, config.interval).await,
                None => Collected::default(),
            },
        }
    }

    /// Says something when it is new, and when it is over.
    fn say(&self, collector: Collector, kind: &'static str, text: Option<&str>) {
        let mut said = self.inner.said.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match text {
            Some(text) => said.insert((collector, kind), text.to_owned()),
            None => said.remove(&(collector, kind)),
        };
        drop(said);
        match (text, kind) {
            (Some(text), _) if before.as_deref() == Some(text) => {}
            (Some(text), "problem") => tracing::warn!(%collector, "cannot collect: {text}"),
            (Some(text), _) => tracing::info!(%collector, "{text}"),
            (None, "problem") if before.is_some() => tracing::info!(%collector, "collects again"),
            (None, _) => {}
        }
    }
}
