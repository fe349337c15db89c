//! From rows to jobs: take rows under lock, enqueue them, mark them, commit. A relay
//! that dies anywhere in between leaves the rows as they were.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mpanel_protocol::{
    calls::add::{Added, NewJob},
    ids::JobId,
    keys::QueueKeys,
    options::JobOptions,
    outcome::Refusal,
    time::TimestampMs,
};
use sqlx::{
    PgConnection, PgPool,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    OutboxError,
    rows::{self, CHANNEL, Row},
};
use crate::{
    batch::{Batcher, Reply},
    error::EnqueueError,
    producer::{Backend, Producer},
    rules::{parent_of, validate},
};

/// Failures of a row by itself before it is parked; about 17 minutes.
const TRIES: i32 = 10;
/// Longest pause after an outage of Redis or Postgres.
const OUTAGE_PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long a row waits whose queue is full.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// How often sent rows are swept, and a lost listener is tried again.
const CHORES: Duration = Duration::from_secs(60);

/// How a relay works.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// How often rows are looked for; NOTIFY only makes it sooner. Default 1 s.
    pub poll: Duration,
    /// Rows taken at once. Default 500.
    pub batch: u32,
    /// How long sent rows stay. Default a day.
    pub keep_sent: Duration,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self { poll: Duration::from_secs(1), batch: 500, keep_sent: Duration::from_secs(86_400) }
    }
}

/// A running relay. It stops when dropped, too, but then nobody waits for it.
#[derive(Debug)]
pub struct OutboxRelay {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl OutboxRelay {
    /// Starts a relay into the producer's Redis, under its prefix, with its
    /// durability: rows count as sent when so many replicas have the jobs.
    ///
    /// # Errors
    /// [`OutboxError::NoTable`], [`OutboxError::Sql`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn start(pool: PgPool, producer: Producer, options: RelayOptions) -> Result<Self, OutboxError> {
        if !rows::table_exists(&pool).await? {
            return Err(OutboxError::NoTable);
        }
        let (stop, stopped) = watch::channel(false);
        let relay = Relay { pool, producer, options, batchers: HashMap::new() };
        Ok(Self { stop, task: tokio::spawn(relay.run(stopped)) })
    }

    /// Lets the batch under way end, then stops.
    ///
    /// # Cancel safety
    /// Cancel safe; the relay stops all the same.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        // A panic in it has been printed.
        let _ = self.task.await;
    }
}

struct Relay {
    pool: PgPool,
    producer: Producer,
    options: RelayOptions,
    batchers: HashMap<String, Batcher>,
}

/// What becomes of a row.
enum Verdict {
    Sent,
    /// Nobody's fault; not counted.
    Later(Duration, String),
    /// The row's or its queue's fault.
    Failed(String),
    Park(String),
}

impl Relay {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut listener = None;
        let mut outage = Duration::ZERO;
        let mut chores: Option<Instant> = None;
        loop {
            if *stopped.borrow() || stopped.has_changed().is_err() {
                return;
            }
            if chores.is_none_or(|last| last.elapsed() >= CHORES) {
                chores = Some(Instant::now());
                self.sweep().await;
                if listener.is_none() {
                    listener = self.listen().await;
                }
            }
            let pause = match self.batch().await {
                Ok(true) => continue,
                Ok(false) => {
                    outage = Duration::ZERO;
                    self.options.poll
                }
                Err(error) => {
                    outage = (outage * 2).clamp(Duration::from_millis(100), OUTAGE_PAUSE_MAX);
                    tracing::warn!(%error, retry_in_ms = outage.as_millis(), "the outbox cannot be relayed now");
                    outage
                }
            };
            let woken = async {
                match &mut listener {
                    Some(listener) if outage.is_zero() => woken(listener).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                // cancel-safe: all only wait; a wake-up that is lost costs a poll.
                _ = stopped.changed() => return,
                () = tokio::time::sleep(pause) => {}
                lost = woken => if lost { listener = None },
            }
        }
    }

