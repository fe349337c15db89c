//! The handles a caller holds: [`Producer`] for a Redis, [`QueueProducer`] for a queue.

use std::sync::Arc;

use mpanel_connect::{Redis, ServerClock};
use mpanel_protocol::{
    calls::add::{Added, NewJob, ParentRef},
    ids::{JobId, Prefix, QueueName},
    keys::QueueKeys,
    options::JobOptions,
    outcome::Refusal,
    peer::Peer,
    time::{Clock, TimestampMs},
};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::{
    batch::{Batcher, Pending},
    error::EnqueueError,
    options::{EnqueueOptions, validate},
};

/// Largest payload unless the builder says otherwise, bytes.
const SIZE_LIMIT: usize = 16 * 1024 * 1024;

/// Callers that may wait for one queue's connection before further ones are held back.
const WAITING_CALLERS: usize = 4096;

/// Where jobs go: one Redis, one prefix. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Producer {
    redis: Redis,
    prefix: Prefix,
    peer: Peer,
    clock: Arc<dyn Clock>,
    size_limit: usize,
}

/// Settings of a [`Producer`].
#[derive(Debug)]
pub struct ProducerBuilder {
    redis: Redis,
    prefix: Prefix,
    peer: Peer,
    clock: Option<Arc<dyn Clock>>,
    size_limit: usize,
}

impl ProducerBuilder {
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

    /// Largest payload, bytes; default 16 MiB.
    #[must_use]
    pub fn size_limit(mut self, bytes: usize) -> Self {
        self.size_limit = bytes;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// [`EnqueueError::Connect`].
    pub async fn connect(self) -> Result<Producer, EnqueueError> {
        let mut shared = self.redis.shared().await?;
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
            redis: self.redis,
            prefix: self.prefix,
            peer: self.peer,
            clock,
            size_limit: self.size_limit,
        })
    }
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
    #[must_use]
    pub fn builder(redis: Redis) -> ProducerBuilder {
        ProducerBuilder {
            redis,
            prefix: Prefix::default(),
            peer: Peer::default(),
            clock: None,
            size_limit: SIZE_LIMIT,
        }
    }

    pub(crate) fn redis(&self) -> &Redis {
        &self.redis
    }

    pub(crate) fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub(crate) fn size_limit(&self) -> usize {
        self.size_limit
    }

    /// A handle on one queue. Keep it: calls through one handle travel together.
    ///
    /// # Errors
    /// [`EnqueueError::Name`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn queue(&self, name: &str) -> Result<QueueProducer, EnqueueError> {
        let queue = QueueName::new(name)?;
        let (inbox, outbox) = mpsc::channel(WAITING_CALLERS);
        let batcher = Batcher {
            redis: self.redis.clone(),
            keys: QueueKeys::new(&self.prefix, &queue),
            peer: self.peer,
            clock: self.clock.clone(),
        };
        // Ends by itself when the last handle is dropped.
        tokio::spawn(batcher.run(outbox));
        Ok(QueueProducer { queue, inbox, clock: self.clock.clone(), size_limit: self.size_limit })
    }
}

/// Puts jobs into one queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct QueueProducer {
    queue: QueueName,
    inbox: mpsc::Sender<Pending>,
    clock: Arc<dyn Clock>,
    size_limit: usize,
}

/// One job of a bulk.
#[derive(Debug, Clone)]
pub struct BulkJob<D> {
    /// Its name.
    pub name: String,
    /// Its payload.
    pub data: D,
    /// Its options.
    pub options: EnqueueOptions,
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

/// What an acknowledged enqueue did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enqueued {
    /// The job is in the queue.
    Stored(JobId),
    /// A job with the same id exists; nothing was stored.
    Duplicate(JobId),
    /// A job with the same deduplication id stands for it; nothing was stored.
    Deduplicated(JobId),
}

impl Enqueued {
    pub(crate) fn from_added(added: Added) -> Result<Self, Refusal> {
        match added {
            Added::Stored(id) => Ok(Self::Stored(id)),
            Added::Duplicate(id) => Ok(Self::Duplicate(id)),
            Added::Deduplicated(id) => Ok(Self::Deduplicated(id)),
            Added::Refused(refusal) => Err(refusal),
        }
    }

    /// The id of the job that runs: this one, or the one that stands for it.
    #[must_use]
    pub fn id(&self) -> &JobId {
        match self {
            Self::Stored(id) | Self::Duplicate(id) | Self::Deduplicated(id) => id,
        }
    }

