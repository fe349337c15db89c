//! A Node worker whose behaviour is a script, and what it reported.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::queue::{millis, with_job};
use super::transport::{GRACE, PATIENCE, fields};
use super::{NodeEvent, NodeSidecar};
use crate::TestkitError;

/// Handle to one Worker object in Node; it works until [`NodeWorker::close`] or the side-car's end.
///
/// Every method fails as [`NodeSidecar::call`] does.
#[derive(Debug, Clone)]
pub struct NodeWorker {
    sidecar: NodeSidecar,
    id: u64,
}

#[allow(clippy::missing_errors_doc, reason = "said once, at the type")]
impl NodeWorker {
    pub(super) fn new(sidecar: NodeSidecar, id: u64) -> Self {
        Self { sidecar, id }
    }

    /// What it emitted so far: active, completed, failed, stalled, drained, error.
    pub async fn events(&self) -> Result<Vec<NodeEvent>, TestkitError> {
        self.call("workerEvents", json!({}), PATIENCE).await
    }

    /// The first `count` events of that kind, about that job where one is named.
    pub async fn wait_events(
        &self,
        event: &str,
        job_id: Option<&str>,
        count: usize,
        within: Duration,
    ) -> Result<Vec<NodeEvent>, TestkitError> {
        let body = json!({"event": event, "count": count, "timeoutMs": millis(within)});
        self.call("waitWorker", with_job(body, job_id), within + GRACE).await
    }

    /// `worker.pause()`; waits for running jobs.
    pub async fn pause(&self) -> Result<(), TestkitError> {
        self.call("pauseWorker", json!({}), PATIENCE).await
    }

    /// `worker.resume()`.
    pub async fn resume(&self) -> Result<(), TestkitError> {
        self.call("resumeWorker", json!({}), PATIENCE).await
    }

    /// `worker.close(force)`; without force it waits for running jobs.
    pub async fn close(&self, force: bool) -> Result<(), TestkitError> {
        self.call("closeWorker", json!({"force": force}), PATIENCE).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        op: &str,
        body: Value,
        within: Duration,
    ) -> Result<T, TestkitError> {
        let mut body = fields(body);
        body.insert("worker".into(), self.id.into());
        self.sidecar.call(op, body, within).await
    }
}
