//! [`QueueProducer`]: the handle on one queue.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use mpanel_protocol::{
    calls::add::{Added, NewJob},
    ids::QueueName,
    outcome::Refusal,
};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::{
    batch::{Batcher, Lane, Pending, Reply},
    durability::Durability,
    enqueued::Enqueued,
    error::EnqueueError,
    options::EnqueueOptions,
    producer::{Backend, Producer},
    rules::Rules,
};

/// Callers that may wait for one queue's connection before further ones are held back.
const WAITING_CALLERS: usize = 4096;

/// Puts jobs into one queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct QueueProducer {
    shared: Arc<QueueShared>,
    lane: Lane,
    defaults: Option<Arc<EnqueueOptions>>,
}

#[derive(Debug)]
struct QueueShared {
    queue: QueueName,
    producer: Producer,
    /// Where callers hand in their jobs, by what they ask for.
    inboxes: Mutex<HashMap<Lane, mpsc::Sender<Pending>>>,
}

/// One job of a bulk.
#[derive(Clone)]
pub struct BulkJob<D> {
    /// Its name.
    pub name: String,
    /// Its payload.
    pub data: D,
    /// Its options.
    pub options: EnqueueOptions,
}

impl<D> std::fmt::Debug for BulkJob<D> {
    /// Without the payload: it may hold what is sealed only when it is stored.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkJob")
            .field("name", &self.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<D> BulkJob<D> {
    /// A job with default options.
    pub fn new(name: impl Into<String>, data: D) -> Self {
        Self { name: name.into(), data, options: EnqueueOptions::new() }
    }

    /// With these options.
    #[must_use]
    pub fn options(mut self, options: EnqueueOptions) -> Self {
        self.options = options;
        self
    }
}

impl QueueProducer {
    pub(crate) fn new(producer: &Producer, queue: QueueName) -> Self {
        // Handles of kinds would keep each other alive.
        let producer = Producer { handles: Arc::default(), ..producer.clone() };
        let lane = producer.lane;
        Self {
            shared: Arc::new(QueueShared { queue, producer, inboxes: Mutex::default() }),
            lane,
            defaults: None,
        }
    }

    /// The queue's name.
    #[must_use]
    pub fn name(&self) -> &QueueName {
        &self.shared.queue
    }

    /// A handle whose jobs are stored so safely. Its calls travel together with
    /// those of handles that ask for the same, and with no others.
    ///
    /// ```no_run
    /// # async fn run(producer: mpanel_producer::Producer) -> Result<(), mpanel_producer::EnqueueError> {
    /// use std::time::Duration;
    /// use mpanel_producer::{Durability, EnqueueError, EnqueueOptions};
    ///
    /// let safe = producer.queue("payments")?.durability(Durability::replicated(1, Duration::from_millis(500)));
    /// match safe.enqueue("charge", &42, EnqueueOptions::new().job_id("charge-42")).await {
    ///     Ok(job) => println!("{} replicas have it", job.replicas().unwrap_or(0)),
    ///     // It IS in the queue, on the primary alone.
    ///     Err(EnqueueError::NotReplicated { got, .. }) => println!("only {got} replicas have it"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.lane.durability = durability;
        self
    }

    /// A handle that refuses jobs with [`EnqueueError::QueueFull`] while so many are
    /// waiting, prioritized or delayed. The script that stores the jobs looks, so
    /// the limit is exact however many producers there are. Flows are looked at
    /// before they are stored.
    #[must_use]
    pub fn max_waiting(mut self, jobs: u64) -> Self {
        self.lane.max_waiting = Some(jobs);
        self
    }

    /// A handle whose jobs take what they leave open from these options, as with
    /// Node's `defaultJobOptions`; a job's id is none of them.
    #[must_use]
    pub fn defaults(mut self, mut options: EnqueueOptions) -> Self {
        options.inner.job_id = None;
        self.defaults = Some(Arc::new(options));
        self
    }

    /// Leaves in the queue's `meta` what BullMQ's Queue leaves there when it is
    /// opened, where nothing is yet. The first enqueue does it by itself.
    ///
    /// # Errors
    /// [`EnqueueError`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn introduce(&self) -> Result<(), EnqueueError> {
        self.store(Vec::new()).await.map(drop)
    }

    /// Enqueues one job.
    ///
    /// # Errors
    /// [`EnqueueError`]; it says whether the job may have been stored.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the job.
    pub async fn enqueue<D: Serialize + ?Sized>(
        &self,
        name: &str,
        data: &D,
        options: EnqueueOptions,
    ) -> Result<Enqueued, EnqueueError> {
        let job = self.prepare(name, data, options)?;
        let mut results = self.send(vec![job]).await?;
        results.pop().ok_or_else(|| EnqueueError::Unknown("no answer for the job".to_owned()))
    }

