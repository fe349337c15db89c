//! The steps after the guest exists: it comes to rest, starts, shows its
//! address; then everything is written in one transaction.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    CreateResult, CreateService, EFFECT, KIND,
    create::not_yet,
    error::CreateError,
    instance::{Instance, Net},
    plan::{Guest, Step, pause_before, soon_again},
};
use crate::adapters::{
    db::{
        self,
        jobs::{self, Ending},
        ledger::{self, Fence},
        pods, quota,
    },
    proxmox::{Class, GuestKind, Outcome, Power, PveClient, TaskEnd, Upid, first_address},
};

/// How long a finished creation may keep its lock.
const REST_DEADLINE: Duration = Duration::from_secs(30);
const START_DEADLINE: Duration = Duration::from_secs(120);
const STARTS_MAX: u32 = 6;
const LOOK: Duration = Duration::from_millis(500);

impl CreateService {
    /// Waits until the guest is whole: ours by its tag, and not locked by its creation.
    pub(super) async fn settle(
        &self,
        fence: &Fence,
        instance: &Instance,
        client: &PveClient,
    ) -> Result<(), CreateError> {
        self.phase(fence, instance, "settling").await?;
        let deadline = Instant::now() + REST_DEADLINE;
        loop {
            let (guest, _) = self.look(client, instance).await?;
            match guest {
                Guest::Ours { in_creation: false } => break,
                Guest::Foreign(by) => return Err(CreateError::VmidTaken { vmid: instance.vmid, by }),
                Guest::Absent | Guest::HalfMade | Guest::Ours { in_creation: true } => {}
            }
            if Instant::now() > deadline {
                return Err(not_yet(instance, "it was created, but does not come to rest"));
            }
            sleep(LOOK).await;
        }
        self.done(fence, instance, Step::Settle, None).await
    }

    /// Makes sure that the guest runs.
    pub(super) async fn start(
        &self,
        fence: &Fence,
        instance: &Instance,
        client: &PveClient,
        node: &str,
    ) -> Result<(), CreateError> {
        self.phase(fence, instance, "starting").await?;
        let deadline = Instant::now() + START_DEADLINE;
        let mut starts = 0;
        let mut last_failure = None;
        let task = match instance.spec.kind {
            GuestKind::Lxc => "vzstart",
            GuestKind::Vm => "qmstart",
        };
        loop {
            if client.guest_status(&instance.at(node)).await?.status == "running" {
                return self.done(fence, instance, Step::Start, None).await;
            }
            if let Some(failure) = last_failure.take()
                && starts >= STARTS_MAX
            {
                return Err(failure);
            }
            if Instant::now() > deadline {
                return Err(not_yet(instance, "it does not start"));
            }
            // Starting twice is harmless: the second is told that it runs already.
            match self.send_start(fence, instance, client, node).await? {
                Sent::Task(upid) => match client.wait_task(&upid, deadline, self.settle).await? {
                    TaskEnd::Failed { text, log } => {
                        let again = soon_again(crate::adapters::proxmox::classify_text(&text));
                        let failure = CreateError::TaskFailed { task, vmid: instance.vmid, text, log };
                        if client.guest_status(&instance.at(node)).await?.status == "running" {
                            continue;
                        }
                        if !again {
                            return Err(failure);
                        }
                        last_failure = Some(failure);
                    }
                    TaskEnd::Ok | TaskEnd::Warnings(_) | TaskEnd::Lost(_) | TaskEnd::Running => {}
                },
                Sent::Perhaps => {}
                Sent::Refused(error) => last_failure = Some(error),
            }
            starts += 1;
            sleep(if starts == 1 {
                Duration::from_millis(100)
            } else {
                pause_before(starts, fastrand::f64())
            })
            .await;
        }
    }

    async fn send_start(
        &self,
        fence: &Fence,
        instance: &Instance,
        client: &PveClient,
        node: &str,
    ) -> Result<Sent, CreateError> {
        let (generation, step) = (instance.row.generation, Step::Start.as_str());
        ledger::record_sent(&self.db, fence, generation, step, &instance.spec_hash()).await?;
        match client.power(&instance.at(node), Power::Start).await {
            Outcome::Done(upid) => {
                ledger::record_step(&self.db, fence, generation, step, "sent", Some(upid.as_str()), None)
                    .await?;
                Ok(Sent::Task(upid))
            }
            Outcome::NotDone(error) if error.class == Class::Running => Ok(Sent::Perhaps),
            Outcome::NotDone(error) if soon_again(error.class) => Ok(Sent::Refused(error.into())),
            Outcome::NotDone(error) => Err(error.into()),
            Outcome::Unknown(error) => {
                tracing::warn!(vmid = instance.vmid, %error, "looking whether it started");
                Ok(Sent::Perhaps)
            }
        }
    }

