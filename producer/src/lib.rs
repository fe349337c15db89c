//! Enqueue jobs that any BullMQ worker serves, Node's or mpanel-fleet's.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use mpanel_producer::{EnqueueOptions, Producer};
//! use serde_json::json;
//!
//! let producer = Producer::connect("redis://127.0.0.1:6379").await?;
//! let mails = producer.queue("mails")?;
//! let enqueued = mails
//!     .enqueue("welcome", &json!({"to": "a@example.org"}), EnqueueOptions::new().attempts(3))
//!     .await?;
//! println!("job {}", enqueued.id());
//! # Ok(())
//! # }
//! ```
//!
//! Calls made at the same time travel together; an idle producer adds no wait.
//! [`QueueProducer::enqueue_bulk`] sends thousands of jobs in one round trip.
//!
//! mPanel's own jobs are typed: [`Producer::enqueue`] takes a payload of
//! [`payload`] and knows queue, name, options and a readable id for it.
//!
//! | For | See |
//! |---|---|
//! | a time to run at, options, uniqueness, sealed fields, a parent | [`EnqueueOptions`] |
//! | jobs whose queue, name and options come from their type | [`JobKind`], [`Producer::enqueue_kind`] |
//! | flows, many in one step | [`FlowJob`], [`Producer::enqueue_flows`] |
//! | schedules | [`Schedules`] |
//! | a queue too large for one Redis core | [`Producer::partitioned`] |
//! | a trace that goes on in the worker | [`EnqueueOptions::trace`] |
//! | replicas that must have the job | [`Durability`] |
//! | a limit on what waits | [`QueueProducer::max_waiting`] |
//! | enqueueing with a Postgres transaction | `outbox` (cargo feature) |
//! | tests of programs that enqueue | [`testing`] |
//!
//! What is promised: a job whose enqueue was acknowledged is in Redis. When a call
//! fails with [`EnqueueError::Unknown`] the job may or may not be there; with an id
//! of your own ([`EnqueueOptions::job_id`]) the call can simply be made again.

#![warn(missing_docs)]

mod batch;
mod durability;
mod enqueued;
mod error;
mod flow;
mod kinds;
mod layout;
mod options;
#[cfg(feature = "outbox")]
pub mod outbox;
mod partitioned;
mod producer;
mod queue;
mod rules;
mod schedule;
pub mod testing;

pub use durability::Durability;
pub use enqueued::{Enqueued, Outcome};
pub use error::EnqueueError;
pub use flow::{FlowJob, FlowNode, FlowOptions};
pub use mpanel_protocol::{
    backoff::Backoff,
    calls::schedule::Page,
    ids::{JobId, Prefix, QueueName},
    job_kind::JobKind,
    options::{Deduplication, JobOptions, KeepJobs, KeepPolicy},
    outcome::Refusal,
    partition::{Layout, Partition, PartitionedName},
    payload::{self, MpanelJob},
    peer::Peer,
    schedule::{Repeat, Repeatable, ScheduleError, Scheduler, Zone},
    seal::{Keyring, SealError},
    trace::TraceContext,
};
pub use options::{ChildFailure, EnqueueOptions};
pub use partitioned::{By, PartitionedProducer, PlaceError, Placed};
pub use producer::{Producer, ProducerBuilder};
pub use queue::{BulkJob, QueueProducer};
pub use rules::validate;
pub use schedule::{JobTemplate, Scheduled, Schedules};
