//! Starts the servers, the simulator and the worker, and enqueues through Node.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::{
    BullVersion, NodeSidecar, Postgres, RedisServer, TestkitError, WorkerProcess,
    pve::{Fault, FaultAction, PveSim, PveSimConfig},
};

/// Pods that the demo asks for.
pub const PODS: u32 = 20;
/// First VMID.
const FIRST_VMID: u32 = 121;
/// Region of the nodes.
const REGION: &str = "migra-us-east-1";

/// The running demo. Dropping it ends everything.
#[derive(Debug)]
pub struct Stage {
    /// Redis.
    pub redis: RedisServer,
    /// URL of mPanel's database.
    pub database_url: String,
    /// The simulator.
    pub pve: PveSim,
    /// The worker.
    pub worker: WorkerProcess,
    node: NodeSidecar,
    _postgres: Postgres,
}

fn failed(what: &str) -> impl Fn(String) -> TestkitError + '_ {
    move |why| TestkitError::failed(what, why)
}

/// The worker's binary, built beside the demo's.
///
/// # Errors
/// When it is not there.
pub fn worker_binary() -> Result<PathBuf, TestkitError> {
    let own = std::env::current_exe()
        .map_err(|e| TestkitError::failed("find the demo's own path", e.to_string()))?;
    let path = own.parent().unwrap_or(Path::new(".")).join("mpanel-worker");
    if path.exists() {
        Ok(path)
    } else {
        Err(TestkitError::failed(
            "find mpanel-worker",
            format!("{} is not there; run `cargo build -p mpanel-worker` first", path.display()),
        ))
    }
}

/// Faults that five of the twenty creations meet.
fn faults() -> Vec<Fault> {
    let create = "/nodes/*/lxc";
    let start = "/nodes/*/lxc/*/status/start";
    vec![
        // The connection breaks before Proxmox saw the request…
        Fault::new("POST", create, FaultAction::DropBefore).nth(3),
        // …or after it took it: the outcome is unknown to the worker.
        Fault::new("POST", create, FaultAction::DropAfter).nth(6),
        Fault::new("POST", create, FaultAction::Status)
            .nth(10)
            .status(500, "can't lock file '/run/lock/lxc/pve-config-create.lock' - got timeout"),
        Fault::new("POST", create, FaultAction::TaskError)
            .nth(14)
            .text("unable to create CT - rbd: timed out"),
        Fault::new("POST", start, FaultAction::TaskError).nth(8).text("startup for container failed"),
    ]
}

impl Stage {
    /// Starts everything; says each step through `say`.
    ///
    /// # Errors
    /// When something is missing or does not start.
    pub async fn start(say: &dyn Fn(&str)) -> Result<Self, TestkitError> {
        let binary = worker_binary()?;
        say("starting a private Redis and Postgres");
        let redis = RedisServer::start().await?;
        let postgres = Postgres::start().await?;
        let database_url = postgres.mpanel_database().await?;
        say("starting a Proxmox VE simulator with 3 nodes; 5 creations will meet a fault");
        let pve = PveSim::start(PveSimConfig {
            nodes: 3,
            task_ms: 400,
            auth_delay_ms: 0,
            faults: faults(),
            ..PveSimConfig::default()
        })
        .await
        .map_err(|e| TestkitError::failed("start the Proxmox simulator", e.to_string()))?;

        let env = [
            ("DATABASE_URL", database_url.clone()),
            ("REDIS_URL", redis.url()),
            ("PROXMOX_API_URL", pve.url()),
            ("PROXMOX_TLS_FINGERPRINT", pve.fingerprint().to_owned()),
            ("PROXMOX_TOKEN_ID", pve.token_id().to_owned()),
            ("PROXMOX_TOKEN_SECRET", pve.token_secret().to_owned()),
            // The simulator answers at once; a real cluster's relay may take 30 s.
            ("MPANEL_FLEET_PROXMOX__SETTLE_SECONDS", "3".to_owned()),
        ];
        say("mpanel-worker migrate");
        run(&binary, &["migrate"], &env).await?;
        let tenants = seed(&database_url, &pve).await?;
        run(&binary, &["cloudpods", "pools", "add", "10.50.0.0/24", "--gateway", "10.50.0.1"], &env).await?;

        say("the Node producer (npm bullmq 5.81.5, mPanel's queue file) enqueues 20 creations");
        let node = NodeSidecar::start(&redis.url()).await?;
        enqueue(&node, &tenants).await?;

        say("mpanel-worker run --queues cloudpods-create --concurrency 4");
        let mut builder = WorkerProcess::builder(&binary);
        for (name, value) in &env {
            builder = builder.env(*name, value.as_str());
        }
        let worker = builder.args(["run", "--queues", "cloudpods-create", "--concurrency", "4"]).start()?;
        Ok(Self { redis, database_url, pve, worker, node, _postgres: postgres })
    }

