//! When a creation has failed for good: take away what is provably ours,
//! release what is provably free, and write the failure where mPanel reads it.
//!
//! Nothing is released on a guess. What cannot be verified is quarantined:
//! its VMID, address and capacity stay reserved until an operator looks.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    Before, CreateService, JobRef, KIND,
    error::CreateError,
    instance::Instance,
    plan::{Guest, Step},
};
use crate::adapters::{
    db::{
        self, DbError, Tx,
        jobs::{self, Ending},
        ledger::{self, Fence, StepRecord},
        nodes,
        pods::{self, Retired},
        quota,
    },
    proxmox::{Class, Outcome, Power, PveClient, PveError, TaskEnd, Upid},
};

/// How long the whole clean-up on Proxmox may take before we stop guessing.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(15 * 60);
const LOOK: Duration = Duration::from_millis(500);
/// Longest reason that goes into rows.
const REASON_MAX: usize = 4000;

impl CreateService {
    /// Undoes and records a creation that has failed for good. Safe to run
    /// twice; does nothing to a pod that was committed.
    ///
    /// # Errors
    /// When the database does not answer: the caller tries again later.
    pub async fn fail(
        &self,
        job: &JobRef,
        before: Before,
        payload: &Value,
        reason: &str,
    ) -> Result<(), CreateError> {
        let fence = match before {
            Before::NeverRan => ledger::take_fence(&self.db, job.start()).await?,
            Before::Ran => match ledger::take_fence_if_latest(&self.db, job.start()).await {
                Err(DbError::Fenced { .. }) => {
                    tracing::warn!(job = %job.job_id, "a newer attempt has taken over; its work is left alone");
                    return Ok(());
                }
                taken => taken?,
            },
        };
        if ledger::effect(&self.db, &fence, super::EFFECT).await?.is_some() {
            tracing::warn!(job = %job.job_id, "the job is failed from outside, but its pod is active and stays");
            return Ok(());
        }
        let instance = match pods::live_instance(&self.db, &fence).await? {
            None => None,
            Some(row) => match Instance::of(row) {
                Ok(instance) => Some(instance),
                Err(error) => {
                    tracing::error!(job = %job.job_id, %error, "the pod's record cannot be read; it stays reserved");
                    None
                }
            },
        };
        let retired = match &instance {
            None => None,
            Some(instance) => Some(self.clean_up(&fence, instance).await?),
        };
        self.write_failure(&fence, payload, reason, instance.as_ref().zip(retired)).await
    }

    /// How long an API that is away is waited for.
    fn away(&self) -> Duration {
        self.settle * 2
    }

    /// Removes the guest if it is ours, and answers what is known of it.
    async fn clean_up(&self, fence: &Fence, instance: &Instance) -> Result<Retired, CreateError> {
        let record = ledger::step(&self.db, fence, instance.row.generation, Step::Create.as_str()).await?;
        let Some(record) = record else { return Ok(Retired::NeverMade) };
        if record.state == "failed" && record.sends <= 1 && record.upid.is_none() {
            // The only request was refused: there never was a guest of ours.
            return Ok(Retired::NeverMade);
        }
        let Some(client) = instance.row.api_url.as_deref().and_then(|url| self.sites.base(url).ok()) else {
            return Ok(Retired::Quarantined);
        };
        let client = self.sites.at(&client);
        let deadline = Instant::now() + CLEANUP_DEADLINE;
        match self.remove(fence, instance, &client, &record, deadline).await {
            Ok(retired) => Ok(retired),
            // Overtaken, or the books cannot be read: nothing is to be concluded, nor written.
            Err(error @ CreateError::Db(_)) => Err(error),
            Err(error) => {
                tracing::error!(vmid = instance.vmid, %error, "what is left of the pod cannot be verified; quarantined");
                Ok(Retired::Quarantined)
            }
        }
    }

    async fn remove(
        &self,
        fence: &Fence,
        instance: &Instance,
        client: &PveClient,
        record: &StepRecord,
        deadline: Instant,
    ) -> Result<Retired, CreateError> {
        let started_s = record.started_at.timestamp();
        let unknown = (record.state == "sent" && record.upid.is_none())
            .then(|| Duration::from_secs_f64(record.age_s.max(0.0)));
        let upid = record.upid.as_deref().and_then(|text| text.parse::<Upid>().ok());
        // A request of unknown outcome may still take effect.
        if let Some(age) = unknown
            && let Some(rest) = self.settle.checked_sub(age)
        {
            sleep(rest).await;
        }
        let mut tasks: Vec<Upid> = upid.into_iter().collect();
        if unknown.is_some() {
            let since = started_s - 60;
            let found = patiently(self.away(), || self.creation_tasks(client, instance, since)).await?;
            tasks.extend(found.into_iter().filter(|task| !task.ended).map(|task| task.upid));
        }
        for task in tasks {
            if matches!(client.wait_task(&task, deadline, self.away()).await?, TaskEnd::Running) {
                return Ok(Retired::Quarantined);
            }
        }
        let (mut absent, mut stopped) = (0, false);
        let half_made_until = Instant::now() + self.settle;
        loop {
            let (guest, at) = patiently(self.away(), || self.look(client, instance)).await?;
            match guest {
                // Node and cluster both say so; twice, since the cluster's list lags.
                Guest::Absent => absent += 1,
                // Not ours, so ours is not there.
                Guest::Foreign(_) => return Ok(Retired::Gone),
                Guest::HalfMade | Guest::Ours { in_creation: true } if Instant::now() > half_made_until => {
                    return Ok(Retired::Quarantined);
                }
                Guest::HalfMade | Guest::Ours { in_creation: true } => {}
                Guest::Ours { in_creation: false } => {
                    absent = 0;
                    self.destroy(fence, client, instance, &at, &mut stopped, deadline).await?;
                }
            }
            if absent >= 2 {
                return Ok(Retired::Gone);
            }
            if Instant::now() > deadline {
                return Ok(Retired::Quarantined);
            }
            sleep(LOOK).await;
        }
    }

