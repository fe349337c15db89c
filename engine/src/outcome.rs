//! The decision what follows an attempt, as BullMQ's worker makes it
//! (`bullmq-protocol.md` 3.5). Pure: the random number is an argument; the
//! pump writes the decision.

use std::{fmt, sync::Arc, time::Duration};

use mpanel_protocol::{
    backoff::BackoffKind,
    calls::finish::{Failure, Transition},
    job::FetchedJob,
    options::{JobOptions, KeepJobs},
    peer::Peer,
    time::millis,
};

use crate::handler::{ErrorKind, FinalCause, JobError};

/// Longest `failedReason`, bytes.
const REASON_MAX: usize = 4096;
/// Longest stack trace text, bytes.
const STACK_MAX: usize = 8192;

/// A custom backoff strategy: from the failed attempt's number (from 1), the
/// strategy's name and the job, to the pause; `None` fails the job.
pub type BackoffStrategy = Arc<dyn Fn(u32, &str, &FetchedJob) -> Option<Duration> + Send + Sync>;

/// What a worker adds to the decision.
#[derive(Clone, Default)]
pub struct OutcomePolicy {
    /// Retention of completed jobs that say nothing themselves.
    pub remove_on_complete: Option<KeepJobs>,
    /// Retention of failed jobs that say nothing themselves.
    pub remove_on_fail: Option<KeepJobs>,
    /// Strategy for backoff types that are neither fixed nor exponential.
    pub backoff_strategy: Option<BackoffStrategy>,
    /// How often a job may be started, stalled and snoozed starts included
    /// (BullMQ's `maxStartedAttempts`).
    pub starts_allowed: Option<u32>,
    /// Whether the last start allowed may be followed by a retry that then fails
    /// (5.x), or not (6.x).
    pub peer: Peer,
}

impl OutcomePolicy {
    /// Whether no start may follow this one.
    fn starts_used(&self, job: &FetchedJob) -> bool {
        self.peer == Peer::V6 && self.starts_allowed.is_some_and(|most| job.attempts_started >= most)
    }

    /// Whether this start is one too many.
    pub(crate) fn started_too_often(&self, job: &FetchedJob) -> bool {
        self.starts_allowed.is_some_and(|most| job.attempts_started > most)
    }
}

impl fmt::Debug for OutcomePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutcomePolicy")
            .field("remove_on_complete", &self.remove_on_complete)
            .field("remove_on_fail", &self.remove_on_fail)
            .field("backoff_strategy", &self.backoff_strategy.is_some())
            .field("starts_allowed", &self.starts_allowed)
            .finish()
    }
}

/// A failed attempt, reduced to what is stored of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptFailure {
    /// `failedReason`.
    pub reason: String,
    /// One entry of `stacktrace`.
    pub stack: String,
    /// Whether and when it may be tried again.
    pub again: Again,
}

/// Whether and when a failed attempt may be followed by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// After the job's backoff.
    Backoff,
    /// After this pause.
    After(Duration),
    /// Never.
    Never(FinalCause),
}

/// Cuts text at a character boundary.
fn bounded(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

impl AttemptFailure {
    /// From what a handler returned. Causes go into the stack, below the reason.
    #[must_use]
    pub fn from_error(error: &JobError) -> Self {
        let again = match error.kind() {
            // What yields is no failure; who asks here all the same gets the mildest.
            ErrorKind::Retry | ErrorKind::Panicked | ErrorKind::Yield(_) => Again::Backoff,
            ErrorKind::RetryAfter(delay) => Again::After(delay),
            ErrorKind::Never => Again::Never(FinalCause::NeverRetry),
            ErrorKind::BadPayload => Again::Never(FinalCause::BadPayload),
        };
        let name = if matches!(again, Again::Never(_)) { "UnrecoverableError" } else { "Error" };
        let mut stack = format!("{name}: {}", error.reason());
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            stack.push_str("\n    caused by: ");
            stack.push_str(&source.to_string());
            cause = source.source();
        }
        Self {
            reason: bounded(error.reason().to_owned(), REASON_MAX),
            stack: bounded(stack, STACK_MAX),
            again,
        }
    }

    /// A failure that is final before any handler ran.
    #[must_use]
    pub fn unrecoverable(reason: impl Into<String>, cause: FinalCause) -> Self {
        let reason = bounded(reason.into(), REASON_MAX);
        let stack = format!("UnrecoverableError: {reason}");
        Self { reason, stack, again: Again::Never(cause) }
    }

    /// An attempt that took too long. What the handler made of its cancellation
    /// stands in the stack; an error that must never be tried again stays one.
    #[must_use]
    pub fn timed_out(limit: Duration, answer: Option<&JobError>) -> Self {
        let reason = format!("time limit of {limit:?} exceeded");
        match answer.map(Self::from_error) {
            Some(failure) if matches!(failure.again, Again::Never(_)) => failure,
            Some(failure) => {
                let stack = format!("Error: {reason}\n    then: {}", failure.stack);
                Self { stack: bounded(stack, STACK_MAX), reason, again: failure.again }
            }
            None => {
                let stack = format!("Error: {reason}\n    then: the handler ignored its cancellation");
                Self { stack, reason, again: Again::Backoff }
            }
        }
    }
}

