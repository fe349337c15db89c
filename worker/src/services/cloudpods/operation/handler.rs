//! The glue between the engine and [`OperationService`].

use mpanel_engine::{
    context::JobContext,
    handler::{BoxError, FinalCause, Handler, JobError},
};
use serde_json::Value;

use super::super::{
    handler::{before, job_ref, stopped, verdict_error},
    json::{self as lenient, Payload},
};
use super::{Operation, OperationService};

/// Serves one queue of operations.
#[derive(Debug, Clone)]
pub struct OperationHandler {
    service: OperationService,
    operation: Operation,
}

impl OperationHandler {
    /// A handler that does this by this service.
    #[must_use]
    pub fn new(service: OperationService, operation: Operation) -> Self {
        Self { service, operation }
    }
}

impl Handler for OperationHandler {
    /// Any JSON: the service names the fields that are wrong.
    type Data = Payload;
    type Output = Value;

    async fn run(&self, ctx: &JobContext, Payload(data): Payload) -> Result<Value, JobError> {
        let job = job_ref(ctx);
        tokio::select! {
            // cancel-safe: an attempt may be dropped at any point.
            () = ctx.cancelled().cancelled() => Err(stopped()),
            result = Box::pin(self.service.run(self.operation, &job, &data)) => {
                result.map_err(|error| verdict_error(error.verdict(), error))
            }
        }
    }

    async fn on_failed(&self, ctx: &JobContext, cause: FinalCause, reason: &str) -> Result<(), BoxError> {
        let payload: Value = lenient::read(ctx.data_json()).unwrap_or(Value::Null);
        tracing::info!(job = %ctx.id(), ?cause, reason, "{} failed for good", self.operation.noun());
        let job = job_ref(ctx);
        tokio::select! {
            // cancel-safe: it may run twice, and goes on where it was.
            () = ctx.cancelled().cancelled() => Err("the worker stopped, or lost the job, in mid-clean-up".into()),
            failed = Box::pin(self.service.fail(self.operation, &job, before(cause), &payload, reason)) => Ok(failed?),
        }
    }
}
