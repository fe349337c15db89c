//! Waiting for jobs to end. One task reads the stream; each wait looks at the
//! finished sets once, after it is registered, so that no end falls between.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mpanel_connect::{ConnectError, Redis};
use mpanel_protocol::{
    ids::{JobId, Prefix, QueueName},
    job_kind::JobKind,
    keys::QueueKeys,
};
use redis::{FromRedisValue, RedisError, Value};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{oneshot, watch},
    task::AbortHandle,
    time::MissedTickBehavior,
};

use super::{EventEntry, EventsError, Notice, QueueEvent, QueueEvents, Start};
use crate::reading::read;

/// How many events are searched for the end of a job whose hash is gone.
const LOOK_BACK: usize = 10_000;
const LOOK_BACK_PAGE: usize = 500;
/// How often jobs waited for are looked at, whatever the events tell.
const ROUND: Duration = Duration::from_secs(15);
/// How many waiting jobs one round trip looks at.
const RECHECK: usize = 200;

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// With this result, JSON text.
    Completed(String),
    /// For good, with this reason.
    Failed(String),
}

/// Why a wait gave no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WaitError {
    /// The job failed for good.
    #[error("job {id} failed: {reason}")]
    Failed {
        /// The job.
        id: JobId,
        /// Its reason.
        reason: String,
    },
    /// The job was taken away before it ended.
    #[error("job {id} was removed before it finished")]
    Removed {
        /// The job.
        id: JobId,
    },
    /// There is no such job, and the event stream tells of no end of it.
    #[error("job {id} does not exist; it was never added, or was removed too long ago to know how it ended")]
    Missing {
        /// The job.
        id: JobId,
    },
    /// The job did not end in time. It goes on.
    #[error("job {id} did not finish within {waited:?}")]
    Deadline {
        /// The job.
        id: JobId,
        /// How long was waited.
        waited: Duration,
    },
    /// The result is not what was expected.
    #[error("the result of job {id} is not a {expected}: {why}")]
    Result {
        /// The job.
        id: JobId,
        /// The type asked for.
        expected: &'static str,
        /// What the parser says.
        why: String,
    },
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A command failed.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    /// The events cannot be read any more.
    #[error(transparent)]
    Events(#[from] EventsError),
}

/// What the reader tells a wait.
#[derive(Debug, Clone)]
enum Told {
    Finished(Finished),
    Removed,
    Missing,
    Broken(EventsError),
}

type Waiting = HashMap<JobId, HashMap<u64, oneshot::Sender<Told>>>;

/// Waits for jobs of one queue. Clones, and any number of waits, share one reader
/// of the event stream, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct FinishWatch {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<SharedState>,
    ready: watch::Receiver<Option<Result<(), EventsError>>>,
    task: AbortHandle,
}

#[derive(Debug)]
struct SharedState {
    redis: Redis,
    keys: QueueKeys,
    waiting: Mutex<Waiting>,
    next: AtomicU64,
    /// Jobs without a hash, whose end is to be searched in the stream.
    gone: Mutex<HashSet<JobId>>,
    /// One search at a time, for all of them.
    searching: tokio::sync::Mutex<()>,
}

/// The watches of an engine that somebody holds, by queue.
#[derive(Debug, Default)]
pub(crate) struct Watches(Mutex<HashMap<QueueName, Weak<Inner>>>);

