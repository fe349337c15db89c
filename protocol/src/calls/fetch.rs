//! `fetchJobs`: start jobs.

use std::time::Duration;

use redis::{Value, aio::ConnectionLike};
use serde::Serialize;

use crate::{
    ids::{JobId, LockToken},
    job::FetchedJob,
    keys::QueueKeys,
    peer::Peer,
    script::{FETCH_JOBS, ScriptError},
    time::{TimestampMs, millis},
    wire::{self, OrFalse, list, text},
};

/// Most slots of one call, so that the script stays below 5 ms with small jobs.
pub const SLOTS_PER_CALL: u32 = 64;

/// How many jobs to start, and as whom.
#[derive(Debug, Clone)]
pub struct FetchSpec<'a> {
    /// At most so many; 0 only promotes what is due and restores the marker.
    pub slots: u32,
    /// The lock token of every job this call starts. New for each call, so that
    /// it is new for each attempt.
    pub token: &'a LockToken,
    /// How long the locks live.
    pub lock: Duration,
    /// The worker's rate limit.
    pub limiter: Option<RateLimit>,
    /// The worker's name, stored with the job (`pb`).
    pub worker_name: Option<&'a str>,
}

/// At most `max` starts in `window`, over all workers of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Starts.
    pub max: u32,
    /// Time.
    pub window: Duration,
}

/// What a fetch found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fetched {
    /// Started jobs, in order.
    pub jobs: Vec<FetchedJob>,
    /// When the next delayed job is due; only when slots were left over.
    pub next_due: Option<TimestampMs>,
    /// The queue's rate limit is used up for this long.
    pub limited_for: Option<Duration>,
    /// Ids that were in line without a job hash; they were dropped.
    pub dropped: Vec<JobId>,
}

#[derive(Serialize)]
pub(crate) struct SpecRow<'a>(u32, &'a LockToken, String, OrFalse<u32>, OrFalse<i64>, OrFalse<&'a str>);

impl<'a> FetchSpec<'a> {
    pub(crate) fn row(&self) -> SpecRow<'a> {
        SpecRow(
            self.slots.min(SLOTS_PER_CALL),
            self.token,
            millis(self.lock).to_string(),
            OrFalse(self.limiter.map(|l| l.max)),
            OrFalse(self.limiter.map(|l| millis(l.window))),
            OrFalse(self.worker_name),
        )
    }
}

/// Reads what `includes/take.lua` gives back.
pub(crate) fn fetched(script: &'static str, reply: Vec<Value>) -> Result<Fetched, ScriptError> {
    let unknown = |detail: &str| ScriptError::Reply { script, detail: detail.to_owned() };
    let Ok([Value::Array(jobs), Value::Int(_), Value::Int(due), Value::Int(ttl_ms), Value::Array(dropped)]) =
        <[Value; 5]>::try_from(reply)
    else {
        return Err(unknown("a fetch answers otherwise"));
    };
    let mut values = jobs.into_iter();
    let jobs: Vec<_> = std::iter::from_fn(|| FetchedJob::from_values(&mut values)).collect();
    Ok(Fetched {
        jobs,
        next_due: (due > 0).then_some(TimestampMs(due)),
        limited_for: u64::try_from(ttl_ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis),
        dropped: dropped.into_iter().filter_map(text).map(JobId::stored).collect(),
    })
}

/// Promotes what is due and starts up to [`FetchSpec::slots`] jobs, in one round trip.
///
/// # Errors
/// [`ScriptError`].
///
/// # Cancel safety
/// Not cancel safe: a dropped call may have started jobs, which then stall until
/// their locks expire.
pub async fn fetch_jobs(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    spec: &FetchSpec<'_>,
) -> Result<Fetched, ScriptError> {
    let row = spec.row();
    let argument =
        wire::pack(&(now.0, now.0.to_string(), peer, row.0, row.1, &row.2, &row.3, &row.4, &row.5))?;
    let reply: Value = FETCH_JOBS.call(conn, keys.meta(), &argument).await?;
    fetched("fetchJobs", list("fetchJobs", Some(reply))?)
}
