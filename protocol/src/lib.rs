//! What BullMQ and mPanel keep in Redis.
pub mod ids;
pub mod payload;
