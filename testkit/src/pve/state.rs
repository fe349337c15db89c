//! The simulated cluster: nodes, guests, pools and the small rules that keep them consistent.
//!
//! Plain data behind one mutex. Knows nothing of HTTP, of time-outs or of faults.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};

use super::firewall::Firewall;
use super::formats;
use super::storage::{self, Storage};
use super::tasks::TaskTable;
use super::wire::ApiError;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestKind {
    Lxc,
    Qemu,
}

impl GuestKind {
    /// The path segment, also the `type` of a resource row.
    pub(crate) fn segment(self) -> &'static str {
        match self {
            Self::Lxc => "lxc",
            Self::Qemu => "qemu",
        }
    }

    /// The folder of configuration files.
    fn folder(self) -> &'static str {
        match self {
            Self::Lxc => "lxc",
            Self::Qemu => "qemu-server",
        }
    }

    /// How texts call a guest.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Lxc => "CT",
            Self::Qemu => "VM",
        }
    }

    /// The prefix of task types.
    pub(crate) fn task_prefix(self) -> &'static str {
        match self {
            Self::Lxc => "vz",
            Self::Qemu => "qm",
        }
    }

    pub(crate) fn name_key(self) -> &'static str {
        match self {
            Self::Lxc => "hostname",
            Self::Qemu => "name",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    Stopped,
    Running { since: Instant },
    Suspended { since: Instant },
}

/// What a configuration's `lock` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    Backup,
    Clone,
    Create,
    Destroyed,
    Migrate,
    Rollback,
    Snapshot,
    SnapshotDelete,
}

impl Lock {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Clone => "clone",
            Self::Create => "create",
            Self::Destroyed => "destroyed",
            Self::Migrate => "migrate",
            Self::Rollback => "rollback",
            Self::Snapshot => "snapshot",
            Self::SnapshotDelete => "snapshot-delete",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) taken_at_s: u64,
    pub(crate) parent: Option<String>,
    pub(crate) config: Config,
}

#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) vmid: u32,
    pub(crate) kind: GuestKind,
    pub(crate) node: String,
    pub(crate) config: Config,
    /// Changes that wait for the next start; `None` stands for a deletion.
    pub(crate) pending: BTreeMap<String, Option<String>>,
    pub(crate) lock: Option<Lock>,
    pub(crate) power: Power,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) parent: Option<String>,
    pub(crate) firewall: Firewall,
}

impl Guest {
    pub(crate) fn new(vmid: u32, kind: GuestKind, node: &str, config: Config, lock: Option<Lock>) -> Self {
        Self {
            vmid,
            kind,
            node: node.to_owned(),
            config,
            pending: BTreeMap::new(),
            lock,
            power: Power::Stopped,
            snapshots: Vec::new(),
            parent: None,
            firewall: Firewall::default(),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        match self.power {
            Power::Running { .. } => true,
            Power::Suspended { .. } => self.kind == GuestKind::Qemu,
            Power::Stopped => false,
        }
    }

    pub(crate) fn uptime_s(&self) -> u64 {
        match self.power {
            Power::Running { since } | Power::Suspended { since } => since.elapsed().as_secs(),
            Power::Stopped => 0,
        }
    }

    pub(crate) fn is_template(&self) -> bool {
        self.flag("template")
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.config.get(key).is_some_and(|value| value == "1")
    }

    pub(crate) fn number(&self, key: &str, default: u64) -> u64 {
        self.config.get(key).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    pub(crate) fn name(&self) -> String {
        self.config
            .get(self.kind.name_key())
            .cloned()
            .unwrap_or_else(|| format!("{}{}", self.kind.noun(), self.vmid))
    }

    pub(crate) fn cores(&self) -> u64 {
        self.number("cores", 1)
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.number("memory", 512) << 20
    }

    pub(crate) fn tags(&self) -> Vec<String> {
        self.config
            .get("tags")
            .map(|tags| formats::split_list(tags).map(str::to_owned).collect())
            .unwrap_or_default()
    }

    /// SHA-1 over the text the configuration file would have.
    pub(crate) fn digest(&self) -> String {
        let mut hash = Sha1::new();
        for (key, value) in &self.config {
            hash.update(format!("{key}: {value}\n"));
        }
        if let Some(lock) = self.lock {
            hash.update(format!("lock: {}\n", lock.as_str()));
        }
        for (key, value) in &self.pending {
            hash.update(format!("[pending] {key}: {value:?}\n"));
        }
        for snapshot in &self.snapshots {
            hash.update(format!("[{}] {} {}\n", snapshot.name, snapshot.taken_at_s, snapshot.description));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn check_digest(&self, given: Option<&str>) -> Result<(), ApiError> {
        match given {
            Some(digest) if digest != self.digest() => Err(ApiError::fail(
                "detected modified configuration - file changed by other user? Try again.",
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn check_lock(&self) -> Result<(), String> {
        match self.lock {
            Some(lock) => Err(format!("{} is locked ({})", self.kind.noun(), lock.as_str())),
            None => Ok(()),
        }
    }

    pub(crate) fn check_protection(&self) -> Result<(), ApiError> {
        if self.flag("protection") {
            return Err(ApiError::fail(format!(
                "can't remove {} {} - protection mode enabled",
                self.kind.noun(),
                self.vmid
            )));
        }
        Ok(())
    }

    /// Moves waiting changes into the configuration, as a start does.
    pub(crate) fn apply_pending(&mut self) {
        for (key, value) in std::mem::take(&mut self.pending) {
            match value {
                Some(value) => self.config.insert(key, value),
                None => self.config.remove(&key),
            };
        }
    }

    /// Network addresses by interface: configured ones always, leased ones once the guest is up long enough.
    pub(crate) fn addresses(&self, dhcp_delay: Duration) -> Vec<(String, String)> {
        let prefix = match self.kind {
            GuestKind::Lxc => "net",
            GuestKind::Qemu => "ipconfig",
        };
        let mut found = Vec::new();
        for (key, value) in &self.config {
            let Some(index) = key.strip_prefix(prefix).and_then(|digits| digits.parse::<u32>().ok()) else {
                continue;
            };
            for part in ["ip", "ip6"] {
                match formats::property(value, part) {
                    Some("manual" | "auto") | None => {}
                    Some("dhcp") if part == "ip" => {
                        if self.is_running()
                            && self.since().is_some_and(|since| since.elapsed() >= dhcp_delay)
                        {
                            found.push((key.clone(), leased_address(self.vmid, index)));
                        }
                    }
                    Some("dhcp") => {}
                    Some(cidr) => found.push((key.clone(), cidr.to_owned())),
                }
            }
        }
        found
    }

    fn since(&self) -> Option<Instant> {
        match self.power {
            Power::Running { since } | Power::Suspended { since } => Some(since),
            Power::Stopped => None,
        }
    }
}

/// One lease per guest and interface, without a collision below VMID 4,000,000.
fn leased_address(vmid: u32, index: u32) -> String {
    let host = vmid % 250 + 2;
    let rest = vmid / 250;
    format!("10.{}.{}.{host}/8", (64 + rest / 256 + index * 64) % 256, rest % 256)
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
        .filter(|(key, value)| storage::is_disk_key(GuestKind::Qemu, key) && !value.contains("media=cdrom"))
        .map(|(_, value)| value)
        .find(|value| value.contains("size="))
}

pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
