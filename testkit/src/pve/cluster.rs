//! Cluster-wide and node endpoints: version, ids, resources, status, networks, pools.
//!
//! Reads of shared state, plus the few cluster settings that can be written.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};

use super::content;
use super::dispatch::Call;
use super::formats::{property, split_list};
use super::state::{BRIDGE, Cluster, GIB, Node, Pool};
use super::wire::{ApiError, Method, Reply};

/// Paths outside guests, storages and tasks; `None` when the method is not simulated.
pub(crate) fn handle(cluster: &mut Cluster, call: &Call<'_>) -> Option<Result<Reply, ApiError>> {
    Some(match (call.method, call.template) {
        (Method::Get, "/version" | "/nodes/{node}/version") => Ok(Reply::Data(version(cluster))),
        (Method::Get, "/cluster/nextid") => next_id(cluster, call),
        (Method::Get, "/cluster/resources") => Ok(resources(cluster, call)),
        (Method::Get, "/cluster/status") => Ok(status(cluster)),
        (Method::Get, "/cluster/options") => {
            let (lower, upper) = cluster.vmid_range;
            Ok(Reply::Data(json!({ "keyboard": "en-us", "next-id": { "lower": lower, "upper": upper } })))
        }
        (Method::Put, "/cluster/options") => set_options(cluster, call),
        (Method::Get, "/nodes") => {
            let rows = cluster.nodes.iter().map(|node| node_row(cluster, node)).collect();
            Ok(Reply::Data(Value::Array(rows)))
        }
        (Method::Get, "/nodes/{node}/status") => {
            cluster.node(call.node()).map(|node| node_status(cluster, node))
        }
        (Method::Get, "/nodes/{node}/time") => {
            let now = super::state::unix_s();
            Ok(Reply::Data(json!({ "timezone": "UTC", "time": now, "localtime": now })))
        }
        (Method::Get, "/nodes/{node}/network") => Ok(networks(cluster, call)),
        (Method::Get, "/nodes/{node}/rrddata") => Ok(super::rrd::node(cluster, call.node(), call)),
        (Method::Get, "/storage") => Ok(Reply::Data(Value::Array(content::definitions(cluster)))),
        (Method::Get, "/storage/{storage}") => {
            let id = call.params.text("storage");
            content::definitions(cluster)
                .into_iter()
                .find(|row| row["storage"] == id)
                .map(Reply::Data)
                .ok_or_else(|| ApiError::fail(format!("storage '{id}' does not exist")))
        }
        (Method::Get, "/pools") => Ok(pools(cluster, call)),
        (Method::Post, "/pools") => create_pool(cluster, call),
        (Method::Get, "/pools/{poolid}") => pool(cluster, call).map(Reply::Data),
        (Method::Put, "/pools" | "/pools/{poolid}") => change_pool(cluster, call),
        (Method::Delete, "/pools" | "/pools/{poolid}") => delete_pool(cluster, call),
        _ => return None,
    })
}

fn version(cluster: &Cluster) -> Value {
    let release: Vec<&str> = cluster.limits.version.split('.').take(2).collect();
    json!({ "version": cluster.limits.version, "release": release.join("."), "repoid": "5111a10a7e0f0001" })
}

fn next_id(cluster: &Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    if let Some(vmid) = call.params.number("vmid") {
        let taken = u32::try_from(vmid).is_ok_and(|vmid| cluster.guests.contains_key(&vmid));
        if taken {
            return Err(ApiError::param("vmid", format!("VM {vmid} already exists")));
        }
        return Ok(Reply::Data(json!(vmid.to_string())));
    }
    let (lower, upper) = cluster.vmid_range;
    (lower..upper)
        .find(|vmid| !cluster.guests.contains_key(vmid))
        .map(|vmid| Reply::Data(json!(vmid.to_string())))
        .ok_or_else(|| ApiError::fail(format!("unable to get any free VMID in range [{lower}, {upper}]")))
}

fn set_options(cluster: &mut Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    if let Some(range) = call.params.get("next-id") {
        let bound = |key, default| property(range, key).and_then(|text| text.parse().ok()).unwrap_or(default);
        let (lower, upper) = (bound("lower", 100), bound("upper", 1_000_000));
        if lower >= upper {
            return Err(ApiError::param("next-id", "lower bound must be below the upper bound"));
        }
        cluster.vmid_range = (lower, upper);
    }
    Reply::none()
}

