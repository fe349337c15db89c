//! `finishJobs`: end attempts, and start the next jobs in the same round trip.

use redis::aio::ConnectionLike;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeTuple};

use super::fetch::{FetchSpec, Fetched, FetchedReply, SpecRow};
use crate::{
    ids::{JobId, LockToken},
    keys::QueueKeys,
    options::Retention,
    outcome::Refusal,
    peer::Peer,
    script::{FINISH_JOBS, ScriptError},
    time::TimestampMs,
    wire::{self, MaybeArray, OrFalse},
};

/// Most attempts of one call, so that the script stays below 5 ms with small jobs.
pub const FINISHES_PER_CALL: usize = 64;

/// How an attempt ends.
#[derive(Debug, Clone, PartialEq)]
pub enum Transition {
    /// Done: active -> completed.
    Complete {
        /// JSON text of the result; `null` for none.
        value: String,
        /// What stays of it.
        keep: Retention,
    },
    /// Given up: active -> failed.
    Fail {
        /// Why.
        failure: Failure,
        /// What stays of it.
        keep: Retention,
        /// Attempts the job was allowed; when they are used up, the event
        /// `retries-exhausted` follows.
        attempts_allowed: u32,
    },
    /// Failed, and again at once: active -> waiting.
    RetryNow {
        /// Why it failed.
        failure: Failure,
        /// Next in line instead of last.
        lifo: bool,
    },
    /// Failed, and again later: active -> delayed; counts an attempt.
    RetryLater {
        /// Why it failed.
        failure: Failure,
        /// Pause, ms.
        delay_ms: f64,
    },
    /// Later, and no attempt is counted: active -> delayed.
    Snooze {
        /// Pause, ms.
        delay_ms: f64,
    },
    /// Given back as it was: active -> next in line; no attempt is counted.
    Release,
    /// Given back as [`Transition::Release`], and the queue is limited for a while
    /// (BullMQ's `rateLimit`): who has a rate limit starts nothing of it.
    Limit {
        /// How long, ms.
        pause_ms: i64,
    },
    /// Waits for its children: active -> waiting-children.
    AwaitChildren {
        /// Only this child (full key); else any pending one.
        child_key: Option<String>,
    },
}

/// What is stored of a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `failedReason`, plain text.
    pub reason: String,
    /// `stacktrace`, JSON array of strings.
    pub stacktrace: Option<String>,
    /// `tm`, the carrier of the attempt's trace context ([`crate::trace`]).
    pub trace: Option<String>,
}

impl Transition {
    /// What is stored of the failure, where the attempt failed.
    pub fn failure_mut(&mut self) -> Option<&mut Failure> {
        match self {
            Self::Fail { failure, .. }
            | Self::RetryNow { failure, .. }
            | Self::RetryLater { failure, .. } => Some(failure),
            Self::Complete { .. }
            | Self::Snooze { .. }
            | Self::Release
            | Self::Limit { .. }
            | Self::AwaitChildren { .. } => None,
        }
    }
}

/// One attempt that ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// The job.
    pub id: JobId,
    /// The token it was fetched with.
    pub token: LockToken,
    /// How it ends.
    pub transition: Transition,
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// For each attempt, in order: done, or why not.
    pub results: Vec<Result<FinishNote, Refusal>>,
    /// The next jobs, when some were asked for.
    pub fetched: Option<Fetched>,
}

/// Something to know about a transition that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishNote {
    /// It was made.
    Done,
    /// [`Transition::AwaitChildren`]: no child is pending, the job stays active.
    NothingPending,
}

/// One attempt as the script takes it. Written only as far as it says something:
/// Lua builds a table for it, and a short one is cheaper.
struct Row<'a> {
    kind: u8,
    id: &'a JobId,
    token: &'a LockToken,
    text: OrFalse<&'a str>,
    keep_count: OrFalse<i64>,
    stack: OrFalse<&'a str>,
    keep_age_s: OrFalse<f64>,
    keep_limit: OrFalse<i64>,
    attempts_allowed: u32,
    delay_ms: f64,
    lifo: bool,
    trace: OrFalse<&'a str>,
}

impl Row<'_> {
    fn len(&self) -> usize {
        if self.trace.0.is_some() {
            12
        } else if self.lifo {
            11
        } else if self.delay_ms != 0.0 {
            10
        } else if self.attempts_allowed != 0 {
            9
        } else if self.keep_limit.0.is_some() {
            8
        } else if self.keep_age_s.0.is_some() {
            7
        } else if self.stack.0.is_some() {
            6
        } else if self.keep_count.0.is_some() {
            5
        } else {
            4
        }
    }
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let len = self.len();
        let mut row = serializer.serialize_tuple(len)?;
        row.serialize_element(&self.kind)?;
        row.serialize_element(self.id)?;
        row.serialize_element(self.token)?;
        row.serialize_element(&self.text)?;
        if len > 4 {
            row.serialize_element(&self.keep_count)?;
        }
        if len > 5 {
            row.serialize_element(&self.stack)?;
        }
        if len > 6 {
            row.serialize_element(&self.keep_age_s)?;
        }
        if len > 7 {
            row.serialize_element(&self.keep_limit)?;
        }
        if len > 8 {
            row.serialize_element(&self.attempts_allowed)?;
        }
        if len > 9 {
            row.serialize_element(&wire::Number(self.delay_ms))?;
        }
        if len > 10 {
            row.serialize_element(&self.lifo)?;
        }
        if len > 11 {
            row.serialize_element(&self.trace)?;
        }
        row.end()
    }
}

