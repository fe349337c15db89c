//! Payloads of `cloudpods-create`, `-destroy`, `-backup`, `-health`, `-scale`.
//!
//! Types and spelling only; ranges and formats are the service's business.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::fields::{Fields, PayloadError};

/// Queue that creates pods.
pub const CREATE_QUEUE: &str = "cloudpods-create";
/// Queue that destroys pods.
pub const DESTROY_QUEUE: &str = "cloudpods-destroy";
/// Queue that backs pods up.
pub const BACKUP_QUEUE: &str = "cloudpods-backup";
/// Queue that checks pods, one or all.
pub const HEALTH_QUEUE: &str = "cloudpods-health";
/// Queue that changes a pod's size.
pub const SCALE_QUEUE: &str = "cloudpods-scale";

/// Queue that changes a pod's power; ours, mPanel has none.
pub const ACTION_QUEUE: &str = "cloudpods-action";

/// An enum of wire words with its parser, its list for error texts, and serde.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }
        impl $name {
            /// Every word, for error texts.
            pub const WORDS: &'static str = concat!("" $(, $word, " ")+);
            /// The word on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str { match self { $(Self::$variant => $word),+ } }
            fn parse(text: &str) -> Option<Self> {
                match text.to_ascii_lowercase().as_str() { $($word => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

words! {
    /// What a pod is on Proxmox.
    PodKind { /** A container. */ Lxc = "lxc", /** A virtual machine. */ Vm = "vm" }
}
words! {
    /// How a backup treats the running guest.
    BackupMode {
        /** Without interruption. */ Snapshot = "snapshot",
        /** Suspended for a moment. */ Suspend = "suspend",
        /** Stopped meanwhile. */ Stop = "stop",
    }
}
words! {
    /// Why a backup was made.
    BackupTrigger {
        /** By a schedule. */ Schedule = "schedule",
        /** By a person. */ Manual = "manual",
        /** Before a change of size. */ PreScale = "pre-scale",
        /** Before destruction. */ PreDestroy = "pre-destroy",
    }
}
words! {
    /// Why a health check was made.
    HealthTrigger {
        /** By a schedule. */ Schedule = "schedule",
        /** By a person. */ Manual = "manual",
        /** By FocalPilot. */ FocalPilot = "focalpilot",
    }
}

words! {
    /// What is to be done to a pod's power.
    PodAction {
        /** Turns it on. */ Start = "start",
        /** Turns it off, gracefully where it listens. */ Stop = "stop",
        /** Off and on. */ Reboot = "reboot",
        /** Holds it. */ Suspend = "suspend",
        /** Lets it go on. */ Resume = "resume",
    }
}

/// `cloudpods-create` / `create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Value")]
pub struct CreatePayload {
    /// Whose pod it becomes.
    pub tenant_id: Uuid,
    /// The guest's id; absent from our own API, always sent by mPanel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmid: Option<i64>,
    /// The guest's host name.
    pub hostname: String,
    /// A fixed address, with or without prefix length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Whether to choose an address; absent means yes unless `ip` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_ip: Option<bool>,
    /// CPU cores.
    pub cores: i64,
    /// Memory, MiB.
    pub memory_mb: i64,
    /// Swap, MiB; absent means the pod row's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_mb: Option<i64>,
    /// Root disk, GiB.
    pub disk_gb: i64,
    /// Region; absent means the configured default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Who asked, a user id or a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// A row of `cloud_pod_blueprints`, by its id or its slug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blueprint_id: Option<String>,
    /// The plan it was sold as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan_id: Option<String>,
    /// Container or machine; absent means what the blueprint says, else a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<PodKind>,
}

impl TryFrom<Value> for CreatePayload {
    type Error = PayloadError;

    fn try_from(value: Value) -> Result<Self, PayloadError> {
        let mut f = Fields::of(&value)?;
        let tenant_id = f.uuid("tenantId");
        let tenant_id = f.required("tenantId", tenant_id);
        let hostname = f.text("hostname");
        let hostname = f.required("hostname", hostname);
        let cores = f.integer("cores");
        let cores = f.required("cores", cores);
        let memory_mb = f.integer("memoryMb");
        let memory_mb = f.required("memoryMb", memory_mb);
        let disk_gb = f.integer("diskGb");
        let disk_gb = f.required("diskGb", disk_gb);
        let vmid = f.integer("vmid");
        let ip = f.text("ip");
        let auto_ip = f.flag("autoIp");
        let swap_mb = f.integer("swapMb");
        let region = f.text("region");
        let requested_by = f.text("requestedBy");
        let blueprint_id = f.text("blueprintId");
        let plan_id = f.text("planId");
        let kind = f.word("kind", PodKind::parse, PodKind::WORDS.trim_end());
        let decoded = (|| {
            Some(Self {
                tenant_id: tenant_id?,
                vmid,
                hostname: hostname?,
                ip,
                auto_ip,
                cores: cores?,
                memory_mb: memory_mb?,
                swap_mb,
                disk_gb: disk_gb?,
                region,
                requested_by,
                blueprint_id,
                plan_id,
                kind,
            })
        })();
        f.finish(decoded)
    }
}

/// `cloudpods-destroy` / `destroy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Value")]
pub struct DestroyPayload {
    /// Whose pod it is; to be checked against the row.
    pub tenant_id: Uuid,
    /// The guest's id; to be checked against the row.
    pub vmid: i64,
    /// The row of `cloud_pods`.
    pub cloud_pod_id: Uuid,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Why, free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl TryFrom<Value> for DestroyPayload {
    type Error = PayloadError;

    fn try_from(value: Value) -> Result<Self, PayloadError> {
        let mut f = Fields::of(&value)?;
        let target = target(&mut f);
        let (requested_by, reason) = (f.text("requestedBy"), f.text("reason"));
        f.finish(target.map(|(tenant_id, vmid, cloud_pod_id)| Self {
            tenant_id,
            vmid,
            cloud_pod_id,
            requested_by,
            reason,
        }))
    }
}

/// `cloudpods-backup` / `backup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Value")]
pub struct BackupPayload {
    /// Whose pod it is; to be checked against the row.
    pub tenant_id: Uuid,
    /// The guest's id; to be checked against the row.
    pub vmid: i64,
    /// The row of `cloud_pods`.
    pub cloud_pod_id: Uuid,
    /// How to treat the running guest.
    pub mode: BackupMode,
    /// A name for the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_name: Option<String>,
    /// Why, free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What asked for it.
    pub triggered_by: BackupTrigger,
}

impl TryFrom<Value> for BackupPayload {
    type Error = PayloadError;

    fn try_from(value: Value) -> Result<Self, PayloadError> {
        let mut f = Fields::of(&value)?;
        let target = target(&mut f);
        let mode = f.word("mode", BackupMode::parse, BackupMode::WORDS.trim_end());
        let mode = f.required("mode", mode);
        let trigger = f.word("triggeredBy", BackupTrigger::parse, BackupTrigger::WORDS.trim_end());
        let trigger = f.required("triggeredBy", trigger);
        let (snapshot_name, reason) = (f.text("snapshotName"), f.text("reason"));
        let decoded = (|| {
            let (tenant_id, vmid, cloud_pod_id) = target?;
            let (mode, triggered_by) = (mode?, trigger?);
            Some(Self { tenant_id, vmid, cloud_pod_id, mode, snapshot_name, reason, triggered_by })
        })();
        f.finish(decoded)
    }
}

/// `cloudpods-health` / `health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Value")]
pub struct HealthPayload {
    /// Whose pod it is; to be checked against the row.
    pub tenant_id: Uuid,
    /// The guest's id; to be checked against the row.
    pub vmid: i64,
    /// The row of `cloud_pods`.
    pub cloud_pod_id: Uuid,
    /// What asked for it.
    pub triggered_by: HealthTrigger,
}

impl TryFrom<Value> for HealthPayload {
    type Error = PayloadError;

    fn try_from(value: Value) -> Result<Self, PayloadError> {
        let mut f = Fields::of(&value)?;
        let target = target(&mut f);
        let trigger = f.word("triggeredBy", HealthTrigger::parse, HealthTrigger::WORDS.trim_end());
        let trigger = f.required("triggeredBy", trigger);
        f.finish(target.zip(trigger).map(|((tenant_id, vmid, cloud_pod_id), triggered_by)| Self {
            tenant_id,
            vmid,
            cloud_pod_id,
            triggered_by,
        }))
    }
}

/// `cloudpods-health` / `scheduled-health-sweep`: all pods. Its `tenantId`
/// is the word `system`, its `cloudPodId` the word `all`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Value")]
pub struct SweepPayload {
    /// `system`.
    pub tenant_id: String,
    /// `0`.
    pub vmid: i64,
    /// `all`.
    pub cloud_pod_id: String,
    /// What asked for it.
    pub triggered_by: HealthTrigger,
}

impl TryFrom<Value> for SweepPayload {
    type Error = PayloadError;

    fn try_from(value: Value) -> Result<Self, PayloadError> {
        let mut f = Fields::of(&value)?;
        let tenant_id = f.text("tenantId").unwrap_or_else(|| "system".to_owned());
        let vmid = f.integer("vmid").unwrap_or(0);
        let cloud_pod_id = f.text("cloudPodId").unwrap_or_else(|| "all".to_owned());
        let triggered_by = f
            .word("triggeredBy", HealthTrigger::parse, HealthTrigger::WORDS.trim_end())
            .unwrap_or(HealthTrigger::Schedule);
        f.finish(Some(Self { tenant_id, vmid, cloud_pod_id, triggered_by }))
    }
}

/// `cloudpods-scale` / `scale`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Value")]
pub struct ScalePayload {
    /// Whose pod it is; to be checked against the row.
    pub tenant_id: Uuid,
    /// The guest's id; to be checked against the row.
    pub vmid: i64,
    /// The row of `cloud_pods`.
    pub cloud_pod_id: Uuid,
    /// What the producer believed the cores to be.
    pub current_cores: i64,
    /// What the producer believed the memory to be, MiB.
    pub current_memory_mb: i64,
    /// Wanted cores.
    pub new_cores: i64,
    /// Wanted memory, MiB.
    pub new_memory_mb: i64,
    /// Wanted disk, GiB; mPanel never sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_disk_gb: Option<i64>,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Why, free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether to take a snapshot first.
    pub backup_first: bool,
}

impl TryFrom<Value> for ScalePayload {
    type Error = PayloadError;

    fn try_from(value: Value) -> Result<Self, PayloadError> {
        let mut f = Fields::of(&value)?;
        let target = target(&mut f);
        let mut size = |field: &str| {
            let value = f.integer(field);
            f.required(field, value)
        };
        let sizes = [size("currentCores"), size("currentMemoryMb"), size("newCores"), size("newMemoryMb")];
        let new_disk_gb = f.integer("newDiskGb");
        let backup_first = f.flag("backupFirst").unwrap_or(false);
        let (requested_by, reason) = (f.text("requestedBy"), f.text("reason"));
        let decoded = (|| {
            let (tenant_id, vmid, cloud_pod_id) = target?;
            Some(Self {
                tenant_id,
                vmid,
                cloud_pod_id,
                current_cores: sizes[0]?,
                current_memory_mb: sizes[1]?,
                new_cores: sizes[2]?,
                new_memory_mb: sizes[3]?,
                new_disk_gb,
                requested_by,
                reason,
                backup_first,
            })
        })();
        f.finish(decoded)
    }
}

/// `cloudpods-action` / `action`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Value")]
pub struct ActionPayload {
    /// Whose pod it is; to be checked against the row.
    pub tenant_id: Uuid,
    /// The guest's id; to be checked against the row.
    pub vmid: i64,
    /// The row of `cloud_pods`.
    pub cloud_pod_id: Uuid,
    /// What is to be done.
    pub action: PodAction,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
}

impl TryFrom<Value> for ActionPayload {
    type Error = PayloadError;

    fn try_from(value: Value) -> Result<Self, PayloadError> {
        let mut f = Fields::of(&value)?;
        let target = target(&mut f);
        let action = f.word("action", PodAction::parse, PodAction::WORDS.trim_end());
        let action = f.required("action", action);
        let requested_by = f.text("requestedBy");
        f.finish(target.zip(action).map(|((tenant_id, vmid, cloud_pod_id), action)| Self {
            tenant_id,
            vmid,
            cloud_pod_id,
            action,
            requested_by,
        }))
    }
}

/// The three fields that every job about an existing pod carries.
fn target(f: &mut Fields<'_>) -> Option<(Uuid, i64, Uuid)> {
    let tenant_id = f.uuid("tenantId");
    let tenant_id = f.required("tenantId", tenant_id);
    let vmid = f.integer("vmid");
    let vmid = f.required("vmid", vmid);
    let cloud_pod_id = f.uuid("cloudPodId");
    let cloud_pod_id = f.required("cloudPodId", cloud_pod_id);
    Some((tenant_id?, vmid?, cloud_pod_id?))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
