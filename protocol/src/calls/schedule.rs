//! Job schedulers and repeatables: stored, continued, removed, listed.

use std::{collections::HashMap, time::Duration};

use redis::aio::ConnectionLike;
use serde::Serialize;
use serde_json::{Map, Value};

use super::add::{self, Added};
use crate::{
    ids::JobId,
    job::FetchedJob,
    keys::QueueKeys,
    lua_json,
    outcome::Refusal,
    peer::Peer,
    schedule::{
        Continuation, FirstRun, LegacyRun, NextRun, Repeatable, ScheduleError, Scheduler, SchedulerId,
        Successor, Zone, legacy_ids_of_key, plan_continuation,
    },
    script::{
        ADD_JOBS, CONTINUE_SCHEDULERS, REMOVE_SCHEDULER, STORE_REPEATABLE, ScriptError, UPSERT_SCHEDULER,
    },
    time::TimestampMs,
    wire::{self, MaybeText, OrFalse},
};

/// How many schedulers are read in one round trip.
const READ_AT_ONCE: usize = 500;

/// A schedule was not stored or not continued.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleOpError {
    /// The schedule itself is wrong; nothing was stored.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The script refused.
    #[error("scheduler {scheduler}: {refusal}")]
    Refused {
        /// The scheduler.
        scheduler: SchedulerId,
        /// Why.
        refusal: Refusal,
    },
    /// The call failed.
    #[error(transparent)]
    Script(#[from] ScriptError),
}

/// The iteration an upsert made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    /// Its job id.
    pub id: JobId,
    /// How long until it is due.
    pub delay: Duration,
}

/// What followed a job that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Continued {
    /// It belongs to no schedule.
    NotScheduled,
    /// It was the last run, by limit, end date or pattern.
    Ended,
    /// The next run is in the queue.
    Next(JobId),
    /// The next run was there already.
    Exists(JobId),
    /// The schedule goes on from another job, or was removed.
    NotCurrent,
}

/// JSON without its end, priority, lifo, deduplication id.
type OptionsRow<'a> = (&'a str, i64, bool, OrFalse<&'a str>);

fn options_row(run: &NextRun) -> OptionsRow<'_> {
    (&run.opts_head, run.priority, run.lifo, OrFalse(run.dedup_id.as_deref()))
}

/// What a scheduler's jobs carry.
#[derive(Debug, Clone, Copy)]
pub struct Template<'a> {
    /// Their name.
    pub name: &'a str,
    /// Their payload, JSON text.
    pub data: &'a str,
    /// Their options, under the names that are stored.
    pub options: &'a Map<String, Value>,
}

/// Stores a scheduler and its first iteration, in place of one still to come.
///
/// # Errors
/// [`ScheduleOpError`].
///
/// # Cancel safety
/// Not cancel safe: a dropped call may have stored it. It can be made again.
pub async fn upsert_scheduler(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    id: &SchedulerId,
    template: Template<'_>,
    first: &FirstRun,
) -> Result<Scheduled, ScheduleOpError> {
    let options = lua_json::map_through_tables(template.options);
    let opts = serde_json::to_string(&options).map_err(|e| ScriptError::Encoding(e.to_string()))?;
    let run = &first.run;
    let argument = wire::pack(&(
        now.0,
        peer,
        id.as_str(),
        template.name,
        OrFalse(run.at.map(|at| at.0)),
        OrFalse(run.every_ms),
        run.offset_ms,
        (
            OrFalse(first.tz.as_deref()),
            OrFalse(first.limit),
            OrFalse(first.pattern.as_deref()),
            OrFalse(first.start.map(|at| at.0)),
            OrFalse(first.end.map(|at| at.0)),
        ),
        opts,
        template.data,
        options_row(run),
    ))?;
    let reply: Vec<u8> = UPSERT_SCHEDULER.call(conn, keys.meta(), &argument).await?;
    let (job, delay): (MaybeText, f64) = wire::unpack(UPSERT_SCHEDULER.name, &reply)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a delay, or a small code")]
    match job.0 {
        Some(job) => Ok(Scheduled { id: JobId::stored(job), delay: Duration::from_millis(delay as u64) }),
        None => Err(ScheduleOpError::Refused {
            scheduler: id.clone(),
            refusal: Refusal::from_code(delay as i64).unwrap_or(Refusal::Unknown(0)),
        }),
    }
}

