//! What containers and virtual machines have in common: power, snapshots, resize, migration, removal.
//!
//! Each handler does the checks a host does before it forks a worker, then hands the rest to a task.

use serde_json::{Value, json};

use super::config;
use super::dispatch::Call;
use super::firewall;
use super::formats::{parse_size, property};
use super::rrd;
use super::state::{Cluster, Guest, GuestKind};
use super::wire::{ApiError, Method, Reply};
use super::work::{self, Verb, Work};

/// `/nodes/{node}/{lxc,qemu}/{vmid}…`; `None` when the method is not simulated.
pub(crate) fn handle(
    cluster: &mut Cluster,
    call: &Call<'_>,
    kind: GuestKind,
    tail: &str,
) -> Option<Result<Reply, ApiError>> {
    let (node, vmid) = (call.node().to_owned(), call.vmid());
    if let Some(tail) = tail.strip_prefix("/firewall") {
        return match cluster.guest_mut(&node, kind, vmid) {
            Ok(guest) => firewall::handle(&mut guest.firewall, call, tail),
            Err(error) => Some(Err(error)),
        };
    }
    Some(match (call.method, tail) {
        (Method::Get, "") => cluster.guest(&node, kind, vmid).map(|_| {
            let names = ["config", "status", "snapshot", "firewall", "rrddata", "pending"];
            Reply::Data(names.iter().map(|name| json!({ "subdir": name })).collect())
        }),
        (Method::Delete, "") => destroy(cluster, call, kind),
        (Method::Get, "/config") => cluster.guest(&node, kind, vmid).map(|guest| {
            let current = kind == GuestKind::Lxc || call.params.flag("current");
            Reply::Data(config::read(guest, call, current))
        }),
        (Method::Put, "/config") | (Method::Post, "/config") => config::change(cluster, call, kind),
        (Method::Get, "/pending") => {
            cluster.guest(&node, kind, vmid).map(|guest| Reply::Data(config::pending(guest)))
        }
        (Method::Get, "/status/current") => {
            cluster.guest(&node, kind, vmid).map(|guest| Reply::Data(current(cluster, guest)))
        }
        (Method::Put, "/resize") => resize(cluster, call, kind),
        (Method::Get, "/snapshot") => {
            cluster.guest(&node, kind, vmid).map(|guest| Reply::Data(snapshots(guest)))
        }
        (Method::Post, "/snapshot") => take_snapshot(cluster, call, kind),
        (Method::Delete, "/snapshot/{snapname}") => snapshot_task(cluster, call, kind, "delsnapshot"),
        (Method::Post, "/snapshot/{snapname}/rollback") => snapshot_task(cluster, call, kind, "rollback"),
        (Method::Get, "/snapshot/{snapname}") => snapshot_index(cluster, call, kind),
        (Method::Get, "/snapshot/{snapname}/config") => snapshot_config(cluster, call, kind),
        (Method::Put, "/snapshot/{snapname}/config") => describe_snapshot(cluster, call, kind),
        (Method::Post, "/migrate") => migrate(cluster, call, kind),
        (Method::Get, "/rrddata") => {
            cluster.guest(&node, kind, vmid).map(|guest| rrd::guest(cluster, guest, call))
        }
        (Method::Post, _) => match tail.strip_prefix("/status/").and_then(Verb::parse) {
            Some(verb) => power(cluster, call, kind, verb),
            None => return None,
        },
        _ => return None,
    })
}

/// `GET /nodes/{node}/{lxc,qemu}`.
pub(crate) fn list(cluster: &Cluster, node: &str, kind: GuestKind) -> Reply {
    let rows = cluster
        .guests
        .values()
        .filter(|guest| guest.node == node && guest.kind == kind)
        .map(|guest| {
            let mut row = cluster.guest_row(guest);
            row["cpus"] = json!(guest.cores());
            if kind == GuestKind::Lxc {
                row["type"] = json!("lxc");
                row["swap"] = json!(0);
                row["maxswap"] = json!(guest.number("swap", 512) << 20);
            }
            row
        })
        .collect();
    Reply::Data(Value::Array(rows))
}

fn current(cluster: &Cluster, guest: &Guest) -> Value {
    let mut row = cluster.guest_row(guest);
    row["cpus"] = json!(guest.cores());
    row["ha"] = json!({ "managed": 0 });
    match guest.kind {
        GuestKind::Lxc => row["type"] = json!("lxc"),
        GuestKind::Qemu => {
            let paused = matches!(guest.power, super::state::Power::Suspended { .. });
            row["qmpstatus"] = if paused { json!("paused") } else { row["status"].clone() };
            if guest
                .config
                .get("agent")
                .is_some_and(|agent| agent.starts_with('1') || agent.contains("enabled=1"))
            {
                row["agent"] = json!(1);
            }
        }
    }
    row
}

