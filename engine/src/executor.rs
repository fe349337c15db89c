//! One attempt: options and payload checked, the handler run, the outcome turned
//! into a transition. Computes first, reports second; writes nothing itself.

use std::{panic::AssertUnwindSafe, sync::Arc, task::Poll, time::Duration};

use futures_util::FutureExt;
use mpanel_protocol::{
    calls::cancel::CANCELLED_BY,
    calls::finish::{Finish, Transition},
    ids::{JobId, LockToken},
    job::FetchedJob,
    options::JobOptions,
    time::millis,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::{
    cancellation::{CancelCause, Cancellation},
    context::{Attempt, JobContext, Store},
    handler::{ErrorKind, FinalCause, JobError, Yield},
    middleware::ReturnValue,
    outcome::{AttemptFailure, after_failure, after_success, final_cause},
    router::{AnyHandler, Ran, Router, panic_text},
    schedules,
    sealed::Payload,
    trace::AttemptTrace,
    worker::Shared,
};

/// How long a job waits when its last failure could not be recorded by the
/// handler's `on_failed`; no attempt is counted.
const RECORD_RETRY_MS: f64 = 5_000.0;

/// What the pump learns of an attempt.
#[derive(Debug)]
pub(crate) enum Done {
    /// Write this.
    Finish(Finish),
    /// Nothing is written: the lock is gone, another worker may have the job.
    LockLost(JobId, LockToken),
    /// Nothing is left to write: the handler has moved the job itself.
    Moved(JobId, LockToken),
    /// Nothing can be written: it broke off, and the job will be rescued.
    BrokeOff(JobId, LockToken),
}

/// Runs one attempt to its end.
pub(crate) async fn run_attempt(
    shared: Arc<Shared>,
    job: FetchedJob,
    token: LockToken,
    cancellation: Cancellation,
) -> Done {
    let trace = AttemptTrace::of(&job.opts);
    let span = tracing::info_span!(
        "job", queue = %shared.keys.queue(), job.id = %job.id, job.name = job.name, attempt = job.attempts_started,
        trace_id = %trace.context().trace_id, span_id = %trace.context().span_id,
        parent_span_id = trace.parent().map(tracing::field::display)
    );
    async move {
        let id = job.id.clone();
        let ended = match schedules::carry_on(&shared, &job, &cancellation).await {
            Ok(()) => attempt(&shared, &job, &token, &trace, &cancellation).await,
            Err(schedules::Interrupted) => Ended::By(Transition::Release),
        };
        match ended {
            Ended::Elsewhere => {
                tracing::info!("waits for children");
                Done::Moved(id, token)
            }
            Ended::By(transition) if !cancellation.lock_lost() => {
                note(&transition);
                Done::Finish(Finish { id, token, transition: trace.mark(transition) })
            }
            Ended::By(_) | Ended::Unlocked => {
                tracing::warn!("lock lost while the attempt ran; its outcome is not written");
                Done::LockLost(id, token)
            }
        }
    }
    .instrument(span)
    .await
}

/// How an attempt ended.
pub(crate) enum Ended {
    By(Transition),
    /// The job is where it belongs already.
    Elsewhere,
    /// The lock was lost.
    Unlocked,
}

/// One line for each finished attempt.
fn note(transition: &Transition) {
    match transition {
        Transition::Complete { .. } => tracing::info!("completed"),
        Transition::Fail { failure, .. } => tracing::error!(reason = failure.reason, "failed for good"),
        Transition::RetryNow { failure, .. } => tracing::warn!(reason = failure.reason, "failed, retrying"),
        Transition::RetryLater { failure, delay_ms } => {
            tracing::warn!(reason = failure.reason, delay_ms, "failed, retrying later");
        }
        Transition::Snooze { delay_ms } => tracing::info!(delay_ms, "put off"),
        Transition::Release => tracing::info!("given back"),
        Transition::Limit { pause_ms } => tracing::warn!(pause_ms, "given back; the queue is limited"),
        Transition::AwaitChildren { .. } => tracing::info!("waits for children"),
    }
}

async fn attempt(
    shared: &Arc<Shared>,
    job: &FetchedJob,
    token: &LockToken,
    trace: &AttemptTrace,
    cancellation: &Cancellation,
) -> Ended {
    let options = job.options();
    let (options, broken_options) = match options {
        Ok(options) => (options, None),
        Err(error) => (JobOptions::default(), Some(error)),
    };
    let payload = Payload::open(job, shared.keys.queue(), shared.engine.keyring.as_deref());
    let ctx = context_of(shared, job, token, trace, cancellation, &options, &payload);
    let handler = shared.router.find(&job.name);
    let failure = match (refused(shared, job, broken_options, &payload, handler.is_some()), handler) {
        (None, Some(handler)) => match tried(shared, handler, &ctx).await {
            Verdict::Done(value) => {
                return Ended::By(after_success(&options, value.into_json(), &shared.policy));
            }
            Verdict::Yield(to) => return yielded(to),
            Verdict::Failed(failure) => payload.redact(failure),
        },
        (Some(failure), _) => failure,
        (None, None) => return Ended::Unlocked,
    };

    if cancellation.lock_lost() {
        return Ended::Unlocked;
    }
    let follow = || after_failure(job, &options, &failure, &shared.policy, shared.engine.random());
    // Stopped hard: what failed now failed because of the stop. The job goes back.
    let Some(cause) = final_cause(job, &options, &failure, &shared.policy) else {
        return Ended::By(if cancellation.is_hard() { Transition::Release } else { follow() });
    };
    if cancellation.is_hard() && cause == FinalCause::Exhausted {
        return Ended::By(Transition::Release);
    }
    // The domain learns of a final failure before Redis does: a crash in between
    // repeats this step, the other order would lose it.
    if let Some(handler) = handler.or(shared.router.fallback()) {
        let ctx = ctx.after_handler();
        let told = AssertUnwindSafe(handler.on_failed(&ctx, cause, &failure.reason)).catch_unwind().await;
        let trouble = match told {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic_text(panic.as_ref())),
        };
        if let Some(trouble) = trouble {
            tracing::error!(
                reason = failure.reason,
                trouble,
                "a final failure could not be recorded; trying again"
            );
            return Ended::By(Transition::Snooze { delay_ms: RECORD_RETRY_MS });
        }
    }
    Ended::By(follow())
}