    /// Relays one batch; says whether there may be more.
    async fn batch(&mut self) -> Result<bool, OutboxError> {
        let mut tx = self.pool.begin().await?;
        let taken = rows::take(&mut tx, self.options.batch).await?;
        let count = taken.len();
        let due = taken.first().map_or(0, |row| row.due);
        let more = due >= i64::from(self.options.batch) || due.unsigned_abs() as usize > count;
        let mut by_queue: Vec<(String, Vec<(Row, NewJob)>)> = Vec::new();
        for row in taken {
            match self.job(&row) {
                Ok(job) => match by_queue.iter_mut().find(|(queue, _)| *queue == row.queue) {
                    Some((_, jobs)) => jobs.push((row, job)),
                    None => by_queue.push((row.queue.clone(), vec![(row, job)])),
                },
                Err(error) => settle(&mut tx, &row, Verdict::Park(error.to_string())).await?,
            }
        }
        let mut sent = Vec::with_capacity(count);
        for (queue, jobs) in by_queue {
            let (jobs_rows, jobs): (Vec<Row>, Vec<NewJob>) = jobs.into_iter().unzip();
            let verdicts = self.send(&queue, &jobs).await?;
            for (row, verdict) in jobs_rows.iter().zip(verdicts) {
                match verdict {
                    Verdict::Sent => sent.push(row.id),
                    other => settle(&mut tx, row, other).await?,
                }
            }
        }
        if !sent.is_empty() {
            rows::mark_sent(&mut tx, &sent).await?;
        }
        tx.commit().await?;
        if !sent.is_empty() {
            tracing::debug!(jobs = sent.len(), "relayed from the outbox");
        }
        Ok(more)
    }

    /// The job of a row; rows can be written by anyone, so all is checked again.
    fn job(&self, row: &Row) -> Result<NewJob, EnqueueError> {
        self.producer.rules.queue(&row.queue)?;
        let mut options = JobOptions::from_json(&row.options)
            .map_err(|e| EnqueueError::option("options", format!("they are no JSON object: {e}")))?;
        if let Some(at) = row.run_at_ms {
            #[expect(clippy::cast_precision_loss, reason = "options travel as JSON numbers")]
            let delay = at.saturating_sub(row.timestamp_ms).max(0) as f64;
            options.delay = Some(delay);
        }
        validate(&options)?;
        let id = match JobId::custom(&row.job_id)? {
            id if id.as_str().contains(':') => {
                return Err(EnqueueError::option("jobId", "in the outbox it must not hold `:`"));
            }
            id => id,
        };
        let parsed: Result<serde::de::IgnoredAny, _> = serde_json::from_str(&row.data);
        parsed.map_err(|e| EnqueueError::Payload(e.to_string()))?;
        let limit = self.producer.rules.size_limit;
        if row.data.len() > limit {
            return Err(EnqueueError::TooLarge { bytes: row.data.len(), limit });
        }
        Ok(NewJob {
            id: Some(id),
            name: row.name.clone(),
            data: row.data.clone(),
            parent: parent_of(&options)?,
            options,
            timestamp: TimestampMs(row.timestamp_ms),
            waits_for_children: false,
            scheduler: None,
        })
    }

