//! What tasks do to the cluster: half-way, at their end, and when they fail cleanly.
//!
//! A task that is interrupted or loses its node runs none of the later steps: that is where left-over
//! locks come from. Knows nothing of HTTP or of time.

use super::backup::{self, BackupJob};
use super::config::{self, Changes};
use super::disks::{self, DiskPlan};
use super::effects;
use super::formats::format_size;
use super::state::{Cluster, Config, Guest, GuestKind, Lock, Power, missing_config};
use super::storage;
use super::tasks::TaskState;

/// A guest in the making.
#[derive(Debug, Clone)]
pub(crate) struct Provision {
    pub(crate) vmid: u32,
    pub(crate) node: String,
    /// The final configuration; disks are added when they are allocated.
    pub(crate) config: Config,
    pub(crate) disks: Vec<DiskPlan>,
    pub(crate) pool: Option<String>,
    pub(crate) start: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Stop,
    Shutdown,
    Reboot,
    Suspend,
    Resume,
    Reset,
}

impl Verb {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "start" => Self::Start,
            "stop" => Self::Stop,
            "shutdown" => Self::Shutdown,
            "reboot" => Self::Reboot,
            "suspend" => Self::Suspend,
            "resume" => Self::Resume,
            "reset" => Self::Reset,
            _ => return None,
        })
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Shutdown => "shutdown",
            Self::Reboot => "reboot",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Reset => "reset",
        }
    }
}

/// The effect of a task.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    Provision(Box<Provision>),
    Power { vmid: u32, verb: Verb },
    Destroy { vmid: u32, force: bool, purge: bool },
    Resize { vmid: u32, disk: String, bytes: u64 },
    Snapshot { vmid: u32, name: String, description: String },
    Rollback { vmid: u32, name: String, start: bool },
    SnapshotDelete { vmid: u32, name: String, force: bool },
    Migrate { vmid: u32, target: String, storage: Option<String>, restart: bool },
    Configure { vmid: u32, changes: Box<Changes> },
    Backup(Box<BackupJob>),
    RemoveVolume { volid: String },
}

impl Cluster {
    /// The first half of a task; returns false when the task has no second half.
    pub(crate) fn task_midway(&mut self, upid: &str) -> bool {
        let Some(task) = self.tasks.get(upid) else { return false };
        if task.state != TaskState::Running {
            return false;
        }
        let doomed = task.doomed;
        if task.forced_exit.as_deref().is_some_and(is_failure) {
            return true;
        }
        let node = task.upid.node.clone();
        let mut work = task.work.clone();
        let outcome = work.midway(self, &node);
        let lines = work.log_lines();
        if let Some(task) = self.tasks.get_mut(upid) {
            task.work = work.clone();
            task.log.extend(lines);
        }
        match outcome {
            // A doomed task stands still here, until its node dies.
            _ if doomed => false,
            Ok(()) => true,
            Err(why) => {
                work.abort(self);
                self.tasks.end(upid, why);
                false
            }
        }
    }

    /// The second half of a task.
    pub(crate) fn task_finish(&mut self, upid: &str) {
        let Some(task) = self.tasks.get(upid) else { return };
        if task.state != TaskState::Running || task.doomed {
            return;
        }
        let node = task.upid.node.clone();
        let work = task.work.clone();
        let forced = task.forced_exit.clone();
        let outcome = match forced {
            Some(text) if is_failure(&text) => Err(text),
            forced => work.finish(self, &node).map(|()| forced.unwrap_or_else(|| "OK".to_owned())),
        };
        match outcome {
            Ok(exit) => self.tasks.end(upid, exit),
            Err(why) => {
                work.abort(self);
                self.tasks.end(upid, why);
            }
        }
    }

    /// The guest a task works on; it may have moved or gone since the request.
    pub(super) fn working_on(&mut self, node: &str, vmid: u32) -> Result<&mut Guest, String> {
        self.guests
            .get_mut(&vmid)
            .filter(|guest| guest.node == node)
            .ok_or_else(|| missing_config(node, GuestKind::Lxc, vmid))
    }
}

fn is_failure(exit: &str) -> bool {
    exit != "OK" && !exit.starts_with("WARNINGS: ")
}

impl Work {
    /// The lock this work holds while it runs.
    pub(crate) fn lock(&self) -> Option<Lock> {
        match self {
            Self::Snapshot { .. } => Some(Lock::Snapshot),
            Self::Rollback { .. } => Some(Lock::Rollback),
            Self::SnapshotDelete { .. } => Some(Lock::SnapshotDelete),
            Self::Migrate { .. } => Some(Lock::Migrate),
            _ => None,
        }
    }

    /// The guests this work changes.
    pub(crate) fn guests(&self) -> Vec<u32> {
        match self {
            Self::Provision(plan) => vec![plan.vmid],
            Self::Power { vmid, .. }
            | Self::Destroy { vmid, .. }
            | Self::Resize { vmid, .. }
            | Self::Snapshot { vmid, .. }
            | Self::Rollback { vmid, .. }
            | Self::SnapshotDelete { vmid, .. }
            | Self::Migrate { vmid, .. }
            | Self::Configure { vmid, .. } => vec![*vmid],
            Self::Backup(job) => job.vmids().to_vec(),
            Self::RemoveVolume { .. } => Vec::new(),
        }
    }

