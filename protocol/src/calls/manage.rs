//! Operations on single jobs and on the queue as a whole, as operators and
//! handlers need them.

use std::collections::HashSet;

use redis::aio::ConnectionLike;

use crate::{
    ids::JobId,
    keys::QueueKeys,
    outcome::{JobOpError, check},
    peer::Peer,
    script::{
        CHANGE_DELAY, CHANGE_PRIORITY, FIND_LOCK, FREE_DEDUP, JOB_STATE, PAUSE_QUEUE, PROMOTE_JOB,
        REMOVE_JOB, REPROCESS_JOB, REQUEUE_JOBS, RESUME_QUEUE, ScriptError, UPDATE_JOB,
    },
    state::JobState,
    time::TimestampMs,
    wire::{self, MaybeText, OrFalse},
};

/// How many jobs one call of a chunked operation moves.
pub const CHUNK: u32 = 160;

/// Flows of up to so many jobs are removed in one call.
const TREE: u32 = 120;

/// What to change of a job while it exists.
#[derive(Debug, Clone, Copy)]
pub enum Update<'a> {
    /// Progress, JSON text; announced as event `progress`.
    Progress(&'a str),
    /// A log line; `keep` newest lines stay.
    Log {
        /// The line.
        line: &'a str,
        /// Most lines kept.
        keep: Option<u32>,
    },
    /// The payload, JSON text.
    Data(&'a str),
}

/// Changes progress, log or data of a job; gives back the number of log lines
/// after [`Update::Log`].
///
/// # Errors
/// [`JobOpError`]: the job is gone, or the call failed.
pub async fn update_job(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    id: &JobId,
    update: Update<'_>,
) -> Result<i64, JobOpError> {
    let (what, text, keep) = match update {
        Update::Progress(json) => ("progress", json, None),
        Update::Log { line, keep } => ("log", line, keep),
        Update::Data(json) => ("data", json, None),
    };
    let argument = wire::pack(&(id, what, text, OrFalse(keep)))?;
    check(id, UPDATE_JOB.call(conn, keys.meta(), &argument).await?)
}

/// From which final state a job is run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalState {
    /// Completed jobs.
    Completed,
    /// Failed jobs.
    Failed,
}

impl FinalState {
    fn key(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// Options of [`reprocess_job`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Reprocess {
    /// Next in line instead of last.
    pub lifo: bool,
    /// Forget the attempts made.
    pub reset_attempts_made: bool,
    /// Forget the attempts started.
    pub reset_attempts_started: bool,
}

/// Runs a finished job again.
///
/// # Errors
/// [`JobOpError`]: the job is gone or not in that state, or the call failed.
pub async fn reprocess_job(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    id: &JobId,
    from: FinalState,
    how: Reprocess,
) -> Result<(), JobOpError> {
    let argument =
        wire::pack(&(peer, id, from.key(), how.lifo, how.reset_attempts_made, how.reset_attempts_started))?;
    check(id, REPROCESS_JOB.call(conn, keys.meta(), &argument).await?).map(drop)
}

/// Which jobs are put back in line in bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeue {
    /// Those that finished so until a time: they run again.
    Finished(FinalState, TimestampMs),
    /// Those that wait for a time: they run now.
    Delayed,
}

/// Puts up to [`CHUNK`] jobs back in line; whether there are more.
///
/// # Errors
/// [`ScriptError`]; what was moved before stays moved.
pub async fn requeue_step(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    which: Requeue,
) -> Result<bool, ScriptError> {
    let (from, newest) = match which {
        Requeue::Finished(state, newest) => (state.key(), newest.0),
        Requeue::Delayed => ("delayed", i64::MAX),
    };
    let argument = wire::pack(&(peer, from, CHUNK, newest))?;
    Ok(REQUEUE_JOBS.call::<i64>(conn, keys.meta(), &argument).await? == 1)
}

/// Runs every job again that finished in `from` until `newest`, in chunks.
///
/// # Errors
/// [`ScriptError`]; what was moved before stays moved.
pub async fn reprocess_all(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    from: FinalState,
    newest: TimestampMs,
) -> Result<(), ScriptError> {
    while requeue_step(conn, keys, peer, Requeue::Finished(from, newest)).await? {}
    Ok(())
}

/// Puts every delayed job in line now, in chunks.
///
/// # Errors
/// [`ScriptError`]; what was moved before stays moved.
pub async fn promote_all(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
) -> Result<(), ScriptError> {
    while requeue_step(conn, keys, peer, Requeue::Delayed).await? {}
    Ok(())
}

/// Puts one delayed job in line now.
///
/// # Errors
/// [`JobOpError`]: the job is not delayed, or the call failed.
pub async fn promote_job(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    id: &JobId,
) -> Result<(), JobOpError> {
    let argument = wire::pack(&(peer, id))?;
    check(id, PROMOTE_JOB.call(conn, keys.meta(), &argument).await?).map(drop)
}

