//! Rows of `cloud_pod_jobs` that say `queued` are served, whoever left them so.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{
    QUEUE, TENANT, payload, sim_config,
    stage::{SOON, Stage},
};
use mpanel_testkit::{
    WorkerProcess,
    pve::{Fault, FaultAction, PveSimConfig},
};
use serde_json::{Value, json};

const ALL_QUEUES: [&str; 3] = ["run", "--queues", "cloudpods-create,cloudpods-backup,cloudpods-health"];

/// A row as a route leaves it, so many seconds ago; its id.
async fn row(stage: &Stage, kind: &str, payload: &Value, job_id: Option<&str>, age_s: f64) -> String {
    sqlx::query_scalar(
        "INSERT INTO cloud_pod_jobs (tenant_id, type, status, payload, bull_job_id, created_at)
         VALUES ($1::uuid, $2, 'queued', $3, $4, timezone('utc', now()) - make_interval(secs => $5))
         RETURNING id::text",
    )
    .bind(TENANT)
    .bind(kind)
    .bind(payload)
    .bind(job_id)
    .bind(age_s)
    .fetch_one(&stage.world.db)
    .await
    .unwrap()
}

fn status_of(row: &str) -> String {
    format!("SELECT status FROM cloud_pod_jobs WHERE id = '{row}'")
}

async fn worker(stage: &Stage) -> WorkerProcess {
    let worker = stage.program(&ALL_QUEUES, &[]).start().unwrap();
    worker.wait_line(" ready ", SOON).await.unwrap();
    worker
}

/// The ids of all jobs ever added to the queue.
async fn added(stage: &Stage, queue: &str) -> Vec<String> {
    let queue = stage.node.queue(mpanel_testkit::BullVersion::V5, queue);
    let events = queue.events().await.unwrap();
    events.into_iter().filter(|e| e.event == "added").filter_map(|e| e.job_id).collect()
}

#[tokio::test]
async fn a_row_without_a_job_is_served_once_by_many_workers() {
    let stage = Stage::new().await;
    stage.queue().open_events().await.unwrap();
    let id = row(&stage, "CREATE", &payload(121), None, 10.0).await;
    let (_a, _b, _c) = tokio::join!(worker(&stage), worker(&stage), worker(&stage));
    stage.until(&status_of(&id), "success").await;
    let job = format!("row-{id}");
    assert_eq!(stage.world.one("SELECT string_agg(bull_job_id, ';') FROM cloud_pod_jobs").await, job);
    stage.assert_one_pod(&job, 121).await;
    assert_eq!(added(&stage, QUEUE).await, [job]);
}

#[tokio::test]
async fn a_row_whose_job_redis_has_lost_gets_it_back_under_its_id() {
    let stage = Stage::new().await;
    stage.queue().open_events().await.unwrap();
    let workers = (worker(&stage).await, worker(&stage).await);
    let id = row(&stage, "CREATE", &payload(121), Some("create-121-1764000000000"), 10.0).await;
    stage.until(&status_of(&id), "success").await;
    stage.assert_one_pod("create-121-1764000000000", 121).await;
    assert_eq!(added(&stage, QUEUE).await, ["create-121-1764000000000"]);
    drop(workers);
}

