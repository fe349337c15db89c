//! From the books and what the clusters show to a list of differences and what
//! may be done about each. Pure: the same books, views and memory give the same
//! list, so every rule is a row of a test.
//!
//! This file judges guests against rows, and rows against guests; `ledger`
//! judges the books by themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    super::plan::ownership_tag,
    finding::{Finding, Kind, Limits, Repair, Scope, Step},
    ledger, memory,
    view::{ClusterView, SeenGuest},
};
use crate::adapters::db::{
    books::{Books, PodBook},
    drift::{Key, Known},
    nodes::NodeRecord,
};

/// What the tag of a pod's guest begins with.
const TAG: &str = "mpanel-pod-";

/// Everything that is judged.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// Our books and mPanel's rows.
    pub books: &'a Books,
    /// The nodes.
    pub nodes: &'a [NodeRecord],
    /// The clusters.
    pub views: &'a [ClusterView],
    /// What was found before and is not over.
    pub known: &'a BTreeMap<Key, Known>,
    /// How patient we are.
    pub limits: &'a Limits,
}

/// The differences, and what was looked at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Judgement {
    /// The differences.
    pub findings: Vec<Finding>,
    /// What was seen whole; findings about it that are not in the list are over.
    pub judged: BTreeSet<Scope>,
    /// Lost pods whose guests are there again.
    pub returned: Vec<Uuid>,
    /// Clusters of which nothing was concluded.
    pub passed_over: Vec<PassedOver>,
}

/// A cluster of which nothing was concluded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// `fleet_pve_clusters.id`.
    pub cluster: i32,
    /// Why.
    pub why: String,
}

impl World<'_> {
    /// How long a finding has been there; nothing when it is new.
    pub(super) fn age(&self, kind: Kind, subject: &str) -> Duration {
        self.known_of(kind, subject)
            .map_or(Duration::ZERO, |known| Duration::from_secs_f64(known.age_s.clamp(0.0, 1e9)))
    }

    fn known_of(&self, kind: Kind, subject: &str) -> Option<&Known> {
        self.known.get(&(kind.as_str().to_owned(), subject.to_owned()))
    }

    /// Whether it has been seen before, at least this long ago.
    pub(super) fn seen_before(&self, kind: Kind, subject: &str, patience: Duration) -> bool {
        self.known_of(kind, subject).is_some() && self.age(kind, subject) >= patience
    }

    fn acted(&self, kind: Kind, subject: &str) -> bool {
        self.known_of(kind, subject).is_some_and(|known| known.acted)
    }
}

/// Judges everything.
#[must_use]
pub fn judge(world: &World<'_>) -> Judgement {
    let mut out = Judgement::default();
    out.judged.insert(Scope::Books);
    ledger::judge(world, &mut out.findings);
    for view in world.views {
        if let Some(why) = &view.unusable {
            out.passed_over.push(PassedOver { cluster: view.id, why: why.clone() });
            continue;
        }
        out.judged.insert(Scope::Cluster(view.id));
        guests(world, view, &mut out.findings);
        pods_of(world, view, &mut out);
        memory::judge(world, view, &mut out.findings);
    }
    if out.passed_over.is_empty() && !world.views.is_empty() {
        out.judged.insert(Scope::AllClusters);
        pods_of_others(world, &mut out.findings);
    }
    out
}

/// The pod that a guest's tag names.
pub(super) fn owner(guest: &SeenGuest) -> Option<Uuid> {
    guest.tags.iter().find_map(|tag| tag.strip_prefix(TAG)?.parse().ok())
}

pub(super) fn report_or_suspect(believed: bool) -> Step {
    if believed { Step::Report } else { Step::Suspect }
}

/// Guests that carry our tag: is there a row that knows each?
fn guests(world: &World<'_>, view: &ClusterView, findings: &mut Vec<Finding>) {
    let mut books: BTreeMap<Uuid, Vec<&PodBook>> = BTreeMap::new();
    for pod in &world.books.pods {
        books.entry(pod.pod_id).or_default().push(pod);
    }
    for guest in &view.guests {
        let Some(pod_id) = owner(guest) else { continue };
        let knows = |pod: &&&PodBook| {
            u32::try_from(pod.vmid) == Ok(guest.at.vmid)
                // A quarantined guest is left for the operator, whatever became of its pod.
                && (!pod.deleted || pod.phase.as_deref().is_some_and(|phase| phase != "active"))
        };
        match books.get(&pod_id).and_then(|pods| pods.iter().find(knows)) {
            Some(pod) => lock(world, view, guest, pod, findings),
            None => findings.push(orphan(world, view, guest, pod_id)),
        }
    }
}

