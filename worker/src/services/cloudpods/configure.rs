//! The step between a clone and its start: a clone has its template's size,
//! card and disk, and no tags. Only what differs is changed.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    CreateService,
    create::not_yet,
    error::CreateError,
    instance::Instance,
    plan::{Step, soon_again},
};
use crate::adapters::{
    db::ledger::{self, Fence},
    proxmox::{Class, GuestConfig, Outcome, PveClient, TaskEnd, tag_set},
};

/// How long the disk may take to grow.
const DEADLINE: Duration = Duration::from_secs(10 * 60);
const LOOK: Duration = Duration::from_millis(500);

impl CreateService {
    /// Makes sure that a machine is what its pod is to be.
    pub(super) async fn configure(
        &self,
        fence: &Fence,
        instance: &Instance,
        client: &PveClient,
        node: &str,
    ) -> Result<(), CreateError> {
        let at = instance.at(node);
        let deadline = Instant::now() + DEADLINE;
        let wanted = instance.machine_config();
        loop {
            let config = client
                .guest_config(&at)
                .await?
                .ok_or_else(|| not_yet(instance, "it was cloned, and is not there any more"))?;
            let changes: Vec<(&str, &str)> = wanted
                .iter()
                .filter(|(key, value)| !says(&config, key, value))
                .map(|(key, value)| (*key, value.as_str()))
                .collect();
            let (disk, gib) =
                config.root_disk().ok_or_else(|| not_yet(instance, "its template has no disk"))?;
            if gib > instance.spec.disk_gb {
                return Err(CreateError::TemplateTooBig { wanted: instance.spec.disk_gb, template: gib });
            }
            if changes.is_empty() && gib == instance.spec.disk_gb {
                break;
            }
            if Instant::now() > deadline {
                return Err(not_yet(instance, "its configuration does not take"));
            }
            let (generation, step) = (instance.row.generation, Step::Configure.as_str());
            ledger::record_sent(&self.db, fence, generation, step, &instance.spec_hash()).await?;
            let refused = if changes.is_empty() {
                // An absolute size: growing twice is growing once.
                match client.grow_disk(&at, disk, instance.spec.disk_gb).await {
                    Outcome::Done(upid) => match client.wait_task(&upid, deadline, self.settle).await? {
                        TaskEnd::Failed { text, log } => {
                            return Err(CreateError::TaskFailed {
                                task: "resize",
                                vmid: instance.vmid,
                                text,
                                log,
                            });
                        }
                        TaskEnd::Ok | TaskEnd::Warnings(_) | TaskEnd::Lost(_) | TaskEnd::Running => None,
                    },
                    Outcome::NotDone(error) if error.class == Class::NoOpResize => None,
                    Outcome::NotDone(error) => Some(error),
                    Outcome::Unknown(_) => None,
                }
            } else {
                match client.set_guest_config(&at, config.digest.as_deref(), &changes).await {
                    Outcome::Done(()) | Outcome::Unknown(_) => None,
                    Outcome::NotDone(error) => Some(error),
                }
            };
            if let Some(error) = refused.filter(|error| !soon_again(error.class)) {
                return Err(error.into());
            }
            sleep(LOOK).await;
        }
        let (generation, step) = (instance.row.generation, Step::Configure.as_str());
        ledger::record_step(&self.db, fence, generation, step, "done", None, None).await?;
        Ok(())
    }
}

/// Whether a configuration says this already.
fn says(config: &GuestConfig, key: &str, value: &str) -> bool {
    let number = |has: Option<i64>| has.is_some_and(|has| has.to_string() == value);
    match key {
        "cores" => number(config.cores),
        "memory" => number(config.memory),
        "tags" => tag_set(config.tags.as_deref()) == tag_set(Some(value)),
        _ => config.other.get(key).is_some_and(|has| same(&text(has), value)),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Property strings keep no order, and other options beside ours are no difference.
fn same(has: &str, wanted: &str) -> bool {
    let has: Vec<String> = has.split(',').map(str::to_ascii_lowercase).collect();
    wanted.split(',').all(|part| has.contains(&part.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_is_changed() {
        let config: GuestConfig = serde_json::from_value(json!({
            "cores": 2, "memory": "2048", "tags": "b;a", "net0": "bridge=vmbr0,virtio=5E:0C:00:00:00:01,firewall=1",
            "agent": 1, "scsi0": "clients-main:vm-9-disk-0,size=8G", "ide2": "local:cloudinit,media=cdrom"
        }))
        .unwrap();
        for (key, value, there) in [
            ("cores", "2", true),
            ("cores", "4", false),
            ("memory", "2048", true),
            ("tags", "a;b", true),
            ("net0", "virtio=5e:0c:00:00:00:01,bridge=vmbr0", true),
            ("net0", "virtio=5e:0c:00:00:00:01,bridge=vmbr1", false),
            ("agent", "1", true),
            ("ipconfig0", "ip=dhcp", false),
        ] {
            assert_eq!(says(&config, key, value), there, "{key}={value}");
        }
        assert_eq!(config.root_disk(), Some(("scsi0", 8)));
    }
}
