//! How many jobs are where.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{AdminError, QueueAdmin};

/// Priorities are spread this far apart in their set.
const PRIORITY_SPAN: f64 = 4_294_967_296.0;

/// How many jobs are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// In line.
    pub waiting: u64,
    /// In line while paused.
    pub paused: u64,
    /// In line by priority.
    pub prioritized: u64,
    /// Waiting for a time.
    pub delayed: u64,
    /// Being worked on.
    pub active: u64,
    /// Parents waiting for children.
    pub waiting_children: u64,
    /// Completed and kept.
    pub completed: u64,
    /// Failed and kept.
    pub failed: u64,
}

impl Counts {
    /// Jobs that have yet to run: what Node's `queue.count()` gives.
    #[must_use]
    pub fn to_do(&self) -> u64 {
        self.waiting + self.paused + self.prioritized + self.delayed + self.waiting_children
    }

    /// All jobs.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.to_do() + self.active + self.completed + self.failed
    }
}

impl QueueAdmin {
    /// How many jobs are in each state. Both lists of a paused queue are counted,
    /// whoever paused it.
    ///
    /// # Errors
    /// [`AdminError`]; [`AdminError::WrongType`] names a key that is not the queue's.
    pub async fn counts(&self) -> Result<Counts, AdminError> {
        let k = &self.keys;
        let mut pipe = redis::pipe();
        // One moment: a job on its way from one state to another is counted once.
        pipe.atomic()
            .llen(k.wait())
            .llen(k.paused())
            .llen(k.active())
            .zcard(k.prioritized())
            .zcard(k.delayed())
            .zcard(k.waiting_children())
            .zcard(k.completed())
            .zcard(k.failed())
            .lrange(k.wait(), -1, -1)
            .lrange(k.paused(), -1, -1);
        type Reply = ([u64; 8], Vec<String>, Vec<String>);
        let reply: Result<Vec<redis::Value>, _> = self.ask_all(&pipe).await;
        let mut values = match reply {
            Ok(values) => values,
            Err(error) => return Err(self.explained(error).await),
        };
        let tails = values.split_off(8);
        let (n, wait_tail, paused_tail): Reply = (
            redis::from_redis_value(redis::Value::Array(values)).map_err(redis::RedisError::from)?,
            redis::from_redis_value(tails[0].clone()).map_err(redis::RedisError::from)?,
            redis::from_redis_value(tails[1].clone()).map_err(redis::RedisError::from)?,
        );
        // BullMQ 3 and 4 kept a marker in the list; it is no job.
        let marker = |tail: &[String]| u64::from(tail.first().is_some_and(|id| id.starts_with("0:")));
        Ok(Counts {
            waiting: n[0].saturating_sub(marker(&wait_tail)),
            paused: n[1].saturating_sub(marker(&paused_tail)),
            active: n[2],
            prioritized: n[3],
            delayed: n[4],
            waiting_children: n[5],
            completed: n[6],
            failed: n[7],
        })
    }

    /// How many jobs in line have each of these priorities; 0 counts those without,
    /// in both lists.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn counts_per_priority(&self, priorities: &[u32]) -> Result<BTreeMap<u32, u64>, AdminError> {
        let mut counts = BTreeMap::new();
        for chunk in priorities.chunks(500) {
            let mut pipe = redis::pipe();
            pipe.llen(self.keys.wait()).llen(self.keys.paused());
            for priority in chunk {
                let low = f64::from(*priority) * PRIORITY_SPAN;
                pipe.zcount(self.keys.prioritized(), low, low + PRIORITY_SPAN - 1.0);
            }
            let reply: Result<Vec<u64>, _> = self.ask_all(&pipe).await;
            let reply = match reply {
                Ok(reply) => reply,
                Err(error) => return Err(self.explained(error).await),
            };
            let (plain, by_priority) = reply.split_at(2.min(reply.len()));
            for (priority, count) in chunk.iter().zip(by_priority) {
                let count = if *priority == 0 { plain.iter().sum() } else { *count };
                counts.insert(*priority, count);
            }
        }
        Ok(counts)
    }
}
