//! Guest configuration: reading, changing with digest and lock checks, waiting changes.
//!
//! Shared by containers and virtual machines; what a key means to either is decided by `GuestKind`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::disks::{self, DiskPlan, DiskWish};
use super::dispatch::Call;
use super::formats::{self, property};
use super::param::Kind;
use super::state::{Cluster, Config, Guest, GuestKind};
use super::storage;
use super::wire::{ApiError, Method, Params, Reply};
use super::work::Work;

/// Parameters that steer a request and are no configuration.
const STEERING: &[&str] = &[
    "node",
    "vmid",
    "digest",
    "delete",
    "revert",
    "force",
    "skiplock",
    "background_delay",
    "ostemplate",
    "password",
    "ssh-public-keys",
    "storage",
    "pool",
    "start",
    "restore",
    "unique",
    "bwlimit",
    "ignore-unpack-errors",
    "ha-managed",
    "lock",
    "archive",
    "live-restore",
    "import-working-storage",
];

/// Keys a running container takes at once.
const LXC_LIVE: &[&str] = &[
    "memory",
    "swap",
    "cores",
    "cpulimit",
    "cpuunits",
    "hostname",
    "nameserver",
    "searchdomain",
    "description",
    "tags",
    "onboot",
    "startup",
    "protection",
    "hookscript",
];
/// Keys a running virtual machine takes at once.
const QEMU_LIVE: &[&str] =
    &["name", "description", "tags", "onboot", "startup", "protection", "hookscript", "agent"];

/// A checked change of a configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    set: Config,
    delete: Vec<String>,
    revert: Vec<String>,
    disks: Vec<DiskPlan>,
}

/// The configuration part of a create or change request, in stored form; disks come separately.
pub(crate) fn collect(
    cluster: &mut Cluster,
    kind: GuestKind,
    node: &str,
    params: &Params,
) -> Result<(Config, Vec<DiskPlan>), ApiError> {
    let mut config = Config::new();
    let mut disks = Vec::new();
    for (key, value) in params.0.iter().filter(|(key, _)| !STEERING.contains(&key.as_str())) {
        if disks::is_disk_key(kind, key) {
            match disks::read_disk(kind, key, value) {
                DiskWish::New(plan) => {
                    disks::check_plan(&cluster.storages, node, &plan).map_err(ApiError::fail)?;
                    disks.push(plan);
                }
                DiskWish::Existing(volid) => {
                    let known = storage::find(&cluster.storages, node, storage::storage_of(&volid))
                        .map_err(ApiError::fail)?
                        .volumes
                        .contains_key(&volid);
                    if !known {
                        return Err(ApiError::fail(format!("volume '{volid}' does not exist")));
                    }
                    config.insert(key.clone(), value.clone());
                }
                DiskWish::Nothing => {
                    config.insert(key.clone(), value.clone());
                }
                DiskWish::HostPath => {
                    return Err(ApiError::new(
                        403,
                        format!("mount point type bind is only allowed for root@pam ({key})"),
                    ));
                }
            }
            continue;
        }
        let stored = stored_form(cluster, kind, key, value)?;
        config.insert(key.clone(), stored);
    }
    Ok((config, disks))
}

fn stored_form(cluster: &mut Cluster, kind: GuestKind, key: &str, value: &str) -> Result<String, ApiError> {
    let numbered = |prefix: &str| key.strip_prefix(prefix).is_some_and(|digits| digits.parse::<u8>().is_ok());
    Ok(match (kind, key) {
        (_, "tags") => {
            if let Some(bad) = formats::split_list(value).find(|tag| !formats::is_tag(tag)) {
                return Err(ApiError::param(
                    "tags",
                    format!("invalid format - invalid characters in tag '{bad}'"),
                ));
            }
            formats::normal_tags(value)
        }
        (GuestKind::Lxc, "features") => {
            let other = formats::properties(value, "").into_iter().find(|(key, _)| *key != "nesting");
            if other.is_some() {
                return Err(ApiError::new(
                    403,
                    "changing feature flags (except nesting) is only allowed for root@pam",
                ));
            }
            value.to_owned()
        }
        (GuestKind::Lxc, _) if numbered("net") => {
            let mut net = value.to_owned();
            if property(value, "hwaddr").is_none() {
                net = format!("{net},hwaddr={}", cluster.new_mac());
            }
            if property(value, "type").is_none() {
                net.push_str(",type=veth");
            }
            net
        }
        (GuestKind::Qemu, _) if numbered("net") => qemu_net(cluster, value),
        _ => value.to_owned(),
    })
}

