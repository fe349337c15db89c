//! Dev-only: benchmarks beside the peers.
//!
//! - [`contract`]: what an adapter is asked and what it answers
//! - [`fleet`]: our side of the contract
//! - [`ceiling`]: the least that the same life of a job can cost
//! - [`adapter`]: starting an adapter, ours or a peer's
//! - [`placement`]: where pods go, ours beside others, over synthetic traces
//! - [`redis_cpu`]: what the server spent meanwhile
//! - [`cases`], [`runner`], [`report`], [`targets`]: what is measured, how, what is said of it,
//!   and what is aimed at

pub mod adapter;
pub mod cases;
pub mod ceiling;
pub mod contract;
pub mod fleet;
pub mod placement;
pub mod redis_cpu;
pub mod report;
pub mod runner;
pub mod targets;

/// Anything that ends a benchmark; it is shown and nothing else.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
