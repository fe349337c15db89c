//! The outside world: Proxmox and Postgres. Adapters never import services.

pub mod db;
pub mod powerdns;
pub mod proxmox;
