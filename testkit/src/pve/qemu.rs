//! Virtual machines: create, clone (containers too), guest agent.
//!
//! A clone takes no tags: until its task ends it has only a lock, then name and description.

use std::time::Instant;

use serde_json::{Value, json};

use super::config;
use super::disks::{self, DiskName, DiskPlan};
use super::dispatch::Call;
use super::formats::property;
use super::lxc;
use super::state::{Cluster, Config, Guest, GuestKind, Lock, Power};
use super::storage::{self, Content};
use super::wire::{ApiError, Method, Reply};
use super::work::Provision;

/// Methods only virtual machines have; `None` hands over to `guest`.
pub(crate) fn handle(cluster: &mut Cluster, call: &Call<'_>, tail: &str) -> Option<Result<Reply, ApiError>> {
    match (call.method, tail) {
        (Method::Post, "/clone") => Some(clone(cluster, call, GuestKind::Qemu)),
        (Method::Post, "/agent/ping") => {
            Some(agent(cluster, call).map(|_| Reply::Data(json!({ "result": {} }))))
        }
        (Method::Get, "/agent/network-get-interfaces") => Some(agent_interfaces(cluster, call)),
        _ => None,
    }
}

/// `POST /nodes/{node}/qemu`.
pub(crate) fn create(cluster: &mut Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let params = &call.params;
    let (node, vmid) = (call.node().to_owned(), call.vmid());
    if params.get("lock").is_some() || params.get("archive").is_some() {
        return Err(ApiError::new(501, "restoring a virtual machine and setting its lock are not simulated"));
    }
    cluster.check_unused(vmid)?;
    if let Some(pool) = params.get("pool")
        && !cluster.pools.contains_key(pool)
    {
        return Err(ApiError::fail(format!("pool '{pool}' does not exist")));
    }
    let (config, disks) = config::collect(cluster, GuestKind::Qemu, &node, params)?;
    cluster.guests.insert(vmid, Guest::new(vmid, GuestKind::Qemu, &node, Config::new(), Some(Lock::Create)));
    let pool = params.get("pool").map(str::to_owned);
    let plan = Provision { vmid, node, config, disks, pool, start: params.flag("start") };
    Ok(call.start_provision(cluster, "qmcreate", plan))
}

/// `POST …/{vmid}/clone` of either kind.
pub(crate) fn clone(cluster: &mut Cluster, call: &Call<'_>, kind: GuestKind) -> Result<Reply, ApiError> {
    let params = &call.params;
    let node = call.node().to_owned();
    let new_id = params.number("newid").and_then(|id| u32::try_from(id).ok()).unwrap_or_default();
    let target = params.get("target").unwrap_or(&node).to_owned();
    if !cluster.node(&target)?.online {
        return Err(ApiError::fail(format!("target node '{target}' is not online")));
    }
    let source = cluster.guest(&node, kind, call.vmid())?;
    source.check_lock().map_err(ApiError::fail)?;
    let config = match params.get("snapname") {
        None => source.config.clone(),
        Some(name) => source
            .snapshots
            .iter()
            .find(|snapshot| snapshot.name == name)
            .map(|snapshot| snapshot.config.clone())
            .ok_or_else(|| ApiError::fail(format!("snapshot '{name}' does not exist")))?,
    };
    let template = source.is_template();
    let full = params.get("full").map_or(!template, |full| full == "1");
    if !full && !template {
        return Err(ApiError::fail(format!(
            "linked clone of {} {} needs a template",
            kind.noun(),
            source.vmid
        )));
    }
    if params.get("storage").is_some() && !full {
        return Err(ApiError::param("storage", "this parameter is only possible with full clones"));
    }
    cluster.check_unused(new_id)?;
    if let Some(pool) = params.get("pool")
        && !cluster.pools.contains_key(pool)
    {
        return Err(ApiError::fail(format!("pool '{pool}' does not exist")));
    }
    let mut fresh = Config::new();
    let mut disks = Vec::new();
    for (key, value) in config {
        if disks::is_disk_key(kind, &key) {
            if let Some(plan) = clone_disk(&key, &value, kind, params.get("storage")) {
                check_target(cluster, &node, &target, &plan)?;
                disks.push(plan);
            } else {
                fresh.insert(key, value);
            }
            continue;
        }
        let net = key.strip_prefix("net").is_some_and(|digits| digits.parse::<u8>().is_ok());
        let value = match (net, kind) {
            (true, GuestKind::Lxc) => lxc::with_new_mac(cluster, &value),
            (true, GuestKind::Qemu) => with_new_mac(cluster, &value),
            (false, _) => value,
        };
        if !matches!(key.as_str(), "template" | "protection") && !key.starts_with("unused") {
            fresh.insert(key, value);
        }
    }
    let name = params.get(kind.name_key()).map(str::to_owned).unwrap_or_else(|| match kind {
        GuestKind::Lxc => format!("CT{new_id}"),
        GuestKind::Qemu => format!("Copy-of-VM-{}", fresh.get("name").map_or("unnamed", String::as_str)),
    });
    fresh.insert(kind.name_key().to_owned(), name);
    match params.get("description") {
        Some(text) => fresh.insert("description".to_owned(), text.to_owned()),
        None => fresh.remove("description"),
    };
    let lock = match kind {
        GuestKind::Lxc => Lock::Create,
        GuestKind::Qemu => Lock::Clone,
    };
    cluster.guests.insert(new_id, Guest::new(new_id, kind, &target, Config::new(), Some(lock)));
    let plan = Provision {
        vmid: new_id,
        node: target,
        config: fresh,
        disks,
        pool: params.get("pool").map(str::to_owned),
        start: false,
    };
    Ok(call.start_provision(cluster, &format!("{}clone", kind.task_prefix()), plan))
}

