//! The worker dies or freezes in mid-creation, and another one finishes: one
//! pod, one guest, one allocation, whatever the moment. Most of each case is waiting,
//! so several share a test.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{
    payload, sim_config,
    stage::{Held, SOON, Stage},
};
use mpanel_testkit::{
    WorkerProcess, eventually,
    pve::{Fault, FaultAction, PveSimConfig},
};

const CREATE: &str = "/nodes/*/lxc";
/// Somebody waits for an advisory lock that a [`Held`] has.
const WAITS_FOR_A_LOCK: &str = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

fn step(step: &str, what: &str) -> String {
    format!("SELECT {what} FROM fleet_job_steps WHERE step = '{step}'")
}

/// Enqueues, lets a worker begin, waits for the moment, kills it; another finishes.
async fn survives(config: PveSimConfig, fault: Option<Fault>, moment: (String, &str)) {
    let stage = Stage::with(config).await;
    stage.queue().open_events().await.unwrap();
    fault.into_iter().for_each(|fault| stage.world.sim.add_fault(fault));
    let first = stage.worker().await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(&moment.0, moment.1).await;
    first.kill9();
    assert_eq!(stage.queue().state(&id).await.unwrap(), "active", "killed too late to prove anything");
    stage.world.sim.clear_faults();
    let _second = stage.worker().await;
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
    assert_eq!(stage.world.one("SELECT attempts FROM cloud_pod_jobs").await, "2");
}

fn slow(method: &str, path: &str, action: FaultAction) -> Option<Fault> {
    Some(Fault::new(method, path, action).nth(1).ms(2000))
}

fn busy() -> PveSimConfig {
    PveSimConfig { task_ms: 1500, ..sim_config(2) }
}

async fn while_it_asks_for_the_guest() {
    let reserved = step("reserve", "state");
    let sent = step("create", "state");
    tokio::join!(
        survives(sim_config(2), slow("GET", "/nodes/*/lxc/*/config", FaultAction::Delay), (reserved, "done")),
        // Handled although its sender is dead: the guest appears later.
        survives(sim_config(2), slow("POST", CREATE, FaultAction::Delay), (sent.clone(), "sent")),
        // Handled at once, but the task's name is never heard.
        survives(sim_config(2), slow("POST", CREATE, FaultAction::DelayAfter), (sent.clone(), "sent")),
    );
}

async fn while_the_guest_is_made_and_before_it_starts() {
    tokio::join!(
        survives(busy(), None, (step("create", "upid IS NOT NULL"), "true")),
        survives(
            sim_config(2),
            slow("GET", "/nodes/*/lxc/*/status/current", FaultAction::Delay),
            (step("settle", "state"), "done"),
        ),
    );
}

#[tokio::test]
async fn killed_while_the_guest_starts_and_before_its_address_is_known() {
    tokio::join!(
        survives(
            sim_config(2),
            slow("POST", "/nodes/*/lxc/*/status/start", FaultAction::Delay),
            (step("start", "state"), "sent"),
        ),
        survives(busy(), None, (step("start", "upid IS NOT NULL"), "true")),
        survives(
            sim_config(2),
            slow("GET", "/nodes/*/lxc/*/interfaces", FaultAction::Delay),
            (step("start", "state"), "done"),
        ),
    );
}

async fn in_the_middle_of_the_reservation() {
    let stage = Stage::new().await;
    stage.queue().open_events().await.unwrap();
    let held = Held::quota(&stage.world.url).await;
    let first = stage.worker().await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(WAITS_FOR_A_LOCK, "true").await;
    first.kill9();
    held.release().await;
    let _second = stage.worker().await;
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
}

async fn in_the_middle_of_the_commit() {
    let stage = Stage::new().await;
    stage.queue().open_events().await.unwrap();
    stage.world.sim.add_fault(slow("GET", "/nodes/*/lxc/*/interfaces", FaultAction::Delay).unwrap());
    let first = stage.worker().await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(&step("start", "state"), "done").await;
    let held = Held::quota(&stage.world.url).await;
    stage.until(&step("verify", "state"), "done").await;
    stage.until(WAITS_FOR_A_LOCK, "true").await;
    first.kill9();
    held.release().await;
    let _second = stage.worker().await;
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
}

async fn after_the_commit_before_redis_knew() {
    let stage = Stage::new().await;
    stage.queue().open_events().await.unwrap();
    stage.world.sim.add_fault(slow("GET", "/nodes/*/lxc/*/interfaces", FaultAction::Delay).unwrap());
    // Redis is frozen until the commit, and the lock must outlive that.
    let first = stage.worker_with(&[], &[("MPANEL_FLEET_RUN__LOCK_MS", "10000")]).await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(&step("start", "state"), "done").await;
    stage.redis.sigstop().unwrap();
    stage.until("SELECT status FROM cloud_pods", "active").await;
    first.kill9();
    stage.redis.sigcont().unwrap();
    let asked = stage.mutations().len();
    let _second = stage.worker().await;
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
    assert_eq!(stage.mutations().len(), asked, "the second worker only answers");
}

