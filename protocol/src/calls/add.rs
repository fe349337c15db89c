//! `addJobs`: store jobs and put them in line.

use redis::aio::ConnectionLike;
use serde::Serialize;

use crate::{
    ids::JobId,
    keys::QueueKeys,
    options::JobOptions,
    outcome::Refusal,
    peer::Peer,
    script::{ADD_JOBS, ScriptError},
    time::TimestampMs,
    wire::{self, MaybeText, OrFalse},
};

/// Most jobs a caller should put into one call, so that the script stays below
/// 5 ms with small jobs. More jobs go as several calls, sent together.
pub const JOBS_PER_CALL: usize = 128;

/// Most payload bytes in one call, unless one job alone has more: Redis takes no
/// argument of half a gigabyte, and one long call holds everybody up.
const BYTES_PER_CALL: usize = 4 * 1024 * 1024;

/// How many of these jobs, from the first on, go into one call.
pub fn fit_in_call<'a>(jobs: impl Iterator<Item = &'a NewJob>) -> usize {
    let mut bytes = 0;
    let fits = jobs.take(JOBS_PER_CALL).take_while(|job| {
        bytes += job.data.len();
        bytes <= BYTES_PER_CALL
    });
    fits.count().max(1)
}

/// One job to store. The caller has validated id, priority and options.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// The id the producer chose; else the queue's counter gives one.
    pub id: Option<JobId>,
    /// The name: which handler runs it.
    pub name: String,
    /// The payload, JSON text.
    pub data: String,
    /// The options, stored as they are.
    pub options: JobOptions,
    /// Creation time; [`JobOptions::timestamp`] when the producer set one.
    pub timestamp: TimestampMs,
    /// The parent, for a child of a flow.
    pub parent: Option<ParentRef>,
    /// The job waits for children (a parent of a flow).
    pub waits_for_children: bool,
    /// The scheduler that makes it.
    pub scheduler: Option<String>,
}

/// The parent of a child job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentRef {
    /// Full key of the parent's hash.
    pub key: String,
    /// What is stored in the child's `parent` field: JSON with `id`, `queueKey`
    /// and the failure policy.
    pub json: String,
}

/// What became of one job of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// Stored and in line under this id.
    Stored(JobId),
    /// A job with this id exists; nothing was stored.
    Duplicate(JobId),
    /// A job with the same deduplication key stands for it; nothing was stored.
    Deduplicated(JobId),
    /// Refused.
    Refused(Refusal),
}

/// Id, ttl ms, extend, replace, keep last, reschedule.
type DedupRow<'a> = (&'a str, OrFalse<i64>, bool, bool, bool, bool);

#[derive(Serialize)]
struct Row<'a>(
    OrFalse<&'a str>,
    &'a str,
    &'a str,
    String,
    i64,
    wire::Number,
    wire::Number,
    bool,
    OrFalse<(&'a str, &'a str, bool)>,
    bool,
    OrFalse<DedupRow<'a>>,
    OrFalse<&'a str>,
);

fn row(job: &NewJob, settle_later: bool) -> Result<Row<'_>, ScriptError> {
    let opts = job.options.to_stored().map_err(|e| ScriptError::Encoding(e.to_string()))?;
    let dedup = job.options.deduplication.as_ref().filter(|d| !d.id.is_empty()).map(|d| {
        (
            d.id.as_str(),
            OrFalse(d.ttl.map(crate::backoff::saturating_ms)),
            d.extend.unwrap_or(false),
            d.replace.unwrap_or(false),
            d.keep_last_if_active.unwrap_or(false),
            d.reschedule.unwrap_or(false),
        )
    });
    Ok(Row(
        OrFalse(job.id.as_ref().map(JobId::as_str)),
        &job.name,
        &job.data,
        opts,
        job.timestamp.0,
        // As given: Node stores fractions and signs, too.
        wire::Number(job.options.delay.unwrap_or(0.0)),
        wire::Number(job.options.priority.unwrap_or(0.0)),
        job.options.is_lifo(),
        OrFalse(job.parent.as_ref().map(|p| (p.key.as_str(), p.json.as_str(), settle_later))),
        job.waits_for_children,
        OrFalse(dedup),
        OrFalse(job.scheduler.as_deref()),
    ))
}

/// Stores `jobs` in order, in one round trip and one atomic step; at most
/// [`JOBS_PER_CALL`]. With `max_waiting` a job is refused
/// ([`Refusal::QueueFull`]) while so many are waiting or delayed.
///
/// # Errors
/// [`ScriptError`]; refusals of single jobs are in the result.
///
/// # Cancel safety
/// Not cancel safe: a dropped call may have stored the jobs.
pub async fn add_jobs(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    jobs: &[NewJob],
    max_waiting: Option<u64>,
) -> Result<Vec<Added>, ScriptError> {
    let argument = argument(peer, now, jobs.iter(), false, max_waiting)?;
    let reply: Vec<u8> = ADD_JOBS.call(conn, keys.meta(), &argument).await?;
    decode(&reply, jobs.len())
}

/// The argument of `addJobs`. With `settle_later` a parent whose children are all
/// done is not put in line yet.
pub(crate) fn argument<'a>(
    peer: Peer,
    now: TimestampMs,
    jobs: impl Iterator<Item = &'a NewJob>,
    settle_later: bool,
    max_waiting: Option<u64>,
) -> Result<Vec<u8>, ScriptError> {
    let rows = jobs.map(|job| row(job, settle_later)).collect::<Result<Vec<_>, _>>()?;
    wire::pack(&(now.0, peer, rows, OrFalse(max_waiting)))
}

/// The reply of `addJobs` to `count` jobs.
pub(crate) fn decode(reply: &[u8], count: usize) -> Result<Vec<Added>, ScriptError> {
    let replies: Vec<(MaybeText, i64)> = wire::unpack("addJobs", reply)?;
    if replies.len() != count {
        return Err(ScriptError::Reply {
            script: "addJobs",
            detail: format!("{} entries for {count} jobs", replies.len()),
        });
    }
    Ok(replies
        .into_iter()
        .map(|(id, how)| {
            let id = JobId::stored(id.0.unwrap_or_default());
            match Refusal::from_code(how) {
                Some(refusal) => Added::Refused(refusal),
                None if how == 0 => Added::Stored(id),
                None if how == 1 => Added::Duplicate(id),
                None => Added::Deduplicated(id),
            }
        })
        .collect())
}
