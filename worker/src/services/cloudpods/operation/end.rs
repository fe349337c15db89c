//! The rows that say how a job ended: its success in one transaction, once;
//! its failure after what can be undone was undone.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::super::{Before, JobRef, instance::Instance, storable};
use super::{
    EFFECT, OpError, Operation, OperationService, Work,
    request::{self, Request},
};
use crate::adapters::db::{
    self, DbError, Tx, changes,
    jobs::{self, Ending},
    ledger::{self, Fence, JobRecord},
    operations, pods, quota,
};

/// How long undoing waits for a Proxmox that is away.
const UNDO: Duration = Duration::from_secs(120);
const UNDO_PAUSE: Duration = Duration::from_secs(2);
/// Longest reason that goes into rows.
const REASON_MAX: usize = 4000;

/// The transaction that ends a job, with fence and quota held.
pub(super) struct Open {
    pub(super) tx: Tx,
    record: JobRecord,
    /// The tenant's limits, where it has a row.
    pub(super) limits: Option<quota::LimitRow>,
}

impl Work<'_> {
    /// Opens a transaction of this attempt's. Locks: fence, then quota; the
    /// caller's come after.
    pub(super) async fn open(&self) -> Result<Open, OpError> {
        let mut tx = db::begin(&self.service.db).await?;
        let record = ledger::hold_fence(&mut tx, &self.fence).await?;
        let limits = quota::lock_limits(&mut tx, self.pod.tenant_id).await?;
        Ok(Open { tx, record, limits })
    }

    /// Ends the job: event, job row, effect, lease. Done once, by the effect's
    /// primary key, together with what the caller wrote before.
    pub(super) async fn close(
        &self,
        open: Open,
        event: &str,
        message: &str,
        mut data: Value,
        result: &Value,
    ) -> Result<(), OpError> {
        let Open { mut tx, record, .. } = open;
        let (fence, pod) = (&self.fence, &self.pod);
        data["jobId"] = json!(fence.job_id);
        data["requestedBy"] = json!(self.requested_by);
        ledger::insert_effect(&mut tx, fence, EFFECT, result).await?;
        pods::event(&mut tx, pod.tenant_id, Some(pod.id), event, message, &data).await?;
        let kind = self.operation.row_kind();
        jobs::finish(&mut tx, fence, record.own_row_id, kind, Some(pod.id), Ending::Success(result)).await?;
        ledger::note_outcome(&mut tx, fence, Ok(result)).await?;
        operations::release_lease(&mut tx, fence).await?;
        Ok(db::commit(tx).await?)
    }
}

impl OperationService {
    /// Undoes and records an operation that has failed for good. Safe to run
    /// twice; does nothing to one that was committed.
    ///
    /// # Errors
    /// When the database does not answer: the caller tries again later.
    pub async fn fail(
        &self,
        operation: Operation,
        job: &JobRef,
        before: Before,
        payload: &Value,
        reason: &str,
    ) -> Result<(), OpError> {
        let kind = operation.row_kind();
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
        if ledger::effect(&self.db, &fence, EFFECT).await?.is_some() {
            tracing::warn!(job = %job.job_id, "the job is failed from outside, but its work is done and stays");
            return Ok(());
        }
        let reason: String = reason.chars().filter(|c| *c != '\0').take(REASON_MAX).collect();
        if operation == Operation::Health {
            return self.end_health(&fence, None, Err(&reason)).await;
        }
        let undone = self.undo(operation, &fence).await?;
        let mut tx = db::begin(&self.db).await?;
        let record = ledger::hold_fence(&mut tx, &fence).await?;
        if let Some(begun) = operations::begun(&mut tx, &fence).await? {
            if operation == Operation::Destroy {
                let status = self.status_before(&mut tx, &begun).await?;
                changes::set_status(&mut tx, begun.pod_id, &status).await?;
            }
            operations::release_lease(&mut tx, &fence).await?;
        }
        let pod = self.failed_pod(&mut tx, operation, payload).await?;
        if let Some(pod) = &pod {
            let payload = storable(payload);
            // A row is made where mPanel has none yet; `adopt` leaves a cancelled one alone.
            jobs::adopt(&mut tx, &fence, record.own_row_id, kind, pod.tenant_id, &payload, job.attempt)
                .await?;
            if record.outcome.as_deref() != Some("failed") {
                let message =
                    format!("CloudPod {}: {} failed: {reason}{undone}", pod.hostname, operation.noun());
                let data = json!({ "jobId": fence.job_id, "error": reason, "operation": kind });
                pods::event(&mut tx, pod.tenant_id, Some(pod.id), "ERROR", &message, &data).await?;
            }
        }
        let own_row_id = ledger::hold_fence(&mut tx, &fence).await?.own_row_id;
        let pod_id = pod.map(|pod| pod.id);
        jobs::finish(&mut tx, &fence, own_row_id, kind, pod_id, Ending::Failed(&reason)).await?;
        ledger::note_outcome(&mut tx, &fence, Err(&reason)).await?;
        Ok(db::commit(tx).await?)
    }

