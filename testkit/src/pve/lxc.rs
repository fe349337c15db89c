//! Containers: create and restore in the order a host does it, clone, interfaces.
//!
//! Until the task is done a new container's configuration holds nothing but its lock.

use serde_json::{Value, json};

use super::config;
use super::disks::{self, DiskName, DiskPlan};
use super::dispatch::Call;
use super::formats::property;
use super::qemu;
use super::state::{Cluster, Config, Guest, GuestKind, Lock};
use super::storage::{self, Content};
use super::wire::{ApiError, Method, Reply};
use super::work::{Provision, Work};

/// Methods only containers have; `None` hands over to `guest`.
pub(crate) fn handle(cluster: &mut Cluster, call: &Call<'_>, tail: &str) -> Option<Result<Reply, ApiError>> {
    match (call.method, tail) {
        (Method::Get, "/interfaces") => Some(interfaces(cluster, call)),
        (Method::Post, "/clone") => Some(qemu::clone(cluster, call, GuestKind::Lxc)),
        _ => None,
    }
}

/// `POST /nodes/{node}/lxc`.
pub(crate) fn create(cluster: &mut Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let params = &call.params;
    let (node, vmid) = (call.node().to_owned(), call.vmid());
    let restore = params.flag("restore");
    if params.get("lock").is_some() {
        return Err(ApiError::new(403, "Only root may use this option."));
    }
    match cluster.guests.get(&vmid) {
        Some(present) if restore && params.flag("force") => {
            cluster.guest(&node, GuestKind::Lxc, vmid)?;
            present.check_protection()?;
            present.check_lock().map_err(ApiError::fail)?;
            if present.is_running() {
                return Err(ApiError::fail(format!("unable to restore CT {vmid} - container is running")));
            }
        }
        _ => cluster.check_unused(vmid)?,
    }
    if let Some(pool) = params.get("pool")
        && !cluster.pools.contains_key(pool)
    {
        return Err(ApiError::fail(format!("pool '{pool}' does not exist")));
    }
    let base = archive(cluster, &node, params.text("ostemplate"), restore)?;
    let (mut config, mut disks) = config::collect(cluster, GuestKind::Lxc, &node, params)?;
    let storage = params.get("storage").unwrap_or(storage::LOCAL).to_owned();
    if !disks.iter().any(|disk| disk.key == "rootfs") {
        let bytes = base.as_ref().and_then(root_bytes).unwrap_or(4 << 30);
        let plan = DiskPlan {
            key: "rootfs".to_owned(),
            storage,
            bytes,
            options: String::new(),
            content: Content::RootDir,
            name: DiskName::Numbered,
        };
        disks::check_plan(&cluster.storages, &node, &plan).map_err(ApiError::fail)?;
        disks.push(plan);
    }
    if let Some(base) = base {
        for (key, value) in base {
            let net = key.strip_prefix("net").is_some_and(|digits| digits.parse::<u8>().is_ok());
            if disks::is_disk_key(GuestKind::Lxc, &key) || config.contains_key(&key) {
                continue;
            }
            let value = if net && params.flag("unique") { with_new_mac(cluster, &value) } else { value };
            config.insert(key, value);
        }
    }
    for (key, value) in [("arch", "amd64"), ("ostype", "debian"), ("memory", "512"), ("swap", "512")] {
        config.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    config.retain(|key, value| key != "tags" || !value.is_empty());
    config.entry("hostname".to_owned()).or_insert_with(|| format!("CT{vmid}"));
    match cluster.guests.get_mut(&vmid) {
        Some(present) => {
            storage::free_guest(&mut cluster.storages, vmid);
            present.config.clear();
            present.lock = Some(Lock::Create);
        }
        None => {
            let guest = Guest::new(vmid, GuestKind::Lxc, &node, Config::new(), Some(Lock::Create));
            cluster.guests.insert(vmid, guest);
        }
    }
    let plan = Provision {
        vmid,
        node,
        config,
        disks,
        pool: params.get("pool").map(str::to_owned),
        start: params.flag("start"),
    };
    let task = if restore { "vzrestore" } else { "vzcreate" };
    Ok(call.start_provision(cluster, task, plan))
}

/// Finds the template or, for a restore, the backup and the configuration in it.
fn archive(cluster: &Cluster, node: &str, volid: &str, restore: bool) -> Result<Option<Config>, ApiError> {
    if storage::storage_of(volid).is_empty() {
        return Err(ApiError::fail(format!("unable to parse volume ID '{volid}'")));
    }
    let store = storage::find(&cluster.storages, node, storage::storage_of(volid)).map_err(ApiError::fail)?;
    let volume =
        store.volumes.get(volid).ok_or_else(|| ApiError::fail(format!("volume '{volid}' does not exist")))?;
    match (&volume.backup_of, restore) {
        (Some((GuestKind::Lxc, config)), true) => Ok(Some(config.clone())),
        (None, false) if volume.content == Content::Template => Ok(None),
        (_, true) => Err(ApiError::fail(format!("'{volid}' is not a container backup"))),
        (_, false) => Err(ApiError::fail(format!("'{volid}' is not a container template"))),
    }
}

fn root_bytes(config: &Config) -> Option<u64> {
    disks::disks_of(GuestKind::Lxc, config)
        .into_iter()
        .find(|(key, ..)| key == "rootfs")
        .map(|(.., bytes)| bytes)
}

/// Replaces a container card's MAC address.
pub(crate) fn with_new_mac(cluster: &mut Cluster, net: &str) -> String {
    let mac = cluster.new_mac();
    let mut parts: Vec<String> =
        net.split(',').filter(|part| !part.starts_with("hwaddr=")).map(str::to_owned).collect();
    parts.push(format!("hwaddr={mac}"));
    parts.join(",")
}

fn interfaces(cluster: &Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let guest = cluster.guest(call.node(), GuestKind::Lxc, call.vmid())?;
    if !guest.is_running() {
        return Reply::none();
    }
    let mut rows = vec![json!({
        "name": "lo", "hwaddr": "00:00:00:00:00:00", "hardware-address": "00:00:00:00:00:00",
        "inet": "127.0.0.1/8", "inet6": "::1/128",
        "ip-addresses": [
            { "ip-address": "127.0.0.1", "ip-address-type": "inet", "prefix": "8" },
            { "ip-address": "::1", "ip-address-type": "inet6", "prefix": "128" },
        ],
    })];
    let addresses = guest.addresses(cluster.limits.dhcp_delay);
    for (key, value) in &guest.config {
        if key.strip_prefix("net").is_none_or(|digits| digits.parse::<u8>().is_err()) {
            continue;
        }
        let mac = property(value, "hwaddr").unwrap_or_default().to_ascii_lowercase();
        let mut row = json!({
            "name": property(value, "name").unwrap_or("eth0"), "hwaddr": mac, "hardware-address": mac,
        });
        let mut all: Vec<Value> = Vec::new();
        for (_, cidr) in addresses.iter().filter(|(owner, _)| owner == key) {
            let family = if cidr.contains(':') { "inet6" } else { "inet" };
            let (address, prefix) = cidr.split_once('/').unwrap_or((cidr, "32"));
            row[family] = json!(cidr);
            all.push(json!({ "ip-address": address, "ip-address-type": family, "prefix": prefix }));
        }
        row["ip-addresses"] = Value::Array(all);
        rows.push(row);
    }
    Ok(Reply::Data(Value::Array(rows)))
}

impl Call<'_> {
    /// Starts a create-like task; too many at once on one storage end in a lock time-out.
    pub(crate) fn start_provision(&self, cluster: &mut Cluster, task: &str, plan: Provision) -> Reply {
        if let Some(most) = cluster.limits.parallel_per_storage
            && let Some(storage) = plan.disks.first().map(|disk| disk.storage.clone())
        {
            let busy = cluster
                .tasks
                .running()
                .filter(|task| match &task.work {
                    Work::Provision(other) => {
                        other.node == plan.node && other.disks.iter().any(|disk| disk.storage == storage)
                    }
                    _ => false,
                })
                .count();
            if busy >= most {
                let text =
                    format!("can't lock file '/var/lock/pve-manager/pve-storage-{storage}' - got timeout");
                cluster.tasks.next_forced_exit.get_or_insert(text);
            }
        }
        self.start_task(cluster, task, Work::Provision(Box::new(plan)))
    }
}
