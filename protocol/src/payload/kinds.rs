//! Which queue each payload goes to, and with which options mPanel enqueues it.

use super::{
    cloudpods::{
        ACTION_QUEUE, ActionPayload, BACKUP_QUEUE, BackupPayload, CREATE_QUEUE, CreatePayload, DESTROY_QUEUE,
        DestroyPayload, HEALTH_QUEUE, HealthPayload, SCALE_QUEUE, ScalePayload,
    },
    guardian::{REMEDIATION_QUEUE, RemediationPayload, SCAN_QUEUE, ScanPayload},
};
use crate::{
    backoff::Backoff,
    job_kind::JobKind,
    options::{JobOptions, KeepJobs, KeepPolicy},
};

/// A kind of job of mPanel's, with the options that mPanel gives it.
pub trait MpanelJob: JobKind {
    /// What the job is about, for a readable id: the VMID, or a row's id.
    fn subject(&self) -> String;
}

/// Options of the cloudpods queues (`mpanel-contract.md` 1).
fn cloudpods(attempts: u32) -> JobOptions {
    let keep =
        |age: f64, count: Option<f64>| KeepJobs::Policy(KeepPolicy { age: Some(age), count, limit: None });
    JobOptions {
        attempts,
        backoff: Some(Backoff::exponential(5000)),
        remove_on_complete: Some(keep(86_400.0, Some(1000.0))),
        remove_on_fail: Some(keep(604_800.0, None)),
        ..JobOptions::default()
    }
}

/// Options of the guardian queues.
fn guardian() -> JobOptions {
    JobOptions {
        remove_on_complete: Some(KeepJobs::Remove(true)),
        remove_on_fail: Some(KeepJobs::Remove(false)),
        ..JobOptions::default()
    }
}

macro_rules! kinds {
    ($($payload:ident: $queue:ident, $name:literal, $options:expr, $subject:expr;)*) => {$(
        impl JobKind for $payload {
            const QUEUE: &'static str = $queue;
            const NAME: &'static str = $name;
            type Output = serde_json::Value;

            fn options(&self) -> JobOptions {
                $options
            }
        }

        impl MpanelJob for $payload {
            fn subject(&self) -> String {
                let subject: fn(&Self) -> String = $subject;
                subject(self)
            }
        }
    )*

        /// Name and options of the jobs in one of mPanel's queues, for who has a
        /// payload that may not be one. `None`: the queue is not mPanel's.
        #[must_use]
        pub fn defaults_of(queue: &str) -> Option<(&'static str, JobOptions)> {
            match queue {
                $($queue => Some(($name, $options)),)*
                _ => None,
            }
        }
    };
}

kinds! {
    CreatePayload: CREATE_QUEUE, "create", cloudpods(2), |p| p.vmid.map_or_else(|| p.hostname.clone(), |v| v.to_string());
    DestroyPayload: DESTROY_QUEUE, "destroy", cloudpods(3), |p| p.vmid.to_string();
    BackupPayload: BACKUP_QUEUE, "backup", cloudpods(3), |p| p.vmid.to_string();
    HealthPayload: HEALTH_QUEUE, "health", cloudpods(1), |p| p.vmid.to_string();
    ScalePayload: SCALE_QUEUE, "scale", cloudpods(2), |p| p.vmid.to_string();
    ActionPayload: ACTION_QUEUE, "action", cloudpods(3), |p| p.vmid.to_string();
    ScanPayload: SCAN_QUEUE, "guardian-scan", guardian(), |p| p.scan_id.to_string();
    RemediationPayload: REMEDIATION_QUEUE, "guardian-remediation", guardian(), |p| p.remediation_id.to_string();
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_creation_is_enqueued_as_mpanel_does() {
        let payload: CreatePayload = serde_json::from_value(json!({
            "tenantId": "5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11", "vmid": 121, "hostname": "shop", "autoIp": true,
            "cores": 2, "memoryMb": 2048, "swapMb": 512, "diskGb": 20, "region": "r", "requestedBy": "api"
        }))
        .unwrap();
        assert_eq!((CreatePayload::QUEUE, CreatePayload::NAME), ("cloudpods-create", "create"));
        assert_eq!(payload.subject(), "121");
        assert_eq!(defaults_of("cloudpods-create"), Some(("create", payload.options())));
        assert_eq!(defaults_of("mails"), None);
        let stored: serde_json::Value = serde_json::to_value(payload.options()).unwrap();
        assert_eq!(
            stored,
            json!({"attempts": 2, "backoff": {"type": "exponential", "delay": 5000},
                   "removeOnComplete": {"age": 86400, "count": 1000}, "removeOnFail": {"age": 604800}})
        );
    }
}