impl Watches {
    /// The watch on a queue; `start` makes it when there is none, or its reader
    /// has given up.
    pub(crate) fn open(&self, queue: &QueueName, start: impl FnOnce() -> FinishWatch) -> FinishWatch {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inner) = open.get(queue).and_then(Weak::upgrade).filter(|i| !i.task.is_finished()) {
            return FinishWatch { inner };
        }
        open.retain(|_, watch| watch.strong_count() > 0);
        let watch = start();
        open.insert(queue.clone(), Arc::downgrade(&watch.inner));
        watch
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FinishWatch {
    /// Begins to read the events of a queue. Needs a Tokio runtime.
    #[must_use]
    pub fn start(redis: Redis, prefix: &Prefix, queue: &QueueName) -> Self {
        let keys = QueueKeys::new(prefix, queue);
        let events = QueueEvents::new(redis.clone(), prefix, queue, Start::Now);
        let shared = Arc::new(SharedState {
            redis,
            keys,
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            gone: Mutex::default(),
            searching: tokio::sync::Mutex::default(),
        });
        let (tell, ready) = watch::channel(None);
        let task = tokio::spawn(follow(shared.clone(), events, tell)).abort_handle();
        Self { inner: Arc::new(Inner { shared, ready, task }) }
    }

    /// Waits until a job ends, at most `deadline`, whoever runs it. A job that has
    /// ended already is answered at once, also when it was removed at its end and
    /// the stream still tells of it.
    ///
    /// # Errors
    /// [`WaitError`]; a job that failed is an answer here, not an error.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait(&self, id: &JobId, deadline: Duration) -> Result<Finished, WaitError> {
        match tokio::time::timeout(deadline, self.wait_on(id)).await {
            Ok(result) => result,
            Err(_) => Err(WaitError::Deadline { id: id.clone(), waited: deadline }),
        }
    }

    /// Waits for a job and reads its result as a `T`.
    ///
    /// # Errors
    /// [`WaitError`]; [`WaitError::Failed`] when the job failed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_for<T: DeserializeOwned>(
        &self,
        id: &JobId,
        deadline: Duration,
    ) -> Result<T, WaitError> {
        match self.wait(id, deadline).await? {
            Finished::Completed(value) => serde_json::from_str(&value).map_err(|e| WaitError::Result {
                id: id.clone(),
                expected: std::any::type_name::<T>(),
                why: e.to_string(),
            }),
            Finished::Failed(reason) => Err(WaitError::Failed { id: id.clone(), reason }),
        }
    }

    /// Waits for a job of a known kind; the result is the kind's.
    ///
    /// # Errors
    /// As [`FinishWatch::wait_for`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_for_kind<K: JobKind>(
        &self,
        id: &JobId,
        deadline: Duration,
    ) -> Result<K::Output, WaitError> {
        self.wait_for(id, deadline).await
    }

    async fn wait_on(&self, id: &JobId) -> Result<Finished, WaitError> {
        let shared = &self.inner.shared;
        let mut ready = self.inner.ready.clone();
        if ready.borrow().is_none() {
            // An end that is known needs no reader.
            if let (Some(told), _) = shared.look(id).await? {
                return answer(id, told);
            }
        }
        // The sender goes with the task, which ends with an answer.
        let begun = ready.wait_for(Option::is_some).await.ok().and_then(|state| state.clone());
        if let Some(Err(error)) = begun {
            return Err(error.into());
        }
        let (_registration, told) = Registration::new(shared.clone(), id.clone());
        match shared.look(id).await? {
            (Some(told), _) => return answer(id, told),
            (None, true) => {}
            // Its end was told before we listened, if it was there at all.
            (None, false) => shared.search(id).await?,
        }
        answer(id, told.await.unwrap_or(Told::Missing))
    }
}

fn answer(id: &JobId, told: Told) -> Result<Finished, WaitError> {
    match told {
        Told::Finished(finished) => Ok(finished),
        Told::Removed => Err(WaitError::Removed { id: id.clone() }),
        Told::Missing => Err(WaitError::Missing { id: id.clone() }),
        Told::Broken(error) => Err(error.into()),
    }
}

/// A place among those who wait; given back when dropped.
struct Registration {
    shared: Arc<SharedState>,
    id: JobId,
    number: u64,
}

