//! The ends of tasks, one function each: what a guest looks like after its work succeeded.
//!
//! Called by `work` under the state's mutex. An error leaves the guest for `work` to clean up.

use std::time::Instant;

use super::disks;
use super::formats::{format_size, property};
use super::state::{BRIDGE, Cluster, Guest, Power, Snapshot, unix_s};
use super::storage;
use super::work::{Provision, Verb};

pub(super) fn finish_provision(plan: &Provision, cluster: &mut Cluster) -> Result<(), String> {
    let guest = cluster.working_on(&plan.node, plan.vmid)?;
    guest.config = plan.config.clone();
    guest.pending.clear();
    guest.snapshots.clear();
    guest.lock = None;
    if let Some(pool) = plan.pool.as_deref().and_then(|name| cluster.pools.get_mut(name)) {
        pool.guests.insert(plan.vmid);
    }
    if plan.start {
        // The guest exists by now: a failed start makes the task fail and leaves it there.
        finish_power(cluster.working_on(&plan.node, plan.vmid)?, Verb::Start)?;
    }
    Ok(())
}

pub(super) fn finish_power(guest: &mut Guest, verb: Verb) -> Result<(), String> {
    let (noun, vmid) = (guest.kind.noun(), guest.vmid);
    let now = Instant::now();
    match verb {
        Verb::Start => {
            guest.check_lock()?;
            if guest.is_running() {
                return Err(format!("{noun} {vmid} already running"));
            }
            if guest.is_template() {
                return Err(format!("you can't start a {} if it's a template", noun.to_lowercase()));
            }
            guest.apply_pending();
            if let Some(bridge) = wrong_bridge(guest) {
                return Err(format!("bridge '{bridge}' does not exist"));
            }
            guest.power = Power::Running { since: now };
        }
        Verb::Stop | Verb::Shutdown => guest.power = Power::Stopped,
        Verb::Reboot => {
            if !guest.is_running() {
                return Err(format!("{noun} {vmid} not running"));
            }
            guest.apply_pending();
            guest.power = Power::Running { since: now };
        }
        Verb::Suspend => match guest.power {
            Power::Running { since } => guest.power = Power::Suspended { since },
            _ => return Err(format!("{noun} {vmid} not running")),
        },
        Verb::Resume => match guest.power {
            Power::Suspended { since } => guest.power = Power::Running { since },
            Power::Running { .. } => {}
            Power::Stopped => return Err(format!("{noun} {vmid} not running")),
        },
        Verb::Reset => {
            if !guest.is_running() {
                return Err(format!("{noun} {vmid} not running"));
            }
            guest.power = Power::Running { since: now };
        }
    }
    Ok(())
}

fn wrong_bridge(guest: &Guest) -> Option<String> {
    guest
        .config
        .iter()
        .filter(|(key, _)| key.strip_prefix("net").is_some_and(|digits| digits.parse::<u32>().is_ok()))
        .filter_map(|(_, value)| property(value, "bridge"))
        .find(|bridge| *bridge != BRIDGE)
        .map(str::to_owned)
}

pub(super) fn finish_resize(
    cluster: &mut Cluster,
    node: &str,
    vmid: u32,
    disk: &str,
    bytes: u64,
) -> Result<(), String> {
    let guest = cluster.working_on(node, vmid)?;
    let value = guest.config.get(disk).cloned().ok_or_else(|| format!("disk '{disk}' does not exist"))?;
    let volid = value.split(',').next().unwrap_or_default().to_owned();
    storage::set_size(&mut cluster.storages, node, &volid, bytes)?;
    let mut parts: Vec<String> =
        value.split(',').filter(|part| !part.starts_with("size=")).map(str::to_owned).collect();
    parts.push(format!("size={}", format_size(bytes)));
    cluster.working_on(node, vmid)?.config.insert(disk.to_owned(), parts.join(","));
    Ok(())
}

pub(super) fn finish_snapshot(guest: &mut Guest, name: &str, description: &str) -> Result<(), String> {
    if guest.snapshots.iter().any(|snapshot| snapshot.name == name) {
        return Err(format!("snapshot name '{name}' already used"));
    }
    guest.snapshots.push(Snapshot {
        name: name.to_owned(),
        description: description.to_owned(),
        taken_at_s: unix_s(),
        parent: guest.parent.replace(name.to_owned()),
        config: guest.config.clone(),
    });
    guest.lock = None;
    Ok(())
}

pub(super) fn finish_rollback(guest: &mut Guest, name: &str, start: bool) -> Result<(), String> {
    let snapshot = guest
        .snapshots
        .iter()
        .find(|snapshot| snapshot.name == name)
        .ok_or_else(|| format!("snapshot '{name}' does not exist"))?;
    guest.config = snapshot.config.clone();
    guest.parent = Some(name.to_owned());
    guest.pending.clear();
    guest.lock = None;
    guest.power = if start { Power::Running { since: Instant::now() } } else { Power::Stopped };
    Ok(())
}

/// After a rollback the volumes have the sizes of the old configuration again.
pub(super) fn sync_sizes(cluster: &mut Cluster, node: &str, vmid: u32) {
    let Some(guest) = cluster.guests.get(&vmid) else { return };
    for (_, volid, bytes) in disks::disks_of(guest.kind, &guest.config) {
        // Shrinking needs no room, so this cannot fail for a disk that exists.
        let _ = storage::set_size(&mut cluster.storages, node, &volid, bytes);
    }
}

pub(super) fn finish_snapshot_delete(guest: &mut Guest, name: &str, force: bool) -> Result<(), String> {
    let position = guest.snapshots.iter().position(|snapshot| snapshot.name == name);
    let Some(position) = position else {
        if force {
            guest.lock = None;
            return Ok(());
        }
        return Err(format!("snapshot '{name}' does not exist"));
    };
    let removed = guest.snapshots.remove(position);
    for snapshot in guest.snapshots.iter_mut().filter(|snapshot| snapshot.parent.as_deref() == Some(name)) {
        snapshot.parent.clone_from(&removed.parent);
    }
    if guest.parent.as_deref() == Some(name) {
        guest.parent = removed.parent;
    }
    guest.lock = None;
    Ok(())
}

pub(super) fn finish_migrate(
    cluster: &mut Cluster,
    node: &str,
    vmid: u32,
    target: &str,
    target_storage: Option<&str>,
    restart: bool,
) -> Result<(), String> {
    if !cluster.node(target).is_ok_and(|node| node.online) {
        return Err(format!("migration aborted: target node '{target}' is not online"));
    }
    cluster.working_on(node, vmid)?;
    let renamed = storage::relocate(&mut cluster.storages, node, target, vmid, target_storage)
        .map_err(|why| format!("migration aborted: {why}"))?;
    let guest = cluster.working_on(node, vmid)?;
    for value in guest.config.values_mut() {
        for (old, new) in &renamed {
            if let Some(rest) = value.strip_prefix(old.as_str()) {
                *value = format!("{new}{rest}");
            }
        }
    }
    target.clone_into(&mut guest.node);
    guest.lock = None;
    if restart && guest.is_running() {
        guest.apply_pending();
        guest.power = Power::Running { since: Instant::now() };
    }
    Ok(())
}
