//! One guest: kind, power, lock, configuration, snapshots, addresses.
//!
//! Data and the checks that need nothing but the guest itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sha1::{Digest as _, Sha1};

use super::firewall::Firewall;
use super::formats;
use super::state::Config;
use super::wire::ApiError;

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
    pub(crate) fn folder(self) -> &'static str {
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
