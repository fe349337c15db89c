//! mPanel's fleet: the services that run beside mPanel's Node workers, on the
//! same Redis and Postgres.
//!
//! | module | subject |
//! |---|---|
//! | [`config`] | from files, environment and flags to typed settings |
pub mod adapters;
pub mod config;
pub mod migrate;
