//! A typed function for each script, and for the plain commands on partitions. The only places that pack arguments and
//! unpack replies; each call is one round trip on the given connection.

pub mod add;
pub mod cancel;
pub mod fetch;
pub mod finish;
pub mod flow;
pub mod locks;
pub mod manage;
pub mod partition;
pub mod permissions;
pub mod schedule;
pub mod sweep;
