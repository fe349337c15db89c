//! Changing a pod's power. The pod stays `active`: mPanel's quota, backup and
//! dashboard read that word; what its owner wants of its power is kept beside.

use mpanel_protocol::payload::cloudpods::PodAction;
use serde_json::{Value, json};

use super::{OpError, Work, errand::Call};
use crate::adapters::{
    db::changes,
    proxmox::{GuestKind, Power},
};

/// How long a guest may take to end before it is turned off.
pub(super) const PATIENCE_S: u32 = 60;

impl Work<'_> {
    pub(super) async fn act(&self, action: PodAction) -> Result<Value, OpError> {
        let (client, at, _) = self.guest().await?;
        let paused = at.kind == GuestKind::Vm && client.guest_status(&at).await?.is_paused();
        let (power, wanted) = match action {
            // A machine that is held is not started but let go.
            PodAction::Start if paused => (Power::Resume, "running"),
            PodAction::Start => (Power::Start, "running"),
            // One that is held does not listen either.
            PodAction::Stop if paused => (Power::Stop, "stopped"),
            PodAction::Stop => (Power::Shutdown { patience_s: PATIENCE_S }, "stopped"),
            PodAction::Reboot => (Power::Reboot { patience_s: PATIENCE_S }, "running"),
            PodAction::Suspend => (Power::Suspend, "suspended"),
            PodAction::Resume => (Power::Resume, "running"),
        };
        self.errand(&client, &at, "power", &Call::Power(power)).await?;
        let pod = &self.pod;
        let (vmid, action) = (pod.vmid, action.as_str());
        let result = json!({ "success": true, "vmid": vmid, "action": action, "power": wanted });
        let data = json!({ "action": action, "power": wanted, "vmid": vmid });
        let message = format!("CloudPod {}: {action}; it is {wanted} now", pod.hostname);
        let mut open = self.open().await?;
        changes::set_power(&mut open.tx, pod.id, wanted).await?;
        self.close(open, "STATE_CHANGE", &message, data, &result).await?;
        Ok(result)
    }
}