    /// One try to stop and destroy; what came of it shows at the next look.
    async fn destroy(
        &self,
        fence: &Fence,
        client: &PveClient,
        instance: &Instance,
        node: &str,
        stopped: &mut bool,
        deadline: Instant,
    ) -> Result<(), CreateError> {
        let at = instance.at(node);
        let running = patiently(self.away(), || client.guest_status(&at)).await?.status == "running";
        // A newer attempt may have made this guest its own while we were held up.
        if !ledger::is_current(&self.db, fence).await? {
            return Err(fence.lost().into());
        }
        let outcome = if running && !*stopped {
            client.power(&at, Power::Stop).await
        } else {
            client.destroy_guest(&at).await
        };
        match outcome {
            Outcome::Done(task) => {
                let end = client.wait_task(&task, deadline, self.away()).await?;
                if let TaskEnd::Failed { text, .. } = end {
                    tracing::warn!(vmid = instance.vmid, %text, "clean-up task failed; looking again");
                }
                *stopped = running && !*stopped;
                Ok(())
            }
            Outcome::NotDone(error)
                if error.class.is_transient()
                    || matches!(error.class, Class::Running | Class::NotRunning | Class::NotFound) =>
            {
                *stopped = false;
                Ok(())
            }
            Outcome::NotDone(error) => Err(error.into()),
            Outcome::Unknown(_) => Ok(()),
        }
    }

    /// Gives up a generation of a pod that goes on under another VMID.
    pub(super) async fn give_up(
        &self,
        fence: &Fence,
        instance: &Instance,
        why: &str,
        how: Retired,
    ) -> Result<(), CreateError> {
        let mut tx = db::begin(&self.db).await?;
        ledger::hold_fence(&mut tx, fence).await?;
        self.retire(&mut tx, instance, how).await?;
        let message =
            format!("VMID {} of CloudPod {} was given up: {why}", instance.vmid, instance.spec.hostname);
        let data = json!({ "vmid": instance.vmid, "node": instance.spec.node_name, "jobId": fence.job_id });
        let row = &instance.row;
        pods::event(&mut tx, row.tenant_id, Some(row.pod_id), "ERROR", &message, &data).await?;
        db::commit(tx).await?;
        Ok(())
    }

    async fn retire(&self, tx: &mut Tx, instance: &Instance, how: Retired) -> Result<(), DbError> {
        let row = &instance.row;
        nodes::lock(tx, row.node_id).await?;
        pods::retire(tx, row, how).await?;
        // A node whose row is gone has no allocation either.
        if row.api_url.is_some() { nodes::project(tx, row.node_id).await } else { Ok(()) }
    }

    /// Pod, event, job row and books, in one transaction.
    async fn write_failure(
        &self,
        fence: &Fence,
        payload: &Value,
        reason: &str,
        retired: Option<(&Instance, Retired)>,
    ) -> Result<(), CreateError> {
        let reason: String = reason.chars().filter(|c| *c != '\0').take(REASON_MAX).collect();
        let mut tx = db::begin(&self.db).await?;
        let record = ledger::hold_fence(&mut tx, fence).await?;
        let first_time = record.outcome.as_deref() != Some("failed");
        if let Some((instance, how)) = retired {
            self.retire(&mut tx, instance, how).await?;
        }
        // Only the pod that this job made (or a Node worker for it), never whoever holds the VMID.
        let pod_id = match record.pod_id {
            Some(pod_id) => Some(pod_id),
            None => pods::of_job_row(&mut tx, fence, KIND).await?,
        };
        if let Some(pod_id) = pod_id {
            pods::fail(&mut tx, pod_id).await?;
        }
        if let Some(tenant_id) = tenant_of(payload)
            && quota::tenant_exists(&mut tx, tenant_id).await?
        {
            let payload = super::storable(payload);
            // A row is made where mPanel has none yet; `adopt` leaves a cancelled one alone.
            jobs::adopt(&mut tx, fence, record.own_row_id, KIND, tenant_id, &payload, 0).await?;
            if first_time {
                let left = match retired {
                    Some((instance, Retired::Quarantined)) => {
                        format!("; VMID {} is quarantined: look at it on Proxmox", instance.vmid)
                    }
                    _ => String::new(),
                };
                let message = format!("CloudPod creation failed: {reason}{left}");
                let data = json!({ "jobId": fence.job_id, "error": reason });
                pods::event(&mut tx, tenant_id, pod_id, "ERROR", &message, &data).await?;
            }
        }
        let own_row_id = ledger::hold_fence(&mut tx, fence).await?.own_row_id;
        jobs::finish(&mut tx, fence, own_row_id, KIND, pod_id, Ending::Failed(&reason)).await?;
        ledger::note_outcome(&mut tx, fence, Err(&reason)).await?;
        db::commit(tx).await?;
        Ok(())
    }
}

/// The tenant that a payload names, however broken the rest is.
fn tenant_of(payload: &Value) -> Option<Uuid> {
    payload.get("tenantId")?.as_str().and_then(|text| Uuid::parse_str(text.trim()).ok())
}

/// Repeats a read while the API is away, for a while.
async fn patiently<T, F>(patience: Duration, mut read: impl FnMut() -> F) -> Result<T, PveError>
where
    F: Future<Output = Result<T, PveError>>,
{
    let give_up = Instant::now() + patience;
    loop {
        match read().await {
            Err(error) if error.class.is_transient() && Instant::now() < give_up => sleep(LOOK * 4).await,
            result => return result,
        }
    }
}
