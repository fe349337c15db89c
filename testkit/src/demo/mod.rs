//! `make demo`: the whole way of a pod on one machine. Private Redis, Postgres and
//! Proxmox simulator; the real Node producer; the real worker binary.
//!
//! - [`stage`]: starts everything and puts mPanel's rows in place
//! - [`watch`]: what happens, read from Postgres and Redis as an operator would
//! - [`report`]: the table and the commands to look for oneself

pub mod report;
pub mod stage;
pub mod watch;
