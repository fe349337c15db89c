//! What BullMQ and mPanel keep in Redis, and the scripts that move it.
//!
//! The crate knows the protocol and nothing else: it never opens a connection,
//! reads a clock, a random number or an environment variable. Times, tokens and
//! connections are arguments. Compatible with BullMQ 5.28 to 6.7 on one queue;
//! where versions differ, [`peer::Peer`] decides (default: 5.x).
//!
//! - [`ids`], [`keys`], [`time`]: validated names, key names, times
//! - [`options`], [`backoff`], [`job`], [`state`]: a job and what may happen to it
//! - [`score`]: how sorted sets order jobs
//! - [`job_kind`]: a kind of job in one place
//! - [`script`], [`calls`]: the Lua scripts and a typed function for each
//! - [`schedule`]: when schedules run next
//! - [`payload`]: what mPanel puts into `data`, typed
//! - [`unique`], [`seal`]: uniqueness over payload fields, encryption of them
//! - [`partition`]: several queues that are one
//! - [`trace`]: the trace context that a job carries
//! - [`outcome`]: the codes with which scripts refuse
//!
//! Delivery is at least once: a worker can die between an effect and its finish.

#![warn(missing_docs)]

pub mod backoff;
pub mod calls;
pub mod ids;
pub mod job;
pub mod job_kind;
pub mod keys;
pub mod lenient;
pub mod lua_json;
pub mod options;
pub mod outcome;
pub mod partition;
pub mod payload;
pub mod peer;
pub mod schedule;
pub mod score;
pub mod script;
pub mod seal;
pub mod state;
pub mod time;
pub mod trace;
pub mod unique;
mod wire;