/// Writes the card as `model=MAC,…`, with a new MAC where none is given.
fn qemu_net(cluster: &mut Cluster, value: &str) -> String {
    let mut rest = Vec::new();
    let (mut model, mut mac) = ("virtio".to_owned(), None);
    for (key, value) in formats::properties(value, "model") {
        match key {
            "model" => value.clone_into(&mut model),
            "macaddr" => mac = Some(value.to_owned()),
            "bridge" | "firewall" | "link_down" | "mtu" | "queues" | "rate" | "tag" | "trunks" => {
                rest.push(format!("{key}={value}"));
            }
            card => {
                card.clone_into(&mut model);
                mac = Some(value.to_owned());
            }
        }
    }
    let mac = mac.unwrap_or_else(|| cluster.new_mac());
    rest.insert(0, format!("{model}={mac}"));
    rest.join(",")
}

/// Fields and the digest, numbers as numbers where the schema says integer or boolean.
pub(crate) fn read(guest: &Guest, call: &Call<'_>, current: bool) -> Value {
    let mut config = guest.config.clone();
    if !current {
        // Without `current`, a VM shows the values that wait for its next start.
        for (key, value) in &guest.pending {
            match value {
                Some(value) => config.insert(key.clone(), value.clone()),
                None => config.remove(key),
            };
        }
    }
    let mut data = typed(&config, call, guest.kind);
    data.insert("digest".to_owned(), json!(guest.digest()));
    if let Some(lock) = guest.lock {
        data.insert("lock".to_owned(), json!(lock.as_str()));
    }
    Value::Object(data)
}

fn typed(config: &Config, call: &Call<'_>, kind: GuestKind) -> Map<String, Value> {
    let template = format!("/nodes/{{node}}/{}/{{vmid}}/config", kind.segment());
    let spec = call.schema.spec(Method::Put, &template);
    config
        .iter()
        .map(|(key, value)| {
            let whole = spec
                .and_then(|spec| spec.param(key))
                .is_some_and(|param| matches!(param.kind, Kind::Integer | Kind::Boolean));
            let shown = match (key.as_str(), value.parse::<i64>()) {
                ("cipassword", _) => json!("**********"),
                (_, Ok(number)) if whole => json!(number),
                _ => json!(value),
            };
            (key.clone(), shown)
        })
        .collect()
}

pub(crate) fn typed_value(config: &Config, call: &Call<'_>, kind: GuestKind) -> Value {
    Value::Object(typed(config, call, kind))
}

/// `GET …/pending`.
pub(crate) fn pending(guest: &Guest) -> Value {
    let mut rows: BTreeMap<&str, Value> = BTreeMap::new();
    for (key, value) in &guest.config {
        rows.insert(key, json!({ "key": key, "value": value }));
    }
    for (key, change) in &guest.pending {
        let row = rows.entry(key).or_insert_with(|| json!({ "key": key }));
        match change {
            Some(value) => row["pending"] = json!(value),
            None => row["delete"] = json!(1),
        }
    }
    let mut rows: Vec<Value> = rows.into_values().collect();
    rows.push(json!({ "key": "digest", "value": guest.digest() }));
    Value::Array(rows)
}

