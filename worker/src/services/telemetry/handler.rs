//! The glue between the engine and [`TelemetryService`].

use mpanel_engine::{
    context::JobContext,
    handler::{Handler, JobError},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Done, TelemetryService, Written,
    clock::{Collector, Tick},
};

/// Serves the queue of ticks.
#[derive(Debug, Clone)]
pub struct TelemetryHandler {
    service: TelemetryService,
}

/// Whatever the job carries: all that counts is its name and its id.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(from = "serde::de::IgnoredAny")]
pub struct Anything;

impl From<serde::de::IgnoredAny> for Anything {
    fn from(_: serde::de::IgnoredAny) -> Self {
        Self
    }
}

impl TelemetryHandler {
    /// A handler that collects by this service.
    #[must_use]
    pub fn new(service: TelemetryService) -> Self {
        Self { service }
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &TelemetryService {
        &self.service
    }
}

impl Handler for TelemetryHandler {
    type Data = Anything;
    type Output = Value;

    async fn run(&self, ctx: &JobContext, _: Anything) -> Result<Value, JobError> {
        let Some(collector) = Collector::parse(ctx.name()) else {
            let known = Collector::ALL.map(Collector::as_str).join(", ");
            return Err(JobError::never(format!("no collector `{}`; there are {known}", ctx.name())));
        };
        let tick = Tick::of_job(collector, ctx.id().as_str(), ctx.enqueued_at_ms());
        tokio::select! {
            // cancel-safe: a tick is written whole or not at all.
            () = ctx.cancelled().cancelled() => {
                Err(JobError::retry("the worker stopped before the tick was written"))
            }
            done = Box::pin(self.service.tick(tick)) => {
                // Said once already. It is tried again until it is too late, and fails nobody's
                // statistics.
                let Ok(done) = done else { return Err(JobError::snooze(self.service.interval() / 5)) };
                let (outcome, rows) = match done {
                    Done::Written(Written::Rows(rows)) => ("written", rows),
                    Done::Written(Written::Already) => ("was written before", 0),
                    Done::Written(Written::Overtaken) => ("a newer tick was written before", 0),
                    Done::Late => ("too late", 0),
                    // Until another worker takes it, or it is too late.
                    Done::NotHere => return Err(JobError::snooze(self.service.interval() / 5)),
                };
                Ok(json!({ "collector": collector.as_str(), "outcome": outcome, "statusRows": rows }))
            }
        }
    }
}
