//! Dev-only: what the tests and the demo stand on. Private Redis and Postgres servers, the real npm bullmq
//! in three versions, programs under test, and waiting with a deadline. Nothing here outlives the test
//! process, not even when that is killed.
//!
//! ```no_run
//! # async fn example() -> Result<(), mpanel_testkit::TestkitError> {
//! use mpanel_testkit::{BullVersion, NodeSidecar, RedisServer};
//! let redis = RedisServer::start().await?;
//! let node = NodeSidecar::start(&redis.url()).await?;
//! let queue = node.queue(BullVersion::V5, "mail");
//! let job = queue.add("welcome", serde_json::json!({"to": "a@example.net"}), serde_json::json!({})).await?;
//! assert_eq!(queue.state(&job.id).await?, "waiting");
//! # Ok(()) }
//! ```

mod child;
pub mod conformance;
pub mod demo;
mod error;
pub mod history;
pub mod node;
mod pg_install;
pub mod ports;
pub mod postgres;
pub mod powerdns;
pub mod process;
pub mod pve;
pub mod redis_server;
pub mod tls;
pub mod topology;
pub mod wait;

pub use error::TestkitError;
pub use node::{BullVersion, NodeMpanel, NodeQueue, NodeSidecar, NodeSpan, NodeWorker};
pub use postgres::Postgres;
pub use process::WorkerProcess;
pub use redis_server::RedisServer;
pub use topology::{Cluster, Sentinel};
pub use wait::eventually;
