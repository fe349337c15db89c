//! Dev-only: benchmarks beside the peers.
//!
//! - [`contract`]: what an adapter is asked and what it answers
//! - [`fleet`]: our side of the contract
//! - [`adapter`]: starting an adapter, ours or Node's
//! - [`redis_cpu`]: what the server spent meanwhile
//! - [`cases`], [`runner`], [`report`]: what is measured, how, and what is said of it

pub mod adapter;
pub mod cases;
pub mod contract;
pub mod fleet;
pub mod redis_cpu;
pub mod report;
pub mod runner;

/// Anything that ends a benchmark; it is shown and nothing else.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
