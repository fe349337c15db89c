//! vzdump: one job over several guests, its volumes, notes and retention.
//!
//! Works on the state only; the task table decides when its steps run.

use super::dispatch::Call;
use super::formats::split_list;
use super::state::{Cluster, GuestKind, Lock, unix_s};
use super::storage::{self, Content, Volume};
use super::wire::{ApiError, Reply};
use super::work::Work;

/// What a backup job was asked to do, and what has gone wrong so far.
#[derive(Debug, Clone)]
pub(crate) struct BackupJob {
    vmids: Vec<u32>,
    storage: String,
    suffix: &'static str,
    notes_template: String,
    protected: bool,
    /// Backups of the same guest to keep; `None` keeps all.
    keep_last: Option<usize>,
    failures: Vec<(u32, String)>,
}

impl BackupJob {
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.vmids
            .iter()
            .map(|vmid| match self.failures.iter().find(|(failed, _)| failed == vmid) {
                Some((_, why)) => format!("ERROR: Backup of VM {vmid} failed - {why}"),
                None => format!("INFO: Starting Backup of VM {vmid}"),
            })
            .collect()
    }

    pub(crate) fn vmids(&self) -> &[u32] {
        &self.vmids
    }

    fn good(&self) -> impl Iterator<Item = u32> {
        self.vmids.iter().copied().filter(|vmid| !self.failures.iter().any(|(failed, _)| failed == vmid))
    }
}

/// `POST /nodes/{node}/vzdump`.
pub(crate) fn start(cluster: &mut Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let params = &call.params;
    let node = call.node().to_owned();
    let vmids: Vec<u32> = match params.get("vmid") {
        Some(list) => split_list(list).filter_map(|vmid| vmid.parse().ok()).collect(),
        None if params.flag("all") => {
            cluster.guests.values().filter(|g| g.node == node).map(|g| g.vmid).collect()
        }
        None => return Err(ApiError::param("vmid", "property is missing and it is not optional")),
    };
    let storage = params.get("storage").unwrap_or(storage::LOCAL).to_owned();
    let found = storage::find(&cluster.storages, &node, &storage).map_err(ApiError::fail)?;
    if !found.kind.contents().contains(&Content::Backup) {
        return Err(ApiError::fail(format!(
            "could not get storage information for '{storage}': storage '{storage}' does not support backups"
        )));
    }
    let mut job = BackupJob {
        storage,
        suffix: match params.get("compress") {
            Some("zstd") => ".zst",
            Some("gzip") => ".gz",
            Some("1" | "lzo") => ".lzo",
            _ => "",
        },
        notes_template: params.text("notes-template").to_owned(),
        protected: params.flag("protected"),
        keep_last: params
            .get("prune-backups")
            .filter(|_| params.get("remove") != Some("0"))
            .and_then(|text| super::formats::property(text, "keep-last"))
            .and_then(|count| count.parse().ok())
            .filter(|count| *count > 0),
        failures: Vec::new(),
        vmids,
    };
    for vmid in job.vmids.clone() {
        match cluster.guests.get_mut(&vmid).filter(|guest| guest.node == node) {
            None => job.failures.push((vmid, format!("unable to find VM '{vmid}'"))),
            Some(guest) => match guest.check_lock() {
                Err(why) => job.failures.push((vmid, why)),
                Ok(()) => guest.lock = Some(Lock::Backup),
            },
        }
    }
    let id = match job.vmids.as_slice() {
        [one] => one.to_string(),
        _ => String::new(),
    };
    Ok(call.start_task_named(cluster, "vzdump", &id, Work::Backup(Box::new(job))))
}

