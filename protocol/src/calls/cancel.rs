//! `cancelJob` and `findCancelled`: a job that is to end, wherever it is.

use redis::aio::ConnectionLike;

use crate::{
    ids::JobId,
    keys::QueueKeys,
    outcome::{JobOpError, check},
    peer::Peer,
    script::{CANCEL_JOB, FIND_CANCELLED, ScriptError},
    time::TimestampMs,
    wire,
};

/// How every reason of a cancelled job begins; a name follows.
pub const CANCELLED_BY: &str = "cancelled by ";

/// Most ids of one look.
pub const LOOK_MAX: usize = 1000;

/// Where a job was when it was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelling {
    /// It did not run: the next worker that reaches it fails it.
    InLine,
    /// It was running: a worker of ours ends it within a second. One of Node's is
    /// not disturbed, and the job fails if it is ever to run again.
    Running,
}

/// Cancels a job that is not finished; `reason` begins with [`CANCELLED_BY`].
///
/// # Errors
/// [`JobOpError`]: the job is gone or finished, or the call failed.
pub async fn cancel_job(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    id: &JobId,
    reason: &str,
) -> Result<Cancelling, JobOpError> {
    let argument = wire::pack(&(now.0, peer, id, reason))?;
    let running = check(id, CANCEL_JOB.call(conn, keys.meta(), &argument).await?)?;
    Ok(if running == 1 { Cancelling::Running } else { Cancelling::InLine })
}

/// Of running jobs, those that were cancelled: their place in `ids`, and the reason.
///
/// # Errors
/// [`ScriptError`].
pub async fn find_cancelled(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    ids: &[&JobId],
) -> Result<Vec<(usize, String)>, ScriptError> {
    let argument = wire::pack(&(CANCELLED_BY, ids))?;
    let reply: Vec<u8> = FIND_CANCELLED.call(conn, keys.meta(), &argument).await?;
    wire::unpack("findCancelled", &reply)
}
