//! The jobs of a real queue that nobody has taken yet.

use mpanel_protocol::{ids::JobId, options::JobOptions};

use super::{Expected, SeenJob, assert_enqueued};
use crate::{
    error::EnqueueError,
    producer::{Backend, Producer},
};

/// The jobs of a queue that wait, are delayed, or wait for children, in that order.
/// For queues of tests: it reads them whole. Of a recording producer, what it recorded.
///
/// # Errors
/// [`EnqueueError::Connect`], [`EnqueueError::Name`], or [`EnqueueError::Refused`]
/// when Redis refuses to read.
pub async fn jobs_of(producer: &Producer, queue: &str) -> Result<Vec<SeenJob>, EnqueueError> {
    let name = producer.rules.queue(queue)?;
    let redis = match &producer.backend {
        Backend::Redis(redis) => redis,
        Backend::Recorder(recorder) => {
            return Ok(recorder.jobs().into_iter().filter(|job| job.queue == queue).collect());
        }
    };
    let refused = |e: redis::RedisError| EnqueueError::Refused(e.to_string());
    let keys = producer.keys(&name);
    let mut conn = redis.shared_for(keys.meta()).await?.conn;
    let mut pipe = redis::pipe();
    pipe.lrange(keys.wait(), 0, -1).lrange(keys.paused(), 0, -1);
    for set in [keys.prioritized(), keys.delayed(), keys.waiting_children()] {
        pipe.zrange(set, 0, -1);
    }
    let mut ids: Vec<Vec<String>> = pipe.query_async(&mut conn).await.map_err(refused)?;
    // The tail of a list is next.
    ids.iter_mut().take(2).for_each(|list| list.reverse());
    let mut jobs = Vec::new();
    for id in ids.concat() {
        let fields = ["name", "data", "opts", "timestamp", "delay", "priority", "parentKey"];
        let mut row: Vec<Option<String>> = redis::cmd("HMGET")
            .arg(keys.job(&JobId::stored(&id)))
            .arg(&fields)
            .query_async(&mut conn)
            .await
            .map_err(refused)?;
        let mut text = |i: usize| row.get_mut(i).and_then(Option::take);
        let (name, data, options) = (text(0), text(1), text(2));
        let mut number = |i: usize| text(i).and_then(|t| t.parse::<i64>().ok()).unwrap_or(0);
        let (timestamp_ms, delay_ms, priority) = (number(3), number(4), number(5));
        jobs.push(SeenJob {
            queue: queue.to_owned(),
            id,
            name: name.unwrap_or_default(),
            data: data.and_then(|d| serde_json::from_str(&d).ok()).unwrap_or_default(),
            options: options.and_then(|o| JobOptions::from_json(&o).ok()).unwrap_or_default(),
            timestamp_ms,
            delay_ms,
            priority: u32::try_from(priority).unwrap_or(0),
            parent: text(6),
        });
    }
    Ok(jobs)
}

/// Panics with a list of differences unless the queue holds exactly these jobs, in
/// any order, apart from those that a worker has taken.
///
/// # Panics
/// When it holds others, or cannot be read.
pub async fn assert_queue(producer: &Producer, queue: &str, expected: &[Expected]) {
    match jobs_of(producer, queue).await {
        Ok(jobs) => assert_enqueued(&jobs, expected),
        Err(error) => panic!("queue `{queue}` cannot be read: {error}"),
    }
}
