//! What tests and the control listener see: guests, nodes, tasks, volumes, invariants.
//!
//! Copies of the state, made under its mutex; nothing here can change it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::state::{Cluster, GIB, GuestKind};
use super::storage::Content;
use super::tasks::TaskState;

/// A guest as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestView {
    /// Cluster-wide id.
    pub vmid: u32,
    /// `lxc` or `qemu`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Node it lives on.
    pub node: String,
    /// Host name or VM name.
    pub hostname: String,
    /// `running`, `stopped`, or `unknown` on a dead node.
    pub status: &'static str,
    /// The configuration's lock, such as `create`.
    pub lock: Option<&'static str>,
    /// Tags in stored order.
    pub tags: Vec<String>,
    /// Configured addresses, and leased ones once the guest is up; without prefix length.
    pub addresses: Vec<String>,
    /// Description in plain text.
    pub description: String,
    /// Configured cores.
    pub cores: u64,
    /// Configured memory in MiB.
    pub memory: u64,
    /// Size of the root or boot disk in GiB, rounded down.
    pub disk_gib: u64,
    /// A template, never started.
    pub template: bool,
    /// Pool it belongs to.
    pub pool: Option<String>,
    /// Names of its snapshots.
    pub snapshots: Vec<String>,
    /// The whole configuration.
    pub config: BTreeMap<String, String>,
}

/// A node as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeView {
    /// Name.
    pub node: String,
    /// False after `node_down`.
    pub online: bool,
    /// Sum of the cores of its guests, templates left out.
    pub cores: u64,
    /// Sum of the memory of its guests in MiB, templates left out.
    pub memory: u64,
}

/// A task as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskView {
    /// Full UPID.
    pub upid: String,
    /// Node it runs on.
    pub node: String,
    /// Type, such as `vzcreate`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Id part, mostly a VMID.
    pub id: String,
    /// `running` or `stopped`.
    pub status: &'static str,
    /// Exit status once stopped.
    pub exitstatus: Option<String>,
}

/// A volume as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeView {
    /// Volume id.
    pub volid: String,
    /// Node, none for shared storages.
    pub node: Option<String>,
    /// Guest whose id it carries.
    pub vmid: Option<u32>,
    /// `rootdir`, `images`, `backup` or `vztmpl`.
    pub content: &'static str,
    /// Size.
    pub bytes: u64,
    /// Notes of a backup.
    pub notes: String,
}

/// Everything `GET /state` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateView {
    /// All guests, the VM template included (`template` is true there).
    pub guests: Vec<GuestView>,
    /// All nodes.
    pub nodes: Vec<NodeView>,
    /// Tasks, newest first.
    pub tasks: Vec<TaskView>,
    /// All volumes.
    pub volumes: Vec<VolumeView>,
    /// False after quorum was taken away.
    pub quorate: bool,
}

/// Findings that should be empty in a healthy run, and sums to compare books with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Invariants {
    /// Number of guests per `mpanel-pod-…` tag.
    pub guests_per_owner: BTreeMap<String, usize>,
    /// Owner tags that more than one guest carries.
    pub duplicate_owners: Vec<String>,
    /// Addresses that more than one guest has.
    pub duplicate_addresses: Vec<String>,
    /// Guests that are locked while no task works on them.
    pub stuck_locks: Vec<u32>,
    /// Volumes whose guest does not exist; backups are not counted.
    pub leaked_volumes: Vec<String>,
    /// Storages that hold more than they can.
    pub overfull_storages: Vec<String>,
    /// Sums by node.
    pub nodes: Vec<NodeView>,
    /// True when all lists above are empty.
    pub ok: bool,
}

pub(crate) fn guests(cluster: &Cluster) -> Vec<GuestView> {
    cluster
        .guests
        .values()
        .map(|guest| GuestView {
            vmid: guest.vmid,
            kind: guest.kind.segment(),
            node: guest.node.clone(),
            hostname: guest.config.get(guest.kind.name_key()).cloned().unwrap_or_default(),
            status: cluster.shown_status(guest),
            lock: guest.lock.map(super::state::Lock::as_str),
            tags: guest.tags(),
            addresses: guest
                .addresses(cluster.limits.dhcp_delay)
                .into_iter()
                .map(|(_, cidr)| cidr.split('/').next().unwrap_or_default().to_owned())
                .collect(),
            description: guest.config.get("description").cloned().unwrap_or_default(),
            cores: guest.number("cores", u64::from(guest.kind == GuestKind::Qemu)),
            memory: guest.number("memory", 0),
            disk_gib: cluster.disk_bytes(guest) / GIB,
            template: guest.is_template(),
            pool: cluster.pool_of(guest.vmid).map(str::to_owned),
            snapshots: guest.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect(),
            config: guest.config.clone(),
        })
        .collect()
}

