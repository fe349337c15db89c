//! A worker of one queue: its settings, its start, its stop.

use std::{sync::Arc, time::Duration};

use mpanel_protocol::{
    calls::fetch::RateLimit, ids::QueueName, keys::QueueKeys, options::KeepJobs, partition::Partition,
};
use tokio::{
    sync::{OnceCell, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::QueueAdmin,
    by_hand::JobTaker,
    cancels::watch_for_ever,
    engine::{EngineError, EngineInner},
    handler::Handler,
    locks::LockRing,
    marker::{Waiter, client_name},
    middleware::Middleware,
    outcome::{BackoffStrategy, OutcomePolicy},
    permissions,
    pump::Pump,
    rescuer::rescue_for_ever,
    router::Router,
    slots::Seat,
};

/// Largest payload unless the builder says otherwise, bytes.
const SIZE_LIMIT: usize = 16 * 1024 * 1024;
/// How long a handler may take to end after its time limit or a request to cancel.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// How long cancelled attempts may take to end after the grace period.
const ABORT_GRACE: Duration = Duration::from_secs(2);

/// What every part of a worker needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<EngineInner>,
    pub(crate) keys: QueueKeys,
    pub(crate) admin: QueueAdmin,
    pub(crate) router: Router,
    pub(crate) policy: OutcomePolicy,
    /// What may change while the worker runs.
    pub(crate) control: watch::Sender<Control>,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) cancel_grace: Duration,
    pub(crate) lock: Duration,
    pub(crate) stalled_interval: Duration,
    pub(crate) stalls_allowed: u32,
    pub(crate) limiter: Option<RateLimit>,
    pub(crate) name: Option<String>,
    pub(crate) metrics_points: Option<u32>,
    pub(crate) size_limit: usize,
    pub(crate) locks: LockRing,
    /// The Redis user may do what a worker does; see [`permissions::granted`].
    pub(crate) permitted: OnceCell<()>,
    /// Take nothing new.
    pub(crate) stop: CancellationToken,
    /// Handlers must return now.
    pub(crate) abort: CancellationToken,
    /// The slots, where other queues share them; then [`Control::concurrency`] is
    /// theirs together.
    pub(crate) seat: Option<Seat>,
}

impl Shared {
    /// A handle on the worker's queue.
    pub(crate) fn admin(&self) -> &QueueAdmin {
        &self.admin
    }
}

/// What may change while a worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) paused: bool,
    pub(crate) concurrency: usize,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Router({})", self.names())
    }
}

/// Settings of a worker. Defaults are BullMQ's.
#[derive(Debug, Clone)]
#[must_use = "a worker does nothing until it is started"]
pub struct WorkerBuilder {
    engine: Arc<EngineInner>,
    keys: QueueKeys,
    router: Router,
    policy: OutcomePolicy,
    concurrency: usize,
    time_limit: Option<Duration>,
    cancel_grace: Duration,
    lock: Duration,
    stalled_interval: Duration,
    stalls_allowed: u32,
    limiter: Option<RateLimit>,
    name: Option<String>,
    metrics_points: Option<u32>,
    size_limit: usize,
}

impl WorkerBuilder {
    pub(crate) fn new(engine: Arc<EngineInner>, keys: QueueKeys) -> Self {
        let peer = engine.peer;
        Self {
            engine,
            keys,
            router: Router::default(),
            policy: OutcomePolicy { peer, ..OutcomePolicy::default() },
            concurrency: 1,
            time_limit: None,
            cancel_grace: CANCEL_GRACE,
            lock: Duration::from_secs(30),
            stalled_interval: Duration::from_secs(30),
            stalls_allowed: 1,
            limiter: None,
            name: None,
            metrics_points: None,
            size_limit: SIZE_LIMIT,
        }
    }

    /// Jobs with this name go to `handler`.
    pub fn handle<H: Handler>(mut self, name: &str, handler: H) -> Self {
        self.router.add(Some(name), handler);
        self
    }

    /// Jobs whose name has no handler of its own go to `handler`.
    pub fn handle_any<H: Handler>(mut self, handler: H) -> Self {
        self.router.add(None, handler);
        self
    }

    /// Puts `middleware` around every handler of this worker, inside those that were
    /// put before it.
    pub fn middleware<M: Middleware>(mut self, middleware: M) -> Self {
        self.router.surround(middleware);
        self
    }

