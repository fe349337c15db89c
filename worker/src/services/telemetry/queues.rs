//! The collector of BullMQ's queues: how much waits and for how long, what ends.
//!
//! Finished jobs are removed by their own rules, so the size of the completed set
//! says nothing. What ended is counted by the times at which kept jobs ended, or
//! exactly, by the counter of workers that have metrics on; each span is counted
//! once, wherever the worker that counts it runs.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use mpanel_connect::Redis;
use mpanel_protocol::ids::Prefix;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::time::Instant;

use super::{
    Collected, NewBaseline,
    sample::{Check, Reading, Samples},
};
use crate::adapters::{
    db::{queue_samples::QueueRow, slow_queries},
    redis_stats::{self, QueueFigures},
};

/// How long it is believed which queues there are, by the round trips that finding
/// them takes; with fewer they are looked for each time.
const KNOWN: [(u32, Duration); 2] = [(21, Duration::from_secs(300)), (2, Duration::from_secs(60))];
/// A job may be written as ended this long after its time.
const SETTLED_MS: i64 = 2000;
const BASELINE: &str = "queues";

/// Which queues there are, and since when that is known.
#[derive(Debug, Default)]
pub(super) struct Found(Mutex<Option<Known>>);

#[derive(Debug, Clone)]
struct Known {
    names: Vec<String>,
    until: Instant,
}

/// What was counted until when.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Counted {
    until_ms: i64,
    queues: BTreeMap<String, Ended>,
}

/// What has ended in a queue since it was first looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ended {
    completed: u64,
    failed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metric: Option<u64>,
}

impl Found {
    async fn queues(
        &self,
        redis: &Redis,
        prefix: &Prefix,
    ) -> Result<Vec<String>, redis_stats::RedisStatsError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(Known { names, until }) = known
            && Instant::now() < until
        {
            return Ok(names);
        }
        let (names, trips) = redis_stats::find_queues(redis, prefix).await?;
        let (_, believed) = KNOWN.into_iter().find(|(from, _)| trips >= *from).unwrap_or_default();
        let known = Known { names: names.clone(), until: Instant::now() + believed };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(names)
    }
}

/// Looks at all queues. `named` are those of the configuration, or none.
pub(super) async fn collect(
    db: &PgPool,
    redis: &Redis,
    prefix: &Prefix,
    found: &Found,
    (named, too_old): (&[String], Duration),
    now_ms: i64,
) -> Collected {
    let looked = async {
        let names = if named.is_empty() { found.queues(redis, prefix).await? } else { named.to_vec() };
        let before = slow_queries::baseline(db, BASELINE).await.ok().flatten();
        let from = before.as_ref().map(|before| before.tick_at);
        let before = before.and_then(|baseline| serde_json::from_str::<Counted>(&baseline.data).ok());
        let until_ms = now_ms - SETTLED_MS;
        // Without a span before there is nothing to count yet.
        let since_ms = before.as_ref().map_or(until_ms, |before| before.until_ms.min(until_ms));
        let looked = redis_stats::queues(redis, prefix, &names, (since_ms, until_ms)).await?;
        Ok::<_, redis_stats::RedisStatsError>((before.unwrap_or_default(), from, until_ms, looked))
    };
    match looked.await {
        Ok((before, from, until_ms, (figures, server_ms))) => {
            let mut counted = Counted { until_ms: until_ms.max(before.until_ms), queues: BTreeMap::new() };
            let mut collected = Collected::default();
            for queue in &figures {
                let ended = ended(before.queues.get(&queue.queue).copied(), queue);
                counted.queues.insert(queue.queue.clone(), ended);
                collected.queues.push(row(queue, ended));
                figures_of(&mut collected.samples, queue, ended, server_ms);
                collected.checks.extend(check(queue, server_ms, too_old));
            }
            collected.baseline =
                serde_json::to_string(&counted).ok().map(|data| NewBaseline { name: BASELINE, data, from });
            collected
        }
        Err(error) => Collected { problem: Some(error.to_string()), ..Collected::default() },
    }
}

