//! The simulated cluster: nodes, guests, pools and the small rules that keep them consistent.
//!
//! Plain data behind one mutex. Knows nothing of HTTP, of time-outs or of faults.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::disks;
use super::firewall::Firewall;
use super::formats;
use super::storage::{self, Storage};
use super::tasks::TaskTable;
use super::wire::ApiError;

pub(crate) use super::guest_state::{Guest, GuestKind, Lock, Power, Snapshot};

/// Configuration keys and values as the guest's file holds them.
pub(crate) type Config = BTreeMap<String, String>;

pub(crate) const GIB: u64 = 1 << 30;
/// Both architectures of a simulated node's network.
pub(crate) const BRIDGE: &str = "vmbr0";

/// The figures of the simulation that handlers look at.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) node_cores: u32,
    pub(crate) node_memory_bytes: u64,
    pub(crate) dhcp_delay: Duration,
    pub(crate) agent_delay: Duration,
    pub(crate) stats_lag: Duration,
    pub(crate) parallel_per_storage: Option<usize>,
    pub(crate) version: String,
}

/// Everything a cluster knows.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) limits: Limits,
    pub(crate) nodes: Vec<Node>,
    pub(crate) guests: BTreeMap<u32, Guest>,
    pub(crate) storages: Vec<Storage>,
    pub(crate) pools: BTreeMap<String, Pool>,
    pub(crate) tasks: TaskTable,
    pub(crate) firewall: Firewall,
    pub(crate) quorate: bool,
    pub(crate) vmid_range: (u32, u32),
    pub(crate) rng: fastrand::Rng,
    pub(crate) stats: Option<(Instant, Vec<Value>)>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) online: bool,
    pub(crate) booted_at: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) comment: String,
    pub(crate) guests: BTreeSet<u32>,
}

impl Cluster {
    pub(crate) fn node(&self, name: &str) -> Result<&Node, ApiError> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .ok_or_else(|| ApiError::fail(format!("no such cluster node '{name}'")))
    }

    pub(crate) fn require_quorum(&self) -> Result<(), ApiError> {
        if self.quorate { Ok(()) } else { Err(ApiError::fail("cluster not ready - no quorum?")) }
    }

    /// A guest by its configuration file: on another node it does not exist.
    pub(crate) fn guest(&self, node: &str, kind: GuestKind, vmid: u32) -> Result<&Guest, ApiError> {
        self.guests
            .get(&vmid)
            .filter(|guest| guest.node == node && guest.kind == kind)
            .ok_or_else(|| ApiError::fail(missing_config(node, kind, vmid)))
    }

    pub(crate) fn guest_mut(
        &mut self,
        node: &str,
        kind: GuestKind,
        vmid: u32,
    ) -> Result<&mut Guest, ApiError> {
        self.guests
            .get_mut(&vmid)
            .filter(|guest| guest.node == node && guest.kind == kind)
            .ok_or_else(|| ApiError::fail(missing_config(node, kind, vmid)))
    }

    pub(crate) fn check_unused(&self, vmid: u32) -> Result<(), ApiError> {
        match self.guests.get(&vmid) {
            Some(guest) => Err(ApiError::fail(format!(
                "{} {vmid} already exists on node '{}'",
                guest.kind.noun(),
                guest.node
            ))),
            None => Ok(()),
        }
    }

    /// The state a listing shows; guests of a dead node are `unknown`.
    pub(crate) fn shown_status(&self, guest: &Guest) -> &'static str {
        match (self.node(&guest.node).is_ok_and(|node| node.online), guest.is_running()) {
            (false, _) => "unknown",
            (true, true) => "running",
            (true, false) => "stopped",
        }
    }

    /// A node loses power: its guests stop, its tasks never end, locks stay.
    pub(crate) fn node_down(&mut self, name: &str) -> bool {
        let Some(node) = self.nodes.iter_mut().find(|node| node.name == name) else { return false };
        node.online = false;
        self.tasks.lose(name);
        self.stats = None;
        for guest in self.guests.values_mut().filter(|guest| guest.node == name) {
            guest.power = Power::Stopped;
        }
        true
    }

    /// A node boots: guests with `onboot` start.
    pub(crate) fn node_up(&mut self, name: &str) -> bool {
        let Some(node) = self.nodes.iter_mut().find(|node| node.name == name) else { return false };
        if !node.online {
            node.online = true;
            node.booted_at = Instant::now();
            for guest in self.guests.values_mut().filter(|guest| guest.node == name) {
                if guest.flag("onboot") && guest.lock.is_none() && !guest.is_template() {
                    guest.apply_pending();
                    guest.power = Power::Running { since: Instant::now() };
                }
            }
        }
        self.stats = None;
        true
    }

    /// Removes a guest and all that carries its id, except backups.
    pub(crate) fn remove_guest(&mut self, vmid: u32) {
        storage::free_guest(&mut self.storages, vmid);
        self.guests.remove(&vmid);
    }

    pub(crate) fn pool_of(&self, vmid: u32) -> Option<&str> {
        self.pools.iter().find(|(_, pool)| pool.guests.contains(&vmid)).map(|(name, _)| name.as_str())
    }

    /// A MAC address with the prefix such hosts use, from the seeded generator.
    pub(crate) fn new_mac(&mut self) -> String {
        let tail: [u8; 3] = std::array::from_fn(|_| self.rng.u8(..));
        format!("BC:24:11:{:02X}:{:02X}:{:02X}", tail[0], tail[1], tail[2])
    }

    pub(crate) fn disk_bytes(&self, guest: &Guest) -> u64 {
        let main = match guest.kind {
            GuestKind::Lxc => guest.config.get("rootfs"),
            GuestKind::Qemu => boot_disk(&guest.config),
        };
        main.and_then(|text| formats::property(text, "size")).and_then(formats::parse_size).unwrap_or(0)
    }

    /// The fields that guest lists, `status/current` and `/cluster/resources` share.
    pub(crate) fn guest_row(&self, guest: &Guest) -> Value {
        let running = guest.is_running();
        let memory = guest.memory_bytes();
        let disk = self.disk_bytes(guest);
        let uptime_s = guest.uptime_s();
        let mut row = json!({
            "vmid": guest.vmid, "name": guest.name(), "status": self.shown_status(guest), "uptime": uptime_s,
            "cpu": if running { 0.02 } else { 0.0 }, "mem": if running { memory / 5 } else { 0 },
            "maxmem": memory, "disk": if running && guest.kind == GuestKind::Lxc { disk / 8 } else { 0 },
            "maxdisk": disk, "netin": uptime_s * 1500, "netout": uptime_s * 900, "diskread": uptime_s * 4096,
            "diskwrite": uptime_s * 2048,
        });
        if guest.is_template() {
            row["template"] = json!(1);
        }
        if let Some(tags) = guest.config.get("tags") {
            row["tags"] = json!(tags);
        }
        if let Some(lock) = guest.lock {
            row["lock"] = json!(lock.as_str());
        }
        row
    }
}

pub(crate) fn missing_config(node: &str, kind: GuestKind, vmid: u32) -> String {
    format!("Configuration file 'nodes/{node}/{}/{vmid}.conf' does not exist", kind.folder())
}

/// The disk a VM boots from: the first one that is no CD drive.
fn boot_disk(config: &Config) -> Option<&String> {
    config
        .iter()
        .filter(|(key, value)| disks::is_disk_key(GuestKind::Qemu, key) && !value.contains("media=cdrom"))
        .map(|(_, value)| value)
        .find(|value| value.contains("size="))
}

pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