    /// How long an attempt may take, unless its handler says otherwise; default:
    /// any time. Then [`crate::JobContext::cancelled`] fires, and the attempt has
    /// failed, to be retried as any other.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// How long a handler may take to end after its time limit or a request to
    /// cancel, before it is left behind; default 5 s.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.cancel_grace = grace;
        self
    }

    /// How often a job may be started at most, stalled and snoozed starts included
    /// (BullMQ's `maxStartedAttempts`); default: any number.
    pub fn starts_allowed(mut self, starts: u32) -> Self {
        self.policy.starts_allowed = Some(starts).filter(|starts| *starts > 0);
        self
    }

    /// How many jobs run at once; default 1.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs;
        self
    }

    /// How long a lock lives without renewal; default 30 s, renewed at half of it.
    pub fn lock(mut self, lock: Duration) -> Self {
        self.lock = lock;
        self
    }

    /// How often the queue is checked for stalled jobs; default 30 s.
    pub fn stalled_interval(mut self, interval: Duration) -> Self {
        self.stalled_interval = interval;
        self
    }

    /// How often a job may stall before it is failed; default 1.
    pub fn stalls_allowed(mut self, stalls: u32) -> Self {
        self.stalls_allowed = stalls;
        self
    }

    /// At most so many starts in a time, over all workers of the queue.
    pub fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.limiter = Some(limit);
        self
    }

    /// A name, stored with each job (`pb`) and shown in CLIENT LIST.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Counts finished jobs into the queue's metrics; so many minutes are kept.
    pub fn metrics(mut self, points: u32) -> Self {
        self.metrics_points = Some(points);
        self
    }

    /// Retention of completed jobs that say nothing themselves.
    pub fn remove_on_complete(mut self, keep: KeepJobs) -> Self {
        self.policy.remove_on_complete = Some(keep);
        self
    }

    /// Retention of failed jobs that say nothing themselves.
    pub fn remove_on_fail(mut self, keep: KeepJobs) -> Self {
        self.policy.remove_on_fail = Some(keep);
        self
    }

    /// The strategy for backoff types that are neither fixed nor exponential.
    pub fn backoff_strategy(mut self, strategy: BackoffStrategy) -> Self {
        self.policy.backoff_strategy = Some(strategy);
        self
    }

    /// Largest payload, bytes; default 16 MiB. A larger one fails its job for good.
    pub fn size_limit(mut self, bytes: usize) -> Self {
        self.size_limit = bytes;
        self
    }

    /// Asks whether the Redis user may do what the worker does. A started worker asks
    /// too, and takes no job until it may.
    ///
    /// # Errors
    /// [`EngineError::Forbidden`] with what is missing; [`EngineError::Connect`] and
    /// [`EngineError::Script`] when it cannot be asked.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn check_permissions(&self) -> Result<(), EngineError> {
        permissions::check(&self.engine, &self.keys).await
    }

    /// Starts the worker.
    ///
    /// # Errors
    /// [`EngineError::Setting`]: no handler, no concurrency, or spans of zero.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn start(self) -> Result<Worker, EngineError> {
        self.check()?;
        Ok(Worker::start(self.share(None)?))
    }

    fn check(&self) -> Result<(), EngineError> {
        if self.router.is_empty() {
            return Err(self.wrong("it has no handler"));
        }
        if self.concurrency == 0 {
            return Err(self.wrong("concurrency must be at least 1"));
        }
        Ok(())
    }

    /// Starts a worker with these settings for a partition of the queue.
    pub(crate) fn start_at(&self, partition: &Partition, seat: Seat) -> Result<Worker, EngineError> {
        self.check()?;
        let engine = Arc::new(self.engine.under(partition.prefix().clone()));
        let member = Self { engine, keys: partition.keys(), ..self.clone() };
        Ok(Worker::start(member.share(Some(seat))?))
    }

    /// Whose worker it is to be, of which queue, with how many slots.
    pub(crate) fn parts(&self) -> (&Arc<EngineInner>, &QueueName, usize) {
        (&self.engine, self.keys.queue(), self.concurrency)
    }

    /// No worker, but a way to take and end jobs by hand. Handlers, middleware, time
    /// limits and concurrency do not concern it.
    ///
    /// # Errors
    /// [`EngineError::Setting`]: spans of zero.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn by_hand(self) -> Result<JobTaker, EngineError> {
        Ok(JobTaker::new(self.share(None)?))
    }

    pub(crate) fn wrong(&self, what: &str) -> EngineError {
        EngineError::Setting(format!("worker of queue {}: {what}", self.keys.queue()))
    }

    fn share(self, seat: Option<Seat>) -> Result<Arc<Shared>, EngineError> {
        if self.lock < Duration::from_millis(10) || self.stalled_interval.is_zero() {
            return Err(self.wrong("lock must be at least 10 ms and the stalled interval more than 0"));
        }
        let locks = self.engine.keeper.ring(self.keys.clone(), self.lock);
        let admin = self.engine.admin(self.keys.queue());
        let control = Control { paused: false, concurrency: self.concurrency };
        Ok(Arc::new(Shared {
            engine: self.engine,
            keys: self.keys,
            admin,
            router: self.router,
            policy: self.policy,
            control: watch::Sender::new(control),
            time_limit: self.time_limit,
            cancel_grace: self.cancel_grace,
            lock: self.lock,
            stalled_interval: self.stalled_interval,
            stalls_allowed: self.stalls_allowed,
            limiter: self.limiter,
            name: self.name,
            metrics_points: self.metrics_points,
            size_limit: self.size_limit,
            locks,
            permitted: OnceCell::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            seat,
        }))
    }
}