fn power(cluster: &mut Cluster, call: &Call<'_>, kind: GuestKind, verb: Verb) -> Result<Reply, ApiError> {
    if call.params.flag("skiplock") {
        return Err(ApiError::new(403, "Only root may use this option."));
    }
    let guest = cluster.guest(call.node(), kind, call.vmid())?;
    guest.check_lock().map_err(ApiError::fail)?;
    let refusal = match (kind, verb, guest.is_running()) {
        (GuestKind::Lxc, Verb::Start, true) => Some("already running"),
        (GuestKind::Lxc, Verb::Stop | Verb::Shutdown | Verb::Reboot | Verb::Suspend, false) => {
            Some("not running")
        }
        (
            GuestKind::Qemu,
            Verb::Shutdown | Verb::Reboot | Verb::Suspend | Verb::Reset | Verb::Resume,
            false,
        ) => Some("not running"),
        _ => None,
    };
    if let Some(refusal) = refusal {
        return Err(ApiError::fail(format!("{} {} {refusal}", kind.noun(), guest.vmid)));
    }
    let task = format!("{}{}", kind.task_prefix(), verb.as_str());
    Ok(call.start_task(cluster, &task, Work::Power { vmid: call.vmid(), verb }))
}

fn destroy(cluster: &mut Cluster, call: &Call<'_>, kind: GuestKind) -> Result<Reply, ApiError> {
    let guest = cluster.guest(call.node(), kind, call.vmid())?;
    guest.check_protection()?;
    guest.check_lock().map_err(ApiError::fail)?;
    let force = kind == GuestKind::Lxc && call.params.flag("force");
    if guest.is_running() && !force {
        return Err(ApiError::fail(work::running_refusal(guest)));
    }
    let task = format!("{}destroy", kind.task_prefix());
    let work = Work::Destroy { vmid: call.vmid(), force, purge: call.params.flag("purge") };
    Ok(call.start_task(cluster, &task, work))
}

fn resize(cluster: &mut Cluster, call: &Call<'_>, kind: GuestKind) -> Result<Reply, ApiError> {
    let guest = cluster.guest(call.node(), kind, call.vmid())?;
    guest.check_digest(call.params.get("digest"))?;
    guest.check_lock().map_err(ApiError::fail)?;
    let disk = call.params.text("disk").to_owned();
    let present = guest
        .config
        .get(&disk)
        .and_then(|value| property(value, "size"))
        .and_then(parse_size)
        .ok_or_else(|| ApiError::fail(format!("disk '{disk}' does not exist")))?;
    let size = call.params.text("size");
    let (relative, size) = size.strip_prefix('+').map_or((false, size), |size| (true, size));
    let wanted =
        parse_size(size).ok_or_else(|| ApiError::param("size", "value does not match the regex pattern"))?;
    let bytes = if relative { present.saturating_add(wanted) } else { wanted };
    match (bytes.cmp(&present), kind) {
        (std::cmp::Ordering::Less, GuestKind::Lxc) => Err(ApiError::fail("unable to shrink disk size")),
        (std::cmp::Ordering::Less, GuestKind::Qemu) => {
            Err(ApiError::fail("shrinking disks is not supported"))
        }
        (std::cmp::Ordering::Equal, GuestKind::Lxc) => {
            Err(ApiError::fail("disk is already at specified size"))
        }
        _ => Ok(call.start_task(cluster, "resize", Work::Resize { vmid: call.vmid(), disk, bytes })),
    }
}

fn snapshots(guest: &Guest) -> Value {
    let mut rows: Vec<Value> = guest
        .snapshots
        .iter()
        .map(|snapshot| {
            let mut row = json!({
                "name": snapshot.name, "description": snapshot.description, "snaptime": snapshot.taken_at_s,
            });
            if let Some(parent) = &snapshot.parent {
                row["parent"] = json!(parent);
            }
            if guest.kind == GuestKind::Qemu {
                row["vmstate"] = json!(0);
            }
            row
        })
        .collect();
    let mut current = json!({
        "name": "current", "description": "You are here!", "digest": guest.digest(),
        "running": u8::from(guest.is_running()),
    });
    if let Some(parent) = &guest.parent {
        current["parent"] = json!(parent);
    }
    rows.push(current);
    Value::Array(rows)
}

