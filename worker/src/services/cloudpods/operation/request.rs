//! From a payload to an operation that makes sense, or the list of fields that
//! do not. Pure.

use mpanel_protocol::payload::{
    PayloadError,
    cloudpods::{
        ACTION_QUEUE, ActionPayload, BACKUP_QUEUE, BackupMode, BackupPayload, BackupTrigger, DESTROY_QUEUE,
        DestroyPayload, HEALTH_QUEUE, HealthPayload, HealthTrigger, PodAction, SCALE_QUEUE, ScalePayload,
        SweepPayload,
    },
};
use serde_json::Value;
use uuid::Uuid;

/// What a queue's jobs do to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Takes it away.
    Destroy,
    /// Backs it up.
    Backup,
    /// Looks how it is, one or all.
    Health,
    /// Changes its cores and memory.
    Scale,
    /// Changes its power.
    Action,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Destroy, Self::Backup, Self::Health, Self::Scale, Self::Action];

    /// Its queue.
    #[must_use]
    pub fn queue(self) -> &'static str {
        match self {
            Self::Destroy => DESTROY_QUEUE,
            Self::Backup => BACKUP_QUEUE,
            Self::Health => HEALTH_QUEUE,
            Self::Scale => SCALE_QUEUE,
            Self::Action => ACTION_QUEUE,
        }
    }

    /// Jobs at once; mPanel's own figures, and for our own queue that of create.
    #[must_use]
    pub fn concurrency(self) -> u32 {
        match self {
            Self::Destroy | Self::Action => 2,
            Self::Backup => 3,
            Self::Health => 5,
            Self::Scale => 1,
        }
    }

    /// The job's `type` in `cloud_pod_jobs`. (Health jobs get no row from us, as
    /// they get none from mPanel's workers; one that is there is adopted.)
    #[must_use]
    pub fn row_kind(self) -> &'static str {
        match self {
            Self::Destroy => "DESTROY",
            Self::Backup => "BACKUP",
            Self::Scale => "SCALE",
            Self::Action => "ACTION",
            Self::Health => "HEALTH_CHECK",
        }
    }

    /// What it is called in messages.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Destroy => "destruction",
            Self::Backup => "backup",
            Self::Health => "health check",
            Self::Scale => "change of size",
            Self::Action => "change of power",
        }
    }
}

/// The pod that a job is about, as its payload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) tenant_id: Uuid,
    pub(super) vmid: i64,
    pub(super) pod_id: Uuid,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BackupWish {
    pub(super) mode: BackupMode,
    pub(super) name: Option<String>,
    pub(super) trigger: BackupTrigger,
    pub(super) reason: Option<String>,
}

/// A new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) cores: i32,
    pub(super) memory_mb: i32,
}

/// What a job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Destroy { reason: Option<String> },
    Backup(BackupWish),
    Health(HealthTrigger),
    Scale { to: Size, disk_gb: Option<i32>, backup_first: bool, reason: Option<String> },
    Action(PodAction),
}

/// A job, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// About one pod.
    Pod { target: Target, wish: Wish, requested_by: Option<String> },
    /// About all of them.
    Sweep,
}

