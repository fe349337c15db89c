//! Destroying a pod: its guest is stopped and removed, seen to be gone twice,
//! and only then everything it held is given back.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{OpError, Work, errand::Call, find::Seen};
use crate::adapters::{
    db::{
        changes, nodes,
        pods::{self, Retired},
        quota::{self, Change},
    },
    proxmox::{Class, Outcome, Power},
};

/// The cluster's list lags: what was seen to be gone is looked for once more.
const LOOK: Duration = Duration::from_millis(500);
/// How often one attempt looks.
const ROUNDS_MAX: u32 = 20;
/// A change of the configuration that meets another is made again.
const CONFLICTS_MAX: u32 = 5;

impl Work<'_> {
    pub(super) async fn destroy(&self, reason: Option<&str>) -> Result<Value, OpError> {
        let (mut absent, mut rounds) = (0, 0);
        while absent < 2 {
            rounds += 1;
            if rounds > ROUNDS_MAX {
                let vmid = u32::try_from(self.pod.vmid).unwrap_or_default();
                return Err(OpError::NotYet {
                    vmid,
                    what: "it was destroyed, and is still there".to_owned(),
                });
            }
            match self.find().await? {
                (_, Seen::Absent) => absent += 1,
                (_, Seen::Foreign(by)) if !self.in_our_books || absent == 0 => {
                    return Err(OpError::Foreign { vmid: self.pod.vmid, by });
                }
                // Another guest has the VMID by now, so ours is not there.
                (_, Seen::Foreign(_)) => break,
                (None, Seen::Ours(..)) => {}
                (Some(client), Seen::Ours(at, config)) => {
                    absent = 0;
                    if config.protection {
                        self.unprotect().await?;
                    }
                    // A guest that came back (somebody started it) is stopped again.
                    if client.guest_status(&at).await?.status != "stopped" {
                        self.note("stop", "failed", None).await?;
                        self.errand(&client, &at, "stop", &Call::Power(Power::Stop)).await?;
                    }
                    self.errand(&client, &at, "destroy", &Call::Destroy).await?;
                    if client.guest_config(&at).await?.is_some() {
                        // Its task said that it was gone.
                        self.note("destroy", "failed", None).await?;
                    }
                }
            }
            if absent < 2 {
                sleep(LOOK).await;
            }
        }
        self.note("absent", "done", None).await?;
        self.commit_destroyed(reason).await
    }

    /// The owner's destruction counts more than the guest's protection.
    async fn unprotect(&self) -> Result<(), OpError> {
        let mut conflicts = 0;
        loop {
            let (client, at, config) = self.guest().await?;
            if !config.protection {
                return Ok(());
            }
            match client.set_guest_config(&at, config.digest.as_deref(), &[("protection", "0")]).await {
                Outcome::Done(()) | Outcome::Unknown(_) => {}
                Outcome::NotDone(error)
                    if error.class == Class::DigestMismatch && conflicts < CONFLICTS_MAX => {}
                Outcome::NotDone(error) => return Err(error.into()),
            }
            conflicts += 1;
            if conflicts > CONFLICTS_MAX {
                let what = "its protection cannot be taken off".to_owned();
                return Err(OpError::NotYet { vmid: at.vmid, what });
            }
        }
    }

    /// A guest that was stopped to be destroyed, and could not be, runs again.
    pub(super) async fn start_again(&self) -> Result<(), OpError> {
        if self.step("stop").await?.is_none() {
            return Ok(());
        }
        let (Some(client), Seen::Ours(at, _)) = self.find().await? else { return Ok(()) };
        if client.guest_status(&at).await?.status == "stopped" {
            self.errand(&client, &at, "undo-start", &Call::Power(Power::Start)).await?;
        }
        Ok(())
    }

    async fn commit_destroyed(&self, reason: Option<&str>) -> Result<Value, OpError> {
        let pod = &self.pod;
        let result = json!({ "success": true, "vmid": pod.vmid });
        let data = json!({
            "from": self.begun.prior_status, "to": "deleted", "vmid": pod.vmid, "reason": reason,
        });
        let message = format!("CloudPod {} was destroyed", pod.hostname);
        let mut open = self.open().await?;
        if let Some(instance) = &self.instance {
            nodes::lock(&mut open.tx, instance.row.node_id).await?;
            pods::retire(&mut open.tx, &instance.row, Retired::Gone).await?;
            if instance.row.api_url.is_some() {
                nodes::project(&mut open.tx, instance.row.node_id).await?;
            }
        }
        changes::set_deleted(&mut open.tx, pod.id).await?;
        // A pod that was never counted is not taken off.
        if matches!(self.begun.prior_status.as_str(), "active" | "deleting") {
            let used =
                Change { pods: -1, cores: -pod.cores, memory_mb: -pod.memory_mb, disk_gb: -pod.disk_gb };
            quota::change_used(&mut open.tx, pod.tenant_id, used).await?;
        }
        self.close(open, "STATE_CHANGE", &message, data, &result).await?;
        Ok(result)
    }
}
