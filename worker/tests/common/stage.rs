//! The whole stage for tests of the program: a [`World`], a Redis, real npm
//! bullmq, and `mpanel-worker` as a process.

use std::time::Duration;

use mpanel_testkit::{
    BullVersion, NodeQueue, NodeSidecar, Postgres, RedisServer, WorkerProcess, eventually,
    process::WorkerProcessBuilder,
    pve::{PveSimConfig, RequestView},
};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use super::{QUEUE, TENANT, World, sim_config};

/// For everything that is expected to happen; generous, since the machine may be busy.
pub const SOON: Duration = Duration::from_secs(30);
/// A payload may take this long to be made after a worker died.
pub const RESCUE: Duration = Duration::from_secs(45);

pub struct Stage {
    pub world: World,
    pub redis: RedisServer,
    pub node: NodeSidecar,
}

impl Stage {
    pub async fn new() -> Self {
        Self::with(sim_config(2)).await
    }

    pub async fn with(config: PveSimConfig) -> Self {
        Self::on(Postgres::shared().await.unwrap(), RedisServer::start().await.unwrap(), config).await
    }

    pub async fn on(postgres: &Postgres, redis: RedisServer, config: PveSimConfig) -> Self {
        let world = World::on(postgres, config).await;
        let node = NodeSidecar::start(&redis.url()).await.unwrap();
        Self { world, redis, node }
    }

    /// The queue as mPanel's bullmq sees it.
    pub fn queue(&self) -> NodeQueue {
        self.node.queue(BullVersion::V5, QUEUE)
    }

    /// mPanel enqueues a creation; the job's id.
    pub async fn enqueue(&self, payload: Value) -> String {
        self.node.mpanel(BullVersion::V5).enqueue_create(payload, None).await.unwrap().id
    }

    /// Any job with mPanel's options.
    pub async fn add(&self, name: &str, data: Value, job_id: &str) {
        let opts = json!({"jobId": job_id, "attempts": 2, "backoff": {"type": "exponential", "delay": 5000},
            "removeOnComplete": {"age": 86400, "count": 1000}, "removeOnFail": {"age": 604_800}});
        self.queue().add(name, data, opts).await.unwrap();
    }