    fn midway(&mut self, cluster: &mut Cluster, node: &str) -> Result<(), String> {
        match self {
            Self::Provision(plan) => {
                for disk in &plan.disks {
                    let value = disks::allocate(&mut cluster.storages, &plan.node, plan.vmid, disk)
                        .map_err(|why| unable_to_create(cluster, plan.vmid, &why))?;
                    plan.config.insert(disk.key.clone(), value);
                }
                Ok(())
            }
            Self::Destroy { vmid, force, .. } => {
                let guest = cluster.working_on(node, *vmid)?;
                guest.check_lock()?;
                if guest.is_running() && !*force {
                    return Err(running_refusal(guest));
                }
                guest.power = Power::Stopped;
                guest.config.clear();
                guest.pending.clear();
                guest.snapshots.clear();
                guest.lock = Some(Lock::Destroyed);
                storage::free_guest(&mut cluster.storages, *vmid);
                Ok(())
            }
            Self::Backup(job) => backup::midway(job, cluster, node),
            _ => Ok(()),
        }
    }

    fn finish(&self, cluster: &mut Cluster, node: &str) -> Result<(), String> {
        match self {
            Self::Provision(plan) => effects::finish_provision(plan, cluster),
            Self::Power { vmid, verb } => effects::finish_power(cluster.working_on(node, *vmid)?, *verb),
            Self::Destroy { vmid, purge, .. } => {
                cluster.remove_guest(*vmid);
                // Pool membership ends with the guest; `purge` reaches jobs and HA, which are not simulated.
                let _ = purge;
                for pool in cluster.pools.values_mut() {
                    pool.guests.remove(vmid);
                }
                Ok(())
            }
            Self::Resize { vmid, disk, bytes } => effects::finish_resize(cluster, node, *vmid, disk, *bytes),
            Self::Snapshot { vmid, name, description } => {
                effects::finish_snapshot(cluster.working_on(node, *vmid)?, name, description)
            }
            Self::Rollback { vmid, name, start } => {
                effects::finish_rollback(cluster.working_on(node, *vmid)?, name, *start)?;
                effects::sync_sizes(cluster, node, *vmid);
                Ok(())
            }
            Self::SnapshotDelete { vmid, name, force } => {
                effects::finish_snapshot_delete(cluster.working_on(node, *vmid)?, name, *force)
            }
            Self::Migrate { vmid, target, storage, restart } => {
                effects::finish_migrate(cluster, node, *vmid, target, storage.as_deref(), *restart)
            }
            Self::Configure { vmid, changes } => {
                cluster.working_on(node, *vmid)?;
                config::apply(cluster, *vmid, changes)
            }
            Self::Backup(job) => backup::finish(job, cluster, node),
            Self::RemoveVolume { volid } => {
                storage::find_mut(&mut cluster.storages, node, storage::storage_of(volid))?
                    .volumes
                    .remove(volid)
                    .map(|_| ())
                    .ok_or_else(|| format!("volume '{volid}' does not exist"))
            }
        }
    }

    /// Cleans up after a failure that the worker itself noticed.
    fn abort(&self, cluster: &mut Cluster) {
        match self {
            Self::Provision(plan) => {
                let made_here = cluster
                    .guests
                    .get(&plan.vmid)
                    .is_some_and(|guest| matches!(guest.lock, Some(Lock::Create | Lock::Clone)));
                if made_here {
                    cluster.remove_guest(plan.vmid);
                }
            }
            Self::Backup(job) => backup::abort(job, cluster),
            Self::Snapshot { vmid, .. }
            | Self::Rollback { vmid, .. }
            | Self::SnapshotDelete { vmid, .. }
            | Self::Migrate { vmid, .. } => {
                if let Some(guest) = cluster.guests.get_mut(vmid)
                    && guest.lock == self.lock()
                {
                    guest.lock = None;
                }
            }
            _ => {}
        }
    }

    fn log_lines(&self) -> Vec<String> {
        match self {
            Self::Provision(plan) => {
                let mut lines: Vec<String> = plan
                    .disks
                    .iter()
                    .map(|disk| {
                        format!("allocated {} on storage '{}'", format_size(disk.bytes), disk.storage)
                    })
                    .collect();
                lines.push(format!("preparing guest {}", plan.vmid));
                lines
            }
            Self::Power { vmid, verb } => vec![format!("{} guest {vmid}", verb.as_str())],
            Self::Destroy { vmid, .. } => vec![format!("removing volumes of guest {vmid}")],
            Self::Backup(job) => job.log_lines(),
            Self::Migrate { vmid, target, .. } => vec![format!("migrating guest {vmid} to node '{target}'")],
            Self::Resize { disk, bytes, .. } => vec![format!("resizing {disk} to {}", format_size(*bytes))],
            _ => Vec::new(),
        }
    }
}

pub(crate) fn running_refusal(guest: &Guest) -> String {
    match guest.kind {
        GuestKind::Lxc => format!("unable to destroy CT {} - container is running", guest.vmid),
        GuestKind::Qemu => format!("VM {} is running - destroy failed", guest.vmid),
    }
}

fn unable_to_create(cluster: &Cluster, vmid: u32, why: &str) -> String {
    let noun = cluster.guests.get(&vmid).map_or("CT", |guest| guest.kind.noun());
    format!("unable to create {noun} {vmid} - {why}")
}
