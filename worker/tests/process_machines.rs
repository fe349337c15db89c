//! The worker dies while a virtual machine is made, or a vzdump runs, and another
//! one finishes: one machine, one backup, whatever the moment.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{
    operations::*,
    payload, sim_config,
    stage::{RESCUE, SOON, Stage},
};
use mpanel_testkit::{
    BullVersion, WorkerProcess,
    pve::{Fault, FaultAction, PveSimConfig, VM_TEMPLATE},
};
use mpanel_worker::services::cloudpods::operation::Operation;
use serde_json::{Value, json};

const VMID: u32 = 130;

async fn worker(stage: &Stage, queue: &str) -> WorkerProcess {
    let template = VM_TEMPLATE.to_string();
    let extra = [
        ("MPANEL_FLEET_CLOUDPODS__VM_TEMPLATE_VMID", template.as_str()),
        ("MPANEL_FLEET_CLOUDPODS__BACKUP_STORAGE", "local"),
    ];
    let worker = stage.program(&["run", "--queues", queue], &extra).start().unwrap();
    worker.wait_line(" ready ", SOON).await.unwrap();
    worker
}

fn slow(method: &str, path: &str, action: FaultAction) -> Option<Fault> {
    Some(Fault::new(method, path, action).nth(1).ms(2500))
}

fn busy() -> PveSimConfig {
    PveSimConfig { task_ms: 1500, ..sim_config(2) }
}

fn machine() -> Value {
    let mut data = payload(VMID);
    data["kind"] = json!("vm");
    data["diskGb"] = json!(40);
    data
}

/// Enqueues, kills the worker when a step is so far, lets another finish.
async fn made(config: PveSimConfig, fault: Option<Fault>, step: &str, what: &str, wanted: &str) {
    let stage = Stage::with(config).await;
    let (world, queue) = (&stage.world, stage.queue());
    fault.into_iter().for_each(|fault| world.sim.add_fault(fault));
    let first = worker(&stage, "cloudpods-create").await;
    let id = stage.enqueue(machine()).await;
    stage.until(&format!("SELECT {what} FROM fleet_job_steps WHERE step = '{step}'"), wanted).await;
    first.kill9();
    assert_eq!(queue.state(&id).await.unwrap(), "active", "{step} {what}: killed too late to prove anything");
    world.sim.clear_faults();
    let _second = worker(&stage, "cloudpods-create").await;
    stage.finished(&id).await;
    let guest = world.sim.guest(VMID).unwrap();
    assert_eq!((guest.kind, guest.status, guest.lock), ("qemu", "running", None), "{step} {what}");
    assert_eq!((guest.cores, guest.memory, guest.disk_gib), (2, 2048, 40), "{step} {what}");
    let pod = world.one("SELECT string_agg(id::text, ';') FROM cloud_pods WHERE status = 'active'").await;
    assert!(guest.tags.contains(&format!("mpanel-pod-{pod}")), "{:?}", guest.tags);
    assert_eq!((world.guests(), world.quota_used().await.as_str()), (1, "1/2/2048/40"), "{step} {what}");
    assert_eq!(world.allocated().await, "2/2048/40");
    world.assert_sound();
}

#[tokio::test]
async fn killed_while_a_machine_is_cloned() {
    let clone = "/nodes/*/qemu/*/clone";
    tokio::join!(
        made(sim_config(2), slow("POST", clone, FaultAction::Delay), "create", "state", "sent"),
        made(sim_config(2), slow("POST", clone, FaultAction::DelayAfter), "create", "state", "sent"),
        made(busy(), None, "create", "upid IS NOT NULL", "true"),
    );
}

#[tokio::test]
async fn killed_while_a_machine_is_configured_and_started() {
    let config = "/nodes/*/qemu/*/config";
    tokio::join!(
        made(sim_config(2), slow("PUT", config, FaultAction::Delay), "configure", "state", "sent"),
        made(sim_config(2), slow("PUT", config, FaultAction::DelayAfter), "configure", "state", "sent"),
        made(
            sim_config(2),
            slow("POST", "/nodes/*/qemu/*/status/start", FaultAction::DelayAfter),
            "start",
            "state",
            "sent"
        ),
    );
}

async fn backed_up(config: PveSimConfig, fault: Option<Fault>, what: &str, wanted: &str) {
    let stage = Stage::with(config).await;
    let world = &stage.world;
    let pod = world.pod(121).await;
    fault.into_iter().for_each(|fault| world.sim.add_fault(fault));
    let queue = stage.node.queue(BullVersion::V5, Operation::Backup.queue());
    let first = worker(&stage, Operation::Backup.queue()).await;
    let opts = json!({"jobId": "op", "attempts": 3, "backoff": {"type": "exponential", "delay": 500}});
    queue.add("backup", backup(&pod, 121), opts).await.unwrap();
    let steps = format!("SELECT {what} FROM fleet_job_steps WHERE job_id = 'op' AND sends > 0");
    stage.until(&steps, wanted).await;
    first.kill9();
    assert_eq!(queue.state("op").await.unwrap(), "active", "killed too late to prove anything");
    world.sim.clear_faults();
    let _second = worker(&stage, Operation::Backup.queue()).await;
    let result = queue.wait_until_finished("op", RESCUE).await.unwrap();
    let dumps = world.sim.tasks().iter().filter(|task| task.kind == "vzdump").count();
    assert_eq!(dumps, 1, "{what}");
    let location = world.one("SELECT string_agg(location, ';') FROM cloud_pod_backups").await;
    assert_eq!(result, json!({"success": true, "snapshot": location}));
    assert!(location.starts_with("local:backup/"), "{location}");
    world.assert_sound();
}

#[tokio::test]
async fn killed_while_a_backup_is_made() {
    let dump = "/nodes/*/vzdump";
    tokio::join!(
        backed_up(sim_config(2), slow("POST", dump, FaultAction::Delay), "state", "sent"),
        backed_up(sim_config(2), slow("POST", dump, FaultAction::DelayAfter), "state", "sent"),
        backed_up(busy(), None, "upid IS NOT NULL", "true"),
    );
}