/// Notices full storages before anything is written.
pub(crate) fn midway(job: &mut BackupJob, cluster: &Cluster, node: &str) -> Result<(), String> {
    let mut free = storage::find(&cluster.storages, node, &job.storage)?.free_bytes();
    for vmid in job.good().collect::<Vec<_>>() {
        let Some(guest) = cluster.guests.get(&vmid) else {
            job.failures.push((vmid, format!("unable to find VM '{vmid}'")));
            continue;
        };
        let bytes = archive_bytes(cluster.disk_bytes(guest));
        if bytes > free {
            job.failures.push((vmid, "no space left on device".to_owned()));
        } else {
            free -= bytes;
        }
    }
    Ok(())
}

/// Writes the archives, prunes, and drops the locks.
pub(crate) fn finish(job: &BackupJob, cluster: &mut Cluster, node: &str) -> Result<(), String> {
    for vmid in job.good() {
        let Some(guest) = cluster.guests.get(&vmid) else { continue };
        let (kind, config, name) = (guest.kind, guest.config.clone(), guest.name());
        let bytes = archive_bytes(cluster.disk_bytes(guest));
        let notes = job
            .notes_template
            .replace("{{guestname}}", &name)
            .replace("{{node}}", node)
            .replace("{{vmid}}", &vmid.to_string())
            .replace("{{cluster}}", "fleet")
            .replace("\\n", "\n");
        let store = storage::find_mut(&mut cluster.storages, node, &job.storage)?;
        let mut created_at_s = unix_s();
        let volid = loop {
            let volid = archive_name(&job.storage, kind, vmid, created_at_s, job.suffix);
            if !store.volumes.contains_key(&volid) {
                break volid;
            }
            created_at_s += 1;
        };
        store.volumes.insert(
            volid,
            Volume {
                content: Content::Backup,
                bytes,
                vmid: Some(vmid),
                created_at_s,
                notes,
                protected: job.protected,
                backup_of: Some((kind, config)),
            },
        );
        if let Some(keep) = job.keep_last {
            prune(store, vmid, keep);
        }
    }
    abort(job, cluster);
    if job.failures.is_empty() { Ok(()) } else { Err("job errors".to_owned()) }
}

/// Drops the locks this job holds.
pub(crate) fn abort(job: &BackupJob, cluster: &mut Cluster) {
    for vmid in job
        .vmids
        .iter()
        .filter(|vmid| !job.failures.iter().any(|(id, why)| id == *vmid && why.contains("locked")))
    {
        if let Some(guest) = cluster.guests.get_mut(vmid)
            && guest.lock == Some(Lock::Backup)
        {
            guest.lock = None;
        }
    }
}

fn prune(store: &mut storage::Storage, vmid: u32, keep: usize) {
    let mut archives: Vec<(u64, String)> = store
        .volumes
        .iter()
        .filter(|(_, volume)| {
            volume.content == Content::Backup && volume.vmid == Some(vmid) && !volume.protected
        })
        .map(|(volid, volume)| (volume.created_at_s, volid.clone()))
        .collect();
    archives.sort();
    let surplus = archives.len().saturating_sub(keep);
    for (_, volid) in archives.into_iter().take(surplus) {
        store.volumes.remove(&volid);
    }
}

fn archive_bytes(disk_bytes: u64) -> u64 {
    (disk_bytes / 4).max(1 << 20)
}

fn archive_name(storage: &str, kind: GuestKind, vmid: u32, at_s: u64, suffix: &str) -> String {
    let (year, month, day) = civil_date(at_s / 86_400);
    let second = at_s % 86_400;
    let extension = match kind {
        GuestKind::Lxc => "tar",
        GuestKind::Qemu => "vma",
    };
    format!(
        "{storage}:backup/vzdump-{}-{vmid}-{year:04}_{month:02}_{day:02}-{:02}_{:02}_{:02}.{extension}{suffix}",
        kind.segment(),
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Gregorian date of a day number since 1970-01-01.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_carry_their_date() {
        assert_eq!(
            archive_name("local", GuestKind::Lxc, 100, 1_709_210_096, ".zst"),
            "local:backup/vzdump-lxc-100-2024_02_29-12_34_56.tar.zst"
        );
    }
}
