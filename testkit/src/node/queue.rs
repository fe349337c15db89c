//! A BullMQ queue and its QueueEvents, as Node sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::transport::{GRACE, PATIENCE, fields};
use super::{BullVersion, JobLogs, JobView, NodeEvent, NodeSidecar, NodeWorker};
use crate::TestkitError;

/// Handle to one queue under one bullmq release. Opened in Node on first use.
///
/// Every method fails as [`NodeSidecar::call`] does; those that wait take their deadline as an argument.
#[derive(Debug, Clone)]
pub struct NodeQueue {
    sidecar: NodeSidecar,
    version: BullVersion,
    name: String,
    prefix: Option<String>,
    telemetry: bool,
    span: Option<Value>,
}

#[allow(clippy::missing_errors_doc, reason = "said once, at the type")]
impl NodeQueue {
    pub(super) fn new(sidecar: NodeSidecar, version: BullVersion, name: &str) -> Self {
        Self { sidecar, version, name: name.into(), prefix: None, telemetry: false, span: None }
    }

    /// The same queue with the add-on bullmq-otel: it and its workers make spans.
    #[must_use]
    pub fn with_telemetry(mut self) -> Self {
        self.telemetry = true;
        self
    }

    /// The same queue; jobs are added from inside a span of that name, with this baggage (an object).
    #[must_use]
    pub fn in_span(mut self, name: &str, baggage: Value) -> Self {
        self.span = Some(json!({"name": name, "baggage": baggage}));
        self
    }

    /// The same queue name under another key prefix than `bull`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Queue name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens the Queue object, which writes `meta`; other methods do so by themselves.
    pub async fn open(&self) -> Result<(), TestkitError> {
        self.call("openQueue", json!({})).await
    }

    /// `queue.add(name, data, opts)`.
    pub async fn add(&self, name: &str, data: Value, opts: Value) -> Result<JobView, TestkitError> {
        self.call("add", json!({"name": name, "data": data, "opts": opts})).await
    }

    /// `queue.addBulk([{name, data, opts}])`; the ids.
    pub async fn add_bulk(&self, jobs: Vec<Value>) -> Result<Vec<String>, TestkitError> {
        self.call("addBulk", json!({"jobs": jobs})).await
    }

    /// `flowProducer.add(flow)`; a tree of `{id, queue, children}`. The flow names its own queues.
    pub async fn add_flow(&self, flow: Value) -> Result<Value, TestkitError> {
        self.call("flow", json!({"flow": flow})).await
    }

    /// `queue.getJobCounts(...types)`; all types when none is given.
    pub async fn counts(&self, types: &[&str]) -> Result<BTreeMap<String, u64>, TestkitError> {
        self.call("getJobCounts", json!({"types": types})).await
    }

    /// `queue.getJob(id)`.
    pub async fn job(&self, id: &str) -> Result<Option<JobView>, TestkitError> {
        self.call("getJob", json!({"jobId": id})).await
    }

    /// `queue.getJobs(types, start, end)`.
    pub async fn jobs(&self, types: &[&str], start: i64, end: i64) -> Result<Vec<JobView>, TestkitError> {
        self.call("getJobs", json!({"types": types, "start": start, "end": end})).await
    }

    /// `queue.getJobState(id)`.
    pub async fn state(&self, id: &str) -> Result<String, TestkitError> {
        self.call("getState", json!({"jobId": id})).await
    }

    /// `queue.getJobLogs(id)`.
    pub async fn logs(&self, id: &str) -> Result<JobLogs, TestkitError> {
        self.call("logs", json!({"jobId": id})).await
    }

    /// `queue.pause()`.
    pub async fn pause(&self) -> Result<(), TestkitError> {
        self.call("pause", json!({})).await
    }

    /// `queue.resume()`.
    pub async fn resume(&self) -> Result<(), TestkitError> {
        self.call("resume", json!({})).await
    }

    /// `queue.isPaused()`.
    pub async fn is_paused(&self) -> Result<bool, TestkitError> {
        self.call("isPaused", json!({})).await
    }