/// `PUT …/config`, and `POST …/config` of virtual machines, which answers with a task.
pub(crate) fn change(cluster: &mut Cluster, call: &Call<'_>, kind: GuestKind) -> Result<Reply, ApiError> {
    let params = &call.params;
    let (node, vmid) = (call.node(), call.vmid());
    if params.get("lock").is_some() || params.flag("skiplock") {
        return Err(ApiError::new(403, "Only root may use this option."));
    }
    let guest = cluster.guest(node, kind, vmid)?;
    guest.check_digest(params.get("digest"))?;
    guest.check_lock().map_err(ApiError::fail)?;
    let list = |key: &str| {
        params.get(key).map(|text| formats::split_list(text).map(str::to_owned).collect()).unwrap_or_default()
    };
    let (delete, revert): (Vec<String>, Vec<String>) = (list("delete"), list("revert"));
    let (set, disks) = collect(cluster, kind, node, params)?;
    if set.is_empty() && disks.is_empty() && delete.is_empty() && revert.is_empty() {
        return Err(ApiError::fail("no options specified"));
    }
    if let Some(key) = delete
        .iter()
        .find(|key| matches!(key.as_str(), "rootfs" | "memory" | "arch") && kind == GuestKind::Lxc)
    {
        return Err(ApiError::fail(format!("unable to delete required option '{key}'")));
    }
    if let Some(key) = delete.iter().find(|key| params.get(key).is_some()) {
        return Err(ApiError::param(key, format!("you can't set '{key}' and delete it at the same time")));
    }
    let changes = Changes { set, delete, revert, disks };
    if call.method == Method::Post {
        let work = Work::Configure { vmid, changes: Box::new(changes) };
        return Ok(call.start_task(cluster, "qmconfig", work));
    }
    apply(cluster, vmid, &changes).map_err(ApiError::fail)?;
    Reply::none()
}

/// Writes a change; what a running guest cannot take waits for its next start.
pub(crate) fn apply(cluster: &mut Cluster, vmid: u32, changes: &Changes) -> Result<(), String> {
    let Some(guest) = cluster.guests.get(&vmid) else { return Err(format!("guest {vmid} does not exist")) };
    let node = guest.node.clone();
    let mut set = changes.set.clone();
    for disk in &changes.disks {
        set.insert(disk.key.clone(), disks::allocate(&mut cluster.storages, &node, vmid, disk)?);
    }
    let fresh: Vec<&str> = changes.disks.iter().map(|disk| disk.key.as_str()).collect();
    let Some(guest) = cluster.guests.get_mut(&vmid) else { return Ok(()) };
    let running = guest.is_running();
    for key in &changes.revert {
        guest.pending.remove(key);
    }
    for (key, value) in set {
        if running && !is_live(guest.kind, &key) && !fresh.contains(&key.as_str()) {
            if guest.config.get(&key) == Some(&value) {
                guest.pending.remove(&key);
            } else {
                guest.pending.insert(key, Some(value));
            }
        } else if key == "tags" && value.is_empty() {
            guest.config.remove(&key);
        } else {
            guest.pending.remove(&key);
            guest.config.insert(key, value);
        }
    }
    for key in &changes.delete {
        if running && !is_live(guest.kind, key) && guest.config.contains_key(key) {
            guest.pending.insert(key.clone(), None);
        } else {
            guest.pending.remove(key);
            if let Some(value) = guest.config.remove(key)
                && disks::is_disk_key(guest.kind, key)
                && let Some(volid) = value.split(',').next().filter(|volid| volid.contains(':'))
            {
                // A detached disk stays, as an unused one.
                let slot =
                    (0..=255).map(|n| format!("unused{n}")).find(|slot| !guest.config.contains_key(slot));
                if let Some(slot) = slot {
                    guest.config.insert(slot, volid.to_owned());
                }
            }
        }
    }
    Ok(())
}

fn is_live(kind: GuestKind, key: &str) -> bool {
    let network = key.strip_prefix("net").is_some_and(|digits| digits.parse::<u8>().is_ok());
    network
        || match kind {
            GuestKind::Lxc => LXC_LIVE.contains(&key),
            GuestKind::Qemu => QEMU_LIVE.contains(&key),
        }
}