/// What an attempt's handler is given.
pub(crate) fn context_of(
    shared: &Arc<Shared>,
    job: &FetchedJob,
    token: &LockToken,
    trace: &AttemptTrace,
    cancellation: &Cancellation,
    options: &JobOptions,
    payload: &Payload,
) -> JobContext {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; a count")]
    let keep_logs = options.keep_logs.map(|n| n as u32);
    JobContext::new(Attempt {
        queue: shared.keys.queue().clone(),
        id: job.id.clone(),
        name: job.name.clone(),
        data_json: payload.json.clone(),
        attempt: job.attempts_started,
        attempts_made: job.attempts_made,
        max_attempts: options.max_attempts(),
        enqueued_at_ms: job.timestamp_ms,
        keep_logs,
        token: token.clone(),
        trace: trace.clone(),
        cancelled: cancellation.attempt().clone(),
        cancellation: cancellation.clone(),
        store: Store::Redis(shared.clone()),
    })
}

async fn tried(shared: &Shared, handler: &Arc<dyn AnyHandler>, ctx: &JobContext) -> Verdict {
    let limit = handler.time_limit(ctx).or(shared.time_limit);
    if let Some(limit) = limit {
        shared.locks.limit(ctx.id(), ctx.fencing_token(), limit);
    }
    let answer = run_handler(&shared.router, handler, ctx, limit.is_some(), shared.cancel_grace).await;
    judge(answer, ctx.cancellation())
}

/// Why a job fails without its handler being asked.
pub(crate) fn refused(
    shared: &Shared,
    job: &FetchedJob,
    broken_options: Option<serde_json::Error>,
    payload: &Payload,
    handled: bool,
) -> Option<AttemptFailure> {
    let bad = |reason: String| Some(AttemptFailure::unrecoverable(reason, FinalCause::BadPayload));
    if let Some(reason) = &job.deferred_failure {
        let cancelled = reason.starts_with(CANCELLED_BY);
        let cause = if cancelled { FinalCause::Cancelled } else { FinalCause::Deferred };
        Some(AttemptFailure::unrecoverable(reason.clone(), cause))
    } else if shared.policy.started_too_often(job) {
        let reason = "job started more than allowable limit";
        Some(AttemptFailure::unrecoverable(reason, FinalCause::Exhausted))
    } else if let Some(error) = broken_options {
        bad(format!("the job's options are no JSON object: {error}"))
    } else if job.data.len() > shared.size_limit {
        let (has, most) = (job.data.len(), shared.size_limit);
        bad(format!("Limit(Size): the payload has {has} bytes, this worker takes {most}"))
    } else if let Some(reason) = &payload.refused {
        bad(reason.clone())
    } else if !handled {
        bad(format!("unknown job name `{}`; this worker handles: {}", job.name, shared.router.names()))
    } else {
        None
    }
}

