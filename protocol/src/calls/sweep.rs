//! Taking jobs away in bulk: `drainQueue`, `cleanJobs`, `obliterateQueue`. Each
//! goes in chunks, so that no call holds Redis for long.

use redis::aio::ConnectionLike;

use crate::{
    ids::JobId,
    keys::QueueKeys,
    peer::Peer,
    script::{CLEAN_JOBS, DRAIN_QUEUE, OBLITERATE_QUEUE, ScriptError},
    time::TimestampMs,
    wire::{self, MaybeText, OrFalse},
};

/// How many jobs one call takes away.
const CHUNK: u32 = 200;
/// How many jobs one call of `cleanJobs` looks at.
const WINDOW: u32 = 500;

/// Takes away everything in line, with `delayed` also what waits for a time.
/// Jobs that a schedule needs stay.
///
/// # Errors
/// [`ScriptError`]; what was taken away before stays away.
pub async fn drain_queue(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    delayed: bool,
) -> Result<(), ScriptError> {
    let mut kept: i64 = 0;
    loop {
        let argument = wire::pack(&(now.0, peer, delayed, CHUNK, kept))?;
        let reply: Vec<u8> = DRAIN_QUEUE.call(conn, keys.meta(), &argument).await?;
        let (done, so_far): (bool, i64) = wire::unpack("drainQueue", &reply)?;
        if done {
            return Ok(());
        }
        kept = so_far;
    }
}

/// Which jobs are cleaned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanable {
    /// Completed jobs, by their end.
    Completed,
    /// Failed jobs, by their end.
    Failed,
    /// In line.
    Waiting,
    /// In line while paused.
    Paused,
    /// In line by priority.
    Prioritized,
    /// Waiting for a time; by creation.
    Delayed,
    /// Active jobs without a lock.
    Active,
}

impl Cleanable {
    /// The state behind a word of BullMQ's `clean`; none for other words.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            "wait" | "waiting" => Self::Waiting,
            "paused" => Self::Paused,
            "prioritized" => Self::Prioritized,
            "delayed" => Self::Delayed,
            "active" => Self::Active,
            _ => return None,
        })
    }

    fn key(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Waiting => "wait",
            Self::Paused => "paused",
            Self::Prioritized => "prioritized",
            Self::Delayed => "delayed",
            Self::Active => "active",
        }
    }
}

/// Takes away jobs of one state that are not newer than `newest`, at most
/// `limit` (0: all); gives back their ids.
///
/// # Errors
/// [`ScriptError`]; what was taken away before stays away.
pub async fn clean_jobs(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    state: Cleanable,
    newest: TimestampMs,
    limit: u32,
) -> Result<Vec<JobId>, ScriptError> {
    let mut kept: i64 = 0;
    let mut removed: Vec<JobId> = Vec::new();
    loop {
        let before = u32::try_from(removed.len()).unwrap_or(u32::MAX);
        let most = if limit == 0 { CHUNK } else { CHUNK.min(limit.saturating_sub(before)) };
        let limit = OrFalse((limit > 0).then_some(limit));
        let argument = wire::pack(&(now.0, peer, state.key(), newest.0, most, WINDOW, kept, before, limit))?;
        let reply: Vec<u8> = CLEAN_JOBS.call(conn, keys.meta(), &argument).await?;
        let (done, so_far, ids): (bool, i64, Vec<MaybeText>) = wire::unpack("cleanJobs", &reply)?;
        removed.extend(ids.into_iter().filter_map(|id| id.0).map(JobId::stored));
        if done {
            return Ok(removed);
        }
        kept = so_far;
    }
}

/// What became of [`obliterate_queue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obliterated {
    /// The queue is gone.
    Gone,
    /// It is not paused.
    NotPaused,
    /// Jobs are active, and `force` was not given.
    HasActive,
}

/// Deletes a paused queue, with `force` also when jobs are active.
///
/// # Errors
/// [`ScriptError`]; calling again goes on where it stopped.
pub async fn obliterate_queue(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    force: bool,
) -> Result<Obliterated, ScriptError> {
    let argument = wire::pack(&(now.0, peer, force, CHUNK))?;
    loop {
        match OBLITERATE_QUEUE.call::<i64>(conn, keys.meta(), &argument).await? {
            1 => {}
            -1 => return Ok(Obliterated::NotPaused),
            -2 => return Ok(Obliterated::HasActive),
            _ => return Ok(Obliterated::Gone),
        }
    }
}