fn orphan(world: &World<'_>, view: &ClusterView, guest: &SeenGuest, pod_id: Uuid) -> Finding {
    let kind = Kind::OrphanGuest;
    let subject = format!("{}/{}", view.id, guest.at.vmid);
    let believed =
        world.seen_before(kind, &subject, world.limits.orphan) && !world.books.leased.contains(&pod_id);
    let repair = Repair::RemoveOrphan {
        cluster_id: view.id,
        pod_id,
        at: guest.at.clone(),
        running: guest.status != "stopped",
    };
    let step = match believed {
        true if world.limits.orphan_delete && guest.lock.is_none() => Step::Repair(repair),
        believed => report_or_suspect(believed),
    };
    let advice = if world.limits.orphan_delete {
        "it is removed by itself; a protected or locked guest must be freed on Proxmox first".to_owned()
    } else {
        format!(
            "see what is on guest {}, then destroy it on Proxmox; or take its tag {} off, if it is to stay",
            guest.at.vmid,
            ownership_tag(pod_id)
        )
    };
    Finding {
        kind,
        subject,
        scope: Scope::Cluster(view.id),
        pod_id: Some(pod_id),
        absent_vmid: None,
        what: format!(
            "guest {} `{}` ({}) carries the tag of pod {pod_id}, which no live row knows",
            guest.at, guest.name, guest.status
        ),
        advice,
        data: json!({ "cluster": view.id, "node": guest.at.node, "vmid": guest.at.vmid, "name": guest.name,
            "status": guest.status, "memoryMb": guest.memory_mb }),
        step,
    }
}

fn lock(
    world: &World<'_>,
    view: &ClusterView,
    guest: &SeenGuest,
    pod: &PodBook,
    findings: &mut Vec<Finding>,
) {
    // A job of ours that waits for the lock sees to it; a half-made guest is its creation's.
    let Some(lock) = guest.lock.as_deref().filter(|_| !pod.leased && pod.phase.as_deref() == Some("active"))
    else {
        return;
    };
    let kind = Kind::StuckLock;
    let subject = pod.pod_id.to_string();
    let patience = if lock == "backup" { world.limits.backup_lock } else { world.limits.lock };
    let unlock = if guest.at.kind == crate::adapters::proxmox::GuestKind::Lxc { "pct" } else { "qm" };
    findings.push(Finding {
        step: report_or_suspect(world.seen_before(kind, &subject, patience)),
        kind,
        subject,
        scope: Scope::Cluster(view.id),
        pod_id: Some(pod.pod_id),
        absent_vmid: None,
        what: format!(
            "guest {} of pod {} is locked ({lock}), and no job works on it",
            guest.at, pod.hostname
        ),
        advice: format!(
            "see on node {} that no task of the guest runs, then, as root there: {unlock} unlock {}",
            guest.at.node, guest.at.vmid
        ),
        data: json!({ "node": guest.at.node, "vmid": guest.at.vmid, "lock": lock }),
    });
}

/// Pods of ours in this cluster: is each one's guest there?
fn pods_of(world: &World<'_>, view: &ClusterView, out: &mut Judgement) {
    let mut by_vmid: BTreeMap<u32, Vec<&SeenGuest>> = BTreeMap::new();
    for guest in &view.guests {
        by_vmid.entry(guest.at.vmid).or_default().push(guest);
    }
    for pod in &world.books.pods {
        if pod.cluster_id != Some(view.id) || pod.phase.as_deref() != Some("active") {
            continue;
        }
        let here = u32::try_from(pod.vmid).ok().and_then(|vmid| by_vmid.get(&vmid));
        let here: &[&SeenGuest] = here.map_or(&[], Vec::as_slice);
        let ours = here.iter().any(|guest| owner(guest) == Some(pod.pod_id));
        if ours && pod.lost {
            out.returned.push(pod.pod_id);
        }
        // A job at work knows better than any list what is there now.
        if ours || pod.leased {
            continue;
        }
        let found = match here.first() {
            None if pod.deleted => Some(left_over(world, view, pod)),
            None if pod.status.as_deref() == Some("active") => {
                Some(lost(world, pod, Scope::Cluster(view.id)))
            }
            Some(guest) if !pod.deleted => Some(foreign(world, view, pod, guest)),
            // On its way out or in: its job will say.
            _ => None,
        };
        out.findings.extend(found);
    }
}

