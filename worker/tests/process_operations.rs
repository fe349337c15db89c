//! The worker dies in the middle of an operation, and another one finishes it:
//! done once, whatever the moment. Most of each case is waiting, so several share a test.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{
    operations::*,
    sim_config,
    stage::{RESCUE, SOON, Stage},
};
use mpanel_testkit::{
    BullVersion, NodeQueue, WorkerProcess,
    pve::{Fault, FaultAction, PveSimConfig},
};
use mpanel_worker::services::cloudpods::operation::Operation;
use serde_json::{Value, json};

fn queue(stage: &Stage, operation: Operation) -> NodeQueue {
    stage.node.queue(BullVersion::V5, operation.queue())
}

async fn worker(stage: &Stage, operation: Operation) -> WorkerProcess {
    let worker = stage.program(&["run", "--queues", operation.queue()], &[]).start().unwrap();
    worker.wait_line(" ready ", SOON).await.unwrap();
    worker
}

/// A step and what is to be seen of it.
type Moment = (&'static str, &'static str, &'static str);

fn slow(method: &str, path: &str, action: FaultAction) -> Option<Fault> {
    Some(Fault::new(method, path, action).nth(1).ms(2500))
}

fn busy() -> PveSimConfig {
    PveSimConfig { task_ms: 1500, ..sim_config(2) }
}

/// Enqueues an operation on a pod of ours, kills the worker at the moment, lets
/// another finish; answers the stage and the job's result.
async fn survives(
    operation: Operation,
    data: impl Fn(&str) -> Value,
    config: PveSimConfig,
    fault: Option<Fault>,
    (step, what, wanted): Moment,
) -> (Stage, Value) {
    let stage = Stage::with(config).await;
    let pod = stage.world.pod(121).await;
    fault.into_iter().for_each(|fault| stage.world.sim.add_fault(fault));
    let queue = queue(&stage, operation);
    let first = worker(&stage, operation).await;
    let opts = json!({"jobId": "op", "attempts": 3, "backoff": {"type": "exponential", "delay": 500}});
    queue.add("op", data(&pod), opts).await.unwrap();
    let sql = format!("SELECT {what} FROM fleet_job_steps WHERE job_id = 'op' AND step = '{step}'");
    stage.until(&sql, wanted).await;
    first.kill9();
    assert_eq!(queue.state("op").await.unwrap(), "active", "killed too late to prove anything");
    stage.world.sim.clear_faults();
    let _second = worker(&stage, operation).await;
    let result = queue.wait_until_finished("op", RESCUE).await.unwrap();
    let world = &stage.world;
    assert_eq!(world.one("SELECT count(*) FROM fleet_effect WHERE job_id = 'op'").await, "1");
    assert_eq!(world.one("SELECT count(*) FROM fleet_pod_leases").await, "0");
    let kind = operation.row_kind();
    assert!(world.job_row(kind).await.starts_with("success ") && !world.job_row(kind).await.contains(';'));
    world.assert_sound();
    (stage, result)
}

const SENT: Moment = ("", "state", "sent");
const NAMED: &str = "upid IS NOT NULL";

fn at(step: &'static str, (_, what, wanted): Moment) -> Moment {
    (step, what, wanted)
}

async fn destroyed(config: PveSimConfig, fault: Option<Fault>, moment: Moment) {
    let data = |pod: &str| about(pod, 121, json!({}));
    let (stage, result) = survives(Operation::Destroy, data, config, fault, moment).await;
    assert_eq!(result, json!({"success": true, "vmid": 121}));
    let world = &stage.world;
    assert_eq!(world.sim.guests().len(), 0);
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "deleted");
    assert_eq!((world.quota_used().await.as_str(), world.allocated().await.as_str()), ("0/0/0/0", "0/0/0"));
}

#[tokio::test]
async fn killed_while_it_destroys() {
    let delete = "/nodes/*/lxc/*";
    tokio::join!(
        destroyed(
            sim_config(2),
            slow("POST", "/nodes/*/lxc/*/status/stop", FaultAction::Delay),
            at("stop", SENT)
        ),
        destroyed(busy(), None, ("stop", NAMED, "true")),
        destroyed(sim_config(2), slow("DELETE", delete, FaultAction::Delay), at("destroy", SENT)),
    );
    tokio::join!(
        destroyed(sim_config(2), slow("DELETE", delete, FaultAction::DelayAfter), at("destroy", SENT)),
        destroyed(busy(), None, ("destroy", NAMED, "true")),
    );
}

async fn backed_up(config: PveSimConfig, fault: Option<Fault>, moment: Moment) {
    let (stage, result) = survives(Operation::Backup, |pod| backup(pod, 121), config, fault, moment).await;
    assert_eq!(result, json!({"success": true, "snapshot": "before-upgrade"}));
    let world = &stage.world;
    assert_eq!(world.sim.guest(121).unwrap().snapshots, ["before-upgrade"]);
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_backups").await, "1");
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_events WHERE type = 'BACKUP'").await, "1");
}

