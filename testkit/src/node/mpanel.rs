//! mPanel's own way of enqueuing, run by Node (`node/mpanel-queues.mjs`).

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::transport::{PATIENCE, fields};
use super::{BullVersion, NodeSidecar};
use crate::TestkitError;

/// Handle to mPanel's five queues under one bullmq release. Opened in Node on first use.
///
/// Every method fails as [`NodeSidecar::call`] does.
#[derive(Debug, Clone)]
pub struct NodeMpanel {
    sidecar: NodeSidecar,
    version: BullVersion,
    prefix: Option<String>,
}

/// What mPanel's caller gets to see of the job it enqueued.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enqueued {
    /// Job id.
    pub id: String,
    /// Job name.
    pub name: String,
    /// Queue name.
    pub queue_name: String,
    /// Options.
    pub opts: Value,
}

#[allow(clippy::missing_errors_doc, reason = "said once, at the type")]
impl NodeMpanel {
    pub(super) fn new(sidecar: NodeSidecar, version: BullVersion) -> Self {
        Self { sidecar, version, prefix: None }
    }

    /// Another key prefix than `bull`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Opens the five queues and their QueueEvents, as the start of an mPanel process does.
    pub async fn open(&self) -> Result<(), TestkitError> {
        self.call("openMpanel", json!({})).await
    }

    /// Closes them; every key stays.
    pub async fn close(&self) -> Result<(), TestkitError> {
        self.call("closeMpanel", json!({})).await
    }

    /// `enqueueCloudPodCreate(payload, jobId?)`.
    pub async fn enqueue_create(
        &self,
        payload: Value,
        job_id: Option<&str>,
    ) -> Result<Enqueued, TestkitError> {
        self.function("enqueueCloudPodCreate", vec![payload, json!(job_id)]).await
    }

    /// `enqueueCloudPodDestroy(payload)`.
    pub async fn enqueue_destroy(&self, payload: Value) -> Result<Enqueued, TestkitError> {
        self.function("enqueueCloudPodDestroy", vec![payload]).await
    }

    /// `enqueueCloudPodBackup(payload)`.
    pub async fn enqueue_backup(&self, payload: Value) -> Result<Enqueued, TestkitError> {
        self.function("enqueueCloudPodBackup", vec![payload]).await
    }

    /// `enqueueCloudPodHealth(payload)`.
    pub async fn enqueue_health(&self, payload: Value) -> Result<Enqueued, TestkitError> {
        self.function("enqueueCloudPodHealth", vec![payload]).await
    }

    /// `enqueueCloudPodScale(payload)`.
    pub async fn enqueue_scale(&self, payload: Value) -> Result<Enqueued, TestkitError> {
        self.function("enqueueCloudPodScale", vec![payload]).await
    }

    /// `scheduleHealthChecks(minutes)`.
    pub async fn schedule_health_checks(&self, minutes: f64) -> Result<Value, TestkitError> {
        self.function("scheduleHealthChecks", vec![json!(minutes)]).await
    }

    /// `getQueueStats()`: counts under create, destroy, backup, health, scale.
    pub async fn queue_stats(&self) -> Result<Value, TestkitError> {
        self.function("getQueueStats", Vec::new()).await
    }

    /// Any of its functions, optionally with the clock of its default job ids frozen from now on.
    pub async fn call_at(&self, function: &str, args: Vec<Value>, now: i64) -> Result<Value, TestkitError> {
        self.call("mpanel", json!({"fn": function, "args": args, "now": now})).await
    }

    async fn function<T: DeserializeOwned>(&self, name: &str, args: Vec<Value>) -> Result<T, TestkitError> {
        self.call("mpanel", json!({"fn": name, "args": args})).await
    }

    async fn call<T: DeserializeOwned>(&self, op: &str, body: Value) -> Result<T, TestkitError> {
        let mut body = fields(body);
        body.insert("version".into(), self.version.alias().into());
        if let Some(prefix) = &self.prefix {
            body.insert("prefix".into(), prefix.clone().into());
        }
        self.sidecar.call(op, body, PATIENCE).await
    }
}
