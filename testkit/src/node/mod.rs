//! The real npm bullmq, driven from Rust: `testkit/node/sidecar.mjs` as a child, JSON lines both ways.
//!
//! [`NodeSidecar`] is the transport and a cheap-clone handle; [`NodeQueue`], [`NodeWorker`] and
//! [`NodeMpanel`] are what a test uses.

mod job;
mod mpanel;
mod queue;
mod span;
mod transport;
mod worker;

pub use job::{JobLogs, JobView, NodeEvent};
pub use mpanel::{Enqueued, NodeMpanel};
pub use queue::NodeQueue;
pub use span::NodeSpan;
pub use transport::NodeSidecar;
pub use worker::NodeWorker;

/// The npm releases that the side-car has installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BullVersion {
    /// 5.28.2, the last of the line that mPanel's package.json names.
    V5_28,
    /// 5.81.5, what mPanel's range resolves to.
    V5,
    /// 6.7.0.
    V6,
}

impl BullVersion {
    /// Oldest first.
    pub const ALL: [Self; 3] = [Self::V5_28, Self::V5, Self::V6];

    /// Name of the npm alias, which is also the name of the folder with its golden dumps.
    pub const fn alias(self) -> &'static str {
        match self {
            Self::V5_28 => "bullmq-5.28",
            Self::V5 => "bullmq-5",
            Self::V6 => "bullmq-6",
        }
    }

    /// The exact release.
    pub const fn release(self) -> &'static str {
        match self {
            Self::V5_28 => "5.28.2",
            Self::V5 => "5.81.5",
            Self::V6 => "6.7.0",
        }
    }
}
