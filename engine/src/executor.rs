//! One attempt: options and payload checked, the handler run, the outcome turned
//! into a transition. Computes first, reports second; writes nothing itself.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::FutureExt;
use mpanel_protocol::{
    calls::finish::{Finish, Transition},
    ids::LockToken,
    job::FetchedJob,
    options::JobOptions,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    context::{Attempt, JobContext},
    handler::FinalCause,
    outcome::{AttemptFailure, after_failure, after_success, final_cause},
    router::{AnyHandler, Ran},
    schedules,
    sealed::Payload,
    trace::AttemptTrace,
    worker::Shared,
};

/// How long a job waits when its last failure could not be recorded by the
/// handler's `on_failed`; no attempt is counted.
const RECORD_RETRY_MS: i64 = 5_000;

/// What the pump learns of an attempt.
#[derive(Debug)]
pub(crate) enum Done {
    /// Write this.
    Finish(Finish),
    /// The lock is gone: another worker may have the job, nothing is written.
    LockLost(mpanel_protocol::ids::JobId, LockToken),
}

/// Runs one attempt to its end.
pub(crate) async fn run_attempt(
    shared: Arc<Shared>,
    job: FetchedJob,
    token: LockToken,
    cancelled: CancellationToken,
    lock_lost: Arc<AtomicBool>,
) -> Done {
    let trace = AttemptTrace::of(&job.opts);
    let span = tracing::info_span!(
        "job", queue = %shared.keys.queue(), job.id = %job.id, job.name = job.name, attempt = job.attempts_started,
        trace_id = %trace.context().trace_id, span_id = %trace.context().span_id,
        parent_span_id = trace.parent().map(tracing::field::display)
    );
    async move {
        let id = job.id.clone();
        let transition = match schedules::carry_on(&shared, &job, &cancelled, &lock_lost).await {
            Ok(()) => attempt(&shared, &job, &token, &trace, cancelled, lock_lost.clone()).await,
            Err(schedules::Interrupted) => Some(Transition::Release),
        };
        match transition {
            Some(transition) if !lock_lost.load(Ordering::Relaxed) => {
                note(&transition);
                Done::Finish(Finish { id, token, transition: trace.mark(transition) })
            }
            _ => {
                tracing::warn!("lock lost while the attempt ran; its outcome is not written");
                Done::LockLost(id, token)
            }
        }
    }
    .instrument(span)
    .await
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
        Transition::AwaitChildren { .. } => tracing::info!("waits for children"),
    }
}

async fn attempt(
    shared: &Shared,
    job: &FetchedJob,
    token: &LockToken,
    trace: &AttemptTrace,
    cancelled: CancellationToken,
    lock_lost: Arc<AtomicBool>,
) -> Option<Transition> {
    let options = job.options();
    let (options, broken_options) = match options {
        Ok(options) => (options, None),
        Err(error) => (JobOptions::default(), Some(error)),
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; a count")]
    let keep_logs = options.keep_logs.map(|n| n as u32);
    let payload = Payload::open(job, shared.keys.queue(), shared.engine.keyring.as_deref());
    let ctx = JobContext::new(Attempt {
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
        cancelled: cancelled.clone(),
        lock_lost: lock_lost.clone(),
        store: Some((shared.engine.redis.clone(), shared.keys.clone())),
    });
    let handler = shared.router.find(&job.name);

    let refused = if let Some(reason) = &job.deferred_failure {
        Some(AttemptFailure::unrecoverable(reason.clone(), FinalCause::Deferred))
    } else if let Some(error) = broken_options {
        let reason = format!("the job's options are no JSON object: {error}");
        Some(AttemptFailure::unrecoverable(reason, FinalCause::BadPayload))
    } else if job.data.len() > shared.size_limit {
        let reason = format!(
            "Limit(Size): the payload has {} bytes, this worker takes {}",
            job.data.len(),
            shared.size_limit
        );
        Some(AttemptFailure::unrecoverable(reason, FinalCause::BadPayload))
    } else if let Some(reason) = &payload.refused {
        Some(AttemptFailure::unrecoverable(reason.clone(), FinalCause::BadPayload))
    } else if handler.is_none() {
        let reason =
            format!("unknown job name `{}`; this worker handles: {}", job.name, shared.router.names());
        Some(AttemptFailure::unrecoverable(reason, FinalCause::BadPayload))
    } else {
        None
    };

    let failure = match (refused, handler) {
        (None, Some(handler)) => match run_handler(handler, &ctx).await {
            Ok(value) => return Some(after_success(&options, value, &shared.policy)),
            Err(failure) => payload.redact(failure),
        },
        (Some(failure), _) => failure,
        (None, None) => return None,
    };

    if lock_lost.load(Ordering::Relaxed) {
        return None;
    }
    // Stopped hard: what failed now failed because of the stop. The job goes back.
    let Some(cause) = final_cause(job, &options, &failure) else {
        if cancelled.is_cancelled() {
            return Some(Transition::Release);
        }
        return Some(after_failure(job, &options, &failure, &shared.policy, shared.engine.random()));
    };
    if cancelled.is_cancelled() && cause == FinalCause::Exhausted {
        return Some(Transition::Release);
    }
    // The domain learns of a final failure before Redis does: a crash in between
    // repeats this step, the other order would lose it.
    if let Some(handler) = handler.or(shared.router.fallback()) {
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
            return Some(Transition::Snooze { delay_ms: RECORD_RETRY_MS });
        }
    }
    Some(after_failure(job, &options, &failure, &shared.policy, shared.engine.random()))
}

async fn run_handler(handler: &Arc<dyn AnyHandler>, ctx: &JobContext) -> Result<String, AttemptFailure> {
    match AssertUnwindSafe(handler.run(ctx)).catch_unwind().await {
        Ok(Ran::Ok(value)) => Ok(value),
        Ok(Ran::BadPayload(reason)) => Err(AttemptFailure::unrecoverable(reason, FinalCause::BadPayload)),
        Ok(Ran::Failed(error)) => Err(AttemptFailure::from_error(&error)),
        Err(panic) => Err(AttemptFailure::panicked(&panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