/// Makes the run that follows `job`, which was just taken: in place once, however
/// often it is called for one job. `local` is the zone of patterns without one.
///
/// # Errors
/// [`ScheduleOpError::Schedule`]: the schedule ends here, its options say no next
/// run; [`ScheduleOpError::Script`]: the call failed, and can be made again.
pub async fn continue_schedule(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    local: Zone,
    job: &FetchedJob,
) -> Result<Continued, ScheduleOpError> {
    match plan_continuation(job, now, local, peer)? {
        Continuation::NotScheduled => Ok(Continued::NotScheduled),
        Continuation::Ended => Ok(Continued::Ended),
        Continuation::Scheduler(next) => match continue_scheduler(conn, keys, peer, now, job, &next).await? {
            Some(continued) => Ok(continued),
            None => Err(ScheduleError::OldKey(next.scheduler.to_string()).into()),
        },
        Continuation::Either(next, legacy) => {
            match continue_scheduler(conn, keys, peer, now, job, &next).await? {
                Some(continued) => Ok(continued),
                None => Ok(continue_legacy(conn, keys, peer, now, &legacy.0).await?),
            }
        }
        Continuation::Legacy(legacy) => Ok(continue_legacy(conn, keys, peer, now, &legacy.0).await?),
    }
}

#[derive(Serialize)]
struct Item<'a>(&'a str, &'a JobId, OrFalse<i64>, OrFalse<i64>, i64, bool, &'a str, &'a str, OptionsRow<'a>);

/// `None`: no scheduler left anything under the key.
async fn continue_scheduler(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    job: &FetchedJob,
    next: &Successor,
) -> Result<Option<Continued>, ScriptError> {
    let run = &next.run;
    let item = Item(
        next.scheduler.as_str(),
        &job.id,
        OrFalse(run.at.map(|at| at.0)),
        OrFalse(run.every_ms),
        run.offset_ms,
        next.looks_old,
        &job.name,
        &job.data,
        options_row(run),
    );
    let argument = wire::pack(&(now.0, peer, [item]))?;
    let script = &*CONTINUE_SCHEDULERS;
    let reply: Vec<u8> = script.call(conn, keys.meta(), &argument).await?;
    #[derive(serde::Deserialize)]
    struct Entry(u8, #[serde(default)] Option<String>);
    let [Entry(code, id)] = wire::unpack::<[Entry; 1]>(script.name, &reply)?;
    Ok(match (code, id.map(JobId::stored)) {
        (0, Some(id)) => Some(Continued::Next(id)),
        (1, _) => Some(Continued::NotCurrent),
        (2, Some(id)) => Some(Continued::Exists(id)),
        (3, _) => None,
        _ => return Err(ScriptError::Reply { script: script.name, detail: format!("code {code}") }),
    })
}

fn redis_error(script: &'static str) -> impl Fn(redis::RedisError) -> ScriptError {
    move |source| ScriptError::Redis { script, source }
}

/// The run after one of a repeatable; nothing when it was removed. (5.x makes a
/// run without a key then, which no one can remove any more.)
async fn continue_legacy(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    run: &LegacyRun,
) -> Result<Continued, ScriptError> {
    let failed = redis_error(STORE_REPEATABLE.name);
    let (new, old): (Option<f64>, Option<f64>) = redis::pipe()
        .zscore(keys.repeat(), &run.key)
        .zscore(keys.repeat(), &run.old_key)
        .query_async(conn)
        .await
        .map_err(&failed)?;
    let key = match (new, old) {
        (Some(_), _) => &run.key,
        (None, Some(_)) => &run.old_key,
        (None, None) => return Ok(Continued::NotCurrent),
    };
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("ZADD").arg(keys.repeat()).arg("XX").arg(run.at.0).arg(key).ignore();
    Ok(match add_in(pipe, conn, keys, peer, now, run, key).await? {
        Added::Stored(id) => Continued::Next(id),
        Added::Duplicate(id) | Added::Deduplicated(id) => Continued::Exists(id),
        Added::Refused(refusal) => {
            return Err(ScriptError::Reply { script: ADD_JOBS.name, detail: refusal.to_string() });
        }
    })
}

/// Stores a repeatable and its first run, in one transaction.
///
/// # Errors
/// [`ScriptError`].
///
/// # Cancel safety
/// Not cancel safe: a dropped call may have stored it. It can be made again.
pub async fn add_repeatable(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    run: &LegacyRun,
) -> Result<Added, ScriptError> {
    // An entry that BullMQ 3 left keeps its key.
    let old: Option<f64> = redis::Cmd::zscore(keys.repeat(), &run.old_key)
        .query_async(conn)
        .await
        .map_err(redis_error(STORE_REPEATABLE.name))?;
    let key = if old.is_some() { &run.old_key } else { &run.key };
    let fields: Vec<&str> = run.fields.iter().flat_map(|(name, value)| [*name, value.as_str()]).collect();
    let argument = wire::pack(&(now.0, peer, key, &run.key, run.at.0, fields))?;
    let mut pipe = redis::pipe();
    pipe.atomic();
    STORE_REPEATABLE.append(&mut pipe, true, keys.meta(), &argument);
    pipe.ignore();
    add_in(pipe, conn, keys, peer, now, run, key).await
}

/// Ends the transaction with the run's job.
async fn add_in(
    mut pipe: redis::Pipeline,
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    run: &LegacyRun,
    key: &str,
) -> Result<Added, ScriptError> {
    let job = run.job(key);
    let argument = add::argument(peer, now, std::iter::once(&job), false, None)?;
    ADD_JOBS.append(&mut pipe, true, keys.meta(), &argument);
    let (reply,): (Vec<u8>,) = pipe.query_async(conn).await.map_err(redis_error(ADD_JOBS.name))?;
    add::decode(&reply, 1)?
        .pop()
        .ok_or_else(|| ScriptError::Reply { script: ADD_JOBS.name, detail: "no entry".to_owned() })
}

/// Takes a scheduler away, with its iteration that waits for its time; `false`
/// when there is none. An iteration that is in line or running still runs.
///
/// # Errors
/// [`ScriptError`].
pub async fn remove_scheduler(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    id: &SchedulerId,
) -> Result<bool, ScriptError> {
    remove(conn, keys, id.as_str(), None, "").await
}

/// Takes a repeatable away by what [`crate::schedule::legacy_removal_keys`] says.
///
/// # Errors
/// [`ScriptError`].
pub async fn remove_repeatable(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    key: &str,
    old_key: &str,
    old_ids: &str,
) -> Result<bool, ScriptError> {
    let old_key = if key.split(':').count() > 2 { key } else { old_key };
    remove(conn, keys, key, Some(old_key), old_ids).await
}

/// Takes a repeatable away by the key under which it is listed.
///
/// # Errors
/// [`ScriptError`].
pub async fn remove_repeatable_by_key(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    key: &str,
) -> Result<bool, ScriptError> {
    let old = (key.split(':').count() > 2).then_some(key);
    remove(conn, keys, key, old, &legacy_ids_of_key(key)).await
}

async fn remove(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    key: &str,
    old_key: Option<&str>,
    old_ids: &str,
) -> Result<bool, ScriptError> {
    let argument = wire::pack(&(key, OrFalse(old_key), old_ids))?;
    let removed: i64 = REMOVE_SCHEDULER.call(conn, keys.meta(), &argument).await?;
    Ok(removed == 1)
}

/// Which part of a list, in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// The first, from 0; negative counts from the end.
    pub start: isize,
    /// The last; -1 is the last of all.
    pub end: isize,
    /// Those first that run first.
    pub soonest_first: bool,
}

