//! A job meets its pod: the payload is checked against the row, the pod's lease
//! is taken, what must be known after a crash is recorded, the job's row says
//! `running`. One transaction, before anything is asked of Proxmox.

use serde_json::Value;

use super::super::{instance::Instance, storable};
use super::{EFFECT, OpError, Operation, OperationService, Target, Work};
use crate::adapters::db::{
    self, Tx, changes,
    jobs::{self, Adopted},
    ledger::{self, Fence},
    operations::{self, PodRecord},
};

impl OperationService {
    /// The pod that a payload is about, if the payload and its row agree.
    pub(super) async fn target(&self, tx: &mut Tx, target: Target) -> Result<PodRecord, OpError> {
        let Target { tenant_id, vmid, pod_id } = target;
        let pod = operations::lock_pod(tx, pod_id).await?.ok_or(OpError::UnknownPod(pod_id))?;
        if pod.tenant_id != tenant_id {
            return Err(OpError::OtherTenant { pod: pod_id, tenant: tenant_id });
        }
        if i64::from(pod.vmid) != vmid {
            return Err(OpError::OtherVmid { pod: pod_id, given: vmid, actual: pod.vmid });
        }
        Ok(pod)
    }

    /// Begins, or goes on with, a job's work. `None`: the pod that is to be
    /// destroyed is gone.
    pub(super) async fn begin(
        &self,
        operation: Operation,
        fence: &Fence,
        job: &super::JobRef,
        payload: &Value,
        target: Target,
    ) -> Result<Option<Work<'_>>, OpError> {
        let kind = operation.row_kind();
        let mut tx = db::begin(&self.db).await?;
        let record = ledger::hold_fence(&mut tx, fence).await?;
        let pod = self.target(&mut tx, target).await?;
        if pod.deleted && operation == Operation::Destroy {
            return Ok(None);
        }
        if let Err(holder) = operations::take_lease(&mut tx, fence, pod.id).await? {
            return Err(OpError::Busy(holder));
        }
        let row = operations::instance_of(&mut tx, pod.id).await?;
        if let Some(row) = row.as_ref().filter(|row| row.phase != "active") {
            return Err(OpError::Busy(format!("its creation ({})", row.phase)));
        }
        let begun = operations::begun(&mut tx, fence).await?;
        let active = pod.status == "active" || begun.is_some();
        if pod.deleted || (operation != Operation::Destroy && !active) {
            let status = if pod.deleted { "deleted".to_owned() } else { pod.status.clone() };
            return Err(OpError::NotActive { pod: pod.id, status, what: operation.noun() });
        }
        let payload = storable(payload);
        let adopted =
            jobs::adopt(&mut tx, fence, record.own_row_id, kind, pod.tenant_id, &payload, job.attempt)
                .await?;
        if adopted == Adopted::Cancelled && record.outcome.is_none() {
            return Err(OpError::Cancelled);
        }
        let begun = operations::begin(&mut tx, fence, kind, &pod).await?;
        let in_our_books = operations::is_in_our_books(&mut tx, pod.id).await?;
        jobs::link_pod(&mut tx, fence, kind, pod.id).await?;
        ledger::note_pod(&mut tx, fence, pod.id).await?;
        ledger::clear_outcome(&mut tx, fence).await?;
        if operation == Operation::Destroy {
            changes::set_status(&mut tx, pod.id, "deleting").await?;
        }
        db::commit(tx).await?;
        let vmid = u32::try_from(pod.vmid).unwrap_or_default();
        let instance = row.map(Instance::of).transpose().map_err(|error| OpError::NotYet {
            vmid,
            what: format!(
                "its record in fleet_pods cannot be read ({error}); was it written by a newer version?"
            ),
        })?;
        let fence = fence.clone();
        Ok(Some(Work {
            service: self,
            operation,
            fence,
            pod,
            instance,
            in_our_books,
            begun,
            requested_by: None,
        }))
    }

    /// The pod was destroyed before, by whomever: that is what was asked for.
    pub(super) async fn gone_already(&self, fence: &Fence, target: Target) -> Result<Value, OpError> {
        let result = serde_json::json!({ "success": true, "vmid": target.vmid });
        let kind = Operation::Destroy.row_kind();
        let mut tx = db::begin(&self.db).await?;
        let record = ledger::hold_fence(&mut tx, fence).await?;
        ledger::insert_effect(&mut tx, fence, EFFECT, &result).await?;
        changes::set_deleted(&mut tx, target.pod_id).await?;
        let ending = jobs::Ending::Success(&result);
        jobs::finish(&mut tx, fence, record.own_row_id, kind, Some(target.pod_id), ending).await?;
        ledger::note_outcome(&mut tx, fence, Ok(&result)).await?;
        operations::release_lease(&mut tx, fence).await?;
        db::commit(tx).await?;
        Ok(result)
    }
}