/// Rows come from a broadcast of statistics, which may lag behind.
fn resources(cluster: &mut Cluster, call: &Call<'_>) -> Reply {
    let lag = cluster.limits.stats_lag;
    let rows = match &cluster.stats {
        Some((at, rows)) if at.elapsed() < lag => rows.clone(),
        _ => {
            let rows = all_resources(cluster);
            cluster.stats = Some((Instant::now(), rows.clone()));
            rows
        }
    };
    let wanted = call.params.get("type");
    let rows = rows
        .into_iter()
        .filter(|row| match (wanted, row["type"].as_str()) {
            (None, _) => true,
            (Some("vm"), kind) => matches!(kind, Some("lxc" | "qemu")),
            (wanted, kind) => wanted == kind,
        })
        .collect();
    Reply::Data(Value::Array(rows))
}

fn all_resources(cluster: &Cluster) -> Vec<Value> {
    let mut rows = Vec::new();
    for guest in cluster.guests.values() {
        let mut row = cluster.guest_row(guest);
        row["id"] = json!(format!("{}/{}", guest.kind.segment(), guest.vmid));
        row["type"] = json!(guest.kind.segment());
        row["node"] = json!(guest.node);
        row["maxcpu"] = json!(guest.cores());
        row["template"] = json!(u8::from(guest.is_template()));
        if let Some(pool) = cluster.pool_of(guest.vmid) {
            row["pool"] = json!(pool);
        }
        rows.push(row);
    }
    for node in &cluster.nodes {
        let mut row = node_row(cluster, node);
        row["id"] = json!(format!("node/{}", node.name));
        rows.push(row);
        for storage in cluster.storages.iter().filter(|storage| storage.is_on(&node.name)) {
            rows.push(json!({
                "id": format!("storage/{}/{}", node.name, storage.id), "type": "storage", "node": node.name,
                "storage": storage.id, "plugintype": storage.kind.as_str(),
                "status": if node.online { "available" } else { "unknown" },
                "shared": u8::from(storage.node.is_none()), "disk": storage.used_bytes(),
                "maxdisk": storage.total_bytes,
                "content": storage.kind.contents().iter().map(|c| c.as_str()).collect::<Vec<_>>().join(","),
            }));
        }
    }
    for name in cluster.pools.keys() {
        rows.push(json!({ "id": format!("/pool/{name}"), "type": "pool", "pool": name }));
    }
    rows
}

fn status(cluster: &Cluster) -> Reply {
    let mut rows = vec![json!({
        "type": "cluster", "id": "cluster", "name": "fleet", "version": cluster.nodes.len(),
        "nodes": cluster.nodes.len(), "quorate": u8::from(cluster.quorate),
    })];
    for (index, node) in cluster.nodes.iter().enumerate() {
        rows.push(json!({
            "type": "node", "id": format!("node/{}", node.name), "name": node.name, "nodeid": index + 1,
            "ip": format!("192.0.2.{}", (index + 1) % 255), "online": u8::from(node.online),
            "local": u8::from(index == 0), "level": "",
        }));
    }
    Reply::Data(Value::Array(rows))
}

/// Memory of the running guests plus what the host itself needs.
fn used_memory(cluster: &Cluster, node: &Node) -> u64 {
    let guests: u64 = cluster
        .guests
        .values()
        .filter(|g| g.node == node.name && g.is_running())
        .map(|g| g.memory_bytes() / 5)
        .sum();
    2 * GIB + guests
}

fn node_row(cluster: &Cluster, node: &Node) -> Value {
    let mut row = json!({
        "node": node.name, "id": format!("node/{}", node.name), "type": "node",
        "status": if node.online { "online" } else { "offline" }, "level": "",
        "ssl_fingerprint": "",
    });
    if node.online {
        row["cpu"] = json!(0.03);
        row["maxcpu"] = json!(cluster.limits.node_cores);
        row["mem"] = json!(used_memory(cluster, node));
        row["maxmem"] = json!(cluster.limits.node_memory_bytes);
        row["disk"] = json!(8 * GIB);
        row["maxdisk"] = json!(100 * GIB);
        row["uptime"] = json!(node.booted_at.elapsed().as_secs());
    }
    row
}

fn node_status(cluster: &Cluster, node: &Node) -> Reply {
    let (total, used) = (cluster.limits.node_memory_bytes, used_memory(cluster, node));
    Reply::Data(json!({
        "uptime": node.booted_at.elapsed().as_secs(), "cpu": 0.03, "wait": 0.0, "idle": 0, "loadavg": ["0.10", "0.12", "0.09"],
        "cpuinfo": { "cpus": cluster.limits.node_cores, "cores": cluster.limits.node_cores, "sockets": 1, "model": "simulated", "mhz": "2400.000" },
        "memory": { "total": total, "used": used, "free": total.saturating_sub(used), "available": total.saturating_sub(used) },
        "swap": { "total": 8 * GIB, "used": 0, "free": 8 * GIB },
        "rootfs": { "total": 100 * GIB, "used": 8 * GIB, "free": 92 * GIB, "avail": 92 * GIB },
        "pveversion": format!("pve-manager/{}", cluster.limits.version), "kversion": "Linux simulated",
    }))
}