/// How a worker is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Jobs that run now.
    pub active: usize,
    /// Attempts that have ended and whose outcome is not written yet.
    pub unwritten: usize,
    /// A call is under way that may start jobs.
    pub fetching: bool,
    /// Attempts that completed.
    pub completed: u64,
    /// Attempts that failed, for good or to be tried again.
    pub failed: u64,
    /// The last fetch found nothing, nothing runs, and nothing is delayed.
    pub idle: bool,
}

impl WorkerStats {
    /// Nothing runs or is about to, and every outcome is written.
    pub(crate) fn is_quiet(&self) -> bool {
        self.active == 0 && self.unwritten == 0 && !self.fetching
    }
}

/// A running worker. Dropping it stops it like [`Worker::stop`] with no grace.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    pump: Option<JoinHandle<usize>>,
    rescuer: JoinHandle<()>,
    canceller: JoinHandle<()>,
    stats: watch::Receiver<WorkerStats>,
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopReport {
    /// Jobs whose handler ignored its cancellation, or whose outcome could not be
    /// written: their locks expire and they are rescued. A job whose handler ended
    /// on cancellation went back in line and is not counted.
    pub unfinished: usize,
}

impl Worker {
    fn start(shared: Arc<Shared>) -> Self {
        let name = client_name(&shared.engine.prefix, &shared.keys, shared.name.as_deref());
        let waiter = Waiter::start(shared.engine.redis.clone(), shared.keys.marker(), name);
        let (publish, stats) = watch::channel(WorkerStats::default());
        let pump = tokio::spawn(Pump::new(shared.clone(), waiter, publish).run());
        let rescuer = tokio::spawn(rescue_for_ever(shared.clone()));
        let canceller = tokio::spawn(watch_for_ever(shared.clone()));
        let concurrency = shared.control.borrow().concurrency;
        tracing::info!(queue = %shared.keys.queue(), concurrency, "worker started");
        Self { shared, pump: Some(pump), rescuer, canceller, stats }
    }

    /// Counters, and whether the worker is idle.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        *self.stats.borrow()
    }

    /// Its counters; who watches is woken when `idle` or [`WorkerStats::is_quiet`] change.
    pub(crate) fn watch(&self) -> watch::Receiver<WorkerStats> {
        self.stats.clone()
    }

    /// Waits until the queue is empty and nothing runs.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn until_idle(&self) {
        let mut stats = self.stats.clone();
        // An error means that the worker has stopped: nothing runs.
        let _ = stats.wait_for(|s| s.idle).await;
    }

    /// Takes nothing new until [`Worker::resume`]; what runs goes on ("quiet").
    /// Other workers of the queue are not concerned: for that see
    /// [`QueueAdmin::pause`].
    pub fn pause(&self) {
        self.control(|control| control.paused = true);
    }

    /// Takes jobs again.
    pub fn resume(&self) {
        self.control(|control| control.paused = false);
    }

    /// Whether the worker is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.shared.control.borrow().paused
    }

    /// How many jobs run at once from now on, at least 1; what runs already goes on.
    pub fn set_concurrency(&self, jobs: usize) {
        self.control(|control| control.concurrency = jobs.max(1));
    }

    fn control(&self, change: impl Fn(&mut Control)) {
        self.shared.control.send_if_modified(|control| {
            let before = *control;
            change(control);
            *control != before
        });
    }

    /// Waits until nothing runs and every outcome is written, as it comes after a
    /// while when the worker is paused.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn until_quiet(&self) {
        let mut stats = self.stats.clone();
        // An error means that the worker has stopped: nothing runs.
        let _ = stats.wait_for(WorkerStats::is_quiet).await;
    }

    /// Takes nothing new, lets running jobs finish for `grace`, then cancels them
    /// and gives back what ends on that. Locks are renewed until the end.
    ///
    /// # Cancel safety
    /// Not cancel safe: a dropped call stops hard.
    pub async fn stop(mut self, grace: Duration) -> StopReport {
        self.shared.stop.cancel();
        let Some(mut pump) = self.pump.take() else { return StopReport { unfinished: 0 } };
        let unfinished = match tokio::time::timeout(grace, &mut pump).await {
            Ok(ended) => ended.unwrap_or(0),
            Err(_) => {
                tracing::warn!(queue = %self.shared.keys.queue(), "grace period over; cancelling what still runs");
                self.shared.abort.cancel();
                self.shared.locks.cancel_all();
                match tokio::time::timeout(ABORT_GRACE, &mut pump).await {
                    Ok(ended) => ended.unwrap_or(0),
                    Err(_) => {
                        pump.abort();
                        let stats = self.stats();
                        stats.active + stats.unwritten
                    }
                }
            }
        };
        StopReport { unfinished }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.abort.cancel();
        self.shared.locks.cancel_all();
        self.shared.locks.close();
        self.rescuer.abort();
        self.canceller.abort();
        if let Some(pump) = &self.pump {
            pump.abort();
        }
    }
}