    /// Enqueues a job that runs no earlier than at this time, to the millisecond;
    /// at once when it has passed.
    ///
    /// ```no_run
    /// # async fn run(mails: mpanel_producer::QueueProducer) -> Result<(), mpanel_producer::EnqueueError> {
    /// use std::time::{Duration, SystemTime};
    /// use mpanel_producer::EnqueueOptions;
    ///
    /// let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
    /// mails.enqueue_at(tomorrow, "reminder", "pay", EnqueueOptions::new()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`QueueProducer::enqueue`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the job.
    pub async fn enqueue_at<D: Serialize + ?Sized>(
        &self,
        at: SystemTime,
        name: &str,
        data: &D,
        options: EnqueueOptions,
    ) -> Result<Enqueued, EnqueueError> {
        self.enqueue(name, data, options.run_at(at)).await
    }

    /// Enqueues a job that runs no earlier than after this time.
    ///
    /// # Errors
    /// As [`QueueProducer::enqueue`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the job.
    pub async fn enqueue_in<D: Serialize + ?Sized>(
        &self,
        delay: Duration,
        name: &str,
        data: &D,
        options: EnqueueOptions,
    ) -> Result<Enqueued, EnqueueError> {
        self.enqueue(name, data, options.delay(delay)).await
    }

    /// Enqueues many jobs, in order, in one round trip for each 5,000. All are
    /// checked before the first is stored.
    ///
    /// # Errors
    /// [`EnqueueError`] of the first job that was not stored; jobs before it are.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the jobs.
    pub async fn enqueue_bulk<D: Serialize>(
        &self,
        jobs: impl IntoIterator<Item = BulkJob<D>>,
    ) -> Result<Vec<Enqueued>, EnqueueError> {
        let jobs = jobs
            .into_iter()
            .map(|job| self.prepare(&job.name, &job.data, job.options))
            .collect::<Result<Vec<_>, _>>()?;
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        self.send(jobs).await
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.shared.producer.rules
    }

    pub(crate) fn prepare<D: Serialize + ?Sized>(
        &self,
        name: &str,
        data: &D,
        options: EnqueueOptions,
    ) -> Result<NewJob, EnqueueError> {
        let options = match &self.defaults {
            Some(defaults) => options.with_defaults(defaults),
            None => options,
        };
        self.rules().job(&self.shared.queue, name, data, options, None)
    }

    /// What became of each job.
    pub(crate) async fn store(&self, jobs: Vec<NewJob>) -> Result<Reply, EnqueueError> {
        self.lane.durability.check()?;
        let (reply, answer) = oneshot::channel();
        let inbox = self.inbox();
        inbox.send(Pending { jobs, reply }).await.map_err(|_| EnqueueError::Closed)?;
        answer.await.map_err(|_| EnqueueError::Unknown("the runtime was shut down".to_owned()))?
    }

    /// What became of each job, for its caller.
    pub(crate) async fn store_each(
        &self,
        jobs: Vec<NewJob>,
    ) -> Result<Vec<Result<Enqueued, EnqueueError>>, EnqueueError> {
        let (results, replication) = self.store(jobs).await?;
        let judge = |result: Result<Added, EnqueueError>| {
            let job = self.judge(result?)?;
            let Some(replication) = &replication else { return Ok(job) };
            let mut judged = replication.clone().judge(vec![job])?;
            judged.pop().ok_or(EnqueueError::Closed)
        };
        Ok(results.into_iter().map(judge).collect())
    }

    async fn send(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, EnqueueError> {
        let (results, replication) = self.store(jobs).await?;
        let stored = results
            .into_iter()
            .map(|result| result.and_then(|added| self.judge(added)))
            .collect::<Result<Vec<_>, _>>()?;
        match replication {
            Some(replication) => replication.judge(stored),
            None => Ok(stored),
        }
    }

    pub(crate) fn judge(&self, added: Added) -> Result<Enqueued, EnqueueError> {
        Enqueued::from_added(added).map_err(|refusal| match refusal {
            Refusal::QueueFull => EnqueueError::QueueFull {
                queue: self.shared.queue.to_string(),
                limit: self.lane.max_waiting.unwrap_or(0),
            },
            other => EnqueueError::Rejected(other),
        })
    }

    fn inbox(&self) -> mpsc::Sender<Pending> {
        let QueueShared { queue, producer, inboxes } = &*self.shared;
        let mut inboxes = inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inbox) = inboxes.get(&self.lane).filter(|inbox| !inbox.is_closed()) {
            return inbox.clone();
        }
        let (inbox, outbox) = mpsc::channel(WAITING_CALLERS);
        // Both end by themselves when the last handle is dropped.
        match &producer.backend {
            Backend::Redis(redis) => {
                let keys = producer.keys(queue);
                let batcher = Batcher::new(redis.clone(), keys, producer, self.lane);
                tokio::spawn(batcher.run(outbox));
            }
            Backend::Recorder(recorder) => {
                tokio::spawn(recorder.clone().run(queue.clone(), self.lane, outbox));
            }
        }
        inboxes.insert(self.lane, inbox.clone());
        inbox
    }
}