    /// Ends the worker by SIGTERM, and waits for it.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn stop(&self) -> Result<(), TestkitError> {
        self.worker.sigterm()?;
        self.worker.wait(Duration::from_secs(30)).await?;
        self.node.close_all(true).await
    }
}

/// Runs a command of the worker to its end.
async fn run(binary: &Path, args: &[&str], env: &[(&str, String)]) -> Result<(), TestkitError> {
    let output = tokio::process::Command::new(binary)
        .args(args)
        .env_clear()
        .envs(env.iter().map(|(k, v)| (k, v)))
        .output()
        .await
        .map_err(|e| TestkitError::failed(args.join(" "), e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(TestkitError::failed(format!("mpanel-worker {}", args.join(" ")), text))
}

/// mPanel's rows: four tenants with room for their pods, three nodes.
async fn seed(database_url: &str, pve: &PveSim) -> Result<Vec<Uuid>, TestkitError> {
    let sql = |e: sqlx::Error| failed("seed mPanel's database")(e.to_string());
    let mut db = PgConnection::connect(database_url).await.map_err(sql)?;
    let mut tenants = Vec::new();
    for name in ["acme", "globex", "initech", "umbrella"] {
        let id = Uuid::new_v4();
        sqlx::query("INSERT INTO tenants (id, name, domain, slug, updated_at) VALUES ($1, $2, $2 || '.example', $2, now())")
            .bind(id)
            .bind(name)
            .execute(&mut db)
            .await
            .map_err(sql)?;
        sqlx::query(
            "INSERT INTO cloud_pod_quotas (tenant_id, max_cloud_pods, max_cpu_cores, max_ram_mb, max_disk_gb, updated_at) \
             VALUES ($1, 10, 40, 65536, 500, now())",
        )
        .bind(id)
        .execute(&mut db)
        .await
        .map_err(sql)?;
        tenants.push(id);
    }
    for n in 1..=3 {
        let node: (i32,) = sqlx::query_as(
            "INSERT INTO cloud_pod_nodes (name, provider, api_url, node_name, total_cpu_cores, total_memory_mb, total_disk_gb) \
             VALUES ('pod-node-' || $1, 'proxmox', $2, 'pve' || $1, 16, 32768, 500) RETURNING id",
        )
        .bind(n.to_string())
        .bind(pve.url())
        .fetch_one(&mut db)
        .await
        .map_err(sql)?;
        sqlx::query("INSERT INTO cloud_pod_allocations (node_id) VALUES ($1)")
            .bind(node.0)
            .execute(&mut db)
            .await
            .map_err(sql)?;
    }
    db.close().await.map_err(sql)?;
    Ok(tenants)
}

async fn enqueue(node: &NodeSidecar, tenants: &[Uuid]) -> Result<(), TestkitError> {
    let mpanel = node.mpanel(BullVersion::V5);
    let purposes = ["shop", "blog", "mail", "wiki", "ci"];
    for n in 0..PODS {
        let at = n as usize;
        let payload = json!({
            "tenantId": tenants[at % tenants.len()],
            "vmid": FIRST_VMID + n,
            "hostname": format!("{}-{:02}", purposes[at % purposes.len()], n + 1),
            "autoIp": true,
            "cores": 1 + n % 2,
            "memoryMb": 1024 * (1 + n % 3),
            "swapMb": 512,
            "diskGb": 10,
            "region": REGION,
            "requestedBy": "demo",
        });
        mpanel.enqueue_create(payload, None).await?;
    }
    Ok(())
}
