//! A partitioned queue as one: how many partitions it has, growing and shrinking,
//! and looking at all of them.

use std::{iter::Sum, sync::Arc, time::Duration};

use mpanel_connect::Redis;
use mpanel_protocol::{
    calls::partition::{open_partitions, read_layout},
    ids::{JobId, NameError, Prefix, QueueName},
    partition::{Layout, PARTITIONS_MAX, Partition, PartitionedName},
    peer::Peer,
    time::Clock,
};
use serde::Serialize;

use super::{AdminError, Counts, JobDetail, Listing, QueueAdmin};

/// How long a partition is closed before it may be retired. Producers acknowledge no
/// job by a layout older than 30 s, so by then each has seen it.
const RETIRE_AFTER: Duration = Duration::from_secs(60);
/// How long the connection for a retirement may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A handle to look at and manage a partitioned queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Partitions {
    name: PartitionedName,
    /// Where the layout is: the name of the whole under the prefix of partition 0.
    home: QueueAdmin,
}

/// What became of [`Partitions::retire`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retirement {
    /// Nothing serves them any more; how many it were, perhaps none.
    Done(u32),
    /// They were closed too recently: ask again after this time.
    Later(Duration),
    /// There is something in these; kept jobs count, and schedules.
    NotEmpty(Vec<NotEmpty>),
}

/// A partition that is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotEmpty {
    /// Which.
    pub partition: Partition,
    /// Its jobs.
    pub counts: Counts,
    /// Its schedules.
    pub schedules: u64,
}

/// Figures of all partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionCounts {
    /// All together.
    pub all: Counts,
    /// Each by itself; those from [`Layout::open`] on are being retired.
    pub each: Vec<(Partition, Counts)>,
}

/// A page of the jobs of all partitions, those of partition 0 first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PartitionedPage {
    /// The jobs and where they are.
    pub jobs: Vec<(Partition, JobDetail)>,
    /// Ids that are listed but have no hash.
    pub orphans: Vec<(Partition, JobId)>,
    /// How many are in the state in all.
    pub total: u64,
    /// Where the next page begins; none after the last.
    pub next: Option<u64>,
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |a, b| Self {
            waiting: a.waiting + b.waiting,
            paused: a.paused + b.paused,
            prioritized: a.prioritized + b.prioritized,
            delayed: a.delayed + b.delayed,
            active: a.active + b.active,
            waiting_children: a.waiting_children + b.waiting_children,
            completed: a.completed + b.completed,
            failed: a.failed + b.failed,
        })
    }
}

/// How many partitions, and which, for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionInfo {
    /// Its number.
    pub index: u32,
    /// The name of its queue.
    pub queue: String,
    /// The prefix of its keys.
    pub prefix: String,
    /// The slot of a Cluster that it is in.
    pub slot: u16,
    /// Whether new jobs go there; else it is being retired.
    pub open: bool,
}

impl Partitions {
    /// A handle on the partitions of `queue` under `prefix`, by the server's clock.
    ///
    /// # Errors
    /// [`NameError`]: no partitioned queue can have this name.
    pub fn new(redis: Redis, prefix: &Prefix, queue: &QueueName, peer: Peer) -> Result<Self, NameError> {
        let name = PartitionedName::new(prefix, queue)?;
        let home = QueueAdmin::new(redis, name.partition(0).prefix(), queue, peer);
        Ok(Self { name, home })
    }