fn row(finish: &Finish) -> Row<'_> {
    let mut row = Row {
        kind: 0,
        id: &finish.id,
        token: &finish.token,
        text: OrFalse(None),
        keep_count: OrFalse(None),
        stack: OrFalse(None),
        keep_age_s: OrFalse(None),
        keep_limit: OrFalse(None),
        attempts_allowed: 0,
        delay_ms: 0.0,
        lifo: false,
        trace: OrFalse(None),
    };
    let keep_into = |row: &mut Row<'_>, keep: &Retention| {
        row.keep_count = OrFalse(keep.count);
        row.keep_age_s = OrFalse(keep.age_s);
        row.keep_limit = OrFalse(keep.limit);
    };
    match &finish.transition {
        Transition::Complete { value, keep } => {
            row.kind = 1;
            row.text = OrFalse(Some(value));
            keep_into(&mut row, keep);
        }
        Transition::Fail { failure, keep, attempts_allowed } => {
            row.kind = 2;
            row.text = OrFalse(Some(&failure.reason));
            row.stack = OrFalse(failure.stacktrace.as_deref());
            row.trace = OrFalse(failure.trace.as_deref());
            keep_into(&mut row, keep);
            row.attempts_allowed = *attempts_allowed;
        }
        Transition::RetryNow { failure, lifo } => {
            row.kind = 3;
            row.text = OrFalse(Some(&failure.reason));
            row.stack = OrFalse(failure.stacktrace.as_deref());
            row.trace = OrFalse(failure.trace.as_deref());
            row.lifo = *lifo;
        }
        Transition::RetryLater { failure, delay_ms } => {
            row.kind = 4;
            row.text = OrFalse(Some(&failure.reason));
            row.stack = OrFalse(failure.stacktrace.as_deref());
            row.trace = OrFalse(failure.trace.as_deref());
            row.delay_ms = *delay_ms;
        }
        Transition::Snooze { delay_ms } => {
            row.kind = 5;
            row.delay_ms = *delay_ms;
        }
        Transition::Release => row.kind = 6,
        Transition::Limit { pause_ms } => {
            row.kind = 6;
            #[expect(clippy::cast_precision_loss, reason = "a pause in ms")]
            let pause = (*pause_ms).max(1) as f64;
            row.delay_ms = pause;
        }
        Transition::AwaitChildren { child_key } => {
            row.kind = 7;
            row.text = OrFalse(child_key.as_deref());
        }
    }
    row
}

#[derive(Deserialize)]
struct Reply(Vec<i64>, MaybeArray<FetchedReply>);

/// Ends `finishes` in order and, with `fetch`, starts the next jobs; one round
/// trip, one atomic step. `metrics_points` counts them into the queue's metrics.
///
/// # Errors
/// [`ScriptError`]; refusals of single transitions are in the result.
///
/// # Cancel safety
/// Not cancel safe: a dropped call may have taken effect.
pub async fn finish_jobs(
    conn: &mut impl ConnectionLike,
    keys: &QueueKeys,
    peer: Peer,
    now: TimestampMs,
    finishes: &[Finish],
    fetch: Option<&FetchSpec<'_>>,
    metrics_points: Option<u32>,
) -> Result<Finished, ScriptError> {
    let rows: Vec<Row<'_>> = finishes.iter().map(row).collect();
    let fetch: OrFalse<SpecRow<'_>> = OrFalse(fetch.map(FetchSpec::row));
    let metrics_points = OrFalse(metrics_points.filter(|points| *points > 0));
    let argument = wire::pack(&(now.0, peer, rows, fetch, metrics_points))?;
    let reply: Vec<u8> = FINISH_JOBS.call(conn, keys.meta(), &argument).await?;
    let Reply(codes, fetched) = wire::unpack("finishJobs", &reply)?;
    if codes.len() != finishes.len() {
        return Err(ScriptError::Reply {
            script: "finishJobs",
            detail: format!("{} codes for {} attempts", codes.len(), finishes.len()),
        });
    }
    let results = codes
        .into_iter()
        .map(|code| match Refusal::from_code(code) {
            Some(refusal) => Err(refusal),
            None if code == 1 => Ok(FinishNote::NothingPending),
            None => Ok(FinishNote::Done),
        })
        .collect();
    let fetched = fetched.0.map(|reply| reply.decode("finishJobs")).transpose()?;
    Ok(Finished { results, fetched })
}
