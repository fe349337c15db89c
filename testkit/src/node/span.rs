//! A span that Node exported: what bullmq-otel makes of queues and workers.

use serde::Deserialize;
use serde_json::{Map, Value};

/// A span that has ended.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpan {
    /// `add`, `process`, … with the name of the queue.
    pub name: String,
    /// 0 internal, 1 server, 2 client, 3 producer, 4 consumer.
    pub kind: u8,
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// The span above it, also in another process.
    pub parent_span_id: Option<String>,
    /// Spans it is linked to.
    pub links: Vec<Value>,
    /// `bullmq.queue.name`, `bullmq.job.id`, …
    pub attributes: Map<String, Value>,
}

impl NodeSpan {
    /// Whether it is about this job.
    #[must_use]
    pub fn is_of_job(&self, id: &str) -> bool {
        self.attributes.get("bullmq.job.id").is_some_and(|job| job == id)
    }
}
