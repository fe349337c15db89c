//! Flows: a parent that runs when its children are done, children in any queues
//! of the same Redis (in a Cluster: of the same slot).

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use mpanel_connect::{Conn, Redis};
use mpanel_protocol::{
    calls::{
        add::Added,
        flow::{FlowPart, add_flow},
    },
    ids::{JobId, Prefix, QueueName},
    keys::QueueKeys,
    outcome::Refusal,
    peer::Peer,
    script::ScriptError,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    batch::RESPONSE,
    durability::{Durability, Replication},
    enqueued::Enqueued,
    error::EnqueueError,
    options::{ChildFailure, EnqueueOptions},
    producer::{Backend, Producer, permitted},
    rules::{Rules, random_id},
};

/// Deepest flow.
const DEPTH_MAX: usize = 1000;

/// A job of a flow, with the jobs it waits for.
#[derive(Clone, PartialEq)]
pub struct FlowJob {
    name: String,
    queue: String,
    prefix: Option<Prefix>,
    data: Value,
    options: EnqueueOptions,
    children: Vec<FlowJob>,
}

impl fmt::Debug for FlowJob {
    /// Without payloads: they may hold what is sealed only when it is stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowJob")
            .field("queue", &self.queue)
            .field("name", &self.name)
            .field("options", &self.options)
            .field("children", &self.children)
            .finish_non_exhaustive()
    }
}

impl FlowJob {
    /// A job `name` for `queue` without payload, options or children.
    pub fn new(name: impl Into<String>, queue: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            queue: queue.into(),
            prefix: None,
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

    /// In a queue under another prefix than the producer's.
    #[must_use]
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = Some(prefix);
        self
    }

    /// What becomes of the parent when this child fails for good.
    #[must_use]
    pub fn on_failure(mut self, policy: ChildFailure) -> Self {
        self.options = self.options.on_failure(policy);
        self
    }

    /// Waits for this job too.
    #[must_use]
    pub fn child(mut self, child: FlowJob) -> Self {
        self.children.push(child);
        self
    }

    /// Waits for these jobs too.
    #[must_use]
    pub fn children(mut self, children: impl IntoIterator<Item = FlowJob>) -> Self {
        self.children.extend(children);
        self
    }
}

/// What holds for the jobs of flows by their queues: Node's `queuesOptions`.
#[derive(Debug, Clone, Default)]
pub struct FlowOptions {
    defaults: HashMap<String, EnqueueOptions>,
}

impl FlowOptions {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Jobs for `queue` take what they leave open from these options.
    #[must_use]
    pub fn queue_defaults(mut self, queue: impl Into<String>, options: EnqueueOptions) -> Self {
        self.defaults.insert(queue.into(), options);
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
    /// Full key.
    key: String,
    /// The parent's key, and where it is in the plan if it is part of the flow.
    above: Option<(String, Option<usize>)>,
    depth: usize,
    /// Where its children are in the plan.
    children: Vec<usize>,
}

/// Several flows, ready to be stored; the first so many nodes are their roots.
#[derive(Default)]
struct Plan {
    nodes: Vec<Planned>,
    parts: Vec<FlowPart>,
}

impl Producer {
    /// Stores a whole flow in one atomic step: parents first, then their children.
    /// Jobs without an id of their own get a UUID.
    ///
    /// ```no_run
    /// # async fn run(producer: mpanel_producer::Producer) -> Result<(), mpanel_producer::EnqueueError> {
    /// use mpanel_producer::{ChildFailure, FlowJob};
    ///
    /// let flow = FlowJob::new("publish", "sites")
    ///     .child(FlowJob::new("build", "builds").on_failure(ChildFailure::FailParent))
    ///     .child(FlowJob::new("thumbnails", "images").on_failure(ChildFailure::Ignore));
    /// let stored = producer.enqueue_flow(flow).await?;
    /// println!("{} waits for {} jobs", stored.id, stored.children.len());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`EnqueueError`]; all jobs are checked before the first is stored.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the flow.
    pub async fn enqueue_flow(&self, flow: FlowJob) -> Result<FlowNode, EnqueueError> {
        self.enqueue_flow_with(flow, &FlowOptions::new()).await
    }