#[tokio::test]
async fn killed_while_it_backs_up() {
    let path = "/nodes/*/lxc/*/snapshot";
    tokio::join!(
        backed_up(sim_config(2), slow("POST", path, FaultAction::Delay), at("snapshot", SENT)),
        backed_up(sim_config(2), slow("POST", path, FaultAction::DelayAfter), at("snapshot", SENT)),
        backed_up(busy(), None, ("snapshot", NAMED, "true")),
    );
}

async fn scaled(config: PveSimConfig, fault: Option<Fault>, moment: Moment) {
    let data = |pod: &str| scale(pod, 121, 4, 4096, true);
    let (stage, result) = survives(Operation::Scale, data, config, fault, moment).await;
    assert_eq!(result, json!({"success": true, "newCores": 4, "newMemoryMb": 4096}));
    let world = &stage.world;
    let guest = world.sim.guest(121).unwrap();
    assert_eq!((guest.cores, guest.memory, guest.status, guest.snapshots.len()), (4, 4096, "running", 1));
    assert_eq!(
        (world.quota_used().await.as_str(), world.allocated().await.as_str()),
        ("1/4/4096/20", "4/4096/20")
    );
}

#[tokio::test]
async fn killed_while_it_scales() {
    let status = "/nodes/*/lxc/*/status/current";
    let config = "/nodes/*/lxc/*/config";
    tokio::join!(
        scaled(sim_config(2), slow("GET", status, FaultAction::Delay), ("reserve", "state", "done")),
        scaled(busy(), None, ("pre-scale", NAMED, "true")),
        scaled(sim_config(2), slow("PUT", config, FaultAction::Delay), ("configure", "state", "planned")),
    );
    tokio::join!(
        scaled(
            sim_config(2),
            slow("PUT", config, FaultAction::DelayAfter),
            ("configure", "state", "planned")
        ),
        scaled(
            sim_config(2),
            slow("GET", "/nodes/*/lxc/*/pending", FaultAction::Delay),
            ("configure", "state", "planned"),
        ),
    );
}

async fn rebooted(config: PveSimConfig, fault: Option<Fault>, moment: Moment) {
    let (stage, result) =
        survives(Operation::Action, |pod| action(pod, 121, "reboot"), config, fault, moment).await;
    assert_eq!(result["power"], "running");
    let tasks = stage.world.sim.tasks();
    assert_eq!(tasks.iter().filter(|task| task.kind == "vzreboot").count(), 1, "once, not twice");
}

#[tokio::test]
async fn killed_while_it_reboots() {
    let path = "/nodes/*/lxc/*/status/reboot";
    tokio::join!(
        rebooted(sim_config(2), slow("POST", path, FaultAction::Delay), at("power", SENT)),
        rebooted(sim_config(2), slow("POST", path, FaultAction::DelayAfter), at("power", SENT)),
        rebooted(busy(), None, ("power", NAMED, "true")),
    );
}

#[tokio::test]
async fn the_health_sweep_is_scheduled_once_whoever_starts_and_with_which_interval() {
    let stage = Stage::new().await;
    let queue = stage.node.queue(BullVersion::V5, "cloudpods-health");
    let scheduled = async || -> Vec<Value> {
        let listed = queue.queue_call("getRepeatableJobs", vec![]).await.unwrap();
        let rows = listed.as_array().unwrap().iter();
        rows.map(|row| json!([row["name"], row["every"]])).collect()
    };
    let run = ["run", "--queues", "cloudpods-health"];
    let five: Value = json!(["scheduled-health-sweep", "300000"]);
    let first = stage.program(&run, &[]).start().unwrap();
    first.wait_line(" ready ", SOON).await.unwrap();
    assert_eq!(scheduled().await, std::slice::from_ref(&five));
    // mPanel's own call finds it; its call with another interval adds one, as ever.
    let mpanel = stage.node.mpanel(BullVersion::V5);
    mpanel.schedule_health_checks(5.0).await.unwrap();
    assert_eq!(scheduled().await, std::slice::from_ref(&five));
    mpanel.schedule_health_checks(7.0).await.unwrap();
    assert_eq!(scheduled().await.len(), 2);
    drop(first);
    let off = stage.program(&run, &[("HEALTH_CHECK_INTERVAL", "0")]).start().unwrap();
    off.wait_line(" ready ", SOON).await.unwrap();
    assert_eq!(scheduled().await.len(), 2, "0 leaves them alone");
    let second = stage.program(&run, &[("HEALTH_CHECK_INTERVAL", "9")]).start().unwrap();
    second.wait_line(" ready ", SOON).await.unwrap();
    assert_eq!(scheduled().await, [json!(["scheduled-health-sweep", "540000"])]);
    assert_eq!(queue.counts(&["delayed"]).await.unwrap()["delayed"], 1);
}