/// The transition after success; `value` is JSON text.
#[must_use]
pub fn after_success(options: &JobOptions, value: String, policy: &OutcomePolicy) -> Transition {
    let keep = options.remove_on_complete.or(policy.remove_on_complete);
    Transition::Complete { value, keep: keep.map(KeepJobs::retention).unwrap_or_default() }
}

/// Why a failure of this attempt would be final; `None` when another attempt follows.
#[must_use]
pub fn final_cause(
    job: &FetchedJob,
    options: &JobOptions,
    failure: &AttemptFailure,
    policy: &OutcomePolicy,
) -> Option<FinalCause> {
    if let Again::Never(cause) = failure.again {
        return Some(cause);
    }
    let attempts_used = job.attempts_made + 1 >= options.attempts;
    (attempts_used || policy.starts_used(job)).then_some(FinalCause::Exhausted)
}

/// The transition after a failure. `random` is in [0, 1).
#[must_use]
pub fn after_failure(
    job: &FetchedJob,
    options: &JobOptions,
    failure: &AttemptFailure,
    policy: &OutcomePolicy,
    random: f64,
) -> Transition {
    let stored = Failure {
        reason: failure.reason.clone(),
        stacktrace: Some(job.stacktrace_with(&failure.stack, options)),
        trace: None,
    };
    let fail = |failure: Failure| Transition::Fail {
        failure,
        keep: options.remove_on_fail.or(policy.remove_on_fail).map(KeepJobs::retention).unwrap_or_default(),
        attempts_allowed: options.attempts,
    };
    if final_cause(job, options, failure, policy).is_some() {
        return fail(stored);
    }
    let pause = match failure.again {
        #[expect(clippy::cast_precision_loss, reason = "a pause in ms")]
        Again::After(delay) => Pause::Ms(millis(delay) as f64),
        Again::Backoff | Again::Never(_) => pause(job, options, policy, random),
    };
    match pause {
        Pause::GiveUp => fail(stored),
        Pause::Unknown(strategy) => {
            let reason = unknown_strategy(strategy);
            let stack = format!("Error: {reason}\n    after: {}", failure.stack);
            let stacktrace = Some(job.stacktrace_with(&bounded(stack, STACK_MAX), options));
            fail(Failure { reason: bounded(reason, REASON_MAX), stacktrace, trace: None })
        }
        Pause::Ms(0.0) => Transition::RetryNow { failure: stored, lifo: options.is_lifo() },
        // Node's sign for a job that is not to be tried again.
        Pause::Ms(-1.0) => fail(stored),
        Pause::Ms(delay_ms) => Transition::RetryLater { failure: stored, delay_ms },
    }
}

/// The pause before the next attempt.
enum Pause<'a> {
    /// So many ms.
    Ms(f64),
    /// A custom strategy wants no further attempt.
    GiveUp,
    /// No strategy of this name is known here.
    Unknown(&'a str),
}

fn pause<'a>(job: &FetchedJob, options: &'a JobOptions, policy: &OutcomePolicy, random: f64) -> Pause<'a> {
    let Some(backoff) = &options.backoff else { return Pause::Ms(0.0) };
    let attempt = job.attempts_made + 1;
    match (&backoff.kind, &policy.backoff_strategy) {
        (BackoffKind::Custom(name), None) => Pause::Unknown(name),
        (BackoffKind::Custom(name), Some(strategy)) => match strategy(attempt, name, job) {
            #[expect(clippy::cast_precision_loss, reason = "a pause in ms")]
            Some(pause) => Pause::Ms(millis(pause) as f64),
            None => Pause::GiveUp,
        },
        _ => Pause::Ms(backoff.delay_ms(attempt, random).unwrap_or(0.0)),
    }
}

