//! Why a pod could not be created, and whether trying again can help.

use std::time::Duration;

use mpanel_protocol::payload::PayloadError;
use uuid::Uuid;

use super::{
    placement::{Passed, Refusal},
    quota::Exceeded,
};
use crate::adapters::{
    db::DbError,
    proxmox::{Class, PveError},
};

/// Why an attempt did not create the pod. The text is the job's `failedReason`.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Fields are missing or absurd.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The pod was deleted before it was made.
    #[error("pod {0} was deleted before it was made")]
    Deleted(Uuid),
    /// An operator cancelled the job.
    #[error("Cancelled by admin")]
    Cancelled,
    /// The tenant's quota does not allow it. mPanel looks for the first words.
    #[error("Quota exceeded: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Quota(Vec<Exceeded>),
    /// No such tenant.
    #[error("Invalid payload: tenantId {0} is no tenant, or a deleted one")]
    UnknownTenant(Uuid),
    /// No such blueprint.
    #[error("Invalid payload: blueprintId {0} is no blueprint, neither by id nor by slug")]
    UnknownBlueprint(String),
    /// The blueprint does not say what it must.
    #[error("Invalid payload: blueprintId {id} names a blueprint whose spec.{field} {problem}")]
    BadBlueprint {
        /// The blueprint.
        id: Uuid,
        /// The field of its spec.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A kind of guest that there is not.
    #[error("Invalid payload: kind {0} is neither lxc nor vm")]
    UnknownKind(String),
    /// Nobody said what machines are cloned from.
    #[error(
        "kind vm needs a template: set MPANEL_FLEET_CLOUDPODS__VM_TEMPLATE_VMID, or spec.ostemplate of the blueprint, to its VMID"
    )]
    NoVmTemplate,
    /// The template of machines is not there.
    #[error(
        "VM template {0} is not on Proxmox (MPANEL_FLEET_CLOUDPODS__VM_TEMPLATE_VMID, or spec.ostemplate of the blueprint)"
    )]
    VmTemplateMissing(String),
    /// The template's disk is larger than the pod's may be; disks never shrink.
    #[error("Invalid payload: diskGb {wanted} is less than the {template} GiB of the VM template")]
    TemplateTooBig {
        /// What was wanted, GiB.
        wanted: u32,
        /// What the template has, GiB.
        template: u32,
    },
    /// No node is in that region.
    #[error("Invalid payload: region {region} is unknown; nodes are in: {}", if .known.is_empty() { "no region, as there are none".to_owned() } else { .known.join(", ") })]
    UnknownRegion {
        /// The region wanted.
        region: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The region's nodes cannot take the pod now.
    #[error("no node of region {region} can take the pod: {}", .passed.iter().map(|(node, reason)| format!("{node}: {reason}")).collect::<Vec<_>>().join("; "))]
    NoCapacity {
        /// The region wanted.
        region: String,
        /// Each node and why not.
        passed: Vec<(String, Passed)>,
    },
    /// Every VMID of the cluster's range is taken.
    #[error("cluster {0} has no free VMID left in its range (fleet_pve_clusters)")]
    NoFreeVmid(i32),
    /// The VMID belongs to someone else.
    #[error("VMID {vmid} is taken by {by}")]
    VmidTaken {
        /// The VMID.
        vmid: u32,
        /// By whom.
        by: String,
    },
    /// The address belongs to someone else.
    #[error("Invalid payload: ip {ip} is taken by {by}")]
    AddressTaken {
        /// The address.
        ip: String,
        /// By whom.
        by: String,
    },
    /// All addresses of the cluster's pools are in use.
    #[error(
        "no free address in the pools of cluster {0}: add one with `mpanel-worker cloudpods pools add`, or free some"
    )]
    NoFreeAddress(i32),
    /// A node row names no usable API.
    #[error("node {node}: api_url {problem}; correct the row, or set PROXMOX_API_URL")]
    NodeUrl {
        /// The node.
        node: String,
        /// What is wrong.
        problem: String,
    },
    /// The row of the node that holds the reservation is gone.
    #[error("the row of the node that holds VMID {0} is gone from cloud_pod_nodes; restore it")]
    NodeGone(u32),
    /// Proxmox refused, or could not be reached.
    #[error("{0}")]
    Pve(#[from] PveError),
    /// A task of Proxmox failed.
    #[error("Proxmox task {task} for VMID {vmid} failed: {text}{}", if .log.is_empty() { String::new() } else { format!(" (log: {})", .log) })]
    TaskFailed {
        /// Its type.
        task: &'static str,
        /// The guest.
        vmid: u32,
        /// Its exit status.
        text: String,
        /// Its log's last lines.
        log: String,
    },
    /// Something did not happen in time; it may still.
    #[error("VMID {vmid}: {what}; the next attempt looks again")]
    NotYet {
        /// The guest.
        vmid: u32,
        /// What did not happen.
        what: String,
    },
    /// The guest cannot be used and cannot be removed.
    #[error("VMID {vmid} had to be given up: {why}")]
    GivenUp {
        /// The guest.
        vmid: u32,
        /// Why.
        why: String,
        /// Whether something may be left of it on Proxmox.
        may_exist: bool,
    },
    /// The database refused, or did not answer.
    #[error("{0}")]
    Db(#[from] DbError),
}

/// What the queue is to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after the job's own backoff.
    Retry,
    /// Try again after this long.
    RetryAfter(Duration),
    /// Nothing went wrong: come back after this long, without using an attempt.
    Wait(Duration),
    /// Never try again.
    Never,
}

