//! How to reach Redis: one URL in, connections out.
//!
//! [`Redis`] is a cheap handle on one server, on the primary behind Sentinels, or on
//! a Cluster. It hands out *the* multiplexed connection for scripts (one per process
//! and server, shared by everyone) and dedicated connections for blocking commands,
//! finds the server anew after one broke, and ends those to a server that stopped
//! being a primary. It knows no queue and no script, and repeats only what a Cluster
//! has surely not run: for the rest callers know what is safe.

#![warn(missing_docs)]

mod clock;
mod conn;
mod dial;
mod error;
mod node;
mod redis_handle;
mod sentinel;
mod slots;
mod url;
mod watch;
mod zone;

pub use clock::ServerClock;
pub use conn::Conn;
pub use error::{ConnectError, is_broken};
pub use redis_handle::{Place, Redis, Shared};
pub use url::RedisUrl;
pub use zone::local_zone;