fn nodes(cluster: &Cluster) -> Vec<NodeView> {
    let sum = |node: &str, of: fn(&super::state::Guest) -> u64| {
        cluster.guests.values().filter(|guest| guest.node == node && !guest.is_template()).map(of).sum()
    };
    cluster
        .nodes
        .iter()
        .map(|node| NodeView {
            node: node.name.clone(),
            online: node.online,
            cores: sum(&node.name, |guest| guest.number("cores", 0)),
            memory: sum(&node.name, |guest| guest.number("memory", 0)),
        })
        .collect()
}

pub(crate) fn tasks(cluster: &Cluster) -> Vec<TaskView> {
    cluster
        .tasks
        .iter()
        .map(|task| {
            let (status, exitstatus) = match &task.state {
                TaskState::Running => ("running", None),
                TaskState::Stopped { exit, .. } => ("stopped", Some(exit.clone())),
            };
            TaskView {
                upid: task.upid.to_string(),
                node: task.upid.node.clone(),
                kind: task.upid.kind.clone(),
                id: task.upid.id.clone(),
                status,
                exitstatus,
            }
        })
        .collect()
}

fn volumes(cluster: &Cluster) -> Vec<VolumeView> {
    cluster
        .storages
        .iter()
        .flat_map(|storage| {
            storage.volumes.iter().map(|(volid, volume)| VolumeView {
                volid: volid.clone(),
                node: storage.node.clone(),
                vmid: volume.vmid,
                content: volume.content.as_str(),
                bytes: volume.bytes,
                notes: volume.notes.clone(),
            })
        })
        .collect()
}

pub(crate) fn state(cluster: &Cluster) -> StateView {
    StateView {
        guests: guests(cluster),
        nodes: nodes(cluster),
        tasks: tasks(cluster),
        volumes: volumes(cluster),
        quorate: cluster.quorate,
    }
}

pub(crate) fn invariants(cluster: &Cluster) -> Invariants {
    let all = guests(cluster);
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    let mut addresses: BTreeMap<String, usize> = BTreeMap::new();
    for guest in all.iter().filter(|guest| !guest.template) {
        for tag in guest.tags.iter().filter(|tag| tag.starts_with("mpanel-pod-")) {
            *owners.entry(tag.clone()).or_default() += 1;
        }
        for address in &guest.addresses {
            *addresses.entry(address.clone()).or_default() += 1;
        }
    }
    let busy = |vmid: u32| cluster.tasks.running().any(|task| task.work.guests().contains(&vmid));
    let repeated = |counts: &BTreeMap<String, usize>| -> Vec<String> {
        counts.iter().filter(|(_, count)| **count > 1).map(|(name, _)| name.clone()).collect()
    };
    let mut report = Invariants {
        duplicate_owners: repeated(&owners),
        duplicate_addresses: repeated(&addresses),
        guests_per_owner: owners,
        stuck_locks: all.iter().filter(|g| g.lock.is_some() && !busy(g.vmid)).map(|g| g.vmid).collect(),
        leaked_volumes: cluster
            .storages
            .iter()
            .flat_map(|storage| &storage.volumes)
            .filter(|(_, volume)| volume.content != Content::Backup)
            .filter(|(_, volume)| volume.vmid.is_some_and(|vmid| !cluster.guests.contains_key(&vmid)))
            .map(|(volid, _)| volid.clone())
            .collect(),
        overfull_storages: cluster
            .storages
            .iter()
            .filter(|storage| storage.used_bytes() > storage.total_bytes)
            .map(|storage| storage.id.clone())
            .collect(),
        nodes: nodes(cluster),
        ok: false,
    };
    report.ok = report.duplicate_owners.is_empty()
        && report.duplicate_addresses.is_empty()
        && report.stuck_locks.is_empty()
        && report.leaked_volumes.is_empty()
        && report.overfull_storages.is_empty();
    report
}
