//! Carrying out what the judgement found safe: each repair is one transaction
//! that looks again under the locks that jobs take, and notes itself beside the
//! finding, so that it happens once whoever does it.

use reqwest::Url;
use serde_json::json;
use uuid::Uuid;

use super::{
    super::plan::{Guest, ownership_tag, read_guest},
    ReconcileError, Reconciler,
    finding::{Finding, Repair, Step},
};
use crate::adapters::{
    db::{
        self, books, changes, drift, nodes,
        pods::{self, Retired},
        quota, repairs,
        rounds::{self, Round},
    },
    proxmox::{GuestAt, Outcome, Power},
};

/// A repair that was made.
pub(super) const MADE: bool = true;
/// The books had moved on: nothing was to be done any more.
pub(super) const NOT_NEEDED: bool = false;

impl Reconciler {
    /// Makes one repair; false when there was nothing to do after all.
    pub(super) async fn repair(
        &self,
        round: &Round,
        finding: &Finding,
        apis: &[Url],
    ) -> Result<bool, ReconcileError> {
        let Step::Repair(repair) = &finding.step else { return Ok(NOT_NEEDED) };
        match repair {
            Repair::MarkLost { tenant_id, pod_id, generation } => {
                self.mark_lost(finding, *tenant_id, *pod_id, *generation).await
            }
            Repair::GiveBack { pod_id, generation } => self.give_back(finding, *pod_id, *generation).await,
            Repair::Project { node_id } => self.project(finding, *node_id).await,
            Repair::ReleaseHold { pod_id, generation } => {
                self.release_hold(finding, *pod_id, *generation).await
            }
            Repair::DropLease { pod_id } => {
                let mut tx = db::begin(&self.db).await?;
                let dropped = repairs::drop_lease(&mut tx, *pod_id, self.limits.lease).await?;
                self.settle(tx, finding, "removed it", dropped).await
            }
            Repair::SetCounters { tenant_id } => self.set_counters(finding, *tenant_id).await,
            Repair::RemoveOrphan { cluster_id, pod_id, at, running } => {
                Box::pin(self.remove_orphan(round, finding, apis, (*cluster_id, *pod_id), at, *running)).await
            }
        }
    }

    /// Commits a repair that closes its finding, or undoes it when it was none.
    async fn settle(
        &self,
        mut tx: db::Tx,
        finding: &Finding,
        action: &str,
        made: bool,
    ) -> Result<bool, ReconcileError> {
        if !made || !drift::act(&mut tx, finding.kind.as_str(), &finding.subject, action, true).await? {
            return Ok(NOT_NEEDED);
        }
        db::commit(tx).await?;
        Ok(MADE)
    }

    async fn mark_lost(
        &self,
        finding: &Finding,
        tenant_id: Uuid,
        pod_id: Uuid,
        generation: Option<i32>,
    ) -> Result<bool, ReconcileError> {
        let mut tx = db::begin(&self.db).await?;
        if let Some(generation) = generation
            && !repairs::mark_lost(&mut tx, pod_id, generation).await?
        {
            return Ok(NOT_NEEDED);
        }
        if !drift::act(&mut tx, finding.kind.as_str(), &finding.subject, "marked as lost", false).await? {
            return Ok(NOT_NEEDED);
        }
        changes::set_health(&mut tx, &[pod_id], &["critical"]).await?;
        let message = format!("CloudPod lost: {}", finding.what);
        let data = json!({ "lost": true, "drift": finding.data, "advice": finding.advice });
        pods::event(&mut tx, tenant_id, Some(pod_id), "ERROR", &message, &data).await?;
        db::commit(tx).await?;
        Ok(MADE)
    }

    /// A lost pod's guest is there again: somebody restored it.
    pub(super) async fn welcome_back(&self, pod_id: Uuid) -> Result<(), ReconcileError> {
        let mut tx = db::begin(&self.db).await?;
        let Some(pod) = db::operations::lock_pod(&mut tx, pod_id).await? else { return Ok(()) };
        if !repairs::unmark_lost(&mut tx, pod_id).await? {
            return Ok(());
        }
        let message = format!("CloudPod {}: its guest {} is there again", pod.hostname, pod.vmid);
        let data = json!({ "lost": false, "vmid": pod.vmid });
        pods::event(&mut tx, pod.tenant_id, Some(pod_id), "STATE_CHANGE", &message, &data).await?;
        db::commit(tx).await?;
        tracing::warn!(pod = %pod_id, vmid = pod.vmid, "a lost pod's guest is there again");
        Ok(())
    }

