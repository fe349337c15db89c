//! Runs conformance scenarios through our crates and compares what they leave in
//! Redis, key by key, with what npm bullmq left (decision 14).
//!
//! - [`scenario`]: the files and what is in them
//! - [`run`]: one scenario through protocol, producer and engine
//! - [`dump`]: the keys of a database in the form of the goldens
//! - [`rules`]: the exceptions, and the comparison under them
//! - [`reading`]: the test that we read what 5.28 left
//! - [`random`]: scenarios from a seed
//! - [`oracle`]: npm bullmq as a process that answers scenarios
//! - [`differential`]: random scenarios through npm bullmq and through us
//! - [`shrink`]: smaller variants of one in which we differ

pub mod differential;
pub mod dump;
pub mod js;
pub mod oracle;
pub mod random;
mod random_schedules;
pub mod reading;
pub mod rules;
pub mod run;
pub mod scenario;
pub mod shrink;

/// All keys of a scenario begin with this.
pub const PREFIX: &str = "conf";
