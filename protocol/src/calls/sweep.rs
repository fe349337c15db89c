//! Taking jobs away in bulk: `drainQueue`, `cleanJobs`, `obliterateQueue`, `removeOrphans`. Each
//! goes in chunks, so that no call holds Redis for long.

use redis::aio::ConnectionLike;

use crate::{
    ids::JobId,
    keys::QueueKeys,
    peer::Peer,
    script::{CLEAN_JOBS, DRAIN_QUEUE, OBLITERATE_QUEUE, REMOVE_ORPHANS, ScriptError},
    time::TimestampMs,
    wire::{self, MaybeText, OrFalse},
};

/// How many jobs one call takes away.
pub const CHUNK: u32 = 140;
/// How many jobs one call of `cleanJobs` looks at.
const WINDOW: u32 = 500;

/// Takes away everything in line; where it stands between two calls.
#[derive(Debug, Clone)]
pub struct Drain {
    /// Also what waits for a time.
    delayed: bool,
    /// Jobs of `wait` and `paused` still to be looked at; unknown before the first call.
    listed: Option<(i64, i64)>,
    /// Jobs that stay in `delayed` and `prioritized`.
    kept: (i64, i64),
}

impl Drain {
    /// Nothing done yet; with `delayed` also what waits for a time goes.
    #[must_use]
    pub fn new(delayed: bool) -> Self {
        Self { delayed, listed: None, kept: (0, 0) }
    }

    /// One call: how many jobs it took away, and whether all is done. Jobs that a
    /// schedule needs stay.
    ///
    /// # Errors
    /// [`ScriptError`]; what was taken away before stays away.
    pub async fn step(
        &mut self,
        conn: &mut impl ConnectionLike,
        keys: &QueueKeys,
        peer: Peer,
        now: TimestampMs,
    ) -> Result<(u64, bool), ScriptError> {
        let (wait, paused) = (OrFalse(self.listed.map(|l| l.0)), OrFalse(self.listed.map(|l| l.1)));
        let argument =
            wire::pack(&(now.0, peer, self.delayed, CHUNK, wait, paused, self.kept.0, self.kept.1))?;
        let reply: Vec<u8> = DRAIN_QUEUE.call(conn, keys.meta(), &argument).await?;
        type Reply = (bool, u64, i64, i64, i64, i64);
        let (done, removed, wait, paused, delayed, prioritized): Reply = wire::unpack("drainQueue", &reply)?;
        self.listed = Some((wait, paused));
        self.kept = (delayed, prioritized);
        Ok((removed, done))
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

/// Takes away jobs of one state that are not newer than a time; where it stands
/// between two calls.
#[derive(Debug, Clone)]
pub struct Clean {
    state: Cleanable,
    newest: TimestampMs,
    limit: u32,
    kept: i64,
    removed: u32,
}

impl Clean {
    /// Nothing done yet; at most `limit` jobs go (0: all).
    #[must_use]
    pub fn new(state: Cleanable, newest: TimestampMs, limit: u32) -> Self {
        Self { state, newest, limit, kept: 0, removed: 0 }
    }

    /// One call: the jobs it took away, and whether all is done.
    ///
    /// # Errors
    /// [`ScriptError`]; what was taken away before stays away.
    pub async fn step(
        &mut self,
        conn: &mut impl ConnectionLike,
        keys: &QueueKeys,
        peer: Peer,
        now: TimestampMs,
    ) -> Result<(Vec<JobId>, bool), ScriptError> {
        let Self { state, newest, limit, kept, removed } = *self;
        let most = if limit == 0 { CHUNK } else { CHUNK.min(limit.saturating_sub(removed)) };
        let limit = OrFalse((limit > 0).then_some(limit));
        let argument = wire::pack(&(now.0, peer, state.key(), newest.0, most, WINDOW, kept, removed, limit))?;
        let reply: Vec<u8> = CLEAN_JOBS.call(conn, keys.meta(), &argument).await?;
        let (done, kept, ids): (bool, i64, Vec<MaybeText>) = wire::unpack("cleanJobs", &reply)?;
        let ids: Vec<JobId> = ids.into_iter().filter_map(|id| id.0).map(JobId::stored).collect();
        self.kept = kept;
        self.removed = self.removed.saturating_add(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        Ok((ids, done))
    }
}

/// What became of the queue's deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obliterated {
    /// The queue is gone.
    Gone,
    /// It is not paused.
    NotPaused,
    /// Jobs are active, and `force` was not given.
    HasActive,
}

/// Deletes a chunk of a paused queue, with `force` also active jobs; `None` while
/// there is more.
///
/// # Errors
/// [`ScriptError`]; calling again goes on where it stopped.
pub async fn obliterate_step(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    force: bool,
) -> Result<Option<Obliterated>, ScriptError> {
    let argument = wire::pack(&(now.0, peer, force, CHUNK))?;
    Ok(match OBLITERATE_QUEUE.call::<i64>(conn, keys.meta(), &argument).await? {
        1 => None,
        -1 => Some(Obliterated::NotPaused),
        -2 => Some(Obliterated::HasActive),
        _ => Some(Obliterated::Gone),
    })
}

/// Deletes those of the jobs that no list or set names and no worker holds; gives
/// back how many.
///
/// # Errors
/// [`ScriptError`].
pub async fn remove_orphans(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    ids: &[JobId],
) -> Result<u64, ScriptError> {
    REMOVE_ORPHANS.call(conn, keys.meta(), &wire::pack(&(ids,))?).await
}
