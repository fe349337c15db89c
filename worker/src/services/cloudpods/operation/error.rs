//! Why an operation on a pod did not succeed, and whether trying again can help.

use std::time::Duration;

use mpanel_protocol::payload::PayloadError;
use uuid::Uuid;

use super::super::{
    error::{Verdict, of_database, of_proxmox},
    quota::Exceeded,
};
use crate::adapters::{
    db::DbError,
    proxmox::{Class, PveError},
};

/// How long a job waits for another that works on its pod.
const WAIT: Duration = Duration::from_secs(5);
/// How long a job waits for a lock on its guest that is not ours.
const LOCK_WAIT: Duration = Duration::from_secs(15);

/// Why an attempt failed, or has to wait. The text is the job's `failedReason`.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// Fields are missing or absurd.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// An operator cancelled the job.
    #[error("Cancelled by admin")]
    Cancelled,
    /// No such pod.
    #[error("Invalid payload: cloudPodId {0} is no pod")]
    UnknownPod(Uuid),
    /// The pod is another tenant's.
    #[error("Invalid payload: pod {pod} does not belong to tenant {tenant}")]
    OtherTenant {
        /// The pod.
        pod: Uuid,
        /// Who asked.
        tenant: Uuid,
    },
    /// The payload's VMID is not the pod's.
    #[error("Invalid payload: vmid {given} is not the VMID of pod {pod}, which is {actual}")]
    OtherVmid {
        /// The pod.
        pod: Uuid,
        /// What the payload says.
        given: i64,
        /// What the row says.
        actual: i32,
    },
    /// The pod cannot be worked on in its state.
    #[error("pod {pod} is {status}; {what} needs an active pod")]
    NotActive {
        /// The pod.
        pod: Uuid,
        /// Its status.
        status: String,
        /// The operation.
        what: &'static str,
    },
    /// Another job works on the pod; this one waits, and uses no attempt.
    #[error("{0} works on the pod; waiting for it")]
    Busy(String),
    /// The guest is held by something else; this job waits, and uses no attempt.
    #[error("{0}; waiting for it")]
    Locked(PveError),
    /// The guest that should be there is not.
    #[error("VMID {vmid}: there is no guest of pod {pod} on Proxmox; look for it there")]
    NoGuest {
        /// The VMID.
        vmid: i32,
        /// The pod.
        pod: Uuid,
    },
    /// Something else is at the pod's VMID.
    #[error("VMID {vmid} is not the pod's guest but {by}; nothing was done to it")]
    Foreign {
        /// The VMID.
        vmid: i32,
        /// What is there.
        by: String,
    },
    /// The tenant's quota does not allow it. mPanel looks for the first words.
    #[error("Quota exceeded: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Quota(Vec<Exceeded>),
    /// The node has no room for more.
    #[error("node {node} has no room for {what}")]
    NoRoom {
        /// The node.
        node: String,
        /// What was wanted.
        what: String,
    },
    /// The new size is less than what is used.
    #[error(
        "Invalid payload: newMemoryMb {wanted} is too little: the guest uses {used_mb} MiB, and a fifth must stay free"
    )]
    BelowUse {
        /// What was wanted, MiB.
        wanted: i32,
        /// What is used, MiB.
        used_mb: i64,
    },
    /// A setting names a storage that is not there.
    #[error("MPANEL_FLEET_CLOUDPODS__BACKUP_STORAGE {storage} cannot be used: {cause}")]
    BackupStorage {
        /// The storage.
        storage: String,
        /// What Proxmox says.
        cause: PveError,
    },
    /// A node row names no usable API.
    #[error("node {node}: api_url {problem}; correct the row, or set PROXMOX_API_URL")]
    NodeUrl {
        /// The node.
        node: String,
        /// What is wrong.
        problem: String,
    },
    /// A task of Proxmox failed.
    #[error("Proxmox task {task} for VMID {vmid} failed: {text}{}", if .log.is_empty() { String::new() } else { format!(" (log: {})", .log) })]
    TaskFailed {
        /// Its type.
        task: String,
        /// The guest.
        vmid: u32,
        /// Its exit status.
        text: String,
        /// Its log's last lines.
        log: String,
        /// What the exit status means.
        class: Class,
    },
    /// Something did not happen in time; it may still.
    #[error("VMID {vmid}: {what}; the next attempt looks again")]
    NotYet {
        /// The guest.
        vmid: u32,
        /// What did not happen.
        what: String,
    },
    /// Proxmox refused, or could not be reached.
    #[error("{0}")]
    Pve(#[from] PveError),
    /// The database refused, or did not answer.
    #[error("{0}")]
    Db(#[from] DbError),
}

impl OpError {
    /// What the queue is to do.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Busy(_) => Verdict::Wait(WAIT),
            Self::Locked(_) => Verdict::Wait(LOCK_WAIT),
            Self::Payload(_)
            | Self::Cancelled
            | Self::UnknownPod(_)
            | Self::OtherTenant { .. }
            | Self::OtherVmid { .. }
            | Self::NotActive { .. }
            | Self::Foreign { .. }
            | Self::Quota(_)
            | Self::BelowUse { .. }
            | Self::BackupStorage { .. } => Verdict::Never,
            Self::TaskFailed { class: Class::SnapshotExists | Class::NoSnapshots, .. } => Verdict::Never,
            Self::Pve(error) => of_proxmox(error),
            Self::Db(error) => of_database(error),
            Self::NoGuest { .. }
            | Self::NoRoom { .. }
            | Self::NodeUrl { .. }
            | Self::TaskFailed { .. }
            | Self::NotYet { .. } => Verdict::Retry,
        }
    }
}
