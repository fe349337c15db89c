//! The glue between the engine and [`CreateService`]: contexts, errors, progress.

use std::sync::Arc;

use mpanel_engine::{
    context::JobContext,
    handler::{BoxError, FinalCause, Handler, JobError},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{
    Before, CreateResult, CreateService, JobRef, Progress, Step, Verdict,
    json::{self as lenient, Payload},
};

/// Longest job id that is kept as it is, bytes.
const ID_MAX: usize = 1000;

/// Serves `cloudpods-create`.
#[derive(Debug, Clone)]
pub struct CreateHandler {
    service: CreateService,
}

impl CreateHandler {
    /// A handler that creates pods by this service.
    #[must_use]
    pub fn new(service: CreateService) -> Self {
        Self { service }
    }
}

impl Handler for CreateHandler {
    /// Any JSON: the service names the fields that are wrong.
    type Data = Payload;
    type Output = CreateResult;

    async fn run(&self, ctx: &JobContext, Payload(data): Payload) -> Result<CreateResult, JobError> {
        let job = job_ref(ctx);
        let (sender, mut steps) = mpsc::unbounded_channel();
        let progress: Progress = Arc::new(move |step: Step| {
            // The receiver lives as long as the creation.
            let _ = sender.send(step);
        });
        let creation = Box::pin(async {
            let result = self.service.create(&job, &data, &progress).await;
            // Ends the loop below.
            drop(progress);
            result
        });
        let telling = async {
            while let Some(step) = steps.recv().await {
                let value = json!({ "step": step.as_str(), "percent": step.percent() });
                if let Err(error) = ctx.progress(&value).await {
                    tracing::debug!(%error, "progress not written");
                }
            }
        };
        let both = async { tokio::join!(creation, telling).0 };
        tokio::select! {
            // cancel-safe: the creation may be dropped at any point.
            () = ctx.cancelled().cancelled() => {
                Err(stopped())
            }
            result = Box::pin(both) => {
                result.map_err(|error| verdict_error(error.verdict(), error))
            }
        }
    }

    async fn on_failed(&self, ctx: &JobContext, cause: FinalCause, reason: &str) -> Result<(), BoxError> {
        let payload: Value = lenient::read(ctx.data_json()).unwrap_or(Value::Null);
        tracing::info!(job = %ctx.id(), ?cause, reason, "creation failed for good");
        let job = job_ref(ctx);
        tokio::select! {
            // cancel-safe: it may run twice, and goes on where it was.
            () = ctx.cancelled().cancelled() => Err("the worker stopped, or lost the job, in mid-clean-up".into()),
            failed = Box::pin(self.service.fail(&job, before(cause), &payload, reason)) => Ok(failed?),
        }
    }
}

/// What the engine is told when the worker stops in the middle of a job.
pub(super) fn stopped() -> JobError {
    JobError::retry("the worker stopped in the middle of it; the next attempt goes on from there")
}

/// Whether the job's handler ran in the attempt that failed.
pub(super) fn before(cause: FinalCause) -> Before {
    match cause {
        FinalCause::NeverRetry | FinalCause::Exhausted | FinalCause::Cancelled => Before::Ran,
        FinalCause::BadPayload | FinalCause::Deferred => Before::NeverRan,
    }
}

pub(super) fn job_ref(ctx: &JobContext) -> JobRef {
    JobRef {
        queue: ctx.queue().to_string(),
        job_id: stored_id(ctx.id().as_str()),
        attempt: ctx.attempt(),
        // Hashed: the token itself is a credential and stays in Redis.
        attempt_id: digest(ctx.fencing_token().as_str()),
    }
}

/// The job's id as our books take it: Postgres refuses NUL in texts, and keys
/// of more than about 2700 bytes. (mPanel's ids hold the payload's vmid, whatever that is.)
fn stored_id(id: &str) -> String {
    let clean = id.replace('\0', "\u{fffd}");
    if clean.len() <= ID_MAX {
        return clean;
    }
    let start: String = clean.chars().take(100).collect();
    format!("{start}…{}", digest(id))
}

/// A short hash.
fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// An error as the engine takes it.
pub(super) fn verdict_error(
    verdict: Verdict,
    error: impl std::error::Error + Send + Sync + 'static,
) -> JobError {
    let reason = error.to_string();
    let job_error = match verdict {
        Verdict::Retry => JobError::retry(reason),
        Verdict::RetryAfter(delay) => JobError::retry_after(delay, reason),
        Verdict::Wait(delay) => {
            tracing::debug!(reason, "put off");
            JobError::snooze(delay)
        }
        Verdict::Never => JobError::never(reason),
    };
    job_error.because(error)
}
