//! A worker for all partitions of a queue: one number of slots, one stop.
//!
//! Each partition has an ordinary [`Worker`]; they share their slots
//! ([`SharedSlots`]). A look at the layout every few seconds starts workers for new
//! partitions and ends those of retired ones. Knows nothing of how jobs are fetched.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use mpanel_protocol::{
    calls::partition::read_layout,
    partition::{Layout, Partition, PartitionedName},
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{EngineError, EngineInner},
    slots::SharedSlots,
    trouble::{Trouble, kind},
    worker::{StopReport, Worker, WorkerBuilder, WorkerStats},
};

/// How often the layout is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long jobs may take that still run in a partition when it is retired; it was
/// empty shortly before.
const LEAVE_GRACE: Duration = Duration::from_secs(24 * 3600);

/// A running worker for all partitions of a queue. Dropping it stops it like
/// [`PartitionedWorker::stop`] with no grace.
#[derive(Debug)]
pub struct PartitionedWorker {
    crew: Arc<Crew>,
    follower: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

/// The workers of all partitions.
#[derive(Debug)]
struct Crew {
    name: PartitionedName,
    template: WorkerBuilder,
    slots: Arc<SharedSlots>,
    state: Mutex<State>,
    /// Rises when a partition came or went.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    serving: BTreeMap<u32, Worker>,
    /// Ends of workers whose partitions are retired.
    leaving: JoinSet<StopReport>,
    paused: bool,
    concurrency: usize,
    /// Nobody comes any more.
    stopped: bool,
}

impl WorkerBuilder {
    /// Starts a worker for all partitions of the queue, whose name is that of the
    /// whole. All settings hold for each partition, except for the concurrency, which
    /// is the number of jobs that run at once in all of them: free slots go where work
    /// is, and no partition starves.
    ///
    /// It follows the number of partitions ([`crate::admin::Partitions`]): new ones are
    /// served within seconds, those that are being retired until they are gone.
    ///
    /// ```no_run
    /// # async fn run(engine: mpanel_engine::Engine) -> Result<(), mpanel_engine::EngineError> {
    /// use mpanel_engine::{JobContext, JobError, handler_fn};
    /// use std::time::Duration;
    ///
    /// let handler = handler_fn(|_: JobContext, to: String| async move { Ok::<_, JobError>(to) });
    /// let worker = engine.worker("mail")?.concurrency(50).handle("welcome", handler).start_partitioned().await?;
    /// worker.stop(Duration::from_secs(30)).await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`EngineError::Setting`] as [`WorkerBuilder::start`], and when nobody has said
    /// how many partitions there are; [`EngineError::Name`], or no connection.
    pub async fn start_partitioned(self) -> Result<PartitionedWorker, EngineError> {
        let (engine, queue, concurrency) = self.parts();
        let name = PartitionedName::new(&engine.prefix, queue)?;
        let layout = look(engine, &name).await?.ok_or_else(|| {
            self.wrong(&format!(
                "nobody has said how many partitions it has: `engine.partitions(\"{queue}\")?.ensure(N)` does, \
                 see docs/guide/partitions.md"
            ))
        })?;
        let state = State {
            serving: BTreeMap::new(),
            leaving: JoinSet::new(),
            paused: false,
            concurrency,
            stopped: false,
        };
        let crew = Arc::new(Crew {
            slots: SharedSlots::new(concurrency),
            name,
            template: self,
            state: Mutex::new(state),
            changes: watch::Sender::new(0),
        });
        crew.follow(layout)?;
        let stop = CancellationToken::new();
        let follower = tokio::spawn(follow_for_ever(crew.clone(), stop.clone()));
        Ok(PartitionedWorker { crew, follower: Some(follower), stop })
    }
}

async fn look(engine: &EngineInner, name: &PartitionedName) -> Result<Option<Layout>, EngineError> {
    let mut shared = engine.redis.shared_for(&name.layout_key()).await?;
    match read_layout(&mut shared.conn, name).await {
        Ok(layout) => Ok(layout),
        Err(error) => {
            engine.redis.report(&shared, &error).await;
            Err(mpanel_protocol::script::ScriptError::Redis { script: "layout", source: error }.into())
        }
    }
}

async fn follow_for_ever(crew: Arc<Crew>, stop: CancellationToken) {
    let queue = crew.name.queue();
    let mut trouble = Trouble::default();
    loop {
        // cancel-safe: both branches only wait.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let (engine, ..) = crew.template.parts();
        let unread = |what: &str, error: &EngineError| {
            Some((what.to_owned(), format!("the number of partitions cannot be read: {error}")))
        };
        let wrong = match look(engine, &crew.name).await {
            Ok(Some(layout)) => {
                let error = crew.follow(layout).err();
                error.map(|error| ("a partition is not served".to_owned(), error.to_string()))
            }
            // What was served is served on: nobody has retired it.
            Ok(None) => Some(("no layout".to_owned(), "nobody says any more how many there are".to_owned())),
            Err(EngineError::Script(error)) => {
                let what = kind(error.redis()).to_owned();
                unread(&what, &error.into())
            }
            Err(error) => unread("no connection", &error),
        };
        match wrong {
            None => drop(trouble.over(Instant::now())),
            Some((what, why)) if trouble.is_news(&what, Instant::now()) => {
                tracing::warn!(%queue, why, "serving the partitions known before; looking on");
            }
            Some(_) => {}
        }
    }
}

impl Crew {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves what the layout says.
    fn follow(&self, layout: Layout) -> Result<(), EngineError> {
        let mut state = self.state();
        if state.stopped {
            return Ok(());
        }
        while let Some(ended) = state.leaving.try_join_next() {
            // Only its runtime's end can have ended it otherwise.
            let _: Result<StopReport, _> = ended;
        }
        let before: Vec<u32> = state.serving.keys().copied().collect();
        for index in before.iter().copied().filter(|index| *index >= layout.served()) {
            if let Some(worker) = state.serving.remove(&index) {
                state.leaving.spawn(async move { worker.stop(LEAVE_GRACE).await });
            }
        }
        for index in 0..layout.served() {
            if !state.serving.contains_key(&index) {
                let worker = self.template.start_at(&self.name.partition(index), self.slots.seat())?;
                worker.set_concurrency(state.concurrency);
                if state.paused {
                    worker.pause();
                }
                state.serving.insert(index, worker);
            }
        }
        if !before.iter().eq(state.serving.keys()) {
            let queue = self.name.queue();
            tracing::info!(%queue, open = layout.open(), served = layout.served(), "partitions served");
            self.changes.send_modify(|changes| *changes += 1);
        }
        Ok(())
    }
}

impl PartitionedWorker {
    /// The partitions it serves, each with its counters.
    #[must_use]
    pub fn stats_of_each(&self) -> Vec<(Partition, WorkerStats)> {
        let state = self.crew.state();
        let stats =
            state.serving.iter().map(|(index, worker)| (self.crew.name.partition(*index), worker.stats()));
        stats.collect()
    }