    /// The same with default options by queue.
    ///
    /// # Errors
    /// As [`Producer::enqueue_flow`].
    ///
    /// # Cancel safety
    /// A dropped call may have stored the flow.
    pub async fn enqueue_flow_with(
        &self,
        flow: FlowJob,
        options: &FlowOptions,
    ) -> Result<FlowNode, EnqueueError> {
        let mut flows = self.enqueue_flows([flow], options).await?;
        flows.pop().unwrap_or_else(|| Err(EnqueueError::Unknown("no answer for the flow".to_owned())))
    }

    /// Stores several flows in one atomic step. One whose root is refused, because
    /// the parent it names is missing, leaves the others alone.
    ///
    /// # Errors
    /// As [`Producer::enqueue_flow`], for all flows; and for each flow by itself.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the flows.
    pub async fn enqueue_flows(
        &self,
        flows: impl IntoIterator<Item = FlowJob>,
        options: &FlowOptions,
    ) -> Result<Vec<Result<FlowNode, EnqueueError>>, EnqueueError> {
        self.lane.durability.check()?;
        let flows: Vec<FlowJob> = flows.into_iter().collect();
        let roots = flows.len();
        if roots == 0 {
            return Ok(Vec::new());
        }
        let plan = self.plan(flows, options)?;
        let (added, replication) = match &self.backend {
            Backend::Redis(redis) => self.store_flows(redis, &plan.parts).await?,
            Backend::Recorder(recorder) => {
                let jobs = plan.parts.iter().map(|part| (part.keys.queue(), &part.job));
                (recorder.take(jobs, None), None)
            }
        };
        let outcomes: Vec<_> = added.into_iter().map(Enqueued::from_added).collect();
        let trees = (0..roots).map(|root| match outcomes.get(root) {
            Some(Err(refusal)) => Err(EnqueueError::Rejected(*refusal)),
            _ => Ok(plan.tree(&outcomes, root)),
        });
        let trees = trees.collect();
        if let Some(replication) = replication {
            replication.judge(outcomes.iter().flatten().cloned().collect())?;
        }
        Ok(trees)
    }

    async fn store_flows(
        &self,
        redis: &Redis,
        parts: &[FlowPart],
    ) -> Result<(Vec<Added>, Option<Replication>), EnqueueError> {
        let key = parts[0].keys.meta();
        let lost = |error: &ScriptError| EnqueueError::from_script(error);
        let mut first = redis.shared_for(key).await?;
        if let Err(error) = permitted(&self.permitted, &mut first.conn, &parts[0].keys).await {
            if let Some(source) = error.redis() {
                redis.report(&first, source).await;
            }
            // Nothing of the flow was sent.
            return Err(EnqueueError::before_sending(&error));
        }
        let now = self.rules.clock.now();
        if let Durability::Replicated { replicas, within } = self.lane.durability {
            let mut conn = redis.dedicated(key, None, within.saturating_add(RESPONSE)).await?;
            self.look_for_room(&mut conn, parts).await?;
            let added = add_flow(&mut conn, self.peer, now, parts).await.map_err(|e| lost(&e))?;
            return Ok((added, Some(Replication::wait(&mut conn, replicas, within).await)));
        }
        let mut shared = redis.shared_for(key).await?;
        self.look_for_room(&mut shared.conn, parts).await?;
        match add_flow(&mut shared.conn, self.peer, now, parts).await {
            Ok(added) => Ok((added, None)),
            Err(error) => {
                if let Some(source) = error.redis() {
                    redis.report(&shared, source).await;
                }
                Err(lost(&error))
            }
        }
    }

    /// Refuses a flow when one of its queues has reached the producer's limit.
    async fn look_for_room(&self, conn: &mut Conn, parts: &[FlowPart]) -> Result<(), EnqueueError> {
        let Some(limit) = self.lane.max_waiting else { return Ok(()) };
        let mut queues: Vec<&QueueKeys> = Vec::new();
        for part in parts.iter().filter(|part| !part.job.waits_for_children) {
            if !queues.contains(&&part.keys) {
                queues.push(&part.keys);
            }
        }
        let mut pipe = redis::pipe();
        for keys in &queues {
            pipe.llen(keys.wait()).llen(keys.paused()).zcard(keys.prioritized()).zcard(keys.delayed());
        }
        let counts: Vec<u64> =
            pipe.query_async(conn).await.map_err(|e| EnqueueError::Refused(e.to_string()))?;
        for (keys, counts) in queues.iter().zip(counts.chunks(4)) {
            let new = parts.iter().filter(|p| !p.job.waits_for_children && p.keys == **keys).count();
            if counts.iter().sum::<u64>() + new as u64 > limit {
                return Err(EnqueueError::QueueFull { queue: keys.queue().to_string(), limit });
            }
        }
        Ok(())
    }