    async fn give_back(
        &self,
        finding: &Finding,
        pod_id: Uuid,
        generation: i32,
    ) -> Result<bool, ReconcileError> {
        let mut tx = db::begin(&self.db).await?;
        let Some(row) = repairs::left_over(&mut tx, pod_id, generation).await? else { return Ok(NOT_NEEDED) };
        self.retire(&mut tx, &row, Retired::Gone).await?;
        self.settle(tx, finding, "gave back what it held; VMID and address rest for a day", true).await
    }

    async fn release_hold(
        &self,
        finding: &Finding,
        pod_id: Uuid,
        generation: i32,
    ) -> Result<bool, ReconcileError> {
        let mut tx = db::begin(&self.db).await?;
        let row = repairs::idle_hold(&mut tx, pod_id, generation, self.limits.hold).await?;
        // Dropped without a commit: the fence stays as it was.
        let Some(row) = row else { return Ok(NOT_NEEDED) };
        self.retire(&mut tx, &row, Retired::NeverMade).await?;
        let message = format!("CloudPod creation did not go on: {}; it was given back", finding.what);
        pods::event(&mut tx, row.tenant_id, Some(pod_id), "ERROR", &message, &finding.data).await?;
        self.settle(tx, finding, "gave back what it held; no request had left", true).await
    }

    async fn retire(
        &self,
        tx: &mut db::Tx,
        row: &pods::InstanceRow,
        how: Retired,
    ) -> Result<(), ReconcileError> {
        let there = nodes::lock(tx, row.node_id).await?.is_some();
        pods::retire(tx, row, how).await?;
        if there {
            nodes::project(tx, row.node_id).await?;
        }
        Ok(())
    }

    async fn project(&self, finding: &Finding, node_id: i32) -> Result<bool, ReconcileError> {
        let mut tx = db::begin(&self.db).await?;
        if nodes::lock(&mut tx, node_id).await?.is_none() {
            return Ok(NOT_NEEDED);
        }
        nodes::project(&mut tx, node_id).await?;
        self.settle(tx, finding, "wrote the sum of the reservations", true).await
    }

    async fn set_counters(&self, finding: &Finding, tenant_id: Uuid) -> Result<bool, ReconcileError> {
        let mut tx = db::begin(&self.db).await?;
        quota::lock_limits(&mut tx, tenant_id).await?;
        let Some(row) = books::quota(&mut tx, tenant_id).await? else { return Ok(NOT_NEEDED) };
        let figures: Vec<i32> = row.should.iter().filter_map(|n| i32::try_from(*n).ok()).collect();
        let Ok(figures) = <[i32; 4]>::try_from(figures) else { return Ok(NOT_NEEDED) };
        if row.busy || row.odd || row.says == row.should {
            return Ok(NOT_NEEDED);
        }
        repairs::set_used(&mut tx, tenant_id, figures).await?;
        self.settle(tx, finding, "set the counters to the sums", true).await
    }

    /// One step of removing an orphan: stop it, or destroy it when it is
    /// stopped. The next round sees what came of it.
    async fn remove_orphan(
        &self,
        round: &Round,
        finding: &Finding,
        apis: &[Url],
        (cluster_id, pod_id): (i32, Uuid),
        at: &GuestAt,
        running: bool,
    ) -> Result<bool, ReconcileError> {
        let vmid = i32::try_from(at.vmid).unwrap_or_default();
        let mut tx = db::begin(&self.db).await?;
        // The books may know it by now; and the VMID must rest before anything is sent.
        if !repairs::rest_vmid(&mut tx, cluster_id, vmid, pod_id).await? {
            return Ok(NOT_NEEDED);
        }
        db::commit(tx).await?;
        let Some(api) = apis.first() else { return Ok(NOT_NEEDED) };
        let client = self.sites.at(api);
        // The tag is read from the guest itself, not from a list that lags.
        let Some(config) = client.guest_config(at).await? else { return Ok(NOT_NEEDED) };
        let tag = ownership_tag(pod_id);
        let ours = matches!(read_guest(&config, &tag, &at.node), Guest::Ours { in_creation: false });
        if !ours || config.protection || config.lock.is_some() || !rounds::is_ours(&self.db, round).await? {
            return Ok(NOT_NEEDED);
        }
        let action = if running { "stopped it" } else { "destroyed it" };
        tracing::warn!(guest = %at, pod = %pod_id, action, "an orphan is removed (cloudpods.orphan_delete)");
        let outcome =
            if running { client.power(at, Power::Stop).await } else { client.destroy_guest(at).await };
        match outcome {
            Outcome::Done(_) | Outcome::Unknown(_) => {}
            Outcome::NotDone(error) => return Err(error.into()),
        }
        let mut tx = db::begin(&self.db).await?;
        drift::act(&mut tx, finding.kind.as_str(), &finding.subject, action, false).await?;
        db::commit(tx).await?;
        Ok(MADE)
    }
}