fn networks(cluster: &Cluster, call: &Call<'_>) -> Reply {
    let index = cluster.nodes.iter().position(|node| node.name == call.node()).unwrap_or(0);
    let address = format!("192.0.2.{}", (index + 1) % 255);
    let rows = [
        json!({ "iface": "eno1", "type": "eth", "active": 1, "exists": 1, "method": "manual", "priority": 3 }),
        json!({
            "iface": BRIDGE, "type": "bridge", "active": 1, "autostart": 1, "method": "static", "priority": 4,
            "bridge_ports": "eno1", "address": address, "netmask": "24", "cidr": format!("{address}/24"),
            "gateway": "192.0.2.254",
        }),
    ];
    let wanted = call.params.get("type");
    let rows = rows
        .into_iter()
        .filter(|row| match wanted {
            None => true,
            Some(kind) if kind.starts_with("any_") => row["type"] == "bridge",
            Some(kind) => row["type"] == kind,
        })
        .collect();
    Reply::Data(Value::Array(rows))
}

fn pools(cluster: &Cluster, call: &Call<'_>) -> Reply {
    let rows = cluster
        .pools
        .iter()
        .filter(|(name, _)| call.params.get("poolid").is_none_or(|wanted| wanted == name.as_str()))
        .map(|(name, pool)| {
            let mut row = json!({ "poolid": name, "comment": pool.comment });
            if call.params.get("poolid").is_some() {
                row["members"] = members(cluster, pool);
            }
            row
        })
        .collect();
    Reply::Data(Value::Array(rows))
}

fn members(cluster: &Cluster, pool: &Pool) -> Value {
    all_resources(cluster)
        .into_iter()
        .filter(|row| {
            row["vmid"]
                .as_u64()
                .and_then(|vmid| u32::try_from(vmid).ok())
                .is_some_and(|vmid| pool.guests.contains(&vmid))
        })
        .collect()
}

fn missing_pool(id: &str) -> ApiError {
    ApiError::fail(format!("pool '{id}' does not exist"))
}

fn pool(cluster: &Cluster, call: &Call<'_>) -> Result<Value, ApiError> {
    let id = call.params.text("poolid");
    let pool = cluster.pools.get(id).ok_or_else(|| missing_pool(id))?;
    Ok(json!({ "comment": pool.comment, "members": members(cluster, pool) }))
}

fn create_pool(cluster: &mut Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let id = call.params.text("poolid");
    if cluster.pools.contains_key(id) {
        return Err(ApiError::fail(format!("pool '{id}' already exists")));
    }
    let comment = call.params.text("comment").to_owned();
    cluster.pools.insert(id.to_owned(), Pool { comment, guests: BTreeSet::new() });
    Reply::none()
}

fn change_pool(cluster: &mut Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let params = &call.params;
    let id = params.text("poolid");
    let vms: Vec<u32> = split_list(params.text("vms")).filter_map(|vmid| vmid.parse().ok()).collect();
    if !cluster.pools.contains_key(id) {
        return Err(missing_pool(id));
    }
    for vmid in &vms {
        if !cluster.guests.contains_key(vmid) {
            return Err(ApiError::fail(format!("VM {vmid} does not exist")));
        }
        match cluster.pool_of(*vmid) {
            Some(other) if other != id && !params.flag("delete") && !params.flag("allow-move") => {
                return Err(ApiError::fail(format!("VM {vmid} belongs already to pool '{other}'")));
            }
            _ => {}
        }
    }
    for pool in cluster.pools.values_mut() {
        pool.guests.retain(|vmid| !vms.contains(vmid));
    }
    if let Some(pool) = cluster.pools.get_mut(id) {
        if !params.flag("delete") {
            pool.guests.extend(vms);
        }
        if let Some(comment) = params.get("comment") {
            comment.clone_into(&mut pool.comment);
        }
    }
    Reply::none()
}

fn delete_pool(cluster: &mut Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let id = call.params.text("poolid");
    let pool = cluster.pools.get(id).ok_or_else(|| missing_pool(id))?;
    if !pool.guests.is_empty() {
        return Err(ApiError::fail(format!("pool '{id}' is not empty")));
    }
    cluster.pools.remove(id);
    Reply::none()
}
