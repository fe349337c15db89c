//! Payloads of the Guardian queues. mPanel names them `guardian:scan` and
//! `guardian:remediation`, which BullMQ refuses; ours have a hyphen.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::fields::{Fields, PayloadError};

/// Queue that runs scans.
pub const SCAN_QUEUE: &str = "guardian-scan";
/// Queue that runs approved remediation tasks.
pub const REMEDIATION_QUEUE: &str = "guardian-remediation";

/// `guardian-scan` / `guardian-scan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Value")]
pub struct ScanPayload {
    /// The row of `guardian_scans`.
    pub scan_id: Uuid,
    /// Whose scan it is; to be checked against the row.
    pub tenant_id: Uuid,
    /// One server, or all of the tenant's.
    pub server_id: Option<Uuid>,
    /// Where the data lives.
    pub data_region: Option<String>,
    /// What to scan (`tls`, `mail`, …); judged by the service.
    #[serde(rename = "type")]
    pub scan_type: String,
}

impl TryFrom<Value> for ScanPayload {
    type Error = PayloadError;

    fn try_from(value: Value) -> Result<Self, PayloadError> {
        let mut f = Fields::of(&value)?;
        let scan_id = f.uuid("scanId");
        let scan_id = f.required("scanId", scan_id);
        let tenant_id = f.uuid("tenantId");
        let tenant_id = f.required("tenantId", tenant_id);
        let (server_id, data_region) = (f.uuid("serverId"), f.text("dataRegion"));
        let scan_type = f.text("type");
        let scan_type = f.required("type", scan_type);
        let decoded = (|| {
            Some(Self {
                scan_id: scan_id?,
                tenant_id: tenant_id?,
                server_id,
                data_region,
                scan_type: scan_type?,
            })
        })();
        f.finish(decoded)
    }
}

/// `guardian-remediation` / `guardian-remediation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Value")]
pub struct RemediationPayload {
    /// The row of `guardian_remediation_tasks`.
    pub remediation_id: Uuid,
    /// Whose task it is; to be checked against the row.
    pub tenant_id: Uuid,
    /// The server it acts on.
    pub server_id: Option<Uuid>,
    /// Where the data lives.
    pub data_region: Option<String>,
}

impl TryFrom<Value> for RemediationPayload {
    type Error = PayloadError;

    fn try_from(value: Value) -> Result<Self, PayloadError> {
        let mut f = Fields::of(&value)?;
        let remediation_id = f.uuid("remediationId");
        let remediation_id = f.required("remediationId", remediation_id);
        let tenant_id = f.uuid("tenantId");
        let tenant_id = f.required("tenantId", tenant_id);
        let (server_id, data_region) = (f.uuid("serverId"), f.text("dataRegion"));
        f.finish(remediation_id.zip(tenant_id).map(|(remediation_id, tenant_id)| Self {
            remediation_id,
            tenant_id,
            server_id,
            data_region,
        }))
    }
}
