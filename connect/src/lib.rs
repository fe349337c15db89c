//! How to reach Redis: one URL in, connections out.
//!
//! [`Redis`] is a cheap handle. It hands out *the* multiplexed connection for
//! scripts (one per process and server, shared by everyone) and dedicated
//! connections for blocking commands, and replaces either after it broke. It
//! knows no queue and no script, and decides no retry: callers know what is safe
//! to repeat.

#![warn(missing_docs)]

mod clock;
mod error;
mod redis_handle;
mod url;
mod zone;

pub use clock::ServerClock;
pub use error::{ConnectError, is_broken};
pub use redis_handle::{Redis, Shared};
pub use url::RedisUrl;
pub use zone::local_zone;