/// How a handler's run ended.
pub(crate) enum Answer {
    Ran(Ran),
    /// It ignored its cancellation and was left behind.
    Abandoned,
}

/// Runs the handler, at most for the cancel grace after it was told to end. What
/// does not end then is dropped where it next waits; its job goes its way without it.
/// With `apart` it has a task of its own from the start, so that it can be left
/// behind even when it never waits.
pub(crate) async fn run_handler(
    router: &Router,
    handler: &Arc<dyn AnyHandler>,
    ctx: &JobContext,
    apart: bool,
    cancel_grace: Duration,
) -> Answer {
    let mut run = router.run(handler, ctx.clone());
    if !apart {
        // Most handlers that never wait end here, without a task of their own.
        let first = std::future::poll_fn(|cx| Poll::Ready(AssertUnwindSafe(&mut run).poll_unpin(cx)));
        match AssertUnwindSafe(first).catch_unwind().await {
            Ok(Poll::Ready(ran)) => return Answer::Ran(ran),
            Ok(Poll::Pending) => {}
            Err(panic) => return Answer::Ran(Err(JobError::panicked(&panic_text(panic.as_ref())))),
        }
    }
    let mut task = AbortOnDropHandle::new(tokio::spawn(run.in_current_span()));
    // cancel-safe: what is not taken here is taken below.
    tokio::select! {
        biased;
        ended = &mut task => return answer(ended),
        () = ctx.cancelled().cancelled() => {}
    }
    if ctx.cancel_cause() == Some(CancelCause::Stopping) {
        // The stop itself has a grace, after which it drops what still runs.
        return answer(task.await);
    }
    match tokio::time::timeout(cancel_grace, &mut task).await {
        Ok(ended) => answer(ended),
        Err(_) => {
            tracing::error!(grace = ?cancel_grace, "the handler ignored its cancellation and is left behind");
            Answer::Abandoned
        }
    }
}

fn answer(ended: Result<Ran, tokio::task::JoinError>) -> Answer {
    match ended {
        Ok(ran) => Answer::Ran(ran),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => Answer::Ran(Err(JobError::panicked(&panic_text(panic.as_ref())))),
            // Its runtime is being shut down.
            Err(_) => Answer::Abandoned,
        },
    }
}

/// What an answer is worth, given why the attempt was cancelled, if it was.
pub(crate) enum Verdict {
    Done(ReturnValue),
    Yield(Yield),
    Failed(AttemptFailure),
}

pub(crate) fn judge(answer: Answer, cancellation: &Cancellation) -> Verdict {
    match (answer, cancellation.cause()) {
        (Answer::Ran(Err(error)), _) if error.kind() == ErrorKind::Yield(Yield::WaitsForChildren) => {
            Verdict::Yield(Yield::WaitsForChildren)
        }
        (_, Some(CancelCause::Requested(reason))) => {
            Verdict::Failed(AttemptFailure::unrecoverable(reason, FinalCause::Cancelled))
        }
        (Answer::Ran(Ok(value)), _) => Verdict::Done(value),
        (Answer::Ran(Err(error)), cause) => match (error.kind(), cause) {
            (ErrorKind::Yield(to), _) => Verdict::Yield(to),
            (_, Some(CancelCause::TimeLimit(limit))) => {
                Verdict::Failed(AttemptFailure::timed_out(limit, Some(&error)))
            }
            _ => Verdict::Failed(AttemptFailure::from_error(&error)),
        },
        (Answer::Abandoned, Some(CancelCause::TimeLimit(limit))) => {
            Verdict::Failed(AttemptFailure::timed_out(limit, None))
        }
        // Its lock is lost, or its worker is gone: nothing of it is written.
        (Answer::Abandoned, _) => {
            Verdict::Failed(AttemptFailure::from_error(&JobError::retry("the attempt broke off")))
        }
    }
}

pub(crate) fn yielded(to: Yield) -> Ended {
    Ended::By(match to {
        Yield::WaitsForChildren => return Ended::Elsewhere,
        #[expect(clippy::cast_precision_loss, reason = "a pause in ms")]
        Yield::Snooze(delay) => Transition::Snooze { delay_ms: millis(delay) as f64 },
        Yield::BackInLine => Transition::Release,
        Yield::RateLimited(pause) => Transition::Limit { pause_ms: millis(pause).max(1) },
    })
}