    /// What becomes of each job of a queue; an error when Redis is away and all stay.
    async fn send(&mut self, queue: &str, jobs: &[NewJob]) -> Result<Vec<Verdict>, EnqueueError> {
        let (results, replication) = self.store(queue, jobs).await?;
        if let Some(replication) = replication {
            replication.judge(Vec::new())?;
        }
        let mut verdicts = Vec::with_capacity(jobs.len());
        for (job, result) in jobs.iter().zip(results) {
            let result = match result {
                // One of many may have broken the call: each by itself.
                Err(EnqueueError::Broken(_)) if jobs.len() > 1 => {
                    let (mut alone, replication) = self.store(queue, std::slice::from_ref(job)).await?;
                    if let Some(replication) = replication {
                        replication.judge(Vec::new())?;
                    }
                    alone.pop().unwrap_or_else(|| Err(EnqueueError::Unknown("no answer for the job".into())))
                }
                result => result,
            };
            verdicts.push(match result {
                Ok(Added::Stored(_) | Added::Duplicate(_) | Added::Deduplicated(_)) => Verdict::Sent,
                Ok(Added::Refused(Refusal::QueueFull)) => {
                    Verdict::Later(FULL_PAUSE, Refusal::QueueFull.to_string())
                }
                // The parent may be a row of the outbox itself.
                Ok(Added::Refused(Refusal::MissingParent)) => {
                    Verdict::Failed(Refusal::MissingParent.to_string())
                }
                Ok(Added::Refused(refusal)) => Verdict::Park(refusal.to_string()),
                Err(error @ EnqueueError::Broken(_)) => Verdict::Failed(error.to_string()),
                Err(error @ EnqueueError::Payload(_)) => Verdict::Park(error.to_string()),
                Err(outage) => return Err(outage),
            });
        }
        Ok(verdicts)
    }

    async fn store(&mut self, queue: &str, jobs: &[NewJob]) -> Result<Reply, EnqueueError> {
        let Backend::Redis(redis) = &self.producer.backend else {
            let Backend::Recorder(recorder) = &self.producer.backend else {
                return Err(EnqueueError::Closed);
            };
            let name = self.producer.rules.queue(queue)?;
            let added = recorder.take(jobs.iter().map(|job| (&name, job)), None);
            return Ok((added.into_iter().map(Ok).collect(), None));
        };
        if !self.batchers.contains_key(queue) {
            let rules = &self.producer.rules;
            let keys = QueueKeys::new(&rules.prefix, &rules.queue(queue)?);
            let batcher = Batcher::new(redis.clone(), keys, &self.producer, self.producer.lane);
            self.batchers.insert(queue.to_owned(), batcher);
        }
        match self.batchers.get_mut(queue) {
            Some(batcher) => batcher.store(jobs).await,
            None => Err(EnqueueError::Closed),
        }
    }

    async fn sweep(&self) {
        loop {
            match rows::sweep(&self.pool, self.options.keep_sent).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "sent rows of the outbox cannot be swept now");
                    return;
                }
            }
        }
    }

    /// A connection of its own: the pool may be smaller than what its owner needs.
    async fn listen(&self) -> Option<PgListener> {
        let options = (*self.pool.connect_options()).clone();
        let listening = async {
            let own = PgPoolOptions::new().max_connections(1).connect_with(options).await?;
            let mut listener = PgListener::connect_with(&own).await?;
            listener.listen(CHANNEL).await?;
            Ok::<_, sqlx::Error>(listener)
        };
        match listening.await {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(%error, "no LISTEN: the outbox is polled only");
                None
            }
        }
    }
}

/// Waits for a wake-up and takes those that came with it; `true`: the listener is lost.
async fn woken(listener: &mut PgListener) -> bool {
    if listener.recv().await.is_err() {
        return true;
    }
    while listener.next_buffered().is_some() {}
    false
}

async fn settle(tx: &mut PgConnection, row: &Row, verdict: Verdict) -> Result<(), OutboxError> {
    match verdict {
        Verdict::Sent => rows::mark_sent(tx, &[row.id]).await?,
        Verdict::Later(pause, reason) => rows::put_off(tx, row.id, row.tries, pause, &reason).await?,
        Verdict::Failed(reason) if row.tries + 1 < TRIES => {
            let pause = Duration::from_secs(1 << row.tries.clamp(0, TRIES));
            rows::put_off(tx, row.id, row.tries + 1, pause, &reason).await?;
        }
        Verdict::Failed(reason) | Verdict::Park(reason) => {
            tracing::error!(
                row = row.id,
                queue = row.queue,
                job.id = row.job_id,
                reason,
                "outbox row parked"
            );
            rows::park(tx, row.id, &reason).await?;
        }
    }
    Ok(())
}
