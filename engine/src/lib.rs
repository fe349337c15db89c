//! A worker engine for any BullMQ queue.
pub mod admin;
pub mod context;
pub mod handler;
pub mod outcome;