    /// Whether a new job was stored.
    #[must_use]
    pub fn is_new(&self) -> bool {
        matches!(self, Self::Stored(_))
    }
}

impl QueueProducer {
    /// The queue's name.
    #[must_use]
    pub fn name(&self) -> &QueueName {
        &self.queue
    }

    /// Leaves in the queue's `meta` what BullMQ's Queue leaves there when it is
    /// opened, where nothing is yet. The first enqueue does it by itself.
    ///
    /// # Errors
    /// [`EnqueueError`].
    pub async fn introduce(&self) -> Result<(), EnqueueError> {
        self.send(Vec::new()).await.map(drop)
    }

    /// Enqueues one job.
    ///
    /// # Errors
    /// [`EnqueueError`]; it says whether the job may have been stored.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the job.
    pub async fn enqueue<D: Serialize + ?Sized>(
        &self,
        name: &str,
        data: &D,
        options: EnqueueOptions,
    ) -> Result<Enqueued, EnqueueError> {
        let job = self.prepare(name, data, options.inner)?;
        let mut results = self.send(vec![job]).await?;
        results.pop().ok_or_else(|| EnqueueError::Unknown("no answer for the job".to_owned()))
    }

    /// Enqueues many jobs, in order, in one round trip for each 5,000. All are
    /// checked before the first is stored.
    ///
    /// # Errors
    /// [`EnqueueError`] of the first job that was not stored; jobs before it are.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the jobs.
    pub async fn enqueue_bulk<D: Serialize>(
        &self,
        jobs: impl IntoIterator<Item = BulkJob<D>>,
    ) -> Result<Vec<Enqueued>, EnqueueError> {
        let jobs = jobs
            .into_iter()
            .map(|job| self.prepare(&job.name, &job.data, job.options.inner))
            .collect::<Result<Vec<_>, _>>()?;
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        self.send(jobs).await
    }

    fn prepare<D: Serialize + ?Sized>(
        &self,
        name: &str,
        data: &D,
        options: JobOptions,
    ) -> Result<NewJob, EnqueueError> {
        new_job(name, data, options, &*self.clock, self.size_limit)
    }

    async fn send(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, EnqueueError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Pending { jobs, reply }).await.map_err(|_| EnqueueError::Closed)?;
        let added =
            answer.await.map_err(|_| EnqueueError::Unknown("the runtime was shut down".to_owned()))??;
        added.into_iter().map(|added| Enqueued::from_added(added).map_err(EnqueueError::Rejected)).collect()
    }
}

/// Checks a job and puts it into the form that is stored.
pub(crate) fn new_job<D: Serialize + ?Sized>(
    name: &str,
    data: &D,
    options: JobOptions,
    clock: &dyn Clock,
    size_limit: usize,
) -> Result<NewJob, EnqueueError> {
    let id = validate(&options)?;
    let data = serde_json::to_string(data).map_err(|e| EnqueueError::Payload(e.to_string()))?;
    let own_limit = options.size_limit.filter(|n| *n > 0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; positive")]
    let limit = own_limit.map_or(size_limit, |n| (n as usize).min(size_limit));
    if data.len() > limit {
        return Err(EnqueueError::TooLarge { bytes: data.len(), limit });
    }
    #[expect(clippy::cast_possible_truncation, reason = "epoch ms; saturates")]
    let timestamp = options.timestamp.map_or_else(|| clock.now(), |t| TimestampMs(t as i64));
    let parent = parent_of(&options);
    Ok(NewJob {
        id,
        name: name.to_owned(),
        data,
        options,
        timestamp,
        parent,
        waits_for_children: false,
        scheduler: None,
    })
}

/// The parent that the options name: `parent: {id, queue}`, with what is to happen
/// to it when the job fails for good.
fn parent_of(options: &JobOptions) -> Option<ParentRef> {
    let parent = options.other.get("parent")?;
    let (id, queue) = (parent.get("id")?.as_str()?, parent.get("queue")?.as_str()?);
    let mut json = serde_json::json!({ "id": id, "queueKey": queue });
    for policy in ["fpof", "cpof", "idof", "rdof"] {
        if options.other.get(policy).is_some_and(|v| v == true) {
            json[policy] = true.into();
        }
    }
    Some(ParentRef { key: format!("{queue}:{id}"), json: json.to_string() })
}