/// Lets a delayed job become due `delay` from `now`.
///
/// # Errors
/// [`JobOpError`]: the job is gone or not delayed, or the call failed.
pub async fn change_delay(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    now: TimestampMs,
    id: &JobId,
    delay_ms: f64,
) -> Result<(), JobOpError> {
    let argument = wire::pack(&(now.0, id, wire::Number(delay_ms)))?;
    check(id, CHANGE_DELAY.call(conn, keys.meta(), &argument).await?).map(drop)
}

/// Moves a waiting job to another priority; 0 is none.
///
/// # Errors
/// [`JobOpError`]: the job is gone, or the call failed.
pub async fn change_priority(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    id: &JobId,
    priority: f64,
    lifo: bool,
) -> Result<(), JobOpError> {
    let argument = wire::pack(&(peer, id, wire::Number(priority), lifo))?;
    check(id, CHANGE_PRIORITY.call(conn, keys.meta(), &argument).await?).map(drop)
}

/// Whether a job was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone, or never was.
    Removed,
    /// A worker holds its lock.
    Locked,
}

/// Takes a job away, wherever it is, unless a worker holds it; with `children`
/// also every child it has or had, unless a worker holds one of them.
///
/// A large tree is looked through for locks before the first job goes; a lock taken
/// after that ends the removal half way.
///
/// # Errors
/// [`JobOpError`]: the job belongs to a scheduler, or the call failed.
pub async fn remove_job(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    id: &JobId,
    children: bool,
) -> Result<Removal, JobOpError> {
    // Where to go on: job keys, each with the parent it is removed for.
    let mut open = vec![(keys.job(id), None::<String>)];
    let mut looked = false;
    while let Some((key, from)) = open.last() {
        // A tree that leads back to itself: this one goes without what is below it.
        let circle = open.iter().rev().skip(1).any(|(above, _)| above == key);
        let below = children && !circle;
        let argument = wire::pack(&(now.0, peer, key, OrFalse(from.as_deref()), below, TREE, looked))?;
        let reply: Vec<u8> = REMOVE_JOB.call(conn, keys.meta(), &argument).await?;
        let (code, next, parent): (i64, String, MaybeText) = wire::unpack("removeJob", &reply)?;
        match check(id, code)? {
            0 => return Ok(Removal::Locked),
            1 => drop(open.pop()),
            3 if is_locked_below(conn, keys, key).await? => return Ok(Removal::Locked),
            3 => looked = true,
            // The same key again, or one below it first.
            _ if next == *key => {}
            _ => open.push((next, parent.0)),
        }
    }
    Ok(Removal::Removed)
}

/// Whether a worker holds a job below `key` that its parent still waits for.
async fn is_locked_below(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    key: &str,
) -> Result<bool, ScriptError> {
    let mut open = vec![(key.to_owned(), "0".to_owned())];
    let mut seen = HashSet::from([key.to_owned()]);
    while !open.is_empty() {
        let some = open.split_off(open.len().saturating_sub(TREE as usize / 10));
        let reply: Vec<u8> = FIND_LOCK.call(conn, keys.meta(), &wire::pack(&(&some, TREE))?).await?;
        let (locked, on, parents): (MaybeText, Vec<(String, String)>, Vec<String>) =
            wire::unpack("findLock", &reply)?;
        if locked.0.is_some() {
            return Ok(true);
        }
        open.extend(on);
        // A circle would bring a parent again and again.
        let new = parents.into_iter().filter(|key| seen.insert(key.clone()));
        open.extend(new.map(|key| (key, "0".to_owned())));
    }
    Ok(false)
}

/// Stops every worker from taking jobs of the queue.
///
/// # Errors
/// [`ScriptError`]; calling again goes on where it stopped.
pub async fn pause_queue(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
) -> Result<(), ScriptError> {
    let argument = wire::pack(&(peer, CHUNK * 20))?;
    while PAUSE_QUEUE.call::<i64>(conn, keys.meta(), &argument).await? == 1 {}
    Ok(())
}

/// Lets workers take jobs of the queue again.
///
/// # Errors
/// [`ScriptError`]; calling again goes on where it stopped.
pub async fn resume_queue(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
) -> Result<(), ScriptError> {
    let mut moved = false;
    while RESUME_QUEUE.call::<i64>(conn, keys.meta(), &wire::pack(&(peer, CHUNK * 20, moved))?).await? == 1 {
        moved = true;
    }
    Ok(())
}

/// Where a job is; `None` when it is nowhere.
///
/// # Errors
/// [`ScriptError`].
pub async fn job_state(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    id: &JobId,
) -> Result<Option<JobState>, ScriptError> {
    let argument = wire::pack(&(id,))?;
    let word: String = JOB_STATE.call(conn, keys.meta(), &argument).await?;
    Ok(JobState::from_word(&word))
}

/// Frees a job's deduplication id if the job still holds it; says whether it did.
///
/// # Errors
/// [`JobOpError`]: the job is gone, or the call failed.
pub async fn free_dedup(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    id: &JobId,
) -> Result<bool, JobOpError> {
    Ok(check(id, FREE_DEDUP.call(conn, keys.meta(), &wire::pack(&(id,))?).await?)? == 1)
}