impl Registration {
    fn new(shared: Arc<SharedState>, id: JobId) -> (Self, oneshot::Receiver<Told>) {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        shared.waiting().entry(id.clone()).or_default().insert(number, tell);
        (Self { shared, id, number }, told)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        if let Some(of_job) = waiting.get_mut(&self.id) {
            of_job.remove(&self.number);
            if of_job.is_empty() {
                waiting.remove(&self.id);
            }
        }
    }
}

/// Reads the stream and tells those who wait.
async fn follow(
    shared: Arc<SharedState>,
    mut events: QueueEvents,
    ready: watch::Sender<Option<Result<(), EventsError>>>,
) {
    let begun = events.ready().await;
    let failed = begun.as_ref().err().cloned();
    ready.send_replace(Some(begun));
    let mut failure = failed;
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while failure.is_none() {
        let noticed = tokio::select! {
            noticed = events.next() => noticed,
            _ = rounds.tick() => {
                shared.look_at_all().await;
                continue;
            }
        };
        match noticed {
            Ok(Notice::Event(EventEntry { event: QueueEvent::Cleaned { .. }, .. }) | Notice::Gap { .. }) => {
                shared.look_at_all().await;
            }
            Ok(Notice::Event(entry)) => shared.tell_of(entry),
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure {
        ready.send_replace(Some(Err(error.clone())));
        let waiting = std::mem::take(&mut *shared.waiting());
        for tell in waiting.into_values().flat_map(HashMap::into_values) {
            // Whoever waited may have given up.
            let _ = tell.send(Told::Broken(error.clone()));
        }
    }
}

/// What an event says of a job's end.
fn end_of(event: QueueEvent) -> Option<(JobId, Told)> {
    Some(match event {
        QueueEvent::Completed { id, return_value, .. } => {
            (id, Told::Finished(Finished::Completed(return_value)))
        }
        QueueEvent::Failed { id, reason, .. } => (id, Told::Finished(Finished::Failed(reason))),
        QueueEvent::Removed { id, .. } => (id, Told::Removed),
        _ => return None,
    })
}

impl SharedState {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_of(&self, entry: EventEntry) {
        if let Some((id, told)) = end_of(entry.event) {
            self.tell(&id, &told);
        }
    }

    fn tell(&self, id: &JobId, told: &Told) {
        let of_job = self.waiting().remove(id);
        for tell in of_job.into_iter().flat_map(HashMap::into_values) {
            // Whoever waited may have given up.
            let _ = tell.send(told.clone());
        }
    }

    async fn ask<T: FromRedisValue>(&self, pipe: &redis::Pipeline) -> Result<T, WaitError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        match read(pipe, &mut shared.conn).await {
            Ok(value) => Ok(value),
            Err(error) => {
                self.redis.report(&shared, &error).await;
                Err(error.into())
            }
        }
    }

    fn ask_for_end(&self, pipe: &mut redis::Pipeline, id: &JobId) {
        pipe.zscore(self.keys.completed(), id.as_str()).zscore(self.keys.failed(), id.as_str());
        pipe.cmd("HMGET").arg(self.keys.job(id)).arg("returnvalue").arg("failedReason");
        pipe.exists(self.keys.job(id));
    }

    /// How the job ended, if it has, and whether its hash is there.
    fn read_end(replies: &[Value]) -> Result<(Option<Told>, bool), RedisError> {
        type Reply = (Option<f64>, Option<f64>, (Option<Vec<u8>>, Option<Vec<u8>>), bool);
        let (completed, failed, (value, reason), exists): Reply =
            FromRedisValue::from_redis_value(Value::Array(replies.to_vec()))?;
        let text = |bytes: Option<Vec<u8>>| bytes.map(|b| String::from_utf8_lossy(&b).into_owned());
        let end = if completed.is_some() {
            Some(Finished::Completed(text(value).unwrap_or_else(|| "null".to_owned())))
        } else if failed.is_some() {
            Some(Finished::Failed(text(reason).unwrap_or_default()))
        } else {
            None
        };
        Ok((end.map(Told::Finished), exists))
    }

    /// What Redis says of the job now.
    async fn look(&self, id: &JobId) -> Result<(Option<Told>, bool), WaitError> {
        let mut pipe = redis::pipe();
        pipe.atomic();
        self.ask_for_end(&mut pipe, id);
        let replies: Vec<Value> = self.ask(&pipe).await?;
        Ok(Self::read_end(&replies)?)
    }

    /// Has the stream searched for the end of a job whose hash is gone, together
    /// with all others that are asked for meanwhile; whoever waits is told.
    async fn search(&self, id: &JobId) -> Result<(), WaitError> {
        let gone = || self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone().insert(id.clone());
        let _one_at_a_time = self.searching.lock().await;
        let ids: Vec<JobId> = gone().iter().cloned().collect();
        if !ids.contains(id) {
            return Ok(());
        }
        let ends = self.look_back(&ids).await?;
        for id in &ids {
            gone().remove(id);
            self.tell(id, ends.get(id).unwrap_or(&Told::Missing));
        }
        Ok(())
    }

    /// Searches what the stream still has, newest first, for how jobs ended whose
    /// hash is gone.
    async fn look_back(&self, ids: &[JobId]) -> Result<HashMap<JobId, Told>, WaitError> {
        let mut open: HashSet<&JobId> = ids.iter().collect();
        let mut ends = HashMap::new();
        let mut before = "+".to_owned();
        for _ in 0..LOOK_BACK / LOOK_BACK_PAGE {
            let mut pipe = redis::pipe();
            pipe.cmd("XREVRANGE").arg(self.keys.events()).arg(&before).arg("-");
            pipe.arg("COUNT").arg(LOOK_BACK_PAGE);
            type Entry = (String, Vec<(Vec<u8>, Vec<u8>)>);
            let (entries,): (Vec<Entry>,) = self.ask(&pipe).await?;
            let Some((oldest, _)) = entries.last() else { break };
            before = format!("({oldest}");
            for (_, fields) in entries {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                let fields = fields.into_iter().map(|(name, value)| (text(name), text(value))).collect();
                let event = QueueEvent::from_fields(fields);
                let Some(id) = event.job().filter(|id| open.contains(id)).cloned() else { continue };
                match end_of(event) {
                    // Removed after its end: the end counts, which is further back.
                    Some((id, Told::Removed)) => drop(ends.insert(id, Told::Removed)),
                    Some((id, told)) => {
                        open.remove(&id);
                        ends.insert(id, told);
                    }
                    // It was on its way: ends further back are of an earlier run.
                    None => drop(open.remove(&id)),
                }
            }
            if open.is_empty() {
                break;
            }
        }
        Ok(ends)
    }

    /// Tells whoever waits of ends that no event told of: after a gap, and since
    /// jobs that are drained, cleaned or obliterated go without one.
    async fn look_at_all(&self) {
        if let Err(error) = self.try_look_at_all().await {
            tracing::warn!(queue = %self.keys.queue(), %error, "jobs waited for could not be looked at");
        }
    }

    async fn try_look_at_all(&self) -> Result<(), WaitError> {
        let ids: Vec<JobId> = self.waiting().keys().cloned().collect();
        let mut gone = Vec::new();
        for chunk in ids.chunks(RECHECK) {
            let mut pipe = redis::pipe();
            for id in chunk {
                self.ask_for_end(&mut pipe, id);
            }
            let replies: Vec<Value> = self.ask(&pipe).await?;
            for (id, row) in chunk.iter().zip(replies.chunks(4)) {
                match Self::read_end(row)? {
                    (Some(told), _) => self.tell(id, &told),
                    (None, false) => gone.push(id.clone()),
                    (None, true) => {}
                }
            }
        }
        if !gone.is_empty() {
            let ends = self.look_back(&gone).await?;
            for id in &gone {
                self.tell(id, ends.get(id).unwrap_or(&Told::Removed));
            }
        }
        Ok(())
    }
}
