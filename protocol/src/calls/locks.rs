//! `extendLocks` and `rescueStalled`: who owns an active job.

use std::time::Duration;

use redis::aio::ConnectionLike;

use crate::{
    ids::{JobId, LockToken},
    keys::QueueKeys,
    peer::Peer,
    script::{EXTEND_LOCKS, RESCUE_STALLED, ScriptError},
    time::{TimestampMs, millis},
    wire::{self, MaybeArray, MaybeText},
};

/// Most locks of one renewal call.
pub const LOCKS_PER_CALL: usize = 1000;

/// How many active jobs one call of a stalled check looks at.
const STALLED_CHUNK: u32 = 150;

/// Renews locks in one round trip; gives back the jobs whose lock is lost.
///
/// # Errors
/// [`ScriptError`].
///
/// # Cancel safety
/// Cancel safe: renewing twice does no harm.
pub async fn extend_locks(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    lock: Duration,
    held: &[(JobId, LockToken)],
) -> Result<Vec<JobId>, ScriptError> {
    let argument = wire::pack(&(millis(lock), held))?;
    let reply: Vec<u8> = EXTEND_LOCKS.call(conn, keys.meta(), &argument).await?;
    let lost: Vec<MaybeText> = wire::unpack("extendLocks", &reply)?;
    Ok(lost.into_iter().filter_map(|id| id.0).map(JobId::stored).collect())
}

/// What a stalled check did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sweep {
    /// Another worker swept within the interval.
    NotOurTurn,
    /// These jobs are back in line.
    Rescued(Vec<JobId>),
}

/// Puts jobs whose lock expired back in line. A job that stalled more than
/// `stalls_allowed` times is failed by whoever fetches it next.
///
/// # Errors
/// [`ScriptError`].
///
/// # Cancel safety
/// Cancel safe: the next interval sweeps again.
pub async fn rescue_stalled(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    interval: Duration,
    stalls_allowed: u32,
) -> Result<Sweep, ScriptError> {
    let mut rescued = Vec::new();
    let (mut step, mut passed) = (0_u8, 0_u32);
    loop {
        let argument =
            wire::pack(&(now.0, peer, millis(interval), stalls_allowed, STALLED_CHUNK, step, passed))?;
        let reply: Vec<u8> = RESCUE_STALLED.call(conn, keys.meta(), &argument).await?;
        let swept: MaybeArray<(Vec<MaybeText>, u8, u32)> = wire::unpack("rescueStalled", &reply)?;
        let Some((ids, next, so_far)) = swept.0 else { return Ok(Sweep::NotOurTurn) };
        rescued.extend(ids.into_iter().filter_map(|id| id.0).map(JobId::stored));
        if next == 0 {
            return Ok(Sweep::Rescued(rescued));
        }
        (step, passed) = (next, so_far);
    }
}
