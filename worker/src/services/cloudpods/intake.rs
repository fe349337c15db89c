//! Rows of `cloud_pod_jobs` whose jobs have not ended: those without a job get
//! one, those that an operator set back run again, those whose job has ended say
//! so, and a job that was begun and is nowhere in Redis goes on.
//!
//! mPanel's routes change rows and leave Redis alone, or enqueue first and write
//! the row later; a Node worker makes a second row and leaves the first as it
//! was; Redis may lose a job, and a Node worker fail one of ours that has stalled
//! twice. [`decide`] is pure and knows all of it; [`Intake`] looks and acts. A row
//! is locked and looked at again before anything is done for it, so any number
//! of processes may do this at once.

use futures_util::{StreamExt as _, stream};
use mpanel_engine::{Engine, EngineError, admin::AdminError};
use mpanel_producer::outbox::generation;
use mpanel_protocol::{
    calls::manage::{FinalState, Reprocess},
    ids::JobId,
    payload::{cloudpods::CREATE_QUEUE, defaults_of},
    state::JobState,
};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{KIND, operation::Operation};
use crate::adapters::db::{
    DbError,
    queued_rows::{self, Cursor, Ended, EnqueueRowError, Enqueued, Kind, QueuedRow, Sibling},
};

/// Rows a page.
const PAGE: i64 = 500;
/// Questions to Redis under way at once.
const ASKED_AT_ONCE: usize = 32;
/// A route that is at work may still come to the row, or to Redis.
const GRACE_S: f64 = 5.0;
/// A job that has just begun may be anywhere for a moment.
const BEGUN_S: f64 = 60.0;
/// A row that was never started and is older than this is nobody's wish any more.
const FORGOTTEN_S: f64 = 7.0 * 86_400.0;
/// How long a job that the relay has just put into Redis may not be seen there.
const RELAYED_S: f64 = 60.0;
/// Ids that are tried for a job that runs again.
const GENERATIONS: u32 = 20;

/// What was seen of a row's job in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The row names no job.
    Unnamed,
    /// No such job.
    Gone,
    /// In line, at work, or waiting for something.
    Open,
    /// Done.
    Completed,
    /// Failed for good.
    Failed,
}

/// What is to be done for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: its job runs or will, or others write its end.
    Leave,
    /// Its job goes into the queue.
    Enqueue,
    /// Its job, which was begun before, goes into the queue under a new id.
    EnqueueAgain,
    /// Its failed job is run again.
    Retry,
    /// It ends as a Node worker's own row of the job did.
    EndAsSibling,
    /// It ends as the job in Redis did.
    EndAsJob,
    /// Its job cannot be enqueued: it has failed.
    EndParked,
}

/// Decides for one row.
#[must_use]
pub fn decide(row: &QueuedRow, seen: Seen, sibling: Option<&str>) -> Next {
    let started = row.started_age_s.is_some();
    let ended_beside = matches!(sibling, Some("success" | "failed"));
    let young = row.age_s < GRACE_S && !started;
    let forgotten = row.age_s > FORGOTTEN_S && !started && !row.begun;
    let relayed_now = row.outbox_age_s.is_some_and(|age| age < RELAYED_S);
    match (row.outbox.as_deref(), seen) {
        (Some("pending"), _) | (_, Seen::Open) => return Next::Leave,
        (Some("parked"), _) => return Next::EndParked,
        _ => {}
    }
    if row.status == "running" {
        // Our own workers write the row's end before Redis hears of it: whatever
        // ended in Redis alone was ended by others, and the work is half done.
        let ours = row.begun && row.outcome.is_none();
        return match seen {
            Seen::Open | Seen::Unnamed => Next::Leave,
            _ if !ours || relayed_now || row.started_age_s.is_none_or(|age| age < BEGUN_S) => Next::Leave,
            Seen::Gone => Next::Enqueue,
            Seen::Failed => Next::Retry,
            Seen::Completed => Next::EndAsJob,
        };
    }
    // Only a row that was adopted can have been set back.
    let set_back = row.begun && !row.late && row.outcome.as_deref() != Some("success");
    match seen {
        Seen::Open => Next::Leave,
        Seen::Unnamed if young || forgotten => Next::Leave,
        Seen::Unnamed => Next::Enqueue,
        Seen::Failed if set_back => Next::Retry,
        Seen::Completed | Seen::Failed | Seen::Gone if row.begun && !set_back => Next::Leave,
        Seen::Failed if started && !row.begun => Next::Retry,
        Seen::Gone if set_back => Next::EnqueueAgain,
        Seen::Completed | Seen::Failed | Seen::Gone if ended_beside && !started => Next::EndAsSibling,
        Seen::Completed | Seen::Failed => Next::EndAsJob,
        Seen::Gone if young || forgotten || relayed_now => Next::Leave,
        Seen::Gone => Next::Enqueue,
    }
}