#[tokio::test]
async fn rows_whose_jobs_are_in_line_or_ended_elsewhere_are_not_enqueued() {
    let stage = Stage::new().await;
    stage.queue().open_events().await.unwrap();
    let world = &stage.world;
    // In line, since nobody serves it yet.
    let waiting = stage.enqueue(payload(121)).await;
    let waiting_row = row(&stage, "CREATE", &payload(121), Some(&waiting), 10.0).await;
    // A Node worker has made its own row, and ended.
    let done = row(&stage, "CREATE", &payload(122), Some("create-122-1"), 3600.0).await;
    let failed = row(&stage, "CREATE", &payload(123), Some("create-123-1"), 3600.0).await;
    world
        .execute(&format!(
            "INSERT INTO cloud_pod_jobs (tenant_id, type, status, payload, bull_job_id, result, error, started_at, finished_at)
             VALUES ('{TENANT}', 'CREATE', 'success', '{{}}', 'create-122-1', '{{\"success\": true}}', NULL, now(), now()),
                    ('{TENANT}', 'CREATE', 'failed', '{{}}', 'create-123-1', NULL, 'no room', now(), now())"
        ))
        .await;
    // Nobody's wish any more; a kind that is not ours; cancelled before anybody saw it.
    let old = row(&stage, "CREATE", &payload(124), None, 8.0 * 86_400.0).await;
    let other = row(&stage, "RESTORE", &json!({}), None, 10.0).await;
    let cancelled = row(&stage, "CREATE", &payload(125), None, 10.0).await;
    world
        .execute(&format!(
            "UPDATE cloud_pod_jobs SET status = 'failed', error = 'Cancelled by admin' WHERE id = '{cancelled}'"
        ))
        .await;
    let _worker = worker(&stage).await;
    stage.until(&status_of(&waiting_row), "success").await;
    stage.until(&status_of(&done), "success").await;
    stage.until(&status_of(&failed), "failed").await;
    assert_eq!(
        world.one(&format!("SELECT error FROM cloud_pod_jobs WHERE id = '{failed}'")).await,
        "no room"
    );
    assert_eq!(world.one(&status_of(&old)).await, "queued");
    assert_eq!(world.one(&status_of(&other)).await, "queued");
    let error = format!("SELECT status || ' ' || error FROM cloud_pod_jobs WHERE id = '{cancelled}'");
    assert_eq!(world.one(&error).await, "failed Cancelled by admin");
    assert_eq!(added(&stage, QUEUE).await, [waiting]);
    assert_eq!(world.one("SELECT count(*) FROM cloud_pods").await, "1");
}

/// A creation that has failed for good, with its row; the worker that did it.
async fn failed_creation(stage: &Stage) -> (String, String, WorkerProcess) {
    let fault = Fault::new("POST", "/nodes/*/lxc", FaultAction::Status);
    stage.world.sim.add_fault(fault.nth(1).status(400, "Parameter verification failed."));
    let job = stage.enqueue(payload(121)).await;
    let id = row(stage, "CREATE", &payload(121), Some(&job), 1.0).await;
    let worker = worker(stage).await;
    stage.until(&status_of(&id), "failed").await;
    stage.queue().wait_event("failed", Some(&job), SOON).await.unwrap();
    (id, job, worker)
}

fn set_back(row: &str) -> String {
    format!("UPDATE cloud_pod_jobs SET status = 'queued', attempts = 0, error = NULL WHERE id = '{row}'")
}

#[tokio::test]
async fn a_row_that_was_set_back_to_queued_runs_again() {
    let stage = Stage::new().await;
    stage.queue().open_events().await.unwrap();
    let (id, job, _worker) = failed_creation(&stage).await;
    stage.world.execute(&set_back(&id)).await;
    stage.until(&status_of(&id), "success").await;
    let report = stage.queue().job(&job).await.unwrap().unwrap();
    assert_eq!(report.state, "completed", "the same job, run again: {report:?}");
    assert_eq!(added(&stage, QUEUE).await, [job]);
    assert_eq!(stage.world.one("SELECT string_agg(status, ';') FROM cloud_pods").await, "active");
    assert_eq!(stage.world.sim.guests().len(), 1);
}

#[tokio::test]
async fn a_row_that_was_set_back_after_its_job_was_removed_gets_a_new_one() {
    let stage = Stage::new().await;
    stage.queue().open_events().await.unwrap();
    let (id, job, _worker) = failed_creation(&stage).await;
    // Without the bell: what looks regularly finds it too.
    stage.world.execute("DROP TRIGGER fleet_queued_row ON cloud_pod_jobs").await;
    stage.queue().job_call(&job, "remove", vec![]).await.unwrap();
    stage.world.execute(&set_back(&id)).await;
    stage.until(&status_of(&id), "success").await;
    let again = format!("{job}-g2");
    assert_eq!(stage.world.one("SELECT string_agg(bull_job_id, ';') FROM cloud_pod_jobs").await, again);
    assert_eq!(added(&stage, QUEUE).await, [job, again]);
    assert_eq!(stage.world.one("SELECT string_agg(status, ';') FROM cloud_pods").await, "active");
    assert_eq!(stage.world.sim.guests().len(), 1);
}