    /// The pod that a failed job was about. One that is another tenant's, or has
    /// another VMID, is none of the job's business.
    async fn failed_pod(
        &self,
        tx: &mut Tx,
        operation: Operation,
        payload: &Value,
    ) -> Result<Option<operations::PodRecord>, OpError> {
        // Whatever else is wrong with a payload, these three may be right.
        let mut bare = json!({ "triggeredBy": "manual" });
        for field in ["tenantId", "vmid", "cloudPodId"] {
            bare[field] = payload.get(field).cloned().unwrap_or(Value::Null);
        }
        let target = match (request::read(operation, payload), request::read(Operation::Health, &bare)) {
            (Ok(Request::Pod { target, .. }), _) | (_, Ok(Request::Pod { target, .. })) => target,
            _ => return Ok(None),
        };
        match self.target(tx, target).await {
            Ok(pod) => Ok(Some(pod)),
            Err(error @ OpError::Db(_)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// The status that a pod goes back to when its destruction has failed. The
    /// route may have set `deleting` before we looked: then its guest decides.
    async fn status_before(&self, tx: &mut Tx, begun: &operations::Begun) -> Result<String, OpError> {
        if begun.prior_status != "deleting" {
            return Ok(begun.prior_status.clone());
        }
        let has_guest = operations::instance_of(tx, begun.pod_id).await?.is_some()
            || !operations::is_in_our_books(tx, begun.pod_id).await?;
        Ok(if has_guest { "active" } else { "failed" }.to_owned())
    }

    /// Undoes what a failed job did to the guest, and answers what the operator
    /// must know.
    async fn undo(&self, operation: Operation, fence: &Fence) -> Result<String, OpError> {
        if !matches!(operation, Operation::Scale | Operation::Destroy) {
            return Ok(String::new());
        }
        let Some(work) = self.resume(operation, fence).await? else { return Ok(String::new()) };
        let give_up = Instant::now() + UNDO;
        loop {
            let undone = if operation == Operation::Scale {
                Box::pin(work.put_back()).await
            } else {
                Box::pin(work.start_again()).await
            };
            match undone {
                Ok(()) => return Ok(String::new()),
                Err(error @ OpError::Db(_)) => return Err(error),
                Err(OpError::Pve(cause)) if cause.class.is_transient() && Instant::now() < give_up => {
                    sleep(UNDO_PAUSE).await;
                }
                Err(error) => {
                    tracing::error!(vmid = work.pod.vmid, %error, "what a failed job did cannot be undone");
                    return Ok(format!("; the guest may not be as it was: {error}"));
                }
            }
        }
    }

    /// A job that has begun, taken up by what comes after its last attempt.
    async fn resume(&self, operation: Operation, fence: &Fence) -> Result<Option<Work<'_>>, OpError> {
        let mut tx = db::begin(&self.db).await?;
        ledger::hold_fence(&mut tx, fence).await?;
        let Some(begun) = operations::begun(&mut tx, fence).await? else { return Ok(None) };
        let pod = operations::lock_pod(&mut tx, begun.pod_id).await?;
        let row = operations::instance_of(&mut tx, begun.pod_id).await?;
        let in_our_books = operations::is_in_our_books(&mut tx, begun.pod_id).await?;
        db::commit(tx).await?;
        let instance = row.and_then(|row| Instance::of(row).ok());
        let fence = fence.clone();
        Ok(pod.filter(|pod| !pod.deleted).map(|pod| Work {
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
}
