//! [`PartitionedProducer`]: one handle for the partitions of a queue. Chooses where a
//! job goes; storing it is [`QueueProducer`]'s.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use futures_util::future::join_all;
use mpanel_protocol::{
    calls::add::NewJob,
    ids::JobId,
    job_kind::JobKind,
    partition::{Partition, PartitionedName},
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    durability::Durability,
    enqueued::Enqueued,
    error::EnqueueError,
    layout::{LayoutCache, Seen},
    options::EnqueueOptions,
    producer::Producer,
    queue::{BulkJob, QueueProducer},
};

/// Which partition a job goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By<'a> {
    /// All jobs with this key go to one partition. What is unique (a job id of one's
    /// own, deduplication) is so within it.
    Key(&'a str),
    /// One after the other. A job with an id of its own goes by that.
    Turn,
    /// This one: to say something again to a partition that answered with
    /// [`EnqueueError::Unknown`].
    Partition(u32),
}

/// Where a job is: its full address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    partition: Partition,
    job: Enqueued,
}

impl Placed {
    /// The partition: queue and prefix.
    #[must_use]
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// The id within the partition.
    #[must_use]
    pub fn id(&self) -> &JobId {
        self.job.id()
    }

    /// What the enqueue did there.
    #[must_use]
    pub fn enqueued(&self) -> &Enqueued {
        &self.job
    }
}

impl fmt::Display for Placed {
    /// `mail-3/42`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.id())
    }
}

/// A job of a partitioned queue was not enqueued, or perhaps was.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}{error}", partition.as_ref().map(|p| format!("partition {p}: ")).unwrap_or_default())]
pub struct PlaceError {
    /// Where it was sent; none when it was not.
    pub partition: Option<Partition>,
    /// What happened.
    #[source]
    pub error: Box<EnqueueError>,
}

impl From<EnqueueError> for PlaceError {
    fn from(error: EnqueueError) -> Self {
        Self { partition: None, error: error.into() }
    }
}

/// Puts jobs into the partitions of a queue. Cheap to clone.
///
/// ```no_run
/// # async fn run(producer: mpanel_producer::Producer) -> Result<(), Box<dyn std::error::Error>> {
/// use mpanel_producer::{By, EnqueueOptions};
///
/// let mails = producer.partitioned("mail").await?;
/// let job = mails.enqueue(By::Key("tenant-7"), "welcome", &"a@example.org", EnqueueOptions::new()).await?;
/// println!("{job}: prefix {}, queue {}", job.partition().prefix(), job.partition().queue());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PartitionedProducer {
    shared: Arc<PartitionsShared>,
    durability: Option<Durability>,
    max_waiting: Option<u64>,
    defaults: Option<Arc<EnqueueOptions>>,
}

#[derive(Debug)]
struct PartitionsShared {
    name: PartitionedName,
    producer: Producer,
    layout: Arc<LayoutCache>,
    handles: Mutex<HashMap<u32, QueueProducer>>,
    turn: AtomicU32,
}

impl Producer {
    /// A handle on the partitions of a queue. Keep it: it follows their number, and
    /// calls through one handle travel together. A recording producer has one
    /// partition.
    ///
    /// # Errors
    /// [`EnqueueError::NotPartitioned`] when nobody has said how many there are;
    /// [`EnqueueError::Name`], or no connection.
    pub async fn partitioned(&self, queue: &str) -> Result<PartitionedProducer, EnqueueError> {
        let name = PartitionedName::new(&self.rules.prefix, &self.rules.queue(queue)?)?;
        // Handles of kinds would keep each other alive.
        let producer = Producer { handles: Arc::default(), ..self.clone() };
        let layout = LayoutCache::open(&producer, &name).await?;
        let shared = PartitionsShared {
            name,
            producer,
            layout: Arc::new(layout),
            handles: Mutex::default(),
            // Programs that enqueue one job and end do not all begin at partition 0.
            turn: AtomicU32::new(Uuid::new_v4().as_fields().0),
        };
        Ok(PartitionedProducer {
            shared: Arc::new(shared),
            durability: None,
            max_waiting: None,
            defaults: None,
        })
    }
}

impl PartitionedProducer {
    /// The name of the whole.
    #[must_use]
    pub fn name(&self) -> &PartitionedName {
        &self.shared.name
    }

    /// As [`QueueProducer::durability`], in each partition.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// As [`QueueProducer::max_waiting`], for each partition.
    #[must_use]
    pub fn max_waiting(mut self, jobs: u64) -> Self {
        self.max_waiting = Some(jobs);
        self
    }

    /// As [`QueueProducer::defaults`].
    #[must_use]
    pub fn defaults(mut self, options: EnqueueOptions) -> Self {
        self.defaults = Some(Arc::new(options));
        self
    }

    /// How many partitions new jobs go to now.
    ///
    /// # Errors
    /// [`EnqueueError`] when it cannot be known.
    pub async fn partitions(&self) -> Result<u32, EnqueueError> {
        Ok(self.shared.layout.get().await?.layout.open())
    }

    /// Enqueues one job. An acknowledged job is in a partition that workers serve,
    /// whatever became of their number meanwhile.
    ///
    /// # Errors
    /// [`PlaceError`]; after [`EnqueueError::Unknown`] say it again with
    /// [`By::Partition`] and an id of your own: the number of partitions may have
    /// changed since, and with it where a key leads to.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the job.
    pub async fn enqueue<D: Serialize + ?Sized>(
        &self,
        by: By<'_>,
        name: &str,
        data: &D,
        options: EnqueueOptions,
    ) -> Result<Placed, PlaceError> {
        let seen = self.shared.layout.get().await?;
        let index = self.choose(by, &options, &seen)?;
        let partition = self.shared.name.partition(index);
        let stored = async {
            let job = self.handle(&partition)?.enqueue(name, data, options).await?;
            self.shared.layout.settle(&seen, index).await?;
            Ok(job)
        };
        match stored.await {
            Ok(job) => Ok(Placed { partition, job }),
            Err(error) => Err(PlaceError { partition: Some(partition), error: Box::new(error) }),
        }
    }