fn clone_disk(key: &str, value: &str, kind: GuestKind, storage: Option<&str>) -> Option<DiskPlan> {
    let volid = value.split(',').next().filter(|volid| volid.contains(':'))?;
    let bytes = property(value, "size").and_then(super::formats::parse_size)?;
    let options: Vec<&str> = value.split(',').skip(1).filter(|part| !part.starts_with("size=")).collect();
    Some(DiskPlan {
        key: key.to_owned(),
        storage: storage.unwrap_or(storage::storage_of(volid)).to_owned(),
        bytes,
        options: options.join(","),
        content: match kind {
            GuestKind::Lxc => Content::RootDir,
            GuestKind::Qemu => Content::Images,
        },
        name: if volid.ends_with("cloudinit") { DiskName::CloudInit } else { DiskName::Numbered },
    })
}

/// To another node only what both reach can be cloned.
fn check_target(cluster: &Cluster, node: &str, target: &str, plan: &DiskPlan) -> Result<(), ApiError> {
    disks::check_plan(&cluster.storages, target, plan).map_err(ApiError::fail)?;
    let store = storage::find(&cluster.storages, target, &plan.storage).map_err(ApiError::fail)?;
    if node != target && store.node.is_some() {
        return Err(ApiError::fail(format!("can't clone to non-shared storage '{}'", plan.storage)));
    }
    Ok(())
}

fn with_new_mac(cluster: &mut Cluster, net: &str) -> String {
    let mac = cluster.new_mac();
    let (card, rest) = net.split_once(',').map_or((net, ""), |(card, rest)| (card, rest));
    let model = card.split('=').next().unwrap_or("virtio");
    if rest.is_empty() { format!("{model}={mac}") } else { format!("{model}={mac},{rest}") }
}

/// The guest, when its agent answers.
fn agent<'a>(cluster: &'a Cluster, call: &Call<'_>) -> Result<&'a Guest, ApiError> {
    let guest = cluster.guest(call.node(), GuestKind::Qemu, call.vmid())?;
    let enabled = guest
        .config
        .get("agent")
        .is_some_and(|agent| agent.split(',').next() == Some("1") || property(agent, "enabled") == Some("1"));
    let Power::Running { since } = guest.power else {
        return Err(ApiError::fail(format!("VM {} is not running", guest.vmid)));
    };
    if !enabled {
        return Err(ApiError::fail("No QEMU guest agent configured"));
    }
    if Instant::now().duration_since(since) < cluster.limits.agent_delay {
        return Err(ApiError::fail("QEMU guest agent is not running"));
    }
    Ok(guest)
}

fn agent_interfaces(cluster: &Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let guest = agent(cluster, call)?;
    let addresses = guest.addresses(cluster.limits.dhcp_delay);
    let mut rows = vec![json!({
        "name": "lo", "hardware-address": "00:00:00:00:00:00",
        "ip-addresses": [{ "ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8 }],
    })];
    for (key, value) in &guest.config {
        let Some(index) = key.strip_prefix("net").and_then(|digits| digits.parse::<u8>().ok()) else {
            continue;
        };
        let mac = value.split(',').next().and_then(|card| card.split_once('=')).map_or("", |(_, mac)| mac);
        let all: Vec<Value> = addresses
            .iter()
            .filter(|(owner, _)| *owner == format!("ipconfig{index}"))
            .map(|(_, cidr)| {
                let (address, prefix) = cidr.split_once('/').unwrap_or((cidr, "32"));
                json!({
                    "ip-address": address, "prefix": prefix.parse::<u8>().unwrap_or(32),
                    "ip-address-type": if address.contains(':') { "ipv6" } else { "ipv4" },
                })
            })
            .collect();
        rows.push(json!({
            "name": format!("eth{index}"), "hardware-address": mac.to_ascii_lowercase(), "ip-addresses": all,
        }));
    }
    Ok(Reply::Data(json!({ "result": rows })))
}
