//! `finishJobs`: end attempts, and start the next jobs in the same round trip.

use std::borrow::Borrow;

use redis::{Value, aio::ConnectionLike};
use serde::{Serialize, Serializer, ser::SerializeTuple};

use super::fetch::{FetchSpec, Fetched, SpecRow, fetched};
use crate::{
    ids::{JobId, LockToken},
    keys::QueueKeys,
    options::Retention,
    outcome::Refusal,
    peer::Peer,
    script::{FINISH_JOBS, ScriptError},
    time::TimestampMs,
    wire::{self, OneOrMany, OrFalse, list},
};

/// Most attempts of one call, so that the script stays below 5 ms with small jobs.
pub const FINISHES_PER_CALL: usize = 64;

const SCRIPT: &str = "finishJobs";

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

/// What ends alike, as the script takes it.
#[derive(Clone, Copy, PartialEq)]
struct Manner {
    kind: u8,
    keep_count: OrFalse<i64>,
    keep_age_s: OrFalse<f64>,
    keep_limit: OrFalse<i64>,
    attempts_allowed: u32,
    delay_ms: f64,
    lifo: bool,
}

/// Attempts that end alike. Written only as far as it says something: Lua builds
/// a table for it, and short ones are cheaper.
struct Group<'a> {
    manner: Manner,
    ids: Vec<&'a JobId>,
    tokens: Vec<&'a LockToken>,
    texts: Vec<OrFalse<&'a str>>,
    stacks: Vec<OrFalse<&'a str>>,
    traces: Vec<OrFalse<&'a str>>,
}

impl Serialize for Group<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Manner { kind, keep_count, keep_age_s, keep_limit, attempts_allowed, delay_ms, lifo } =
            self.manner;
        let some = |list: &[OrFalse<&str>]| list.iter().any(|text| text.0.is_some());
        let len = if some(&self.stacks) || some(&self.traces) {
            12
        } else if attempts_allowed != 0 || delay_ms != 0.0 || lifo {
            10
        } else if keep_age_s.0.is_some() || keep_limit.0.is_some() {
            7
        } else {
            5
        };
        let mut row = serializer.serialize_tuple(len)?;
        row.serialize_element(&kind)?;
        row.serialize_element(&self.ids)?;
        row.serialize_element(&OneOrMany::of(self.tokens.clone()))?;
        row.serialize_element(&OneOrMany::of(self.texts.clone()))?;
        row.serialize_element(&keep_count)?;
        if len > 5 {
            row.serialize_element(&keep_age_s)?;
            row.serialize_element(&keep_limit)?;
        }
        if len > 7 {
            row.serialize_element(&attempts_allowed)?;
            row.serialize_element(&wire::Number(delay_ms))?;
            row.serialize_element(&lifo)?;
        }
        if len > 10 {
            row.serialize_element(&self.stacks)?;
            row.serialize_element(&self.traces)?;
        }
        row.end()
    }
}

fn groups<F: Borrow<Finish>>(finishes: &[F]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for finish in finishes.iter().map(Borrow::borrow) {
        let (manner, text, failure) = manner(&finish.transition);
        let group = match groups.last_mut() {
            Some(group) if group.manner == manner => group,
            _ => {
                let (ids, tokens) = (Vec::with_capacity(finishes.len()), Vec::with_capacity(finishes.len()));
                let (texts, stacks, traces) = (Vec::with_capacity(finishes.len()), Vec::new(), Vec::new());
                groups.push(Group { manner, ids, tokens, texts, stacks, traces });
                let Some(group) = groups.last_mut() else { continue };
                group
            }
        };
        group.ids.push(&finish.id);
        group.tokens.push(&finish.token);
        group.texts.push(OrFalse(text));
        if let Some(failure) = failure {
            group.stacks.push(OrFalse(failure.stacktrace.as_deref()));
            group.traces.push(OrFalse(failure.trace.as_deref()));
        }
    }
    groups
}

