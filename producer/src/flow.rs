//! Flows: a parent that runs when its children are done, children in any queues
//! under the same prefix.

use std::collections::VecDeque;

use mpanel_protocol::{
    calls::flow::{FlowPart, add_flow},
    ids::{JobId, QueueName},
    keys::QueueKeys,
    outcome::Refusal,
    peer::Peer,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    error::EnqueueError,
    options::EnqueueOptions,
    producer::{Enqueued, Producer, new_job},
};

/// A job of a flow, with the jobs it waits for.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowJob {
    name: String,
    queue: String,
    data: Value,
    options: EnqueueOptions,
    children: Vec<FlowJob>,
}

/// What a parent does when a child fails for good. Without one it waits for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildFailure {
    /// The parent fails too.
    FailParent,
    /// The parent runs at once, other children or not.
    ContinueParent,
    /// The parent runs when the others are done; the failure is in its results.
    Ignore,
    /// The parent runs when the others are done.
    Forget,
}

impl ChildFailure {
    fn option(self) -> &'static str {
        match self {
            Self::FailParent => "fpof",
            Self::ContinueParent => "cpof",
            Self::Ignore => "idof",
            Self::Forget => "rdof",
        }
    }
}

impl FlowJob {
    /// A job `name` for `queue` without payload, options or children.
    pub fn new(name: impl Into<String>, queue: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            queue: queue.into(),
            data: json!({}),
            options: EnqueueOptions::new(),
            children: Vec::new(),
        }
    }

    /// With this payload.
    ///
    /// # Errors
    /// [`EnqueueError::Payload`] when it is no JSON.
    pub fn data<D: Serialize>(mut self, data: D) -> Result<Self, EnqueueError> {
        self.data = serde_json::to_value(data).map_err(|e| EnqueueError::Payload(e.to_string()))?;
        Ok(self)
    }

    /// With these options.
    #[must_use]
    pub fn options(mut self, options: EnqueueOptions) -> Self {
        self.options = options;
        self
    }

    /// What becomes of the parent when this child fails for good.
    #[must_use]
    pub fn on_failure(mut self, policy: ChildFailure) -> Self {
        self.options.inner.other.insert(policy.option().to_owned(), json!(true));
        self
    }

    /// Waits for this job too.
    #[must_use]
    pub fn child(mut self, child: FlowJob) -> Self {
        self.children.push(child);
        self
    }
}

/// What became of a job of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowNode {
    /// Its queue.
    pub queue: QueueName,
    /// Its id.
    pub id: JobId,
    /// Stored, or why not: a child whose id belongs to another parent's child is
    /// refused on its own, the rest of the flow stands.
    pub outcome: Result<Enqueued, Refusal>,
    /// The jobs it waits for.
    pub children: Vec<FlowNode>,
}

/// A node before it is stored: its id is chosen, its parent named.
struct Planned {
    queue: QueueName,
    id: JobId,
    /// Where its children are in the plan.
    children: Vec<usize>,
}

impl Producer {
    /// Stores a whole flow in one atomic step: parents first, then their children.
    /// Jobs without an id of their own get a UUID.
    ///
    /// # Errors
    /// [`EnqueueError`]; all jobs are checked before the first is stored.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the flow.
    pub async fn enqueue_flow(&self, flow: FlowJob) -> Result<FlowNode, EnqueueError> {
        let (plan, parts) = self.plan(flow)?;
        let mut shared = self.redis().shared_for(parts[0].keys.meta()).await?;
        let outcome = add_flow(&mut shared.conn, self.peer(), self.clock().now(), &parts).await;
        let added = match outcome {
            Ok(added) => added,
            Err(error) => {
                if let Some(source) = error.redis() {
                    self.redis().report(&shared, source).await;
                }
                return Err(EnqueueError::from_script(&error));
            }
        };
        let outcomes: Vec<_> = added.into_iter().map(Enqueued::from_added).collect();
        if let Some(Err(refusal)) = outcomes.first() {
            return Err(EnqueueError::Rejected(*refusal));
        }
        Ok(node(&plan, &outcomes, 0))
    }

    /// The jobs in the order in which they are stored: level by level.
    fn plan(&self, flow: FlowJob) -> Result<(Vec<Planned>, Vec<FlowPart>), EnqueueError> {
        let mut plan: Vec<Planned> = Vec::new();
        let mut parts = Vec::new();
        let mut open = VecDeque::from([(flow, None::<(usize, String)>)]);
        while let Some((flow, parent)) = open.pop_front() {
            let FlowJob { name, queue, data, options, children } = flow;
            let queue = QueueName::new(queue)?;
            let keys = QueueKeys::new(self.prefix(), &queue);
            let mut options = options.inner;
            if self.peer() == Peer::V6 && options.deduplication.is_some() && !children.is_empty() {
                let why = "it cannot be used on a job that waits for children".to_owned();
                return Err(EnqueueError::Option { option: "deduplication", why });
            }
            let here = plan.len();
            if let Some((above, queue_key)) = parent {
                let id = &plan[above].id;
                options.other.insert("parent".to_owned(), json!({ "id": id, "queue": queue_key }));
                plan[above].children.push(here);
            }
            let mut job = new_job(&name, &data, options, self.clock(), self.size_limit())?;
            job.waits_for_children = !children.is_empty();
            let id = job.id.get_or_insert_with(|| JobId::stored(uuid::Uuid::new_v4().to_string())).clone();
            let queue_key = keys.qualified_name().to_owned();
            parts.push(FlowPart { keys, job });
            plan.push(Planned { queue, id, children: Vec::new() });
            open.extend(children.into_iter().map(|child| (child, Some((here, queue_key.clone())))));
        }
        Ok((plan, parts))
    }
}

/// The tree below one node, with what became of each.
fn node(plan: &[Planned], outcomes: &[Result<Enqueued, Refusal>], at: usize) -> FlowNode {
    let Planned { queue, id, children } = &plan[at];
    let outcome = outcomes.get(at).cloned().unwrap_or(Err(Refusal::MissingJob));
    // Another job may stand for the root.
    let id = outcome.as_ref().ok().filter(|_| at == 0).map_or(id, Enqueued::id);
    FlowNode {
        queue: queue.clone(),
        id: id.clone(),
        outcome,
        children: children.iter().map(|child| node(plan, outcomes, *child)).collect(),
    }
}