impl Default for Page {
    /// All, those first that run last, as Node lists them.
    fn default() -> Self {
        Self { start: 0, end: -1, soonest_first: false }
    }
}

/// The schedulers of a queue; repeatables are among them.
///
/// # Errors
/// Those of Redis.
pub async fn schedulers(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    page: Page,
) -> redis::RedisResult<Vec<Scheduler>> {
    let rows = stored(conn, keys, page).await?;
    Ok(rows.into_iter().map(|(key, next, fields)| Scheduler::from_fields(key, Some(next), fields)).collect())
}

/// The repeatables of a queue; schedulers are among them.
///
/// # Errors
/// Those of Redis.
pub async fn repeatables(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    page: Page,
) -> redis::RedisResult<Vec<Repeatable>> {
    let rows = stored(conn, keys, page).await?;
    Ok(rows.into_iter().map(|(key, next, fields)| Repeatable::from_fields(key, Some(next), fields)).collect())
}

/// One scheduler.
///
/// # Errors
/// Those of Redis.
pub async fn scheduler(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    id: &SchedulerId,
) -> redis::RedisResult<Option<Scheduler>> {
    let (next, fields): (Option<f64>, HashMap<String, String>) = redis::pipe()
        .zscore(keys.repeat(), id.as_str())
        .hgetall(keys.schedule(id.as_str()))
        .query_async(conn)
        .await?;
    Ok(next.map(|next| Scheduler::from_fields(id.as_str().to_owned(), Some(next), fields)))
}

/// How many schedulers and repeatables a queue has.
///
/// # Errors
/// Those of Redis.
pub async fn schedulers_count(conn: &mut impl ConnectionLike, keys: &QueueKeys) -> redis::RedisResult<u64> {
    redis::Cmd::zcard(keys.repeat()).query_async(conn).await
}

type StoredRow = (String, f64, HashMap<String, String>);

async fn stored(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    page: Page,
) -> redis::RedisResult<Vec<StoredRow>> {
    let range = if page.soonest_first { "ZRANGE" } else { "ZREVRANGE" };
    let members: Vec<(String, f64)> = redis::cmd(range)
        .arg(keys.repeat())
        .arg(page.start)
        .arg(page.end)
        .arg("WITHSCORES")
        .query_async(conn)
        .await?;
    let mut rows = Vec::with_capacity(members.len());
    for chunk in members.chunks(READ_AT_ONCE) {
        let mut pipe = redis::pipe();
        for (member, _) in chunk {
            pipe.hgetall(keys.schedule(member));
        }
        let fields: Vec<HashMap<String, String>> = pipe.query_async(conn).await?;
        rows.extend(chunk.iter().zip(fields).map(|((key, next), fields)| (key.clone(), *next, fields)));
    }
    Ok(rows)
}
