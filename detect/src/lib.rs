//! From log lines to events.
//!
//! Reads logs and rule files that it is given, and nothing else: no network,
//! no database. The worker's `guardian analyze` and its scans are shells
//! around it.
//!
//! ```text
//! file ── read ──> line ── own rules, or a fail2ban filter ──> event
//!                            │ pattern: Python's expressions, bounded
//!                            └ time: dates, found only in lines that matter
//! ```

pub mod analyze;
mod categories;
pub mod event;
pub mod fail2ban;
pub mod own;
pub mod pattern;
pub mod read;
pub mod time;