    /// The counters of all partitions together. Those of retired ones are not in it.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        let each = self.stats_of_each();
        let mut all =
            WorkerStats { idle: each.iter().all(|(_, stats)| stats.idle), ..WorkerStats::default() };
        for (_, stats) in each {
            all.active += stats.active;
            all.unwritten += stats.unwritten;
            all.fetching |= stats.fetching;
            all.completed += stats.completed;
            all.failed += stats.failed;
        }
        all
    }

    /// Waits until all partitions are empty and nothing runs.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn until_idle(&self) {
        self.until_each(|stats| stats.idle).await;
    }

    /// Waits until nothing runs and every outcome is written, as it comes after a
    /// while when the worker is paused.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn until_quiet(&self) {
        self.until_each(WorkerStats::is_quiet).await;
    }

    /// Waits until `wanted` holds for all partitions at once.
    async fn until_each(&self, wanted: impl Fn(&WorkerStats) -> bool) {
        loop {
            let watched = *self.crew.changes.borrow();
            let mut each: Vec<_> = self.crew.state().serving.values().map(Worker::watch).collect();
            for stats in &mut each {
                // An error means that this worker has stopped: nothing runs.
                let _ = stats.wait_for(&wanted).await;
            }
            let same = *self.crew.changes.borrow() == watched;
            if same && each.iter().all(|stats| wanted(&stats.borrow()) || stats.has_changed().is_err()) {
                return;
            }
        }
    }

    /// Takes nothing new until [`PartitionedWorker::resume`]; what runs goes on.
    pub fn pause(&self) {
        let mut state = self.crew.state();
        state.paused = true;
        state.serving.values().for_each(Worker::pause);
    }

    /// Takes jobs again.
    pub fn resume(&self) {
        let mut state = self.crew.state();
        state.paused = false;
        state.serving.values().for_each(Worker::resume);
    }

    /// How many jobs run at once from now on in all partitions together, at least 1;
    /// what runs already goes on.
    pub fn set_concurrency(&self, jobs: usize) {
        let jobs = jobs.max(1);
        let mut state = self.crew.state();
        state.concurrency = jobs;
        self.crew.slots.set_total(jobs);
        state.serving.values().for_each(|worker| worker.set_concurrency(jobs));
    }

    /// Takes nothing new in any partition, lets running jobs finish for `grace`, then
    /// cancels them and gives back what ends on that.
    ///
    /// # Cancel safety
    /// Not cancel safe: a dropped call stops hard.
    pub async fn stop(mut self, grace: Duration) -> StopReport {
        self.stop.cancel();
        let (serving, mut leaving) = {
            let mut state = self.crew.state();
            state.stopped = true;
            (std::mem::take(&mut state.serving), std::mem::take(&mut state.leaving))
        };
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
        let stopped = join_all(serving.into_values().map(|worker| worker.stop(grace))).await;
        let mut unfinished = stopped.iter().map(|report| report.unfinished).sum();
        let left = async {
            while let Some(ended) = leaving.join_next().await {
                unfinished += ended.map_or(0, |report| report.unfinished);
            }
        };
        // Cut off, they stop hard: their locks expire and the jobs are rescued.
        let _ = tokio::time::timeout(grace, left).await;
        StopReport { unfinished }
    }
}

impl Drop for PartitionedWorker {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(follower) = &self.follower {
            follower.abort();
        }
        let mut state = self.crew.state();
        state.stopped = true;
        state.serving.clear();
        state.leaving.abort_all();
    }
}
