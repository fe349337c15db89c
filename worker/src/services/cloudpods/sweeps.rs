//! The schedule of the health sweep, for installations whose Node worker, which
//! used to make it, is gone: the same one under the same key, so that mPanel's
//! own call changes nothing. One of another interval is replaced: mPanel's call
//! would leave both.

use std::time::Duration;

use mpanel_producer::{EnqueueError, EnqueueOptions, JobTemplate, Producer};
use mpanel_protocol::{
    calls::schedule::Page,
    payload::{cloudpods::HEALTH_QUEUE, defaults_of},
    peer::Peer,
    schedule::Repeat,
};
use serde_json::json;

/// Name of the sweep's jobs.
const NAME: &str = "scheduled-health-sweep";
/// What mPanel calls the schedule.
const ID: &str = "health-sweep-schedule";

/// Sees to it that the sweep is scheduled once, at this interval. Answers
/// whether something had to be changed.
///
/// # Errors
/// [`EnqueueError`].
///
/// # Cancel safety
/// May be dropped: the next call does the rest.
pub async fn ensure(producer: &Producer, peer: Peer, every: Duration) -> Result<bool, EnqueueError> {
    let schedules = producer.schedules(HEALTH_QUEUE)?;
    let found = schedules.repeatables(Page::default()).await?;
    let every_ms = i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
    let (right, wrong): (Vec<_>, Vec<_>) = found
        .into_iter()
        .filter(|known| known.name == NAME || known.key == ID)
        .partition(|known| known.every == Some(every_ms));
    for superfluous in wrong.iter().chain(right.iter().skip(1)) {
        if superfluous.key == ID {
            schedules.remove(ID).await?;
        } else {
            schedules.remove_repeatable_by_key(&superfluous.key).await?;
        }
    }
    if !right.is_empty() {
        return Ok(!wrong.is_empty() || right.len() > 1);
    }
    let data = json!({ "tenantId": "system", "vmid": 0, "cloudPodId": "all", "triggeredBy": "schedule" });
    let options =
        defaults_of(HEALTH_QUEUE).map(|(_, options)| EnqueueOptions::from(options)).unwrap_or_default();
    let repeat = Repeat::every(every);
    if peer == Peer::V6 {
        // 6.x has no repeatables.
        let template = JobTemplate::new(NAME).data(data)?.options(options)?;
        schedules.upsert(ID, repeat, template).await?;
    } else {
        schedules.add_repeatable(NAME, &data, options.job_id(ID), &repeat).await?;
    }
    Ok(true)
}