#[tokio::test]
async fn a_row_that_says_too_little_fails_with_the_fields() {
    let stage = Stage::new().await;
    let _worker = worker(&stage).await;
    let id = row(&stage, "BACKUP", &json!({"vmid": 121, "mode": "loudly"}), None, 10.0).await;
    stage.until(&status_of(&id), "failed").await;
    let error = stage.world.one(&format!("SELECT error FROM cloud_pod_jobs WHERE id = '{id}'")).await;
    assert!(error.contains("cloudPodId") && error.contains("mode"), "{error}");
    assert!(!error.contains("tenantId"), "the row knows it: {error}");
}

#[tokio::test]
async fn rows_of_health_checks_end_too() {
    let stage = Stage::new().await;
    let _worker = worker(&stage).await;
    let sweep = json!({"tenantId": "system", "vmid": 0, "cloudPodId": "all", "triggeredBy": "schedule"});
    let all = row(&stage, "HEALTH_CHECK", &sweep, None, 10.0).await;
    let none = json!({"vmid": 121, "cloudPodId": TENANT, "triggeredBy": "manual"});
    let one = row(&stage, "HEALTH_CHECK", &none, None, 10.0).await;
    stage.until(&status_of(&all), "success").await;
    stage.until(&status_of(&one), "failed").await;
}

/// What the database believes: its jobs began ten minutes ago.
const LONG_AGO: &str =
    "UPDATE cloud_pod_jobs SET started_at = timezone('utc', now()) - interval '10 minutes'";

/// A creation whose worker dies in the middle of it.
async fn half_made(stage: &Stage) -> String {
    stage.queue().open_events().await.unwrap();
    let first = worker(stage).await;
    let job = stage.enqueue(payload(121)).await;
    stage.until("SELECT upid IS NOT NULL FROM fleet_job_steps WHERE step = 'create'", "true").await;
    first.kill9();
    stage.world.execute(LONG_AGO).await;
    job
}

#[tokio::test]
async fn a_creation_that_redis_loses_half_way_goes_on() {
    let stage = Stage::with(PveSimConfig { task_ms: 1500, ..sim_config(2) }).await;
    let job = half_made(&stage).await;
    redis(&stage, redis::cmd("FLUSHALL").clone()).await;
    let _second = worker(&stage).await;
    stage.until("SELECT string_agg(status, ';') FROM cloud_pod_jobs", "success").await;
    eventually_completed(&stage, &job).await;
    stage.assert_one_pod(&job, 121).await;
}

#[tokio::test]
async fn a_creation_that_a_node_worker_fails_as_stalled_goes_on() {
    let stage = Stage::with(PveSimConfig { task_ms: 1500, ..sim_config(2) }).await;
    let job = half_made(&stage).await;
    // What a Node worker does that allows one stall.
    let key = |end: &str| format!("bull:{QUEUE}:{end}");
    let mut failing = redis::pipe();
    failing.del(key(&format!("{job}:lock"))).lrem(key("active"), 0, &job).zadd(key("failed"), &job, 1);
    failing.hset(key(&job), "failedReason", "job stalled more than allowable limit");
    let redis = mpanel_connect::Redis::open(&stage.redis.url()).unwrap();
    let mut shared = redis.shared().await.unwrap();
    failing.query_async::<()>(&mut shared.conn).await.unwrap();
    let _second = worker(&stage).await;
    stage.until("SELECT string_agg(status, ';') FROM cloud_pod_jobs", "success").await;
    eventually_completed(&stage, &job).await;
    stage.assert_one_pod(&job, 121).await;
}

async fn redis(stage: &Stage, command: redis::Cmd) {
    let redis = mpanel_connect::Redis::open(&stage.redis.url()).unwrap();
    let mut shared = redis.shared().await.unwrap();
    command.query_async::<()>(&mut shared.conn).await.unwrap();
}

/// The row says so first, Redis a moment later.
async fn eventually_completed(stage: &Stage, job: &str) {
    stage.queue().wait_event("completed", Some(job), SOON).await.unwrap();
}
