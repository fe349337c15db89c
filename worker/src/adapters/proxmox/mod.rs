//! The Proxmox VE API: typed calls, tasks, and what their failures mean.
//!
//! Knows nothing of pods, tenants or jobs.

mod calls;
mod client;
mod error;
mod resources;
mod task;
mod tls;
mod types;
mod upid;

pub(crate) use self::tls::install_provider as install_tls_provider;
pub use self::{
    calls::ContainerSpec,
    client::{Pve, PveClient, SetupError},
    error::{Class, Outcome, PveError, classify, classify_text},
    resources::ResourceRow,
    task::{FoundTask, TaskEnd},
    types::{GuestConfig, GuestRow, Interface, NodeRow, first_address, tag_set},
    upid::{NotAUpid, Upid},
};