    /// The same handle by another clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { home: self.home.with_clock(clock), ..self }
    }

    /// The name of the whole.
    #[must_use]
    pub fn name(&self) -> &PartitionedName {
        &self.name
    }

    /// How many there are; none while nobody has said it.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn layout(&self) -> Result<Option<Layout>, AdminError> {
        let mut shared = self.home.shared().await?;
        let layout = read_layout(&mut shared.conn, &self.name).await;
        self.home.told(&shared, layout).await
    }

    /// Makes `partitions` of them unless there are some already, whatever their number.
    /// For programs to call at their start.
    ///
    /// # Errors
    /// As [`Partitions::resize`].
    pub async fn ensure(&self, partitions: u32) -> Result<Layout, AdminError> {
        match self.layout().await? {
            Some(layout) => Ok(layout),
            None => self.resize(partitions).await,
        }
    }

    /// From now on new jobs go to `partitions` partitions: producers follow within five
    /// seconds, and so do workers for those that are new. Those beyond are served on
    /// until [`Partitions::retire`]. While the queue is paused, new ones are paused too.
    ///
    /// Of jobs by key few change their partition, see
    /// [`mpanel_protocol::partition::partition_of_key`].
    ///
    /// # Errors
    /// [`AdminError::PartitionNumber`], or what Redis says. A call that broke off may
    /// have been done, and can be made again.
    pub async fn resize(&self, partitions: u32) -> Result<Layout, AdminError> {
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return Err(AdminError::PartitionNumber(partitions));
        }
        if let Some(before) = self.layout().await?
            && before.served() < partitions
            && self.admin(0).is_paused().await?
        {
            for index in before.served()..partitions {
                self.admin(index).pause().await?;
            }
        }
        let now = self.home.now().await?;
        let mut shared = self.home.shared().await?;
        let opened = open_partitions(&mut shared.conn, &self.name, partitions, now).await;
        self.home.told(&shared, opened).await?;
        self.known().await
    }

    /// Ends the service of partitions that are closed and empty. Workers leave them
    /// within five seconds.
    ///
    /// Nothing is done unless they were closed a minute ago and have no job, kept ones
    /// included, and no schedule.
    ///
    /// # Errors
    /// [`AdminError::NoPartitions`], [`AdminError::Changed`], or what Redis says.
    pub async fn retire(&self) -> Result<Retirement, AdminError> {
        let layout = self.known().await?;
        if layout.open() == layout.served() {
            return Ok(Retirement::Done(0));
        }
        let due = layout.changed().plus(RETIRE_AFTER);
        let early = self.home.now().await?.until(due);
        if !early.is_zero() {
            return Ok(Retirement::Later(early));
        }
        // On a connection of its own, which notices any change from here on.
        let key = self.name.layout_key();
        let mut conn = self.home.redis.dedicated(&key, None, PATIENCE).await?;
        redis::cmd("WATCH").arg(&key).query_async::<()>(&mut conn).await?;
        if read_layout(&mut conn, &self.name).await? != Some(layout) {
            return Err(AdminError::Changed(self.name.queue().clone()));
        }
        let mut left = Vec::new();
        for index in layout.open()..layout.served() {
            let admin = self.admin(index);
            let counts = admin.counts().await?;
            let schedules: u64 = admin.ask(redis::cmd("ZCARD").arg(admin.keys.repeat())).await?;
            if counts.total() + schedules > 0 {
                left.push(NotEmpty { partition: self.name.partition(index), counts, schedules });
            }
        }
        if !left.is_empty() {
            return Ok(Retirement::NotEmpty(left));
        }
        let mut pipe = redis::pipe();
        pipe.atomic().zadd(&key, "served", layout.open()).ignore();
        let done: Option<()> = pipe.query_async(&mut conn).await?;
        if done.is_none() {
            return Err(AdminError::Changed(self.name.queue().clone()));
        }
        Ok(Retirement::Done(layout.served() - layout.open()))
    }

    async fn known(&self) -> Result<Layout, AdminError> {
        let unknown = || AdminError::NoPartitions(self.name.queue().clone());
        self.layout().await?.ok_or_else(unknown)
    }

    fn admin(&self, index: u32) -> QueueAdmin {
        let partition = self.name.partition(index);
        QueueAdmin { prefix: partition.prefix().clone(), keys: partition.keys(), ..self.home.clone() }
    }

    /// A handle on one partition.
    #[must_use]
    pub fn at(&self, partition: &Partition) -> QueueAdmin {
        self.admin(partition.index())
    }

    /// All partitions that are served, each with a handle of its own.
    ///
    /// # Errors
    /// [`AdminError::NoPartitions`], or what Redis says.
    pub async fn all(&self) -> Result<Vec<(Partition, QueueAdmin)>, AdminError> {
        let served = self.known().await?.served();
        Ok((0..served).map(|index| (self.name.partition(index), self.admin(index))).collect())
    }

    /// What a program needs to know to use each partition as the ordinary queue that
    /// it is.
    ///
    /// # Errors
    /// As [`Partitions::all`].
    pub async fn describe(&self) -> Result<Vec<PartitionInfo>, AdminError> {
        let layout = self.known().await?;
        let info = |index| {
            let partition = self.name.partition(index);
            PartitionInfo {
                index,
                queue: partition.queue().to_string(),
                prefix: partition.prefix().to_string(),
                slot: partition.slot(),
                open: index < layout.open(),
            }
        };
        Ok((0..layout.served()).map(info).collect())
    }

    /// How many jobs are in each state, in each partition and in all. Each partition is
    /// counted at a moment of its own.
    ///
    /// # Errors
    /// As [`Partitions::all`].
    pub async fn counts(&self) -> Result<PartitionCounts, AdminError> {
        let mut each = Vec::new();
        for (partition, admin) in self.all().await? {
            each.push((partition, admin.counts().await?));
        }
        Ok(PartitionCounts { all: each.iter().map(|(_, counts)| *counts).sum(), each })
    }

    /// A page of the jobs of one state in all partitions: those of partition 0 in the
    /// listing's order, then those of partition 1, and so on.
    ///
    /// # Errors
    /// As [`Partitions::all`].
    pub async fn list(&self, listing: Listing) -> Result<PartitionedPage, AdminError> {
        let (mut skip, mut count) = (listing.start, listing.count);
        let end = listing.start + u64::from(listing.count);
        let mut all = PartitionedPage::default();
        for (partition, admin) in self.all().await? {
            let page = admin.list(listing.skip(skip).first(count)).await?;
            let listed = page.total.saturating_sub(skip).min(u64::from(count));
            skip = skip.saturating_sub(page.total);
            count -= u32::try_from(listed).unwrap_or(count);
            all.total += page.total;
            all.jobs.extend(page.jobs.into_iter().map(|job| (partition.clone(), job)));
            all.orphans.extend(page.orphans.into_iter().map(|id| (partition.clone(), id)));
        }
        all.next = (end < all.total).then_some(end);
        Ok(all)
    }

    /// Stops every worker from taking jobs of any partition.
    ///
    /// # Errors
    /// As [`Partitions::all`]; some partitions may be paused then.
    pub async fn pause(&self) -> Result<(), AdminError> {
        for (_, admin) in self.all().await? {
            admin.pause().await?;
        }
        Ok(())
    }

    /// Lets workers take jobs of all partitions again.
    ///
    /// # Errors
    /// As [`Partitions::all`]; some partitions may still be paused then.
    pub async fn resume(&self) -> Result<(), AdminError> {
        for (_, admin) in self.all().await? {
            admin.resume().await?;
        }
        Ok(())
    }

    /// Takes away everything in line in all partitions; see [`QueueAdmin::drain`].
    ///
    /// # Errors
    /// As [`Partitions::all`]; the same call again does the rest.
    pub async fn drain(&self, delayed: bool) -> Result<(), AdminError> {
        for (_, admin) in self.all().await? {
            admin.drain(delayed).await?;
        }
        Ok(())
    }
}
