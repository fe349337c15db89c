//! The outside world: Proxmox, Postgres, Redis, PowerDNS, pages. Adapters never import services.

pub mod db;
pub mod pg_stats;
pub mod powerdns;
pub mod probe;
pub mod proxmox;
pub mod redis_stats;
