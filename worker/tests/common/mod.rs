//! A world for the CloudPods tests: mPanel's database, migrated and seeded, and
//! a Proxmox simulator that its nodes point to.

// Each test binary uses a part of it, and none exports anything.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared by several test binaries")]

pub mod operations;
pub mod stage;
pub mod telemetry;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use mpanel_testkit::{
    Postgres,
    pve::{PveSim, PveSimConfig},
};
use mpanel_worker::{
    adapters::{db, proxmox::Pve},
    config::{Config, Needs, Sources, database::connect_options},
    migrate,
    services::cloudpods::{Before, CreateError, CreateResult, CreateService, JobRef, Progress, Sites},
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

pub const TENANT: &str = "5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11";
pub const QUEUE: &str = "cloudpods-create";

pub struct World {
    pub db: PgPool,
    pub sim: PveSim,
    pub service: CreateService,
    pub url: String,
}

/// A migrated database of mPanel's with one tenant; no nodes yet.
pub async fn database() -> (String, PgPool) {
    database_on(Postgres::shared().await.unwrap()).await
}

/// The same on another server.
pub async fn database_on(postgres: &Postgres) -> (String, PgPool) {
    let url = postgres.mpanel_database().await.unwrap();
    let options = connect_options(&url).unwrap();
    migrate::up(&options).await.unwrap();
    let db = db::pool(options, 20);
    let tenant = format!(
        "INSERT INTO tenants (id, name, domain, slug, updated_at) VALUES ('{TENANT}', 'Acme', 'acme.example', 'acme', now())"
    );
    sqlx::query(AssertSqlSafe(tenant)).execute(&db).await.unwrap();
    (url, db)
}

pub fn sim_config(nodes: usize) -> PveSimConfig {
    PveSimConfig { nodes, task_ms: 50, auth_delay_ms: 50, ..PveSimConfig::default() }
}

impl World {
    pub async fn new() -> Self {
        Self::with(sim_config(2)).await
    }

    pub async fn with(config: PveSimConfig) -> Self {
        Self::on(Postgres::shared().await.unwrap(), config).await
    }

    pub async fn on(postgres: &Postgres, config: PveSimConfig) -> Self {
        let (url, db) = database_on(postgres).await;
        let nodes = config.nodes;
        let sim = PveSim::start(config).await.unwrap();
        for n in 1..=nodes {
            let seed = format!(
                "INSERT INTO cloud_pod_nodes (name, provider, api_url, node_name, status, total_cpu_cores,
                   total_memory_mb, total_disk_gb) VALUES ('node-{n}', 'proxmox', '{}', 'pve{n}', 'active', 16, 32768, 500)",
                sim.url()
            );
            sqlx::query(AssertSqlSafe(seed)).execute(&db).await.unwrap();
            sqlx::query("INSERT INTO cloud_pod_allocations (node_id) SELECT max(id) FROM cloud_pod_nodes")
                .execute(&db)
                .await
                .unwrap();
        }
        let service = service(&url, &sim, sim.token_secret(), &[]);
        Self { db, sim, service, url }
    }

    pub async fn quota(&self, pods: i32, cores: i32, memory_mb: i32, disk_gb: i32) {
        sqlx::query(
            "INSERT INTO cloud_pod_quotas (tenant_id, max_cloud_pods, max_cpu_cores, max_ram_mb, max_disk_gb, updated_at)
             VALUES ($1::uuid, $2, $3, $4, $5, now())",
        )
        .bind(TENANT)
        .bind(pods)
        .bind(cores)
        .bind(memory_mb)
        .bind(disk_gb)
        .execute(&self.db)
        .await
        .unwrap();
    }

    /// One attempt of a job.
    pub async fn attempt(&self, job_id: &str, payload: &Value) -> Result<CreateResult, CreateError> {
        self.service.create(&job(job_id), payload, &silent()).await
    }

    /// An attempt that must be final: runs it and then what the engine runs.
    pub async fn fails_for_good(&self, job_id: &str, payload: &Value) -> String {
        let job = job(job_id);
        let error = self.service.create(&job, payload, &silent()).await.unwrap_err();
        let reason = error.to_string();
        self.service.fail(&job, Before::Ran, payload, &reason).await.unwrap();
        reason
    }

    /// The columns of one row, joined by blanks; `NULL` is `-`.
    pub async fn row(&self, columns: &[&str], rest: &str) -> String {
        let columns: Vec<String> =
            columns.iter().map(|column| format!("COALESCE(({column})::text, '-')")).collect();
        let sql = format!(
            "SELECT string_agg(r, ' | ') FROM (SELECT concat_ws(' ', {}) AS r {rest}) x",
            columns.join(", ")
        );
        self.one(&sql).await
    }

    /// The route's row, inserted after it has enqueued.
    pub async fn route_row(&self, job_id: &str, payload: &Value) -> Uuid {
        sqlx::query_scalar(
            "INSERT INTO cloud_pod_jobs (tenant_id, type, status, payload, bull_job_id)
             VALUES ($1::uuid, 'CREATE', 'queued', $2, $3) RETURNING id",
        )
        .bind(TENANT)
        .bind(payload)
        .bind(job_id)
        .fetch_one(&self.db)
        .await
        .unwrap()
    }

    /// One value as text; `NULL` is `-`.
    pub async fn one(&self, sql: &str) -> String {
        let sql = format!("SELECT COALESCE((SELECT ({sql})::text), '-')");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.db).await.unwrap()
    }

    pub async fn execute(&self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&self.db).await.unwrap();
    }

    /// Sum of the node allocations as mPanel reads them.
    pub async fn allocated(&self) -> String {
        self.one("SELECT sum(used_cpu_cores) || '/' || sum(used_memory_mb) || '/' || sum(used_disk_gb) FROM cloud_pod_allocations")
            .await
    }

    /// Requests that changed something on Proxmox.
    pub fn mutations(&self) -> usize {
        self.sim.requests().iter().filter(|request| request.method != "GET").count()
    }

    /// Guests that pods own.
    pub fn guests(&self) -> usize {
        self.sim.guests().iter().filter(|guest| !guest.template).count()
    }

    /// Books equal reality, and nothing is there twice.
    pub fn assert_sound(&self) {
        let found = self.sim.invariants();
        assert_eq!(found.duplicate_owners, Vec::<String>::new());
        assert_eq!(found.duplicate_addresses, Vec::<String>::new());
        assert_eq!(found.leaked_volumes, Vec::<String>::new());
        assert_eq!(found.stuck_locks, Vec::<u32>::new());
    }
}