    /// `queue.getWorkers()`: fields of CLIENT LIST, `name` and `rawname` included.
    pub async fn workers(&self) -> Result<Vec<BTreeMap<String, String>>, TestkitError> {
        self.call("getWorkers", json!({})).await
    }

    /// `job.waitUntilFinished(queueEvents, ttl)`: the result; a failed job is [`TestkitError::Node`].
    pub async fn wait_until_finished(&self, id: &str, within: Duration) -> Result<Value, TestkitError> {
        self.call_within("waitUntilFinished", json!({"jobId": id}), within).await
    }

    /// Any other method of Queue.
    pub async fn queue_call(&self, method: &str, args: Vec<Value>) -> Result<Value, TestkitError> {
        self.call("queueCall", json!({"method": method, "args": args})).await
    }

    /// Any other method of Job.
    pub async fn job_call(&self, id: &str, method: &str, args: Vec<Value>) -> Result<Value, TestkitError> {
        self.call("jobCall", json!({"jobId": id, "method": method, "args": args})).await
    }

    /// Opens QueueEvents. Everything written to the stream after this returned is seen, nothing before.
    pub async fn open_events(&self) -> Result<(), TestkitError> {
        self.call("openEvents", json!({})).await
    }

    /// All events seen so far.
    pub async fn events(&self) -> Result<Vec<NodeEvent>, TestkitError> {
        self.call("events", json!({})).await
    }

    /// The first event of that kind, about that job where one is named; seen already or to come.
    pub async fn wait_event(
        &self,
        event: &str,
        job_id: Option<&str>,
        within: Duration,
    ) -> Result<NodeEvent, TestkitError> {
        let mut found = self.wait_events(event, job_id, 1, within).await?;
        found
            .pop()
            .ok_or_else(|| TestkitError::Failed { what: "node waitEvent".into(), detail: "empty".into() })
    }

    /// The first `count` events of that kind.
    pub async fn wait_events(
        &self,
        event: &str,
        job_id: Option<&str>,
        count: usize,
        within: Duration,
    ) -> Result<Vec<NodeEvent>, TestkitError> {
        let body = with_job(json!({"event": event, "count": count}), job_id);
        self.call_within("waitEvent", body, within).await
    }

    /// A Node worker on this queue. `script` says what it does with jobs (see `node/behaviour.mjs`), `opts`
    /// are the Worker's options.
    pub async fn start_worker(&self, script: Value, opts: Value) -> Result<NodeWorker, TestkitError> {
        let id = self.call("openWorker", json!({"script": script, "opts": opts})).await?;
        Ok(NodeWorker::new(self.sidecar.clone(), id))
    }

    async fn call<T: DeserializeOwned>(&self, op: &str, body: Value) -> Result<T, TestkitError> {
        self.sidecar.call(op, self.addressed(body), PATIENCE).await
    }

    async fn call_within<T: DeserializeOwned>(
        &self,
        op: &str,
        body: Value,
        within: Duration,
    ) -> Result<T, TestkitError> {
        let mut body = self.addressed(body);
        body.insert("timeoutMs".into(), millis(within));
        self.sidecar.call(op, body, within + GRACE).await
    }

    fn addressed(&self, body: Value) -> Map<String, Value> {
        let mut body = fields(body);
        body.insert("version".into(), self.version.alias().into());
        body.insert("queue".into(), self.name.clone().into());
        if let Some(prefix) = &self.prefix {
            body.insert("prefix".into(), prefix.clone().into());
        }
        if self.telemetry {
            body.insert("telemetry".into(), true.into());
        }
        if let Some(span) = &self.span {
            body.insert("span".into(), span.clone());
        }
        body
    }
}

pub(super) fn millis(duration: Duration) -> Value {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).into()
}

pub(super) fn with_job(mut body: Value, job_id: Option<&str>) -> Value {
    if let (Some(id), Some(fields)) = (job_id, body.as_object_mut()) {
        fields.insert("jobId".into(), id.into());
    }
    body
}