/// What has ended, with the span that was just counted.
fn ended(before: Option<Ended>, queue: &QueueFigures) -> Ended {
    let Some(before) = before else { return Ended { metric: queue.completed_metric, ..Ended::default() } };
    let completed = match (before.metric, queue.completed_metric) {
        // It is exact; smaller than before it was begun anew.
        (Some(then), Some(now)) => now.checked_sub(then).unwrap_or(now),
        _ => queue.completed_since,
    };
    Ended {
        completed: before.completed.saturating_add(completed),
        failed: before.failed.saturating_add(queue.failed_since),
        metric: queue.completed_metric,
    }
}

fn row(queue: &QueueFigures, ended: Ended) -> QueueRow {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    QueueRow {
        queue: queue.queue.clone(),
        waiting: number(queue.waiting + queue.prioritized + queue.delayed),
        active: number(queue.active),
        failed: number(queue.failed),
        completed_total: number(ended.completed),
    }
}

/// How long ago the job was added that is taken next, seconds.
fn oldest_s(queue: &QueueFigures, server_ms: i64) -> Option<f64> {
    queue.oldest_waiting_ms.map(|added| seconds(server_ms.saturating_sub(added).max(0)))
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn figures_of(samples: &mut Samples, queue: &QueueFigures, ended: Ended, server_ms: i64) {
    let name = &queue.queue;
    for (metric, count) in [
        ("queue_waiting", queue.waiting),
        ("queue_prioritized", queue.prioritized),
        ("queue_delayed", queue.delayed),
        ("queue_active", queue.active),
        ("queue_waiting_children", queue.waiting_children),
        ("queue_completed_kept", queue.completed),
        ("queue_failed_kept", queue.failed),
        ("queue_completed_total", ended.completed),
        ("queue_failed_total", ended.failed),
    ] {
        samples.add(metric, name, count as f64);
    }
    // An empty queue has nothing that waits: 0, so that an alert ends.
    samples.add("queue_oldest_waiting_seconds", name, oldest_s(queue, server_ms).unwrap_or(0.0));
    let overdue = queue.next_delayed_ms.map_or(0, |due| server_ms.saturating_sub(due).max(0));
    samples.add("queue_delayed_overdue_seconds", name, seconds(overdue));
}

/// A queue as a service, where it is asked for.
fn check(queue: &QueueFigures, server_ms: i64, too_old: Duration) -> Option<Check> {
    if too_old.is_zero() {
        return None;
    }
    let age = oldest_s(queue, server_ms).unwrap_or(0.0);
    let reading = if age > too_old.as_secs_f64() {
        let why = format!("a job has waited for {age:.0} s; are there workers, and are they alive?");
        Reading::degraded(None, why)
    } else {
        Reading::up(None)
    };
    Some(Check::of(format!("queue-{}", queue.queue), reading))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_counted_by_times_or_exactly_by_the_counter() {
        let queue = |completed_since, completed_metric| QueueFigures {
            completed_since,
            completed_metric,
            ..QueueFigures::default()
        };
        let count = |before: Option<(u64, Option<u64>)>, now: &QueueFigures| {
            let before = before.map(|(completed, metric)| Ended { completed, failed: 0, metric });
            ended(before, now).completed
        };
        // The first look only begins.
        assert_eq!(count(None, &queue(9, Some(100))), 0);
        assert_eq!(count(Some((5, None)), &queue(3, None)), 8);
        assert_eq!(count(Some((5, Some(100))), &queue(3, Some(110))), 15);
        assert_eq!(count(Some((5, Some(100))), &queue(3, Some(4))), 9);
        assert_eq!(count(Some((5, None)), &queue(3, Some(110))), 8);
    }

    #[test]
    fn a_queue_is_degraded_by_its_oldest_job() {
        let queue = QueueFigures { oldest_waiting_ms: Some(1_000), ..QueueFigures::default() };
        let status = |now, limit| {
            check(&queue, now, Duration::from_secs(limit)).map(|check| check.readings[0].status.as_str())
        };
        assert_eq!(status(61_001, 60), Some("degraded"));
        assert_eq!(status(61_000, 60), Some("up"));
        assert_eq!(status(61_001, 0), None);
    }
}