/// A service as `run` would build it.
pub fn service(url: &str, sim: &PveSim, secret: &str, extra: &[(&str, &str)]) -> CreateService {
    let config = config(url, sim, secret, extra);
    let proxmox = config.proxmox.unwrap();
    let sites = Sites::new(Pve::new(&proxmox).unwrap(), &proxmox);
    let db = db::pool(config.database.options, 10);
    CreateService::new(db, sites, config.cloudpods, Duration::from_secs(2))
}

pub fn config(url: &str, sim: &PveSim, secret: &str, extra: &[(&str, &str)]) -> Config {
    let mut sources = Sources::default();
    let fixed = [
        ("DATABASE_URL", url),
        ("PROXMOX_TOKEN_ID", sim.token_id()),
        ("PROXMOX_TOKEN_SECRET", secret),
        ("PROXMOX_TLS_FINGERPRINT", sim.fingerprint()),
        ("MPANEL_FLEET_CLOUDPODS__ADDRESS_SECONDS", "10"),
    ];
    for (name, value) in fixed.into_iter().chain(extra.iter().copied()) {
        sources.env.insert(name.to_owned(), value.to_owned());
    }
    Config::from_sources(&sources, Needs::All).unwrap()
}

pub fn job(job_id: &str) -> JobRef {
    static STARTS: AtomicU32 = AtomicU32::new(1);
    let attempt = STARTS.fetch_add(1, Ordering::Relaxed);
    JobRef {
        queue: QUEUE.to_owned(),
        job_id: job_id.to_owned(),
        attempt,
        attempt_id: format!("attempt-{attempt}"),
    }
}

pub fn silent() -> Progress {
    Arc::new(|_| {})
}

/// mPanel's payload.
pub fn payload(vmid: u32) -> Value {
    json!({"tenantId": TENANT, "vmid": vmid, "hostname": format!("pod-{vmid}"), "autoIp": true, "cores": 2,
        "memoryMb": 2048, "swapMb": 512, "diskGb": 20, "region": "migra-us-east-1", "requestedBy": "api"})
}
