//! A worker engine for any BullMQ queue.
pub mod context;
pub mod handler;