/// A thawed worker learns that its job is another's: by the renewal of its lock, or
/// by the refusal of its outcome, whichever comes first.
async fn notices_that_it_is_late(worker: &WorkerProcess) {
    eventually("the thawed worker notices", SOON, || async {
        let late = |text: &str| text.contains("lock lost") || text.contains("the outcome was refused");
        if worker.lines().iter().any(|line| late(&line.text)) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await
    .unwrap();
}

/// Freezes the first worker at the moment, lets a second take over and finish,
/// thaws the first: it must write nothing more, here or on Proxmox.
async fn thaws_harmlessly(config: PveSimConfig, fault: Option<Fault>, moment: (String, &str)) {
    let stage = Stage::with(config).await;
    stage.queue().open_events().await.unwrap();
    fault.into_iter().for_each(|fault| stage.world.sim.add_fault(fault));
    let first = stage.worker().await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(&moment.0, moment.1).await;
    first.signal("STOP").unwrap();
    stage.world.sim.clear_faults();
    let second = stage.worker().await;
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
    let asked = stage.mutations().len();
    let rows = "SELECT (SELECT md5(string_agg(p::text, '')) FROM cloud_pods p)
        || (SELECT md5(string_agg(j::text, '')) FROM cloud_pod_jobs j)
        || (SELECT md5(string_agg(s::text, '' ORDER BY step)) FROM fleet_job_steps s)
        || (SELECT md5(string_agg(f::text, '')) FROM fleet_job_fence f)";
    let before = stage.world.one(rows).await;
    first.signal("CONT").unwrap();
    notices_that_it_is_late(&first).await;
    // It goes on serving: the next job may be anyone's.
    first.sigterm().unwrap();
    assert_eq!(first.wait(SOON).await.unwrap().code(), Some(0));
    assert_eq!(stage.mutations().len(), asked);
    assert_eq!(stage.world.one(rows).await, before);
    stage.assert_one_pod(&id, 121).await;
    drop(second);
}

async fn frozen_in_the_clean_up() {
    let stage = Stage::new().await;
    stage.queue().open_events().await.unwrap();
    let sim = &stage.world.sim;
    let start = Fault::new("POST", "/nodes/*/lxc/*/status/start", FaultAction::TaskError).nth(1);
    sim.add_fault(start.text("startup for container failed"));
    // Two looks around the start; the third one is the clean-up's, before it destroys.
    let status = "/nodes/*/lxc/*/status/current";
    sim.add_fault(Fault::new("GET", status, FaultAction::Delay).nth(3).ms(2000));
    let first = stage.worker().await;
    let opts = serde_json::json!({"jobId": "once", "attempts": 1});
    stage.queue().add("create", payload(121), opts).await.unwrap();
    eventually("the clean-up", SOON, || async {
        let looks = sim.requests().iter().filter(|r| r.path.ends_with("/status/current")).count();
        if looks == 3 { Ok(()) } else { Err(format!("{looks} looks")) }
    })
    .await
    .unwrap();
    first.signal("STOP").unwrap();
    sim.clear_faults();
    // For the second one the same attempt has not ended: it makes what the first one wants to take away.
    let _second = stage.worker().await;
    stage.finished("once").await;
    stage.assert_one_pod("once", 121).await;
    first.signal("CONT").unwrap();
    notices_that_it_is_late(&first).await;
    first.sigterm().unwrap();
    assert_eq!(first.wait(SOON).await.unwrap().code(), Some(0));
    stage.assert_one_pod("once", 121).await;
}

async fn killed_in_the_clean_up() {
    let stage = Stage::with(PveSimConfig { task_ms: 800, ..sim_config(2) }).await;
    let sim = &stage.world.sim;
    let start = Fault::new("POST", "/nodes/*/lxc/*/status/start", FaultAction::TaskError);
    sim.add_fault(start.text("startup for container failed"));
    let first = stage.worker().await;
    let opts = serde_json::json!({"jobId": "once", "attempts": 1});
    stage.queue().add("create", payload(121), opts).await.unwrap();
    stage.until_asked("DELETE", "/lxc/121").await;
    first.kill9();
    let _second = stage.worker().await;
    stage.queue().wait_until_finished("once", SOON).await.unwrap_err();
    let world = &stage.world;
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "failed");
    assert_eq!(world.one("SELECT string_agg(status, ';') FROM cloud_pod_jobs").await, "failed");
    assert_eq!(world.allocated().await, "0/0/0");
    assert_eq!(world.one("SELECT state FROM fleet_vmids").await, "cooldown");
    assert_eq!(sim.guests().len(), 0);
    assert!(sim.invariants().ok);
}

#[tokio::test]
async fn frozen_before_the_request_to_create_and_while_its_task_runs() {
    let fault = slow("GET", "/nodes/*/lxc/*/config", FaultAction::Delay);
    tokio::join!(
        thaws_harmlessly(sim_config(2), fault, (step("reserve", "state"), "done")),
        thaws_harmlessly(busy(), None, (step("create", "upid IS NOT NULL"), "true")),
    );
}

#[tokio::test]
async fn killed_before_the_guest_starts() {
    tokio::join!(while_it_asks_for_the_guest(), while_the_guest_is_made_and_before_it_starts());
}

#[tokio::test]
async fn killed_in_the_transactions_and_after_the_last() {
    tokio::join!(
        in_the_middle_of_the_reservation(),
        in_the_middle_of_the_commit(),
        after_the_commit_before_redis_knew()
    );
}

#[tokio::test]
async fn killed_or_frozen_while_it_cleans_up_after_a_failure() {
    tokio::join!(frozen_in_the_clean_up(), killed_in_the_clean_up());
}
