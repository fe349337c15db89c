//! Dev-only: benchmarks beside the peers.
//!
//! - [`contract`]: what an adapter is asked and what it answers
//! - [`serve`]: the part of it that all adapters share
//! - [`fleet`]: our side of the contract
//! - [`ceiling`]: the least that the same life of a job can cost
//! - [`sides`], [`layout`]: who is measured, what they cannot do, where they keep jobs
//! - [`adapter`]: starting an adapter, ours or a peer's
//! - [`placement`]: where pods go, ours beside others, over synthetic traces
//! - [`redis_cpu`]: what the server spent meanwhile
//! - [`cases`], [`runner`]: what is measured, and how
//! - [`stats`], [`targets`]: what many runs say together, and what is aimed at
//! - [`report`], [`plot`]: what is said and drawn of it

pub mod adapter;
pub mod cases;
pub mod ceiling;
pub mod contract;
pub mod fleet;
pub mod layout;
pub mod placement;
pub mod plot;
pub mod redis_cpu;
pub mod report;
pub mod runner;
pub mod serve;
pub mod sides;
pub mod stats;
pub mod targets;

/// Anything that ends a benchmark; it is shown and nothing else.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