    /// Enqueues a job under the name and with the options of its kind, whose
    /// [`JobKind::QUEUE`] is the name of the whole.
    ///
    /// # Errors
    /// As [`PartitionedProducer::enqueue`]; [`EnqueueError::Option`] for a kind of
    /// another queue.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the job.
    pub async fn enqueue_kind<K: JobKind>(&self, by: By<'_>, job: &K) -> Result<Placed, PlaceError> {
        let own = self.shared.name.queue();
        if own.as_str() != K::QUEUE {
            let why = format!("jobs `{}` belong to queue `{}`, this is `{own}`", K::NAME, K::QUEUE);
            return Err(EnqueueError::option("queue", why).into());
        }
        self.enqueue(by, K::NAME, job, EnqueueOptions::of_kind(job)).await
    }

    /// Enqueues many jobs: split by partition, in order within each, all partitions at
    /// the same time. All are checked before the first is stored. One result for each
    /// job, in the order given; a partition that cannot be reached is no hindrance for
    /// the others.
    ///
    /// # Errors
    /// [`EnqueueError`] when nothing was sent.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the jobs.
    pub async fn enqueue_bulk<'k, D: Serialize>(
        &self,
        jobs: impl IntoIterator<Item = (By<'k>, BulkJob<D>)>,
    ) -> Result<Vec<Result<Placed, PlaceError>>, EnqueueError> {
        let seen = self.shared.layout.get().await?;
        let mut parts: HashMap<u32, Part> = HashMap::new();
        for (place, (by, job)) in jobs.into_iter().enumerate() {
            let index = self.choose(by, &job.options, &seen)?;
            let part = match parts.entry(index) {
                Entry::Occupied(part) => part.into_mut(),
                Entry::Vacant(empty) => {
                    let partition = self.shared.name.partition(index);
                    let handle = self.handle(&partition)?;
                    empty.insert(Part { partition, handle, places: Vec::new(), jobs: Vec::new() })
                }
            };
            part.jobs.push(part.handle.prepare(&job.name, &job.data, job.options)?);
            part.places.push(place);
        }
        let stored = join_all(parts.into_values().map(|part| self.store(part, &seen))).await;
        let mut results: Vec<_> = stored.into_iter().flatten().collect();
        results.sort_by_key(|(place, _)| *place);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    /// What became of the jobs of one partition, each with its place in the bulk.
    async fn store(&self, part: Part, seen: &Seen) -> Vec<(usize, Result<Placed, PlaceError>)> {
        let Part { partition, handle, places, jobs } = part;
        let results = match handle.store_each(jobs).await {
            Ok(results) => match self.shared.layout.settle(seen, partition.index()).await {
                Ok(()) => results,
                Err(error) => results.into_iter().map(|result| result.and(Err(error.clone()))).collect(),
            },
            Err(error) => vec![Err(error); places.len()],
        };
        let placed = results.into_iter().map(|result| match result {
            Ok(job) => Ok(Placed { partition: partition.clone(), job }),
            Err(error) => Err(PlaceError { partition: Some(partition.clone()), error: Box::new(error) }),
        });
        places.into_iter().zip(placed).collect()
    }

    fn choose(&self, by: By<'_>, options: &EnqueueOptions, seen: &Seen) -> Result<u32, EnqueueError> {
        let layout = &seen.layout;
        let unique = options.is_unique() || self.defaults.as_ref().is_some_and(|d| d.is_unique());
        match by {
            By::Key(key) => Ok(layout.of_key(key)),
            By::Partition(index) if index < layout.served() => Ok(index),
            By::Partition(index) => {
                let why = format!("{index} is none: workers serve partitions 0 to {}", layout.served() - 1);
                Err(EnqueueError::option("partition", why))
            }
            By::Turn if unique => {
                let why = "in a partitioned queue it holds within one partition: give the job a key";
                Err(EnqueueError::option("deduplication", why))
            }
            By::Turn => Ok(match &options.inner.job_id {
                Some(id) => layout.of_key(id),
                None => self.shared.turn.fetch_add(1, Ordering::Relaxed) % layout.open(),
            }),
        }
    }

    fn handle(&self, partition: &Partition) -> Result<QueueProducer, EnqueueError> {
        let mut handle = self.shared.handle(partition)?;
        if let Some(durability) = self.durability {
            handle = handle.durability(durability);
        }
        if let Some(most) = self.max_waiting {
            handle = handle.max_waiting(most);
        }
        if let Some(defaults) = &self.defaults {
            handle = handle.defaults(defaults.as_ref().clone());
        }
        Ok(handle)
    }
}

/// The jobs of a bulk that go to one partition, and their places in it.
struct Part {
    partition: Partition,
    handle: QueueProducer,
    places: Vec<usize>,
    jobs: Vec<NewJob>,
}

impl PartitionsShared {
    fn handle(&self, partition: &Partition) -> Result<QueueProducer, EnqueueError> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = handles.get(&partition.index()) {
            return Ok(handle.clone());
        }
        let mut producer = self.producer.clone();
        producer.rules.prefix = partition.prefix().clone();
        let handle = producer.queue(partition.queue().as_str())?;
        handles.insert(partition.index(), handle.clone());
        Ok(handle)
    }
}