/// How a transition is told to the script: manner, text, and what failed.
fn manner(transition: &Transition) -> (Manner, Option<&str>, Option<&Failure>) {
    let mut manner = Manner {
        kind: 0,
        keep_count: OrFalse(None),
        keep_age_s: OrFalse(None),
        keep_limit: OrFalse(None),
        attempts_allowed: 0,
        delay_ms: 0.0,
        lifo: false,
    };
    let keep_into = |manner: &mut Manner, keep: &Retention| {
        manner.keep_count = OrFalse(keep.count);
        manner.keep_age_s = OrFalse(keep.age_s);
        manner.keep_limit = OrFalse(keep.limit);
    };
    let (text, failure) = match transition {
        Transition::Complete { value, keep } => {
            manner.kind = 1;
            keep_into(&mut manner, keep);
            (Some(value.as_str()), None)
        }
        Transition::Fail { failure, keep, attempts_allowed } => {
            manner.kind = 2;
            keep_into(&mut manner, keep);
            manner.attempts_allowed = *attempts_allowed;
            (Some(failure.reason.as_str()), Some(failure))
        }
        Transition::RetryNow { failure, lifo } => {
            manner.kind = 3;
            manner.lifo = *lifo;
            (Some(failure.reason.as_str()), Some(failure))
        }
        Transition::RetryLater { failure, delay_ms } => {
            manner.kind = 4;
            manner.delay_ms = *delay_ms;
            (Some(failure.reason.as_str()), Some(failure))
        }
        Transition::Snooze { delay_ms } => {
            manner.kind = 5;
            manner.delay_ms = *delay_ms;
            (None, None)
        }
        Transition::Release => {
            manner.kind = 6;
            (None, None)
        }
        Transition::Limit { pause_ms } => {
            manner.kind = 6;
            #[expect(clippy::cast_precision_loss, reason = "ms")]
            let pause = (*pause_ms).max(1) as f64;
            manner.delay_ms = pause;
            (None, None)
        }
        Transition::AwaitChildren { child_key } => {
            manner.kind = 7;
            (child_key.as_deref(), None)
        }
    };
    (manner, text, failure)
}

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
    finishes: &[impl Borrow<Finish>],
    fetch: Option<&FetchSpec<'_>>,
    metrics_points: Option<u32>,
) -> Result<Finished, ScriptError> {
    let fetch: OrFalse<SpecRow<'_>> = OrFalse(fetch.map(FetchSpec::row));
    let metrics_points = OrFalse(metrics_points.filter(|points| *points > 0));
    let argument = wire::pack(&(now.0, now.0.to_string(), peer, groups(finishes), fetch, metrics_points))?;
    let reply: Value = FINISH_JOBS.call(conn, keys.meta(), &argument).await?;
    let mut parts = list(SCRIPT, Some(reply))?.into_iter();
    let codes = list(SCRIPT, parts.next())?;
    let fetched = match parts.next() {
        Some(Value::Array(reply)) => Some(fetched(SCRIPT, reply)?),
        _ => None,
    };
    let results = match codes.len() {
        0 => vec![Ok(FinishNote::Done); finishes.len()],
        len if len == finishes.len() => codes.into_iter().map(result).collect::<Result<_, _>>()?,
        len => {
            let detail = format!("{len} codes for {} attempts", finishes.len());
            return Err(ScriptError::Reply { script: SCRIPT, detail });
        }
    };
    Ok(Finished { results, fetched })
}

/// What became of one attempt.
fn result(code: Value) -> Result<Result<FinishNote, Refusal>, ScriptError> {
    let Value::Int(code) = code else {
        return Err(ScriptError::Reply { script: SCRIPT, detail: format!("{code:?} is no code") });
    };
    Ok(match Refusal::from_code(code) {
        Some(refusal) => Err(refusal),
        None if code == 1 => Ok(FinishNote::NothingPending),
        None => Ok(FinishNote::Done),
    })
}