impl CreateError {
    /// From placement's refusal.
    #[must_use]
    pub fn refused(region: &str, refusal: Refusal) -> Self {
        let region = region.to_owned();
        match refusal {
            Refusal::UnknownRegion { known } => Self::UnknownRegion { region, known },
            Refusal::NoNode { passed } => Self::NoCapacity { region, passed },
        }
    }

    /// What the queue is to do.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Payload(_)
            | Self::Cancelled
            | Self::Quota(_)
            | Self::UnknownTenant(_)
            | Self::UnknownBlueprint(_)
            | Self::BadBlueprint { .. }
            | Self::UnknownKind(_)
            | Self::NoVmTemplate
            | Self::VmTemplateMissing(_)
            | Self::TemplateTooBig { .. }
            | Self::UnknownRegion { .. }
            | Self::VmidTaken { .. }
            | Self::AddressTaken { .. } => Verdict::Never,
            Self::Pve(error) => of_proxmox(error),
            Self::Db(error) => of_database(error),
            Self::NoCapacity { .. }
            | Self::NoFreeVmid(_)
            | Self::NoFreeAddress(_)
            | Self::NodeUrl { .. }
            | Self::NodeGone(_)
            | Self::TaskFailed { .. }
            | Self::NotYet { .. }
            | Self::GivenUp { .. } => Verdict::Retry,
        }
    }
}

/// What the queue is to do about a failed call.
pub(super) fn of_proxmox(error: &PveError) -> Verdict {
    // Wrong credentials would only be refused again, 3 s later each time.
    let lasting = error.class.is_configuration()
        || matches!(
            error.class,
            Class::BadParameter
                | Class::NotImplemented
                | Class::NotRunning
                | Class::Protected
                | Class::SnapshotExists
                | Class::NoSnapshots
                | Class::StorageMissing
        );
    if lasting { Verdict::Never } else { Verdict::Retry }
}

/// What the queue is to do about a failed statement.
pub(super) fn of_database(error: &DbError) -> Verdict {
    match error {
        // Another attempt has taken over; whatever this one says is not heard.
        DbError::Fenced { .. } => Verdict::Retry,
        DbError::Sql { .. } => Verdict::RetryAfter(Duration::from_secs(5)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_errors_begin_as_mpanel_expects() {
        let error = CreateError::Quota(vec![
            Exceeded { code: "MAX_PODS_EXCEEDED", wanted: 3, limit: 2 },
            Exceeded { code: "MAX_CPU_EXCEEDED", wanted: 9, limit: 4 },
        ]);
        assert_eq!(
            error.to_string(),
            "Quota exceeded: MAX_PODS_EXCEEDED (3 of 2), MAX_CPU_EXCEEDED (9 of 4)"
        );
        assert_eq!(error.verdict(), Verdict::Never);
    }

    #[test]
    fn wrong_credentials_are_never_tried_again_and_network_trouble_is() {
        let error = |class| {
            CreateError::Pve(PveError {
                class,
                status: None,
                text: String::new(),
                call: "GET /nodes".to_owned(),
                api: "https://h".to_owned(),
            })
        };
        assert_eq!(error(Class::BadCredentials).verdict(), Verdict::Never);
        assert_eq!(error(Class::Forbidden).verdict(), Verdict::Never);
        assert_eq!(error(Class::NodeUnreachable).verdict(), Verdict::Retry);
        assert_eq!(error(Class::StorageFull).verdict(), Verdict::Retry);
    }

    #[test]
    fn an_unknown_region_names_the_field_and_the_known_ones() {
        let refusal = Refusal::UnknownRegion { known: vec!["east".to_owned(), "west".to_owned()] };
        let error = CreateError::refused("nowhere", refusal);
        assert_eq!(error.to_string(), "Invalid payload: region nowhere is unknown; nodes are in: east, west");
    }
}
