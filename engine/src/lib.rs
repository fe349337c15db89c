//! A worker engine for any BullMQ queue.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use mpanel_engine::{Engine, JobContext, JobError, handler_fn};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! struct Mail {
//!     to: String,
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::connect("redis://127.0.0.1:6379").await?;
//! let welcome = handler_fn(|ctx: JobContext, mail: Mail| async move {
//!     ctx.log(&format!("to {}", mail.to)).await.ok();
//!     Ok::<_, JobError>("sent")
//! });
//! let worker = engine.worker("mails")?.concurrency(10).handle("welcome", welcome).start()?;
//! tokio::signal::ctrl_c().await?;
//! worker.stop(Duration::from_secs(30)).await;
//! # Ok(())
//! # }
//! ```
//!
//! Runs beside Node's BullMQ workers on the same queues and knows nothing of
//! mPanel. Delivery is at least once: a handler may run twice for a job, never
//! finish it twice.
//!
//! - [`handler`]: what a user writes; [`context`]: what a handler may ask
//! - [`engine`](Engine), [`worker`](Worker): start and stop
//! - [`outcome`]: the pure decision what follows an attempt
//! - [`admin`]: looking at queues and managing them
//! - [`events`]: following what happens on a queue, waiting for jobs to end
//!
//! Inside, one duty a file: `pump` (finish and fetch), `executor` (one attempt),
//! `marker` (waiting for work), `locks` (renewal), `rescuer` (stalled jobs),
//! `giveback` (jobs whose fetch was answered to nobody), `slots` (slots that several
//! queues share), `partitioned` (a worker for all partitions of a queue).

#![warn(missing_docs)]

pub mod admin;
mod attempts;
mod batch;
mod by_hand;
mod cancellation;
mod cancels;
mod children;
pub mod context;
mod engine;
pub mod events;
mod exchange;
mod executor;
mod giveback;
pub mod handler;
mod locks;
mod marker;
pub mod middleware;
pub mod outcome;
mod partitioned;
mod permissions;
mod pump;
mod reading;
mod rescuer;
mod router;
mod schedules;
mod sealed;
mod slots;
pub mod testing;
mod trace;
mod trouble;
mod worker;

pub use batch::{BatchFn, BatchJob, batch_fn};
pub use by_hand::{ByHandError, JobTaker, TakenJob};
pub use cancellation::CancelCause;
pub use context::JobContext;
pub use engine::{Engine, EngineBuilder, EngineError};
pub use handler::{Handler, JobError, KindHandler};
pub use mpanel_protocol::{
    calls::fetch::RateLimit,
    partition::{Layout, Partition, PartitionedName},
    trace::TraceContext,
};
pub use partitioned::PartitionedWorker;
pub use router::{HandlerFn, handler_fn};
pub use worker::{StopReport, Worker, WorkerBuilder, WorkerStats};

/// The examples of the guide are compiled.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../docs/guide/admin.md")]
    struct Admin;
    #[doc = include_str!("../../docs/guide/events.md")]
    struct Events;
    #[doc = include_str!("../../docs/guide/handlers.md")]
    struct Handlers;
    #[doc = include_str!("../../docs/guide/partitions.md")]
    struct Partitions;
    #[doc = include_str!("../../docs/guide/tracing.md")]
    struct Tracing;
}
