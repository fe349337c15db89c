//! The store of a recording producer: answers as the script would.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use mpanel_protocol::{
    backoff::saturating_ms,
    calls::add::{Added, NewJob},
    ids::{JobId, QueueName},
    outcome::Refusal,
    time::{Clock, TimestampMs, millis},
};
use tokio::sync::mpsc;

use super::{Expected, SeenJob, assert_enqueued};
use crate::{
    batch::{Lane, Pending},
    durability::{Durability, Replication},
};

/// This machine's time.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> TimestampMs {
        TimestampMs(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis))
    }
}

/// What a recording producer was asked to store.
#[derive(Debug, Default)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    jobs: Vec<SeenJob>,
    counters: HashMap<String, u64>,
    /// Deduplication ids by queue, and who holds them.
    held: HashMap<(String, String), JobId>,
}

impl Recorder {
    /// The jobs recorded, in order.
    #[must_use]
    pub fn jobs(&self) -> Vec<SeenJob> {
        self.state().jobs.clone()
    }

    /// The jobs recorded, taken out: ids and deduplications are free again.
    #[must_use]
    pub fn drain(&self) -> Vec<SeenJob> {
        std::mem::take(&mut *self.state()).jobs
    }

    /// Panics with a list of differences unless exactly these jobs were enqueued,
    /// in any order.
    ///
    /// # Panics
    /// When others were.
    #[track_caller]
    pub fn assert_enqueued(&self, expected: &[Expected]) {
        assert_enqueued(&self.jobs(), expected);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the callers of one queue until they are gone.
    pub(crate) async fn run(
        self: Arc<Self>,
        queue: QueueName,
        lane: Lane,
        mut inbox: mpsc::Receiver<Pending>,
    ) {
        while let Some(Pending { jobs, reply }) = inbox.recv().await {
            let added = self.take(jobs.iter().map(|job| (&queue, job)), lane.max_waiting);
            let replication = match lane.durability {
                Durability::Replicated { replicas, within } => {
                    Some(Replication { wanted: replicas, got: replicas, within, trouble: None })
                }
                Durability::Primary => None,
            };
            let _ = reply.send(Ok((added.into_iter().map(Ok).collect(), replication)));
        }
    }

    /// What becomes of each job.
    pub(crate) fn take<'j>(
        &self,
        jobs: impl Iterator<Item = (&'j QueueName, &'j NewJob)>,
        max_waiting: Option<u64>,
    ) -> Vec<Added> {
        let mut state = self.state();
        jobs.map(|(queue, job)| state.add(queue, job, max_waiting)).collect()
    }
}

impl State {
    fn add(&mut self, queue: &QueueName, job: &NewJob, max_waiting: Option<u64>) -> Added {
        let queue = queue.as_str();
        let of_queue = |seen: &&SeenJob| seen.queue == queue;
        let counter = self.counters.entry(queue.to_owned()).or_default();
        *counter += 1;
        let id = job.id.clone().unwrap_or_else(|| JobId::stored(counter.to_string()));
        if self.jobs.iter().filter(of_queue).any(|seen| seen.id == id.as_str()) {
            return Added::Duplicate(id);
        }
        let waiting = self.jobs.iter().filter(of_queue).count();
        if max_waiting.is_some_and(|most| waiting as u64 >= most) {
            return Added::Refused(Refusal::QueueFull);
        }
        if let Some(dedup) = &job.options.deduplication {
            let key = (queue.to_owned(), dedup.id.clone());
            if let Some(holder) = self.held.get(&key) {
                return Added::Deduplicated(holder.clone());
            }
            self.held.insert(key, id.clone());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
        let priority = job.options.priority.map_or(0, |p| p as u32);
        self.jobs.push(SeenJob {
            queue: queue.to_owned(),
            id: id.to_string(),
            name: job.name.clone(),
            data: serde_json::from_str(&job.data).unwrap_or_default(),
            options: job.options.clone(),
            timestamp_ms: job.timestamp.0,
            delay_ms: job.options.delay.map_or(0, saturating_ms),
            priority,
            parent: job.parent.as_ref().map(|parent| parent.key.clone()),
        });
        Added::Stored(id)
    }
}