/// What one round has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Rows that were looked at.
    pub seen: u64,
    /// Jobs that were enqueued or run again.
    pub started: u64,
    /// Rows that got the end of their job.
    pub ended: u64,
}

/// A round was broken off; the next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The queues.
    #[error("queues: {0}")]
    Admin(#[from] AdminError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Takes in rows.
#[derive(Debug, Clone)]
pub struct Intake {
    db: PgPool,
    engine: Engine,
    kinds: Vec<Kind>,
}

impl Intake {
    /// For the rows of these queues; queues that have no rows are passed over.
    #[must_use]
    pub fn new(db: PgPool, engine: Engine, queues: &[&str]) -> Self {
        let operations = Operation::ALL
            .into_iter()
            .map(|operation| Kind { kind: operation.row_kind(), queue: operation.queue() });
        let create = Kind { kind: KIND, queue: CREATE_QUEUE };
        let kinds = std::iter::once(create).chain(operations);
        Self { db, engine, kinds: kinds.filter(|kind| queues.contains(&kind.queue)).collect() }
    }

    /// Looks at every row whose job has not ended, page by page.
    ///
    /// # Errors
    /// [`IntakeError`] when the database or Redis does not answer.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn round(&self) -> Result<Round, IntakeError> {
        let mut round = Round::default();
        let mut after: Option<Cursor> = None;
        loop {
            let rows = queued_rows::page(&self.db, &self.kinds, after, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(round) };
            after = Some((last.created_at, last.id));
            let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == PAGE);
            self.take_in(rows, &mut round).await?;
            if !full {
                return Ok(round);
            }
        }
    }

    async fn take_in(&self, rows: Vec<QueuedRow>, round: &mut Round) -> Result<(), IntakeError> {
        let siblings = queued_rows::siblings(&self.db, &rows).await?;
        let mut seen = stream::iter(rows)
            .map(|row| async move { self.look(&row).await.map(|seen| (row, seen)) })
            .buffer_unordered(ASKED_AT_ONCE);
        while let Some(found) = seen.next().await {
            let (row, seen) = found?;
            let sibling =
                row.bull_job_id.as_ref().and_then(|job| siblings.get(&(job.clone(), row.kind.clone())));
            let next = decide(&row, seen, sibling.map(|sibling| sibling.status.as_str()));
            round.seen += 1;
            match self.act(&row, next, sibling).await? {
                Done::Nothing => {}
                Done::Started => round.started += 1,
                Done::Ended => round.ended += 1,
            }
        }
        Ok(())
    }

    async fn look(&self, row: &QueuedRow) -> Result<Seen, IntakeError> {
        let Some(id) = &row.bull_job_id else { return Ok(Seen::Unnamed) };
        let state = self.engine.admin(&row.queue)?.state(&JobId::stored(id.clone())).await?;
        Ok(match state {
            None => Seen::Gone,
            Some(JobState::Completed) => Seen::Completed,
            Some(JobState::Failed) => Seen::Failed,
            Some(_) => Seen::Open,
        })
    }

    async fn act(&self, row: &QueuedRow, next: Next, sibling: Option<&Sibling>) -> Result<Done, IntakeError> {
        let ended = match (next, sibling) {
            (Next::Enqueue, _) => return self.enqueue(row, false).await,
            (Next::EnqueueAgain, _) => return self.enqueue(row, true).await,
            (Next::Retry, _) => return self.retry(row).await,
            (Next::EndAsSibling, Some(sibling)) => ended_as(sibling),
            (Next::EndAsJob, _) => match self.end_of_job(row).await? {
                Some(ended) => ended,
                None => return Ok(Done::Nothing),
            },
            (Next::EndParked, _) => {
                let why = row.outbox_reason.as_deref().unwrap_or("no reason is on record");
                Ended::Failed(format!("the job could not be enqueued: {why}"))
            }
            (Next::Leave | Next::EndAsSibling, _) => return Ok(Done::Nothing),
        };
        let pod_id = sibling.and_then(|sibling| sibling.cloud_pod_id).or_else(|| pod_of(&ended));
        let written = queued_rows::end(&self.db, row, &ended, pod_id).await?;
        if written {
            tracing::info!(row = %row.id, job = row.bull_job_id, ?next, "a queued job row got its job's end");
        }
        Ok(if written { Done::Ended } else { Done::Nothing })
    }

    /// Enqueues the row's job, under the id that the row names unless a job of
    /// that id was there before.
    async fn enqueue(&self, row: &QueuedRow, again: bool) -> Result<Done, IntakeError> {
        let Some((name, options)) = defaults_of(&row.queue) else { return Ok(Done::Nothing) };
        let (base, first) = numbered(row);
        let mut row = row.clone();
        complete(&mut row);
        for number in (first + u32::from(again))..=first + GENERATIONS {
            let id = generation(&base, number);
            match queued_rows::enqueue(&self.db, &row, name, &id, options.clone().into()).await {
                Ok(Enqueued::Yes) => {
                    tracing::info!(row = %row.id, queue = row.queue, job = id, "enqueued the job of a queued row");
                    return Ok(Done::Started);
                }
                Ok(Enqueued::IdUsed) => {}
                Ok(Enqueued::NotOurs) => return Ok(Done::Nothing),
                Err(EnqueueRowError::Db(error)) => return Err(error.into()),
                Err(EnqueueRowError::Outbox(error)) => {
                    let reason = format!("the job could not be enqueued: {error}");
                    tracing::warn!(row = %row.id, %reason, "a queued job row fails");
                    let ended = Ended::Failed(reason);
                    let written = queued_rows::end(&self.db, &row, &ended, None).await?;
                    return Ok(if written { Done::Ended } else { Done::Nothing });
                }
            }
        }
        Ok(Done::Nothing)
    }

    async fn retry(&self, row: &QueuedRow) -> Result<Done, IntakeError> {
        let Some(id) = &row.bull_job_id else { return Ok(Done::Nothing) };
        // mPanel's retry counts from 0 again; which start it is goes on, since fences order by it.
        let how = Reprocess { reset_attempts_made: true, ..Reprocess::default() };
        let retried =
            self.engine.admin(&row.queue)?.retry(&JobId::stored(id.clone()), FinalState::Failed, how).await;
        match retried {
            Ok(()) => {
                tracing::info!(row = %row.id, queue = row.queue, job = id, "a job that was set back to queued runs again");
                Ok(Done::Started)
            }
            // Somebody else was faster.
            Err(AdminError::Job(_)) => Ok(Done::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    async fn end_of_job(&self, row: &QueuedRow) -> Result<Option<Ended>, IntakeError> {
        let Some(id) = &row.bull_job_id else { return Ok(None) };
        let Some(job) = self.engine.admin(&row.queue)?.job(&JobId::stored(id.clone())).await? else {
            return Ok(None);
        };
        Ok(Some(match job.failed_reason {
            Some(reason) => Ended::Failed(reason.replace('\0', "\u{fffd}")),
            None => {
                let result = job.return_value.as_deref().and_then(|text| serde_json::from_str(text).ok());
                Ended::Success(super::storable(&result.unwrap_or(Value::Null)))
            }
        }))
    }
}

enum Done {
    Nothing,
    Started,
    Ended,
}

/// The id that a row's jobs are numbered from, and the number that it is at.
fn numbered(row: &QueuedRow) -> (String, u32) {
    let Some(id) = row.bull_job_id.as_deref().filter(|id| !id.contains(':')) else {
        return (format!("row-{}", row.id), 1);
    };
    match id.rsplit_once("-g").and_then(|(base, number)| Some((base, number.parse().ok()?))) {
        Some((base, number)) if number > 1 => (base.to_owned(), number),
        _ => (id.to_owned(), 1),
    }
}

/// What a payload leaves out and the row knows.
fn complete(row: &mut QueuedRow) {
    if let Value::Object(payload) = &mut row.payload {
        payload.entry("tenantId").or_insert_with(|| json!(row.tenant_id));
        if let Some(pod) = row.cloud_pod_id {
            payload.entry("cloudPodId").or_insert_with(|| json!(pod));
        }
    }
}

fn ended_as(sibling: &Sibling) -> Ended {
    match sibling.status.as_str() {
        "success" => Ended::Success(sibling.result.clone().unwrap_or(Value::Null)),
        _ => Ended::Failed(sibling.error.clone().unwrap_or_else(|| "the job failed".to_owned())),
    }
}

/// The pod that a creation's result names.
fn pod_of(ended: &Ended) -> Option<uuid::Uuid> {
    match ended {
        Ended::Success(result) => result.get("cloudPodId")?.as_str()?.parse().ok(),
        Ended::Failed(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> QueuedRow {
        QueuedRow {
            id: uuid::Uuid::nil(),
            tenant_id: uuid::Uuid::nil(),
            cloud_pod_id: None,
            kind: "CREATE".to_owned(),
            queue: "cloudpods-create".to_owned(),
            payload: json!({}),
            bull_job_id: Some("create-121-1".to_owned()),
            created_at: sqlx::types::chrono::NaiveDateTime::default(),
            age_s: 60.0,
            status: "queued".to_owned(),
            started_age_s: None,
            begun: false,
            outcome: None,
            late: false,
            outbox: None,
            outbox_reason: None,
            outbox_age_s: None,
        }
    }

    fn set_back() -> QueuedRow {
        QueuedRow { started_age_s: Some(600.0), begun: true, outcome: Some("failed".to_owned()), ..row() }
    }

    fn relayed(state: &str, age_s: f64) -> QueuedRow {
        QueuedRow { outbox: Some(state.to_owned()), outbox_age_s: Some(age_s), ..row() }
    }

    #[test]
    fn each_row_is_treated_by_what_is_known_of_its_job() {
        let late = |outcome: &str| QueuedRow {
            late: true,
            started_age_s: None,
            outcome: Some(outcome.to_owned()),
            ..set_back()
        };
        let cases: &[(&str, QueuedRow, Seen, Option<&str>, Next)] = &[
            ("no job", row(), Seen::Unnamed, None, Next::Enqueue),
            ("its route may be at it", QueuedRow { age_s: 1.0, ..row() }, Seen::Unnamed, None, Next::Leave),
            ("a week old", QueuedRow { age_s: 700_000.0, ..row() }, Seen::Unnamed, None, Next::Leave),
            ("in line", row(), Seen::Open, None, Next::Leave),
            ("lost", row(), Seen::Gone, None, Next::Enqueue),
            ("lost just now", QueuedRow { age_s: 1.0, ..row() }, Seen::Gone, None, Next::Leave),
            ("on its way", relayed("pending", 0.0), Seen::Gone, None, Next::Leave),
            ("just relayed", relayed("sent", 1.0), Seen::Gone, None, Next::Leave),
            ("relayed and lost", relayed("sent", 100.0), Seen::Gone, None, Next::Enqueue),
            ("cannot be relayed", relayed("parked", 1.0), Seen::Gone, None, Next::EndParked),
            ("ended by Node", row(), Seen::Gone, Some("failed"), Next::EndAsSibling),
            ("ended by Node, still kept", row(), Seen::Completed, Some("success"), Next::EndAsSibling),
            ("left running by Node", row(), Seen::Failed, Some("running"), Next::EndAsJob),
            ("at work by Node", row(), Seen::Open, Some("running"), Next::Leave),
            ("lost by Node", row(), Seen::Gone, Some("running"), Next::Enqueue),
            ("ended, nobody knows by whom", row(), Seen::Completed, None, Next::EndAsJob),
            ("ended by us, row late", late("failed"), Seen::Failed, None, Next::Leave),
            ("ended by us, row late, job gone", late("success"), Seen::Gone, None, Next::Leave),
            ("set back", set_back(), Seen::Failed, None, Next::Retry),
            (
                "set back by a route that forgets the start",
                QueuedRow { started_age_s: None, ..set_back() },
                Seen::Failed,
                None,
                Next::Retry,
            ),
            ("set back, job gone", set_back(), Seen::Gone, None, Next::EnqueueAgain),
            ("set back, already in line", set_back(), Seen::Open, None, Next::Leave),
            (
                "set back after Node",
                QueuedRow { begun: false, outcome: None, ..set_back() },
                Seen::Failed,
                Some("failed"),
                Next::Retry,
            ),
            (
                "set back, once a success",
                QueuedRow { outcome: Some("success".to_owned()), ..set_back() },
                Seen::Completed,
                None,
                Next::Leave,
            ),
            (
                "set back weeks later",
                QueuedRow { age_s: 7e6, ..set_back() },
                Seen::Gone,
                None,
                Next::EnqueueAgain,
            ),
        ];
        let running = QueuedRow { status: "running".to_owned(), outcome: None, ..set_back() };
        let just = QueuedRow { started_age_s: Some(1.0), ..running.clone() };
        let nodes = QueuedRow { begun: false, ..running.clone() };
        let ended = QueuedRow { outcome: Some("failed".to_owned()), ..running.clone() };
        let begun: &[(&str, &QueuedRow, Seen, Next)] = &[
            ("at work", &running, Seen::Open, Next::Leave),
            ("lost by Redis in mid-work", &running, Seen::Gone, Next::Enqueue),
            ("failed by a Node worker's look for stalled jobs", &running, Seen::Failed, Next::Retry),
            ("completed by a Node worker", &running, Seen::Completed, Next::EndAsJob),
            ("begun just now", &just, Seen::Gone, Next::Leave),
            ("a Node worker's", &nodes, Seen::Gone, Next::Leave),
            ("its end is about to be written", &ended, Seen::Failed, Next::Leave),
        ];
        for (what, row, seen, next) in begun {
            assert_eq!(decide(row, *seen, None), *next, "{what}");
        }
        for (what, row, seen, sibling, next) in cases {
            assert_eq!(decide(row, *seen, *sibling), *next, "{what}");
        }
    }

    #[test]
    fn ids_are_numbered_from_where_they_are() {
        let named = |id: &str| numbered(&QueuedRow { bull_job_id: Some(id.to_owned()), ..row() });
        assert_eq!(named("create-121-1"), ("create-121-1".to_owned(), 1));
        assert_eq!(named("create-121-1-g3"), ("create-121-1".to_owned(), 3));
        assert_eq!(named("vm-g1"), ("vm-g1".to_owned(), 1));
        assert_eq!(named("repeat:ab:1").0, format!("row-{}", uuid::Uuid::nil()));
    }
}