fn take_snapshot(cluster: &mut Cluster, call: &Call<'_>, kind: GuestKind) -> Result<Reply, ApiError> {
    let name = call.params.text("snapname").to_owned();
    if name == "current" || (kind == GuestKind::Qemu && name == "pending") {
        return Err(ApiError::fail(format!("unable to use snapshot name '{name}' (reserved name)")));
    }
    cluster.guest(call.node(), kind, call.vmid())?.check_lock().map_err(ApiError::fail)?;
    let work =
        Work::Snapshot { vmid: call.vmid(), name, description: call.params.text("description").to_owned() };
    Ok(call.start_task(cluster, &format!("{}snapshot", kind.task_prefix()), work))
}

fn snapshot_task(
    cluster: &mut Cluster,
    call: &Call<'_>,
    kind: GuestKind,
    verb: &'static str,
) -> Result<Reply, ApiError> {
    cluster.guest(call.node(), kind, call.vmid())?.check_lock().map_err(ApiError::fail)?;
    let (vmid, name) = (call.vmid(), call.params.text("snapname").to_owned());
    let work = match verb {
        "rollback" => Work::Rollback { vmid, name, start: call.params.flag("start") },
        _ => Work::SnapshotDelete { vmid, name, force: call.params.flag("force") },
    };
    Ok(call.start_task(cluster, &format!("{}{verb}", kind.task_prefix()), work))
}

fn snapshot_position(cluster: &Cluster, call: &Call<'_>, kind: GuestKind) -> Result<usize, ApiError> {
    let name = call.params.text("snapname");
    cluster
        .guest(call.node(), kind, call.vmid())?
        .snapshots
        .iter()
        .position(|snapshot| snapshot.name == name)
        .ok_or_else(|| ApiError::fail(format!("snapshot '{name}' does not exist")))
}

fn snapshot_index(cluster: &Cluster, call: &Call<'_>, kind: GuestKind) -> Result<Reply, ApiError> {
    snapshot_position(cluster, call, kind)?;
    Ok(Reply::Data(json!([{ "cmd": "rollback" }, { "cmd": "config" }])))
}

fn snapshot_config(cluster: &Cluster, call: &Call<'_>, kind: GuestKind) -> Result<Reply, ApiError> {
    let position = snapshot_position(cluster, call, kind)?;
    let snapshot = &cluster.guest(call.node(), kind, call.vmid())?.snapshots[position];
    let mut data = config::typed_value(&snapshot.config, call, kind);
    data["snaptime"] = json!(snapshot.taken_at_s);
    Ok(Reply::Data(data))
}

fn describe_snapshot(cluster: &mut Cluster, call: &Call<'_>, kind: GuestKind) -> Result<Reply, ApiError> {
    let position = snapshot_position(cluster, call, kind)?;
    let guest = cluster.guest_mut(call.node(), kind, call.vmid())?;
    if let Some(text) = call.params.get("description") {
        text.clone_into(&mut guest.snapshots[position].description);
    }
    Reply::none()
}

fn migrate(cluster: &mut Cluster, call: &Call<'_>, kind: GuestKind) -> Result<Reply, ApiError> {
    let params = &call.params;
    let target = params.text("target").to_owned();
    if target == call.node() {
        return Err(ApiError::param("target", "target is local node."));
    }
    let online = cluster.node(&target)?.online;
    let guest = cluster.guest(call.node(), kind, call.vmid())?;
    guest.check_lock().map_err(ApiError::fail)?;
    let restart = kind == GuestKind::Lxc && (params.flag("restart") || params.flag("online"));
    if guest.is_running() {
        match kind {
            GuestKind::Lxc if !restart => {
                return Err(ApiError::fail("can't migrate running container without --online or --restart"));
            }
            GuestKind::Qemu if !params.flag("online") => {
                return Err(ApiError::fail("can't migrate running VM without --online"));
            }
            _ => {}
        }
    }
    if !online {
        return Err(ApiError::fail(format!("target node '{target}' is not online")));
    }
    let storage = params.get("target-storage").or_else(|| params.get("targetstorage")).map(str::to_owned);
    if let Some(id) = &storage {
        super::storage::find(&cluster.storages, &target, id).map_err(ApiError::fail)?;
    }
    let work = Work::Migrate { vmid: call.vmid(), target, storage, restart };
    Ok(call.start_task(cluster, &format!("{}migrate", kind.task_prefix()), work))
}