fn lost(world: &World<'_>, pod: &PodBook, scope: Scope) -> Finding {
    let kind = Kind::LostGuest;
    let subject = pod.pod_id.to_string();
    let believed = world.seen_before(kind, &subject, world.limits.second_look);
    let repair =
        Repair::MarkLost { tenant_id: pod.tenant_id, pod_id: pod.pod_id, generation: pod.generation };
    let step = match believed {
        true if !world.acted(kind, &subject) => Step::Repair(repair),
        believed => report_or_suspect(believed),
    };
    Finding {
        kind,
        subject,
        scope,
        pod_id: Some(pod.pod_id),
        absent_vmid: u32::try_from(pod.vmid).ok(),
        what: format!("guest {} of pod {} is gone from Proxmox", pod.vmid, pod.hostname),
        advice: format!(
            "find out who removed it; restore it from a backup under VMID {} with the tag {}, or destroy the \
             pod in mPanel. It is not made again by itself, since its data would be missing",
            pod.vmid,
            ownership_tag(pod.pod_id)
        ),
        data: json!({ "vmid": pod.vmid, "hostname": pod.hostname, "tenantId": pod.tenant_id, "ip": pod.ip }),
        step,
    }
}

fn left_over(world: &World<'_>, view: &ClusterView, pod: &PodBook) -> Finding {
    let kind = Kind::LeftOver;
    let subject = pod.pod_id.to_string();
    let repair = Repair::GiveBack { pod_id: pod.pod_id, generation: pod.generation.unwrap_or_default() };
    let believed = world.seen_before(kind, &subject, world.limits.second_look);
    Finding {
        step: if believed { Step::Repair(repair) } else { Step::Suspect },
        kind,
        subject,
        scope: Scope::Cluster(view.id),
        pod_id: Some(pod.pod_id),
        absent_vmid: u32::try_from(pod.vmid).ok(),
        what: format!(
            "pod {} is deleted and its guest {} is gone, but its capacity, VMID and address are still reserved",
            pod.hostname, pod.vmid
        ),
        advice: String::new(),
        data: json!({ "vmid": pod.vmid, "cluster": view.id }),
    }
}

fn foreign(world: &World<'_>, view: &ClusterView, pod: &PodBook, guest: &SeenGuest) -> Finding {
    let kind = Kind::ForeignGuest;
    let subject = pod.pod_id.to_string();
    let tag = ownership_tag(pod.pod_id);
    Finding {
        step: report_or_suspect(world.seen_before(kind, &subject, world.limits.second_look)),
        kind,
        subject,
        scope: Scope::Cluster(view.id),
        pod_id: Some(pod.pod_id),
        absent_vmid: None,
        what: format!(
            "guest {} `{}` is at the VMID of pod {} and does not carry its tag",
            guest.at, guest.name, pod.hostname
        ),
        advice: format!(
            "if it is the pod's guest, give it the tag {tag} back; if not, move it to another VMID. \
             No job touches it until then"
        ),
        data: json!({ "node": guest.at.node, "vmid": guest.at.vmid, "name": guest.name, "tags": guest.tags }),
    }
}

/// Pods whose guests somebody else made: they may be in any cluster.
fn pods_of_others(world: &World<'_>, findings: &mut Vec<Finding>) {
    let vmids: BTreeSet<u32> = world.views.iter().flat_map(|view| &view.guests).map(|g| g.at.vmid).collect();
    for pod in &world.books.pods {
        let there = u32::try_from(pod.vmid).is_ok_and(|vmid| vmids.contains(&vmid));
        let theirs = pod.generation.is_none() && pod.status.as_deref() == Some("active");
        if theirs && !pod.leased && !there {
            findings.push(lost(world, pod, Scope::AllClusters));
        }
    }
}
