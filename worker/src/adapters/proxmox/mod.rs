//! The Proxmox VE API: typed calls, tasks, and what their failures mean.
//!
//! Knows nothing of pods, tenants or jobs.

mod client;
mod cluster;
mod create;
mod error;
mod gate;
mod guest;
mod login;
mod resources;
mod task;
mod tls;
mod types;
mod upid;

pub(crate) use self::tls::install_provider as install_tls_provider;
pub use self::{
    client::{Pve, PveClient, SetupError},
    cluster::Backup,
    create::{CloneSpec, ContainerSpec},
    error::{Advice, Class, Outcome, PveError, classify, classify_text},
    guest::{GuestAt, GuestKind, Power},
    resources::ResourceRow,
    task::{FoundTask, TaskEnd},
    types::{
        GuestConfig, GuestRow, GuestStatus, Interface, NodeRow, Pending, RrdRow, Snapshot, StorageRow, Usage,
        Volume, first_address, tag_set,
    },
    upid::{NotAUpid, Upid},
};