/// What BullMQ says of a backoff strategy that it does not know.
fn unknown_strategy(name: &str) -> String {
    format!(
        "Unknown backoff strategy {name}.\n      If a custom backoff strategy is used, specify it when the queue is created."
    )
}

#[cfg(test)]
mod tests {
    use mpanel_protocol::ids::JobId;

    use super::*;

    fn job(attempts_made: u32) -> FetchedJob {
        FetchedJob {
            id: JobId::stored("1"),
            name: "a".into(),
            data: "{}".into(),
            opts: "{}".into(),
            timestamp_ms: 0,
            attempts_made,
            attempts_started: attempts_made + 1,
            parent_key: None,
            scheduler: None,
            deferred_failure: None,
            stacktrace: None,
        }
    }

    fn decide(opts: &str, attempts_made: u32, error: &JobError) -> Transition {
        let options = JobOptions::from_json(opts).unwrap();
        let failure = AttemptFailure::from_error(error);
        after_failure(&job(attempts_made), &options, &failure, &OutcomePolicy::default(), 0.5)
    }

    #[test]
    fn attempts_are_used_up_then_the_job_fails() {
        let opts = r#"{"attempts":3,"backoff":{"type":"exponential","delay":100}}"#;
        let retry = JobError::retry("no");
        assert!(matches!(decide(opts, 0, &retry), Transition::RetryLater { delay_ms: 100.0, .. }));
        assert!(matches!(decide(opts, 1, &retry), Transition::RetryLater { delay_ms: 200.0, .. }));
        assert!(matches!(decide(opts, 2, &retry), Transition::Fail { .. }));
        assert!(matches!(decide("{}", 0, &retry), Transition::Fail { attempts_allowed: 0, .. }));
    }

    #[test]
    fn no_backoff_retries_at_once() {
        let opts = r#"{"attempts":2,"lifo":true}"#;
        assert!(matches!(decide(opts, 0, &JobError::retry("no")), Transition::RetryNow { lifo: true, .. }));
    }

    #[test]
    fn retry_after_overrides_the_backoff() {
        let error = JobError::retry_after(Duration::from_secs(2), "busy");
        assert!(matches!(
            decide(r#"{"attempts":2,"backoff":5}"#, 0, &error),
            Transition::RetryLater { delay_ms: 2000.0, .. }
        ));
    }

    #[test]
    fn never_means_never() {
        assert!(matches!(
            decide(r#"{"attempts":9}"#, 0, &JobError::never("bad input")),
            Transition::Fail { .. }
        ));
    }

    #[test]
    fn an_unknown_strategy_fails_the_job() {
        let opts = r#"{"attempts":3,"backoff":{"type":"mine"}}"#;
        let Transition::Fail { failure, .. } = decide(opts, 0, &JobError::retry("no")) else { panic!() };
        assert!(failure.reason.starts_with("Unknown backoff strategy mine.\n"), "{}", failure.reason);
        let traces: Vec<String> = serde_json::from_str(&failure.stacktrace.unwrap()).unwrap();
        assert!(traces[0].ends_with("    after: Error: no"), "{traces:?}");
    }

    #[test]
    fn odd_pauses_are_nodes() {
        let decide = |delay: &str| {
            let opts = format!(r#"{{"attempts":9,"backoff":{{"type":"fixed","delay":{delay}}}}}"#);
            decide(&opts, 0, &JobError::retry("no"))
        };
        assert!(matches!(decide("-5"), Transition::RetryLater { delay_ms: -5.0, .. }));
        assert!(matches!(decide("2.5"), Transition::RetryLater { delay_ms: 2.5, .. }));
        assert!(matches!(decide("0"), Transition::RetryNow { .. }));
        assert!(matches!(decide("-1"), Transition::Fail { .. }));
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let failure = AttemptFailure::from_error(&JobError::retry("é".repeat(5000)));
        assert!(failure.reason.len() <= REASON_MAX + 4 && failure.reason.ends_with('…'));
    }

    #[test]
    fn causes_stand_in_the_stack() {
        let failure = AttemptFailure::from_error(&JobError::retry("create failed").because("disk full"));
        assert_eq!(failure.reason, "create failed");
        assert_eq!(failure.stack, "Error: create failed\n    caused by: disk full");
    }
}