    /// The address: the one that was given, or the one that the guest shows.
    pub(super) async fn address(
        &self,
        fence: &Fence,
        instance: &Instance,
        client: &PveClient,
        node: &str,
    ) -> Result<String, CreateError> {
        self.phase(fence, instance, "verifying").await?;
        let ip = match &instance.spec.net {
            Net::Static { ip, .. } => ip.clone(),
            Net::Dhcp => self.dhcp_address(instance, client, node).await?,
        };
        self.done(fence, instance, Step::Verify, Some(&json!({ "ip": ip }))).await?;
        Ok(ip)
    }

    async fn dhcp_address(
        &self,
        instance: &Instance,
        client: &PveClient,
        node: &str,
    ) -> Result<String, CreateError> {
        let deadline = Instant::now() + self.defaults.address_wait;
        let mut pause = Duration::from_millis(250);
        loop {
            match client.guest_interfaces(&instance.at(node)).await {
                Ok(interfaces) => {
                    if let Some(address) = first_address(&interfaces) {
                        return Ok(address.to_string());
                    }
                }
                // Shortly after a start Proxmox cannot look inside yet.
                Err(error) if error.class.is_transient() || error.class == Class::NotRunning => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() + pause > deadline {
                return Err(not_yet(
                    instance,
                    "it runs, but shows no address (no DHCP answer on its bridge?)",
                ));
            }
            sleep(pause).await;
            pause = pause.mul_f64(1.5).min(Duration::from_secs(3));
        }
    }

    /// Everything that says "done", in one transaction: pod, books, quota,
    /// event, job row, effect. Done once, by the effect's primary key.
    pub(super) async fn commit(
        &self,
        fence: &Fence,
        instance: &Instance,
        ip: &str,
        requested_by: Option<&str>,
    ) -> Result<CreateResult, CreateError> {
        let row = &instance.row;
        let moved_from = instance.spec.moved_from.and_then(|vmid| u32::try_from(vmid).ok());
        let result = CreateResult {
            success: true,
            vmid: instance.vmid,
            ip: ip.to_owned(),
            cloud_pod_id: row.pod_id,
            moved_from_vmid: moved_from,
        };
        let value = serde_json::to_value(&result).unwrap_or(Value::Null);
        let spec = &instance.spec;
        let mut tx = db::begin(&self.db).await?;
        let record = ledger::hold_fence(&mut tx, fence).await?;
        quota::lock_limits(&mut tx, row.tenant_id).await?;
        ledger::insert_effect(&mut tx, fence, EFFECT, &value).await?;
        pods::activate(&mut tx, row, ip).await?;
        let int = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let used = quota::Change {
            pods: 1,
            cores: int(spec.cores),
            memory_mb: int(spec.memory_mb),
            disk_gb: int(spec.disk_gb),
        };
        quota::change_used(&mut tx, row.tenant_id, used).await?;
        let moved = moved_from
            .map_or_else(String::new, |vmid| format!("; VMID {vmid} had to be given up and is quarantined"));
        let message = format!(
            "CloudPod {} is active on {} with VMID {}{moved}",
            spec.hostname, spec.node_name, row.vmid
        );
        let data = json!({
            "from": "provisioning", "to": "active", "vmid": row.vmid, "ip": ip, "node": spec.node_name,
            "jobId": fence.job_id, "requestedBy": requested_by, "movedFromVmid": moved_from,
        });
        pods::event(&mut tx, row.tenant_id, Some(row.pod_id), "STATE_CHANGE", &message, &data).await?;
        jobs::finish(&mut tx, fence, record.own_row_id, KIND, Some(row.pod_id), Ending::Success(&value))
            .await?;
        ledger::note_outcome(&mut tx, fence, Ok(&value)).await?;
        db::commit(tx).await?;
        Ok(result)
    }

    async fn phase(&self, fence: &Fence, instance: &Instance, phase: &str) -> Result<(), CreateError> {
        Ok(pods::set_phase(&self.db, fence, instance.row.pod_id, instance.row.generation, phase).await?)
    }

    async fn done(
        &self,
        fence: &Fence,
        instance: &Instance,
        step: Step,
        result: Option<&Value>,
    ) -> Result<(), CreateError> {
        let generation = instance.row.generation;
        ledger::record_step(&self.db, fence, generation, step.as_str(), "done", None, result).await?;
        Ok(())
    }
}

/// What became of a request to start.
enum Sent {
    /// It is a task.
    Task(Upid),
    /// It may be running; look.
    Perhaps,
    /// Refused for now.
    Refused(CreateError),
}
