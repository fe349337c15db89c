//! mPanel's fleet: the services that run beside mPanel's Node workers, on the
//! same Redis and Postgres.
//!
//! | module | subject |
//! |---|---|
//! | [`config`] | from files, environment and flags to typed settings |
//! | [`cli`], [`commands`], [`exit`] | the command line, what it does, how it ends |
//! | [`migrate`] | bringing the database up to date |
//! | [`adapters`] | Proxmox and Postgres; they import no service |
//! | [`services`] | what we do for mPanel; they never import each other |
//! | [`api`] | the optional HTTP service |
//! | [`app`] | wiring: what must be there, what must be right, what is served |
//! | [`serve`], [`neighbours`] | the engine's workers; Node workers on the same queues |
//! | [`intake`] | job rows that say `queued`, on their way to Redis |
//! | [`upkeep`] | duties beside the queues |
//! | [`outbox`] | jobs written in a transaction, on their way to Redis |
//!
//! A job may run twice, on two machines, after a crash at any point. What makes
//! that harmless is in Postgres: a fence for each job, a record of each step
//! written before it is taken, and an effect that can be committed once.

pub mod adapters;
pub mod api;
pub mod app;
pub mod cli;
pub mod commands;
pub mod config;
pub mod exit;
pub mod intake;
pub mod migrate;
pub mod neighbours;
pub mod outbox;
pub mod serve;
pub mod services;
pub mod signals;
pub mod upkeep;