/// Reads a job's payload.
///
/// # Errors
/// [`PayloadError`] with every problem.
pub(super) fn read(operation: Operation, data: &Value) -> Result<Request, PayloadError> {
    let data = data.clone();
    Ok(match operation {
        Operation::Destroy => {
            let p = DestroyPayload::try_from(data)?;
            let target = Target { tenant_id: p.tenant_id, vmid: p.vmid, pod_id: p.cloud_pod_id };
            Request::Pod { target, wish: Wish::Destroy { reason: p.reason }, requested_by: p.requested_by }
        }
        Operation::Backup => {
            let p = BackupPayload::try_from(data)?;
            if let Some(name) = &p.snapshot_name {
                snapshot_name(name).map_err(|problem| PayloadError::one("snapshotName", problem))?;
            }
            let wish =
                BackupWish { mode: p.mode, name: p.snapshot_name, trigger: p.triggered_by, reason: p.reason };
            let target = Target { tenant_id: p.tenant_id, vmid: p.vmid, pod_id: p.cloud_pod_id };
            Request::Pod { target, wish: Wish::Backup(wish), requested_by: None }
        }
        Operation::Health if is_sweep(&data) => {
            SweepPayload::try_from(data)?;
            Request::Sweep
        }
        Operation::Health => {
            let p = HealthPayload::try_from(data)?;
            let target = Target { tenant_id: p.tenant_id, vmid: p.vmid, pod_id: p.cloud_pod_id };
            Request::Pod { target, wish: Wish::Health(p.triggered_by), requested_by: None }
        }
        Operation::Scale => {
            let p = ScalePayload::try_from(data)?;
            let to = Size {
                cores: ranged("newCores", p.new_cores, 1, 1024)?,
                memory_mb: ranged("newMemoryMb", p.new_memory_mb, 16, 4_194_304)?,
            };
            let disk_gb = p.new_disk_gb.map(|gib| ranged("newDiskGb", gib, 1, 1_048_576)).transpose()?;
            let target = Target { tenant_id: p.tenant_id, vmid: p.vmid, pod_id: p.cloud_pod_id };
            let wish = Wish::Scale { to, disk_gb, backup_first: p.backup_first, reason: p.reason };
            Request::Pod { target, wish, requested_by: p.requested_by }
        }
        Operation::Action => {
            let p = ActionPayload::try_from(data)?;
            let target = Target { tenant_id: p.tenant_id, vmid: p.vmid, pod_id: p.cloud_pod_id };
            Request::Pod { target, wish: Wish::Action(p.action), requested_by: p.requested_by }
        }
    })
}

/// mPanel's sweep names no pod: `vmid` 0, `cloudPodId` `all`.
fn is_sweep(data: &Value) -> bool {
    data.get("cloudPodId").and_then(Value::as_str) == Some("all")
}

fn ranged(field: &str, value: i64, low: i32, high: i32) -> Result<i32, PayloadError> {
    i32::try_from(value)
        .ok()
        .filter(|number| (low..=high).contains(number))
        .ok_or_else(|| PayloadError::one(field, format!("must be from {low} to {high}, is {value}")))
}

/// Proxmox's own rule, so that a name is refused here and not half-way.
fn snapshot_name(name: &str) -> Result<(), String> {
    let fits = (2..=40).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        && !matches!(name, "current" | "pending" | "vzdump");
    if fits {
        Ok(())
    } else {
        Err("must be a letter and then up to 39 letters, digits, `-` and `_`, and none of current, pending, \
             vzdump"
            .to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn about(more: Value) -> Value {
        let mut data = json!({"tenantId": "5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11", "vmid": 121,
            "cloudPodId": "0b8e2f7d-3c19-4c55-8a0e-6f2f9b1d4a02"});
        data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        data
    }

    #[test]
    fn odd_snapshot_names_are_refused_by_field() {
        let backup = |name: &str| {
            let data = about(json!({"mode": "snapshot", "triggeredBy": "manual", "snapshotName": name}));
            read(Operation::Backup, &data)
        };
        for name in ["a b", "$(reboot)", "../x", "1a", "a", "current", "ä-name", "a;b", &"a".repeat(41)] {
            let text = backup(name).unwrap_err().to_string();
            assert!(text.contains(" snapshotName must be"), "{name}: {text}");
        }
        assert!(backup("before-upgrade").is_ok());
    }

    #[test]
    fn absurd_sizes_are_refused_by_field() {
        let scale = |cores: i64, memory: i64| {
            let data = about(json!({"currentCores": 2, "currentMemoryMb": 2048, "newCores": cores,
                "newMemoryMb": memory, "backupFirst": true}));
            read(Operation::Scale, &data).map_err(|error| error.to_string())
        };
        assert!(scale(0, 1024).unwrap_err().contains(" newCores "));
        assert!(scale(4, -1).unwrap_err().contains(" newMemoryMb "));
        assert!(scale(4, 1 << 40).unwrap_err().contains(" newMemoryMb "));
        assert!(scale(4, 4096).is_ok());
    }

    #[test]
    fn the_sweep_is_known_by_what_it_names() {
        let sweep = json!({"tenantId": "system", "vmid": 0, "cloudPodId": "all", "triggeredBy": "schedule"});
        assert_eq!(read(Operation::Health, &sweep).unwrap(), Request::Sweep);
        let one = about(json!({"triggeredBy": "manual"}));
        assert!(matches!(read(Operation::Health, &one).unwrap(), Request::Pod { .. }));
    }
}
