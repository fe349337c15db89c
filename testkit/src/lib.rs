//! skeleton

pub mod pve;
