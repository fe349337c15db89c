//! The job schedulers that make the ticks, one a collector.
//!
//! Any number of workers may keep them: one that is right is left alone, so that
//! a restart makes no tick of its own; one that has no next run any more (its
//! queue was emptied) is made anew.

use std::time::Duration;

use mpanel_producer::{EnqueueError, JobTemplate, Producer, Repeat};
use serde_json::{Map, Value, json};

use super::{QUEUE, clock::Collector};

/// A scheduler whose next run is overdue by so many intervals has lost it: a
/// worker that is there takes a tick at once.
const LOST_AFTER: i64 = 3;

/// Sees to it that these collectors have a scheduler at this interval. Others are
/// left alone: they may be another worker's. Answers how many were made or changed.
///
/// # Errors
/// [`EnqueueError`]; the same call can be made again.
///
/// # Cancel safety
/// May be dropped: the next call does the rest.
pub async fn ensure(
    producer: &Producer,
    wanted: &[Collector],
    interval: Duration,
    now_ms: i64,
) -> Result<u32, EnqueueError> {
    let schedules = producer.schedules(QUEUE)?;
    let every_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX);
    let mut changed = 0;
    for collector in wanted {
        let id = collector.as_str();
        let found = schedules.get(id).await?;
        let right = found.is_some_and(|found| {
            let next = found.next.map_or(i64::MIN, |next| next.0);
            found.every == Some(every_ms) && next > now_ms.saturating_sub(every_ms.saturating_mul(LOST_AFTER))
        });
        if !right {
            // A scheduler that is only changed would keep its old slot.
            schedules.remove(id).await?;
            let template = JobTemplate::new(id).options_json(options());
            schedules.upsert(id, Repeat::every(interval), template).await?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// A tick is tried again within seconds or not at all; few are kept to be looked at.
/// What can be put right ends no attempt: these are for what nobody foresaw.
fn options() -> Map<String, Value> {
    let options = json!({
        "attempts": 3,
        "backoff": { "type": "fixed", "delay": 1000 },
        "removeOnComplete": { "count": 20 },
        "removeOnFail": { "count": 100, "age": 604_800 },
    });
    match options {
        Value::Object(options) => options,
        _ => Map::new(),
    }
}