    /// What the environment of a worker says; later ones win.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let sim = &self.world.sim;
        [
            ("DATABASE_URL", self.world.url.clone()),
            ("REDIS_URL", self.redis.url()),
            ("PROXMOX_API_URL", sim.url()),
            ("PROXMOX_TOKEN_ID", sim.token_id().to_owned()),
            ("PROXMOX_TOKEN_SECRET", sim.token_secret().to_owned()),
            ("PROXMOX_TLS_FINGERPRINT", sim.fingerprint().to_owned()),
            ("MPANEL_FLEET_PROXMOX__SETTLE_SECONDS", "3".to_owned()),
            ("MPANEL_FLEET_RUN__LOCK_MS", "2000".to_owned()),
            ("MPANEL_FLEET_RUN__STALLED_MS", "1000".to_owned()),
            ("RUST_LOG", "info,mpanel_worker=debug,sqlx=warn".to_owned()),
        ]
        .into()
    }

    /// `mpanel-worker <args>` with this environment and `extra` over it.
    pub fn program(&self, args: &[&str], extra: &[(&str, &str)]) -> WorkerProcessBuilder {
        let mut builder = program(args);
        for (name, value) in self.environment() {
            if !extra.iter().any(|(other, _)| *other == name) {
                builder = builder.env(name, value);
            }
        }
        for (name, value) in extra {
            builder = builder.env(*name, *value);
        }
        builder
    }

    /// A worker that serves.
    pub async fn worker(&self) -> WorkerProcess {
        self.worker_with(&[], &[]).await
    }

    pub async fn worker_with(&self, args: &[&str], extra: &[(&str, &str)]) -> WorkerProcess {
        let all: Vec<&str> = ["run", "--queues", QUEUE].iter().chain(args).copied().collect();
        let worker = self.program(&all, extra).start().unwrap();
        worker.wait_line(" ready ", SOON).await.unwrap();
        worker
    }

    /// Waits for the job's end; its result.
    pub async fn finished(&self, job_id: &str) -> Value {
        match self.queue().wait_until_finished(job_id, RESCUE).await {
            Ok(result) => result,
            Err(error) => panic!("{job_id}: {error}"),
        }
    }

    /// Waits until a query gives this.
    pub async fn until(&self, sql: &str, wanted: &str) {
        eventually(sql, SOON, || async {
            let found = self.world.one(sql).await;
            if found == wanted { Ok(()) } else { Err(found) }
        })
        .await
        .unwrap();
    }

    /// Waits until a request like this has reached the simulator.
    pub async fn until_asked(&self, method: &str, path_end: &str) {
        eventually(&format!("{method} {path_end}"), SOON, || async {
            let seen = self.world.sim.requests();
            if seen.iter().any(|r| r.method == method && r.path.ends_with(path_end)) {
                Ok(())
            } else {
                Err(format!("{} requests", seen.len()))
            }
        })
        .await
        .unwrap();
    }

    /// Requests that change something.
    pub fn mutations(&self) -> Vec<RequestView> {
        self.world.sim.requests().into_iter().filter(|request| request.method != "GET").collect()
    }

    /// One pod for one job, everywhere: rows, books, guest, events.
    pub async fn assert_one_pod(&self, job_id: &str, vmid: u32) {
        let world = &self.world;
        let pod =
            world.one("SELECT string_agg(status || ' ' || vmid || ' ' || ip, ';') FROM cloud_pods").await;
        assert!(pod.starts_with(&format!("active {vmid} ")) && !pod.contains(';'), "{pod}");
        assert_eq!(world.one("SELECT string_agg(status, ';') FROM cloud_pod_jobs").await, "success");
        assert_eq!(
            world.one("SELECT string_agg(type, ';') FROM cloud_pod_events").await,
            "STATE_CHANGE",
            "{job_id}"
        );
        let used = "SELECT string_agg(used_cloud_pods || '/' || used_cpu_cores || '/' || used_ram_mb || '/' || used_disk_gb, ';') FROM cloud_pod_quotas";
        assert_eq!(world.one(used).await, "1/2/2048/20");
        assert_eq!(world.allocated().await, "2/2048/20");
        let held = "SELECT string_agg(state || ' ' || cpu_cores || '/' || mem_mb || '/' || disk_gb, ';') FROM fleet_reservations";
        assert_eq!(world.one(held).await, "committed 2/2048/20");
        let open = "SELECT string_agg(step || ' ' || state, ';') FROM fleet_job_steps WHERE state <> 'done'";
        assert_eq!(world.one(open).await, "-");
        let pod_id = world.one("SELECT id FROM cloud_pods").await;
        let guests = world.sim.guests();
        assert_eq!(guests.len(), 1, "{guests:?}");
        assert!(guests[0].tags.contains(&format!("mpanel-pod-{pod_id}")), "{:?}", guests[0].tags);
        assert_eq!((guests[0].vmid, guests[0].status), (vmid, "running"));
        let invariants = world.sim.invariants();
        assert!(invariants.ok, "{invariants:?}");
        let job = self.queue().job(job_id).await.unwrap().unwrap();
        assert_eq!(job.state, "completed", "{job:?}");
        let events = self.queue().events().await.unwrap();
        let completed =
            events.iter().filter(|e| e.event == "completed" && e.job_id.as_deref() == Some(job_id));
        assert_eq!(completed.count(), 1);
        assert!(!events.iter().any(|e| e.event == "failed"), "{events:?}");
    }
}

/// `mpanel-worker` without any environment.
pub fn program(args: &[&str]) -> WorkerProcessBuilder {
    WorkerProcess::builder(env!("CARGO_BIN_EXE_mpanel-worker")).args(args.iter().copied())
}

/// Runs it to its end: exit code and everything it wrote.
pub async fn ends(builder: WorkerProcessBuilder) -> (i32, String) {
    let process = builder.start().unwrap();
    let status = process.wait(SOON).await.unwrap();
    let text = process.lines().iter().map(|line| format!("{}\n", line.text)).collect();
    (status.code().unwrap_or(-1), text)
}

/// Holds a lock in a session of its own until dropped or released.
pub struct Held(PgConnection);

impl Held {
    /// The lock under which a tenant's quota is checked and written.
    pub async fn quota(url: &str) -> Self {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::query("SELECT pg_advisory_lock(hashtextextended('fleet quota ' || $1::uuid::text, 0))")
            .bind(TENANT)
            .execute(&mut connection)
            .await
            .unwrap();
        Self(connection)
    }

    pub async fn release(self) {
        self.0.close().await.unwrap();
    }
}
