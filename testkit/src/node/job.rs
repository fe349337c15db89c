//! What Node reports of jobs and events, under BullMQ's names.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

/// A job as `queue.getJob()` gives it, with the answer of `job.getState()`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobView {
    /// Job id.
    pub id: String,
    /// Job name.
    pub name: String,
    /// Payload.
    pub data: Value,
    /// Options, long names.
    pub opts: Value,
    /// Result; null when there is none.
    #[serde(default)]
    pub returnvalue: Value,
    /// Message of the last failure.
    pub failed_reason: Option<String>,
    /// One entry per failed attempt.
    pub stacktrace: Option<Vec<String>>,
    /// Attempts that have ended.
    pub attempts_made: Option<u32>,
    /// Attempts that have begun.
    pub attempts_started: Option<u32>,
    /// Last progress; 0 when there is none.
    #[serde(default)]
    pub progress: Value,
    /// Epoch ms of creation.
    pub timestamp: Option<i64>,
    /// Epoch ms at which the last attempt began.
    pub processed_on: Option<i64>,
    /// Epoch ms of the end.
    pub finished_on: Option<i64>,
    /// Delay in ms.
    pub delay: Option<f64>,
    /// Priority; 0 for none.
    pub priority: Option<u32>,
    /// Key of the parent job.
    pub parent_key: Option<String>,
    /// Name of the worker.
    pub processed_by: Option<String>,
    /// How often it was found stalled.
    pub stalled_counter: Option<u32>,
    /// completed, failed, delayed, active, waiting, waiting-children, prioritized or unknown.
    pub state: String,
}

/// Rows written by `job.log()`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct JobLogs {
    /// The rows asked for.
    pub logs: Vec<String>,
    /// How many there are.
    pub count: u64,
}

/// An event as QueueEvents or a Node worker emitted it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEvent {
    /// waiting, active, completed, failed, …
    pub event: String,
    /// The job it is about.
    pub job_id: Option<String>,
    /// Fields of a QueueEvents event.
    #[serde(default)]
    pub args: Value,
    /// Id of the stream entry; none for a worker's event.
    pub id: Option<String>,
    /// The remaining fields: a worker's events carry name, attemptsMade, returnvalue, failedReason.
    #[serde(flatten)]
    pub more: HashMap<String, Value>,
}
