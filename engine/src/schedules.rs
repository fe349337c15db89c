//! The next run of a schedule, made when a worker takes the present one: the chain
//! lives as long as every taken job makes its successor before its handler begins.
//!
//! A process that dies in between leaves the job in `active`; when it has stalled
//! it is taken again, and makes the successor then.

use std::time::Duration;

use mpanel_protocol::{
    calls::{
        manage::{Update, update_job},
        schedule::{Continued, ScheduleOpError, continue_schedule},
    },
    job::FetchedJob,
    schedule::may_be_scheduled,
    script::ScriptError,
};

use crate::{cancellation::Cancellation, worker::Shared};

/// Pauses between tries while Redis cannot be reached, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The attempt was ended before its schedule was carried on: nothing has run yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interrupted;

/// Makes the run after `job`, if it belongs to a schedule. Waits out a Redis that
/// cannot be reached; a schedule that cannot go on says so in the log and in the
/// job's own, and the job runs.
///
/// # Errors
/// [`Interrupted`] when the lock is lost or the worker stops hard meanwhile.
pub(crate) async fn carry_on(
    shared: &Shared,
    job: &FetchedJob,
    cancellation: &Cancellation,
) -> Result<(), Interrupted> {
    let engine = &shared.engine;
    if !may_be_scheduled(job, engine.peer) {
        return Ok(());
    }
    let mut pause = PAUSE_MIN;
    loop {
        let outcome = match engine.redis.shared_for(shared.keys.meta()).await {
            Ok(mut conn) => {
                let (keys, now) = (&shared.keys, engine.now());
                let made = continue_schedule(&mut conn.conn, keys, engine.peer, now, engine.zone, job).await;
                if let Err(ScheduleOpError::Script(ScriptError::Redis { source, .. })) = &made {
                    engine.redis.report(&conn, source).await;
                }
                made.map_err(Some)
            }
            Err(error) => {
                tracing::warn!(%error, "Redis cannot be reached to carry a schedule on; trying again");
                Err(None)
            }
        };
        match outcome {
            Ok(Continued::Next(next)) => {
                tracing::debug!(%next, "the schedule's next run is in the queue");
                return Ok(());
            }
            Ok(Continued::Ended) => {
                tracing::info!("this was the schedule's last run");
                return Ok(());
            }
            Ok(Continued::NotScheduled | Continued::NotCurrent | Continued::Exists(_)) => return Ok(()),
            Err(Some(error)) if !is_transient(&error) => {
                give_up(shared, job, &error).await;
                return Ok(());
            }
            Err(Some(error)) => tracing::warn!(%error, "a schedule was not carried on; trying again"),
            Err(None) => {}
        }
        // cancel-safe: both branches only wait.
        tokio::select! {
            () = cancellation.hard().cancelled() => return Err(Interrupted),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn is_transient(error: &ScheduleOpError) -> bool {
    let ScheduleOpError::Script(error) = error else { return false };
    error.is_not_done() || error.redis().is_some_and(mpanel_connect::is_broken)
}

/// Says where an operator looks that no run follows: in the log, and in the job's.
async fn give_up(shared: &Shared, job: &FetchedJob, error: &ScheduleOpError) {
    let schedule = job.scheduler.as_deref().unwrap_or_default();
    tracing::error!(schedule, %error, "the schedule ends here: its next run cannot be made");
    let line = format!("the schedule ends with this run: {error}");
    let Ok(mut conn) = shared.engine.redis.shared_for(shared.keys.meta()).await else { return };
    let update = Update::Log { line: &line, keep: None };
    if let Err(error) = update_job(&mut conn.conn, &shared.keys, &job.id, update).await {
        tracing::debug!(%error, "the job's log could not be written");
    }
}
