//! `fetchJobs`: start jobs.

use std::time::Duration;

use redis::aio::ConnectionLike;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{JobId, LockToken},
    job::FetchedJob,
    keys::QueueKeys,
    peer::Peer,
    script::{FETCH_JOBS, ScriptError},
    time::{TimestampMs, millis},
    wire::{self, MaybeText, OrFalse},
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
pub(crate) struct SpecRow<'a>(u32, &'a LockToken, i64, OrFalse<u32>, OrFalse<i64>, OrFalse<&'a str>);

impl<'a> FetchSpec<'a> {
    pub(crate) fn row(&self) -> SpecRow<'a> {
        SpecRow(
            self.slots.min(SLOTS_PER_CALL),
            self.token,
            millis(self.lock),
            OrFalse(self.limiter.map(|l| l.max)),
            OrFalse(self.limiter.map(|l| millis(l.window))),
            OrFalse(self.worker_name),
        )
    }
}

#[derive(Deserialize)]
pub(crate) struct FetchedReply(Vec<Vec<MaybeText>>, f64, f64, Vec<MaybeText>);

impl FetchedReply {
    pub(crate) fn decode(self, script: &'static str) -> Result<Fetched, ScriptError> {
        let jobs = self
            .0
            .into_iter()
            .map(|row| {
                FetchedJob::from_row(row).ok_or_else(|| ScriptError::Reply {
                    script,
                    detail: "a job row has the wrong length".to_owned(),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        // The fraction is the place among jobs of one millisecond: due in that millisecond.
        #[expect(clippy::cast_possible_truncation, reason = "epoch ms, saturates")]
        let due = self.1.floor() as i64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a ttl in ms, saturates")]
        let ttl_ms = self.2 as u64;
        Ok(Fetched {
            jobs,
            next_due: (due > 0).then_some(TimestampMs(due)),
            limited_for: (ttl_ms > 0).then(|| Duration::from_millis(ttl_ms)),
            dropped: self.3.into_iter().filter_map(|id| id.0).map(JobId::stored).collect(),
        })
    }
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
    let argument = wire::pack(&(now.0, peer, row.0, row.1, row.2, &row.3, &row.4, &row.5))?;
    let reply: Vec<u8> = FETCH_JOBS.call(conn, keys.meta(), &argument).await?;
    wire::unpack::<FetchedReply>("fetchJobs", &reply)?.decode("fetchJobs")
}
