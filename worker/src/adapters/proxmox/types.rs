//! What the API answers, as far as we read it. Perl types loosely: numbers come
//! as text, booleans as 0, 1 or "1"; unknown fields are ignored.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// A number, also when it is text.
pub(super) fn lenient_i64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[allow(clippy::cast_possible_truncation, reason = "figures of a guest fit")]
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|float| float as i64)),
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(flag) => Some(i64::from(flag)),
        _ => None,
    })
}

/// A number with a fraction, also when it is text; absent or null is none.
fn lenient_f64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|number: &f64| number.is_finite()))
}

/// A yes or no in any of its spellings; absent is no.
pub(super) fn lenient_bool<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Bool(flag) => flag,
        Value::Number(number) => number.as_f64().is_some_and(|float| float != 0.0),
        Value::String(text) => !matches!(text.as_str(), "" | "0" | "false"),
        _ => false,
    })
}

/// A row of `/cluster/resources?type=vm`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct GuestRow {
    /// The guest's id.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub vmid: Option<i64>,
    /// The node it is on.
    #[serde(default)]
    pub node: String,
    /// `lxc` or `qemu`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Its host name.
    #[serde(default)]
    pub name: Option<String>,
    /// `running`, `stopped`, `unknown` when its node is away.
    #[serde(default)]
    pub status: Option<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: Option<String>,
    /// What it uses.
    #[serde(flatten)]
    pub usage: Usage,
}

/// What a guest, a node or a storage uses; in lists up to ten seconds old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub struct Usage {
    /// Share of its own cores, 0 to 1.
    #[serde(default, deserialize_with = "lenient_f64")]
    pub cpu: Option<f64>,
    /// Memory, bytes.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub mem: Option<i64>,
    /// Memory it may use, bytes.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub maxmem: Option<i64>,
    /// Disk, bytes; 0 for machines, where nobody outside knows.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub disk: Option<i64>,
    /// Size of its disk, bytes.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub maxdisk: Option<i64>,
    /// Seconds since its start.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub uptime: Option<i64>,
}

/// A row of `/cluster/status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ClusterRow {
    /// `cluster` or `node`.
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    /// Whether the cluster has quorum.
    #[serde(default, deserialize_with = "lenient_bool")]
    pub(super) quorate: bool,
}

/// A row of `/nodes/{node}/storage`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StorageRow {
    /// Its name.
    pub storage: String,
    /// What it takes, comma list: `rootdir`, `images`, `backup`, …
    #[serde(default)]
    pub content: String,
    /// Whether it can be used now.
    #[serde(default, deserialize_with = "lenient_bool")]
    pub active: bool,
    /// Free space, bytes.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub avail: Option<i64>,
}

/// A volume in a storage.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Volume {
    /// Its id.
    pub volid: String,
    /// Its size, bytes.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub size: Option<i64>,
    /// What was noted on it.
    #[serde(default)]
    pub notes: Option<String>,
}

/// A snapshot of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: Option<String>,
}

/// A key of a configuration with what waits for the next start.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pending {
    /// The key.
    pub key: String,
    /// What will be; `None` when nothing waits.
    #[serde(default)]
    pub pending: Option<Value>,
}

/// A point of a guest's history; what was not measured is `None`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RrdRow {
    /// Epoch seconds.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub time: Option<i64>,
    /// What it used.
    #[serde(flatten)]
    pub usage: Usage,
}

/// A row of `/nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeRow {
    /// The node's name.
    pub node: String,
    /// `online`, `offline`, `unknown`.
    #[serde(default)]
    pub status: Option<String>,
}

/// Where a guest's first disk may be: a container's, then a machine's.
const DISKS: [&str; 5] = ["rootfs", "scsi0", "virtio0", "sata0", "ide0"];

/// A guest's configuration, as far as we compare it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct GuestConfig {
    /// The operation that holds the guest.
    #[serde(default)]
    pub lock: Option<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: Option<String>,
    /// A container's host name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// A machine's name.
    #[serde(default)]
    pub name: Option<String>,
    /// What was noted on it.
    #[serde(default)]
    pub description: Option<String>,
    /// CPU cores.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub cores: Option<i64>,
    /// Memory, MiB.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub memory: Option<i64>,
    /// The digest that a change must name.
    #[serde(default)]
    pub digest: Option<String>,
    /// Whether it may not be removed.
    #[serde(default, deserialize_with = "lenient_bool")]
    pub protection: bool,
    /// Everything else: disks, cards, …
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl GuestConfig {
    /// The guest's name, whatever it is.
    #[must_use]
    pub fn any_name(&self) -> Option<&str> {
        self.hostname.as_deref().or(self.name.as_deref())
    }

    /// The guest's first disk and its size, GiB (rounded up).
    #[must_use]
    pub fn root_disk(&self) -> Option<(&'static str, u32)> {
        DISKS.iter().find_map(|key| {
            let value = self.other.get(*key)?.as_str()?;
            let size = value.split(',').find_map(|part| part.strip_prefix("size="))?;
            let gib = match (size.strip_suffix('G'), size.strip_suffix('M'), size.strip_suffix('T')) {
                (Some(gib), ..) => gib.parse().ok()?,
                (_, Some(mib), _) => mib.parse::<u32>().ok()?.div_ceil(1024),
                (.., Some(tib)) => tib.parse::<u32>().ok()?.checked_mul(1024)?,
                _ => return None,
            };
            Some((*key, gib))
        })
    }
}