    /// The jobs in the order in which they are stored: level by level.
    fn plan(&self, flows: Vec<FlowJob>, options: &FlowOptions) -> Result<Plan, EnqueueError> {
        let mut plan = Plan::default();
        let mut open: VecDeque<(FlowJob, Option<usize>)> = flows.into_iter().map(|f| (f, None)).collect();
        while let Some((flow, above)) = open.pop_front() {
            let FlowJob { name, queue, prefix, data, options: mut own, children } = flow;
            if let Some(defaults) = options.defaults.get(&queue) {
                own = own.with_defaults(defaults);
            }
            let queue = self.rules.flow_queue(&queue)?;
            let rules = match prefix {
                Some(prefix) => Rules { prefix, ..self.rules.clone() },
                None => self.rules.clone(),
            };
            let here = plan.nodes.len();
            if let Some(above) = above {
                let part = &plan.parts[above];
                let parent = json!({ "id": plan.nodes[above].id, "queue": part.keys.qualified_name() });
                own.parent = None;
                own.inner.other.insert("parent".to_owned(), parent);
                plan.nodes[above].children.push(here);
            }
            let mut job = rules.job(&queue, &name, &data, own, Some(random_id()))?;
            job.waits_for_children = !children.is_empty();
            if self.peer == Peer::V6 && job.options.deduplication.is_some() && job.waits_for_children {
                let why = "it cannot be used on a job that waits for children";
                return Err(EnqueueError::option("deduplication", why));
            }
            let keys = QueueKeys::new(&rules.prefix, &queue);
            if let Some(first) = plan.parts.first() {
                self.rules.same_slot(first.keys.qualified_name(), keys.qualified_name())?;
            }
            let id = job.id.clone().unwrap_or_else(random_id);
            let depth = above.map_or(1, |above| plan.nodes[above].depth + 1);
            if depth > DEPTH_MAX {
                return Err(EnqueueError::option("children", format!("the flow is deeper than {DEPTH_MAX}")));
            }
            plan.nodes.push(Planned {
                key: keys.job(&id),
                queue,
                id,
                above: job.parent.as_ref().map(|parent| (parent.key.clone(), above)),
                depth,
                children: Vec::new(),
            });
            if !self.rules.as_node {
                plan.refuse_circle(here)?;
            }
            plan.parts.push(FlowPart { keys, job });
            open.extend(children.into_iter().map(|child| (child, Some(here))));
        }
        Ok(plan)
    }
}

impl Plan {
    /// A job must not be among those that wait for it.
    fn refuse_circle(&self, at: usize) -> Result<(), EnqueueError> {
        let Planned { key, queue, id, .. } = &self.nodes[at];
        let mut above = self.nodes[at].above.as_ref();
        while let Some((parent, place)) = above {
            if parent == key {
                return Err(EnqueueError::Circular { queue: queue.to_string(), id: id.to_string() });
            }
            above = place.and_then(|place| self.nodes[place].above.as_ref());
        }
        Ok(())
    }

    /// The tree below one node, with what became of each.
    fn tree(&self, outcomes: &[Result<Enqueued, Refusal>], at: usize) -> FlowNode {
        let Planned { queue, id, depth, children, .. } = &self.nodes[at];
        let outcome = outcomes.get(at).cloned().unwrap_or(Err(Refusal::MissingJob));
        // Another job may stand for the root.
        let id = outcome.as_ref().ok().filter(|_| *depth == 1).map_or(id, Enqueued::id);
        FlowNode {
            queue: queue.clone(),
            id: id.clone(),
            outcome,
            children: children.iter().map(|child| self.tree(outcomes, *child)).collect(),
        }
    }
}
