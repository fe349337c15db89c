//! Operations on all jobs of a state: drain, clean, obliterate, retry all,
//! promote all. Each is a [`Bulk`].

use std::{pin::Pin, time::Duration};

use mpanel_protocol::{
    calls::{
        manage::{self, FinalState, Requeue},
        sweep::{self, Clean, Cleanable, Drain, Obliterated},
    },
    ids::JobId,
    time::{TimestampMs, millis},
};

use super::{AdminError, Bulk, QueueAdmin, bulk::Chunked, script};

type Chunk<'a, T> = Pin<Box<dyn Future<Output = Result<Option<T>, AdminError>> + Send + 'a>>;

/// See [`QueueAdmin::drain`].
#[derive(Debug)]
pub struct DrainSweep(Drain);

impl Chunked for DrainSweep {
    type Output = ();

    fn chunk<'a>(&'a mut self, admin: &'a QueueAdmin, done: &'a mut u64) -> Chunk<'a, ()> {
        Box::pin(async move {
            let now = admin.now().await?;
            let (removed, end) = script!(admin, |conn| self.0.step(conn, &admin.keys, admin.peer, now))?;
            *done += removed;
            Ok(end.then_some(()))
        })
    }
}

/// See [`QueueAdmin::clean`].
#[derive(Debug)]
pub struct CleanSweep {
    state: Cleanable,
    grace: Duration,
    limit: u32,
    /// From the first call on, whose time counts.
    work: Option<Clean>,
    removed: Vec<JobId>,
}

impl Chunked for CleanSweep {
    type Output = Vec<JobId>;

    fn chunk<'a>(&'a mut self, admin: &'a QueueAdmin, done: &'a mut u64) -> Chunk<'a, Vec<JobId>> {
        Box::pin(async move {
            let now = admin.now().await?;
            let newest = TimestampMs(now.0.saturating_sub(millis(self.grace)));
            let clean = self.work.get_or_insert_with(|| Clean::new(self.state, newest, self.limit));
            let (ids, end) = script!(admin, |conn| clean.step(conn, &admin.keys, admin.peer, now))?;
            *done += ids.len() as u64;
            self.removed.extend(ids);
            Ok(end.then(|| std::mem::take(&mut self.removed)))
        })
    }
}

/// See [`QueueAdmin::obliterate`].
#[derive(Debug)]
pub struct ObliterateSweep {
    force: bool,
    paused: bool,
}

impl Chunked for ObliterateSweep {
    type Output = Obliterated;

    fn chunk<'a>(&'a mut self, admin: &'a QueueAdmin, done: &'a mut u64) -> Chunk<'a, Obliterated> {
        Box::pin(async move {
            if !self.paused {
                admin.pause().await?;
                self.paused = true;
            }
            let now = admin.now().await?;
            let end = script!(admin, |conn| sweep::obliterate_step(
                conn,
                &admin.keys,
                admin.peer,
                now,
                self.force
            ))?;
            *done += u64::from(sweep::CHUNK) * u64::from(end.is_none());
            Ok(end)
        })
    }
}

/// See [`QueueAdmin::retry_all`] and [`QueueAdmin::promote_all`].
#[derive(Debug)]
pub struct RequeueSweep(Wanted);

#[derive(Debug)]
enum Wanted {
    /// Until the time of the first call: a job that fails again stays failed.
    Finished(FinalState, Option<TimestampMs>),
    Delayed,
}

impl Chunked for RequeueSweep {
    type Output = ();

    fn chunk<'a>(&'a mut self, admin: &'a QueueAdmin, done: &'a mut u64) -> Chunk<'a, ()> {
        Box::pin(async move {
            let which = match &mut self.0 {
                Wanted::Delayed => Requeue::Delayed,
                Wanted::Finished(state, newest) => {
                    let until = match *newest {
                        Some(until) => until,
                        None => admin.now().await?,
                    };
                    *newest = Some(until);
                    Requeue::Finished(*state, until)
                }
            };
            let more = script!(admin, |conn| manage::requeue_step(conn, &admin.keys, admin.peer, which))?;
            *done += u64::from(manage::CHUNK) * u64::from(more);
            Ok((!more).then_some(()))
        })
    }
}

impl QueueAdmin {
    /// Takes away everything in line, in both lists of a paused queue; with
    /// `delayed` also what waits for a time. What a schedule needs stays.
    pub fn drain(&self, delayed: bool) -> Bulk<'_, DrainSweep> {
        Bulk::new(self, DrainSweep(Drain::new(delayed)))
    }

    /// Takes away jobs of one state that are at least `grace` old, at most `limit`
    /// (0: all); gives back their ids.
    pub fn clean(&self, state: Cleanable, grace: Duration, limit: u32) -> Bulk<'_, CleanSweep> {
        Bulk::new(self, CleanSweep { state, grace, limit, work: None, removed: Vec::new() })
    }

    /// Pauses the queue and deletes it, with `force` also when jobs are active;
    /// what waits for children stays.
    pub fn obliterate(&self, force: bool) -> Bulk<'_, ObliterateSweep> {
        Bulk::new(self, ObliterateSweep { force, paused: false })
    }

    /// Runs every job again that finished so until now, or until `newest`. Progress
    /// counts full chunks.
    pub fn retry_all(&self, from: FinalState, newest: Option<TimestampMs>) -> Bulk<'_, RequeueSweep> {
        Bulk::new(self, RequeueSweep(Wanted::Finished(from, newest)))
    }

    /// Puts every delayed job in line now. Progress counts full chunks.
    pub fn promote_all(&self) -> Bulk<'_, RequeueSweep> {
        Bulk::new(self, RequeueSweep(Wanted::Delayed))
    }
}
