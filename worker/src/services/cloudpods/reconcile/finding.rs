//! What can be found to differ, and what may be done about it. Plain values.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::adapters::{db::drift::Sighting, proxmox::GuestAt};

/// What differs. The words are in `fleet_drift.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A guest with our tag that no live row knows.
    OrphanGuest,
    /// A live row whose guest is not there.
    LostGuest,
    /// Something else is at the VMID of a pod of ours.
    ForeignGuest,
    /// A lock on a pod's guest that nobody takes off.
    StuckLock,
    /// Our records of a pod that mPanel has deleted, and whose guest is gone.
    LeftOver,
    /// Guests have more of a node's memory than the books know.
    NodeMemory,
    /// A node's allocation row is not the sum of our reservations.
    Allocation,
    /// Capacity held for a creation that nobody goes on with.
    IdleHold,
    /// A lease whose holder has been gone for long.
    StaleLease,
    /// One address for two pods.
    DoubleAddress,
    /// A tenant's counters are not the sums of its pods.
    Quota,
}

impl Kind {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrphanGuest => "orphan_guest",
            Self::LostGuest => "lost_guest",
            Self::ForeignGuest => "foreign_guest",
            Self::StuckLock => "stuck_lock",
            Self::LeftOver => "left_over",
            Self::NodeMemory => "node_memory",
            Self::Allocation => "allocation",
            Self::IdleHold => "idle_hold",
            Self::StaleLease => "stale_lease",
            Self::DoubleAddress => "double_address",
            Self::Quota => "quota",
        }
    }
}

/// Which part of the world must have been seen for a finding to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The database.
    Books,
    /// One cluster, whole.
    Cluster(i32),
    /// Every cluster, whole.
    AllClusters,
}

impl Scope {
    /// Its word.
    #[must_use]
    pub fn word(self) -> String {
        match self {
            Self::Books => "books".to_owned(),
            Self::Cluster(id) => format!("cluster {id}"),
            Self::AllClusters => "all clusters".to_owned(),
        }
    }
}

/// What is to be done about a finding now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it must be seen again first.
    Suspect,
    /// It is believed; the operator is told.
    Report,
    /// It is believed, and this mends it or makes it known.
    Repair(Repair),
}

/// A change that is safe to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Put on record that a pod's guest is gone; with the generation of our record, if we have one.
    MarkLost {
        /// Whose the pod is.
        tenant_id: Uuid,
        /// The pod.
        pod_id: Uuid,
        /// Its generation; `None` for a guest that we did not make.
        generation: Option<i32>,
    },
    /// Give back what a deleted pod holds.
    GiveBack {
        /// The pod.
        pod_id: Uuid,
        /// Its generation.
        generation: i32,
    },
    /// Write the node's allocation anew.
    Project {
        /// The node.
        node_id: i32,
    },
    /// Give back what a creation holds that never began.
    ReleaseHold {
        /// The pod.
        pod_id: Uuid,
        /// Its generation.
        generation: i32,
    },
    /// Remove a lease.
    DropLease {
        /// The pod.
        pod_id: Uuid,
    },
    /// Set a tenant's counters.
    SetCounters {
        /// The tenant.
        tenant_id: Uuid,
    },
    /// Stop the orphan or, when it is stopped, destroy it.
    RemoveOrphan {
        /// Its cluster in our books.
        cluster_id: i32,
        /// The pod that its tag names.
        pod_id: Uuid,
        /// Where it is.
        at: GuestAt,
        /// Whether it runs.
        running: bool,
    },
}

/// One difference.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What differs.
    pub kind: Kind,
    /// What it is about; with the kind it makes the finding one and the same over time.
    pub subject: String,
    /// What must be seen for it to be over.
    pub scope: Scope,
    /// The pod, where it is about one.
    pub pod_id: Option<Uuid>,
    /// The guest whose absence must be confirmed before the repair.
    pub absent_vmid: Option<u32>,
    /// One sentence.
    pub what: String,
    /// What the operator should do; empty for nothing.
    pub advice: String,
    /// Figures for programs.
    pub data: Value,
    /// What is to be done.
    pub step: Step,
}

impl Finding {
    /// As it is recorded.
    #[must_use]
    pub fn sighting(&self) -> Sighting {
        Sighting {
            kind: self.kind.as_str(),
            subject: self.subject.clone(),
            scope: self.scope.word(),
            pod_id: self.pod_id,
            believed: self.step != Step::Suspect,
            what: self.what.clone(),
            advice: self.advice.clone(),
            data: self.data.clone(),
        }
    }
}

/// How patient the judgement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long an orphan must have been there to be believed.
    pub orphan: Duration,
    /// Whether believed orphans are removed.
    pub orphan_delete: bool,
    /// Longer than Proxmox's lists lag behind: two looks this far apart are two looks.
    pub second_look: Duration,
    /// How long a creation may be silent.
    pub hold: Duration,
    /// How long a lease may be over.
    pub lease: Duration,
    /// How long a guest may be locked without a job of ours.
    pub lock: Duration,
    /// The same for the lock of a backup.
    pub backup_lock: Duration,
    /// How long counters must differ, and memory be missing from the books.
    pub settled: Duration,
}

impl Limits {
    /// The usual patience, with the operator's settings.
    #[must_use]
    pub fn new(orphan: Duration, orphan_delete: bool) -> Self {
        Self {
            orphan,
            orphan_delete,
            second_look: Duration::from_secs(20),
            hold: Duration::from_secs(3600),
            lease: Duration::from_secs(600),
            lock: Duration::from_secs(3600),
            backup_lock: Duration::from_secs(6 * 3600),
            settled: Duration::from_secs(600),
        }
    }
}