/// `/status/current`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct GuestStatus {
    /// `running` or `stopped`.
    #[serde(default)]
    pub status: String,
    /// `paused` while a machine is suspended.
    #[serde(default)]
    pub qmpstatus: Option<String>,
    /// What it uses.
    #[serde(flatten)]
    pub usage: Usage,
}

impl GuestStatus {
    /// Whether it runs and does its work.
    #[must_use]
    pub fn works(&self) -> bool {
        self.status == "running" && !self.is_paused()
    }

    /// Whether it is suspended and can go on.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.qmpstatus.as_deref() == Some("paused")
    }
}

/// What a machine's agent answers.
#[derive(Debug, Deserialize)]
pub(super) struct AgentAnswer {
    #[serde(default)]
    pub(super) result: Vec<Interface>,
}

/// `/tasks/{upid}/status`, and a row of `/tasks`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct TaskRow {
    /// The task's name.
    #[serde(default)]
    pub upid: String,
    /// In the status call `running` or `stopped`; in lists the exit text.
    #[serde(default)]
    pub status: Option<String>,
    /// How it ended.
    #[serde(default)]
    pub exitstatus: Option<String>,
    /// When it ended, in lists.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub endtime: Option<i64>,
}

/// A line of a task's log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct LogLine {
    /// The text.
    #[serde(default)]
    pub t: String,
}

/// A network card as seen inside a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// `eth0`, `lo`.
    #[serde(default)]
    pub name: String,
    /// `10.0.0.5/24`.
    #[serde(default)]
    pub inet: Option<String>,
    /// Newer form: a list.
    #[serde(default, rename = "ip-addresses")]
    pub addresses: Vec<InterfaceAddress>,
}

/// One address of an [`Interface`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InterfaceAddress {
    /// The address.
    #[serde(default, rename = "ip-address")]
    pub address: String,
}

/// The first usable IPv4 address that a guest shows: not loopback, not link-local.
#[must_use]
pub fn first_address(interfaces: &[Interface]) -> Option<IpAddr> {
    interfaces
        .iter()
        .filter(|interface| interface.name != "lo")
        .flat_map(|interface| {
            interface
                .inet
                .as_deref()
                .into_iter()
                .chain(interface.addresses.iter().map(|address| address.address.as_str()))
        })
        .filter_map(|text| text.split('/').next()?.trim().parse::<IpAddr>().ok())
        .find(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
            IpAddr::V6(_) => false,
        })
}

/// Tags as a set: Proxmox sorts, lowers and re-separates them.
#[must_use]
pub fn tag_set(tags: Option<&str>) -> BTreeSet<String> {
    tags.unwrap_or_default()
        .split([';', ',', ' '])
        .map(|tag| tag.trim().to_ascii_lowercase())
        .filter(|tag| !tag.is_empty())
        .collect()
}

/// The envelope of every answer.
#[derive(Debug, Deserialize)]
pub(super) struct Envelope {
    #[serde(default)]
    pub(super) data: Value,
    #[serde(default)]
    pub(super) message: Option<String>,
    #[serde(default)]
    pub(super) errors: Value,
}

/// `data` as the type that the call promises.
pub(super) fn typed<T: DeserializeOwned>(data: Value) -> Result<T, String> {
    serde_json::from_value(data).map_err(|error| format!("answer is not what the API promises: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn loose_types_are_read() {
        let row: GuestRow = typed(json!({"vmid": "121", "node": "pve1", "type": "lxc", "new": {}})).unwrap();
        assert_eq!(row.vmid, Some(121));
        let config: GuestConfig = typed(json!({"protection": "1", "lock": "create"})).unwrap();
        assert!(config.protection);
        assert_eq!(config.lock.as_deref(), Some("create"));
        for (key, size, found) in [
            ("rootfs", "size=8G", Some(("rootfs", 8))),
            ("scsi0", "size=1025M", Some(("scsi0", 2))),
            ("virtio0", "size=1T", Some(("virtio0", 1024))),
            ("ide2", "media=cdrom", None),
        ] {
            let config: GuestConfig = typed(json!({ key: format!("store:vm-1-disk-0,{size}") })).unwrap();
            assert_eq!(config.root_disk(), found, "{key} {size}");
        }
        let task: TaskRow = typed(json!({"upid": "u", "endtime": 12.0})).unwrap();
        assert_eq!(task.endtime, Some(12));
    }

    #[test]
    fn tags_are_compared_as_sets() {
        assert_eq!(tag_set(Some("B;a")), tag_set(Some("a,b")));
        assert!(tag_set(None).is_empty());
    }

    #[test]
    fn the_address_is_the_first_that_others_can_use() {
        let interfaces: Vec<Interface> = typed(json!([
            {"name": "lo", "inet": "127.0.0.1/8"},
            {"name": "eth0", "inet": "169.254.3.4/16", "ip-addresses": [{"ip-address": "10.7.0.9", "prefix": 24}]}
        ]))
        .unwrap();
        assert_eq!(first_address(&interfaces), Some("10.7.0.9".parse().unwrap()));
        assert_eq!(first_address(&[]), None);
    }
}
