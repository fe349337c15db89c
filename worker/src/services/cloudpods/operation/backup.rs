//! Backing a pod up: by vzdump into the configured storage, or, without one, by
//! a snapshot. Whose it is stands in its note.

use mpanel_protocol::payload::cloudpods::BackupMode;
use serde_json::{Value, json};

use super::{OpError, Work, errand::Call, request::BackupWish};
use crate::adapters::{
    db::changes::{self, BackupRow},
    proxmox::{Class, GuestAt, PveClient},
};

const GIB: f64 = 1_073_741_824.0;

/// What was made.
struct Made {
    kind: &'static str,
    location: String,
    size_gb: Option<f64>,
}

impl Work<'_> {
    pub(super) async fn backup(&self, wish: &BackupWish) -> Result<Value, OpError> {
        let (client, at, _) = self.guest().await?;
        let name = wish.name.clone().unwrap_or_else(|| format!("auto-{}", self.begun.began_ms / 1000));
        let made = match &self.service.defaults.backup_storage {
            Some(storage) => self.dump(&client, &at, storage, &name, wish.mode).await?,
            None => {
                self.take_snapshot(&client, &at, "snapshot", &name).await?;
                Made { kind: "snapshot", location: name, size_gb: None }
            }
        };
        let pod = &self.pod;
        let result = json!({ "success": true, "snapshot": made.location });
        let data = json!({
            "snapshot": made.location, "mode": wish.mode.as_str(), "triggeredBy": wish.trigger.as_str(),
            "reason": wish.reason, "vmid": pod.vmid,
        });
        let message = format!("CloudPod {} was backed up: {}", pod.hostname, made.location);
        let mut open = self.open().await?;
        let row = BackupRow { kind: made.kind, location: &made.location, size_gb: made.size_gb };
        changes::backed_up(&mut open.tx, pod.id, &row).await?;
        self.close(open, "BACKUP", &message, data, &result).await?;
        Ok(result)
    }

    /// A snapshot of this job's, with its mark in the description.
    pub(super) async fn take_snapshot(
        &self,
        client: &PveClient,
        at: &GuestAt,
        step: &'static str,
        name: &str,
    ) -> Result<(), OpError> {
        let call = Call::Snapshot { name: name.to_owned(), note: self.mark() };
        self.errand(client, at, step, &call).await
    }

    async fn dump(
        &self,
        client: &PveClient,
        at: &GuestAt,
        storage: &str,
        name: &str,
        mode: BackupMode,
    ) -> Result<Made, OpError> {
        let note = format!("{} {name}", self.mark());
        let call = Call::Backup { mode: mode.as_str(), storage: storage.to_owned(), note: note.clone() };
        self.errand(client, at, "vzdump", &call).await.map_err(|error| match error {
            OpError::Pve(cause) if cause.class == Class::StorageMissing => {
                OpError::BackupStorage { storage: storage.to_owned(), cause }
            }
            error => error,
        })?;
        let volumes = client.backups(&at.node, storage, at.vmid).await?;
        let volume = volumes.into_iter().find(|v| v.notes.as_deref().map(str::trim) == Some(note.as_str()));
        let Some(volume) = volume else {
            let what = format!("its backup was made, but storage {storage} does not show it");
            return Err(OpError::NotYet { vmid: at.vmid, what });
        };
        #[allow(clippy::cast_precision_loss, reason = "a size in bytes is below 2^52")]
        let size_gb = volume.size.map(|bytes| bytes as f64 / GIB);
        Ok(Made { kind: "vzdump", location: volume.volid, size_gb })
    }
}
