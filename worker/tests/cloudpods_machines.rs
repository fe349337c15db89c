//! A job with `kind: vm` in, a virtual machine and its rows out.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{operations::*, *};
use mpanel_testkit::pve::{Fault, FaultAction, VM_TEMPLATE};
use mpanel_worker::services::cloudpods::{CreateService, Verdict, operation::Operation};
use serde_json::{Value, json};

fn machines(world: &World) -> CreateService {
    let template = VM_TEMPLATE.to_string();
    let extra = [("MPANEL_FLEET_CLOUDPODS__VM_TEMPLATE_VMID", template.as_str())];
    service(&world.url, &world.sim, world.sim.token_secret(), &extra)
}

fn machine(vmid: u32) -> Value {
    let mut data = payload(vmid);
    data["kind"] = json!("vm");
    data["diskGb"] = json!(40);
    data
}

async fn assert_one_machine(world: &World, vmid: u32) {
    let pod = world.one("SELECT id FROM cloud_pods").await;
    let guest = world.sim.guest(vmid).unwrap();
    assert_eq!((guest.kind, guest.status, guest.lock), ("qemu", "running", None));
    assert_eq!((guest.cores, guest.memory, guest.disk_gib), (2, 2048, 40));
    assert!(guest.tags.contains(&format!("mpanel-pod-{pod}")), "{:?}", guest.tags);
    let row = world.one("SELECT status || ' ' || vmid || ' ' || ip FROM cloud_pods").await;
    assert_eq!(row, format!("active {vmid} {}", guest.addresses[0]));
    assert_eq!(world.one("SELECT kind FROM fleet_pods").await, "vm");
    assert_eq!(world.guests(), 1);
    assert_eq!(world.quota_used().await, "1/2/2048/40");
    world.assert_sound();
}

#[tokio::test]
async fn a_machine_is_cloned_configured_and_started() {
    let world = World::new().await;
    let service = machines(&world);
    let result = service.create(&job("create-130-1"), &machine(130), &silent()).await.unwrap();
    assert_eq!((result.success, result.vmid), (true, 130));
    assert_one_machine(&world, 130).await;
    let data = about(&result.cloud_pod_id.to_string(), 130, json!({}));
    world.operate(Operation::Destroy, "d", &data).await.unwrap();
    assert_eq!((world.guests(), world.allocated().await.as_str()), (0, "0/0/0"));
}

#[tokio::test]
async fn a_clone_whose_answer_is_lost_is_found_again_by_its_description() {
    let world = World::new().await;
    world.sim.add_fault(Fault::new("POST", "/nodes/*/qemu/*/clone", FaultAction::DropAfter).nth(1));
    machines(&world).create(&job("create-130-1"), &machine(130), &silent()).await.unwrap();
    assert_one_machine(&world, 130).await;
    let clones = world.sim.tasks().iter().filter(|task| task.kind == "qmclone").count();
    assert_eq!(clones, 1);
}

#[tokio::test]
async fn a_machine_that_cannot_start_is_taken_away_again() {
    let world = World::new().await;
    let service = machines(&world);
    let start = Fault::new("POST", "/nodes/*/qemu/*/status/start", FaultAction::TaskError);
    world.sim.add_fault(start.text("start failed: QEMU exited with code 1"));
    let job = job("create-130-1");
    let error = service.create(&job, &machine(130), &silent()).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Retry);
    let before = mpanel_worker::services::cloudpods::Before::Ran;
    service.fail(&job, before, &machine(130), &error.to_string()).await.unwrap();
    assert_eq!((world.guests(), world.allocated().await.as_str()), (0, "0/0/0"));
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "failed");
}
