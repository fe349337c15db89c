//! Operations on pods of a [`World`]: services, payloads, a machine that a Node
//! worker made.

use std::time::Duration;

use mpanel_worker::{
    adapters::{
        db,
        proxmox::{CloneSpec, GuestAt, GuestKind, Outcome, Power, Pve, PveClient, TaskEnd, Upid},
    },
    config::{ProxmoxConfig, proxmox::base_url},
    services::cloudpods::{
        Before, JobRef, Sites,
        operation::{OpError, Operation, OperationService},
    },
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{TENANT, World, config, job, payload};

impl World {
    pub fn proxmox(&self) -> ProxmoxConfig {
        config(&self.url, &self.sim, self.sim.token_secret(), &[]).proxmox.unwrap()
    }

    /// A plain client of the simulator.
    pub fn client(&self) -> PveClient {
        Pve::new(&self.proxmox()).unwrap().at(&base_url(&self.sim.url()).unwrap())
    }

    pub fn operations(&self, extra: &[(&str, &str)]) -> OperationService {
        let config = config(&self.url, &self.sim, self.sim.token_secret(), extra);
        let proxmox = config.proxmox.unwrap();
        let sites = Sites::new(Pve::new(&proxmox).unwrap(), &proxmox);
        let db = db::pool(config.database.options, 10);
        OperationService::new(db, sites, config.cloudpods, Duration::from_secs(2))
    }

    /// A pod that our own create made; its id.
    pub async fn pod(&self, vmid: u32) -> String {
        self.attempt(&format!("create-{vmid}"), &payload(vmid)).await.unwrap().cloud_pod_id.to_string()
    }

    /// A running machine with its row, as a Node worker leaves it: no tag, no
    /// books; the pod's id.
    pub async fn machine(&self, vmid: u32) -> String {
        let client = self.client();
        let spec = CloneSpec {
            template: 9000,
            vmid,
            name: format!("pod-{vmid}"),
            storage: "clients-main".to_owned(),
            pool: None,
            target: "pve1".to_owned(),
            description: String::new(),
        };
        ends_well(&client, client.clone_machine("pve1", &spec).await).await;
        let at = GuestAt { node: "pve1".to_owned(), kind: GuestKind::Vm, vmid };
        let size = [("cores", "2"), ("memory", "2048"), ("agent", "1"), ("ipconfig0", "ip=10.9.0.9/24")];
        assert!(matches!(client.set_guest_config(&at, None, &size).await, Outcome::Done(())));
        ends_well(&client, client.power(&at, Power::Start).await).await;
        let vmid_column = i32::try_from(vmid).unwrap();
        sqlx::query_scalar(
            "INSERT INTO cloud_pods (tenant_id, vmid, hostname, status, cores, memory_mb, disk_gb, updated_at)
             VALUES ($1::uuid, $2, $3, 'active', 2, 2048, 20, now()) RETURNING id::text",
        )
        .bind(TENANT)
        .bind(vmid_column)
        .bind(format!("pod-{vmid}"))
        .fetch_one(&self.db)
        .await
        .unwrap()
    }

    /// One attempt of an operation.
    pub async fn operate(&self, operation: Operation, id: &str, data: &Value) -> Result<Value, OpError> {
        self.operations(&[]).run(operation, &op_job(operation, id), data).await
    }

    /// An operation that must fail for good: runs it and then what the engine runs.
    pub async fn refused(&self, operation: Operation, id: &str, data: &Value) -> String {
        let (service, job) = (self.operations(&[]), op_job(operation, id));
        let reason = service.run(operation, &job, data).await.unwrap_err().to_string();
        service.fail(operation, &job, Before::Ran, data, &reason).await.unwrap();
        reason
    }

    pub async fn quota_used(&self) -> String {
        self.one("SELECT string_agg(used_cloud_pods || '/' || used_cpu_cores || '/' || used_ram_mb || '/' || used_disk_gb, ';') FROM cloud_pod_quotas")
            .await
    }

    pub async fn job_row(&self, kind: &str) -> String {
        self.one(&format!(
            "SELECT string_agg(status || ' ' || COALESCE(error, result::text, '-'), ';') FROM cloud_pod_jobs WHERE type = '{kind}'"
        ))
        .await
    }
}

/// Waits for a task to end well.
pub async fn ends_well(client: &PveClient, outcome: Outcome<Upid>) {
    let Outcome::Done(upid) = outcome else { panic!("{outcome:?}") };
    let deadline = Instant::now() + Duration::from_secs(30);
    let end = client.wait_task(&upid, deadline, Duration::from_secs(5)).await.unwrap();
    assert_eq!(end, TaskEnd::Ok, "{upid}");
}

pub fn op_job(operation: Operation, id: &str) -> JobRef {
    JobRef { queue: operation.queue().to_owned(), ..job(id) }
}

/// A payload about a pod, with more fields.
pub fn about(pod: &str, vmid: u32, more: Value) -> Value {
    let mut data = json!({"tenantId": TENANT, "vmid": vmid, "cloudPodId": pod, "requestedBy": "api"});
    data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    data
}

pub fn scale(pod: &str, vmid: u32, cores: i64, memory_mb: i64, backup_first: bool) -> Value {
    let more = json!({"currentCores": 2, "currentMemoryMb": 2048, "newCores": cores, "newMemoryMb": memory_mb,
        "backupFirst": backup_first});
    about(pod, vmid, more)
}

pub fn backup(pod: &str, vmid: u32) -> Value {
    about(pod, vmid, json!({"mode": "snapshot", "snapshotName": "before-upgrade", "triggeredBy": "manual"}))
}

pub fn action(pod: &str, vmid: u32, action: &str) -> Value {
    about(pod, vmid, json!({ "action": action }))
}
