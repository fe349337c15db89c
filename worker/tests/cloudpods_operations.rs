//! What jobs do to pods that exist, containers of ours and machines of a Node
//! worker's alike: guests, rows, books, events, results.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{operations::*, *};
use mpanel_testkit::pve::{Fault, FaultAction, PveSimConfig};
use mpanel_worker::services::cloudpods::{
    Before, Verdict,
    operation::{OpError, Operation},
    reconcile_late_rows,
};
use serde_json::{Value, json};
use uuid::Uuid;

const PODS: &str = "SELECT string_agg(status || ' ' || (deleted_at IS NOT NULL), ';') FROM cloud_pods";
const LEASES: &str = "SELECT count(*) FROM fleet_pod_leases";
const EVENTS: &str = "SELECT string_agg(type, ',' ORDER BY created_at, type) FROM cloud_pod_events";

#[tokio::test]
async fn a_pod_is_destroyed_and_everything_it_held_is_given_back() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    let data = about(&pod, 121, json!({"reason": "subscription ended"}));
    let result = world.operate(Operation::Destroy, "destroy-121-1", &data).await.unwrap();
    assert_eq!(result, json!({"success": true, "vmid": 121}));
    assert_eq!(world.guests(), 0);
    assert_eq!(world.one(PODS).await, "deleted true");
    assert_eq!(world.quota_used().await, "0/0/0/0");
    assert_eq!(world.allocated().await, "0/0/0");
    assert_eq!(world.one("SELECT state FROM fleet_vmids").await, "cooldown");
    assert!(world.job_row("DESTROY").await.starts_with("success "));
    assert_eq!(world.one(EVENTS).await, "STATE_CHANGE,STATE_CHANGE");
    assert_eq!(world.one(LEASES).await, "0");
    // Again, by the same job and by another: success, and nothing is taken off twice.
    assert_eq!(world.operate(Operation::Destroy, "destroy-121-1", &data).await.unwrap(), result);
    assert_eq!(world.operate(Operation::Destroy, "destroy-121-2", &data).await.unwrap(), result);
    assert_eq!(world.quota_used().await, "0/0/0/0");
    // The route writes `deleting` over it.
    world.execute("UPDATE cloud_pods SET status = 'deleting'").await;
    assert_eq!(reconcile_late_rows(&world.db).await.unwrap(), 1);
    assert_eq!(world.one(PODS).await, "deleted true");
    world.assert_sound();
}

#[tokio::test]
async fn a_machine_of_a_node_worker_is_worked_on_too() {
    let world = World::new().await;
    let pod = world.machine(130).await;
    let snapshot = world.operate(Operation::Backup, "b", &backup(&pod, 130)).await.unwrap();
    assert_eq!(snapshot, json!({"success": true, "snapshot": "before-upgrade"}));
    let scaled = world.operate(Operation::Scale, "s", &scale(&pod, 130, 4, 4096, false)).await.unwrap();
    assert_eq!(scaled, json!({"success": true, "newCores": 4, "newMemoryMb": 4096}));
    let guest = world.sim.guest(130).unwrap();
    assert_eq!((guest.cores, guest.memory, guest.status), (4, 4096, "running"));
    let health = about(&pod, 130, json!({"triggeredBy": "manual"}));
    let health = world.operate(Operation::Health, "h", &health).await.unwrap();
    assert_eq!((&health["health"]["healthy"], &health["health"]["ip"]), (&json!(true), &json!("10.9.0.9")));
    for (word, power) in [
        ("suspend", "suspended"),
        ("resume", "running"),
        ("reboot", "running"),
        ("stop", "stopped"),
        ("start", "running"),
    ] {
        let result = world.operate(Operation::Action, word, &action(&pod, 130, word)).await.unwrap();
        assert_eq!(result, json!({"success": true, "vmid": 130, "action": word, "power": power}));
    }
    let verbs: Vec<String> = world.sim.tasks().iter().rev().map(|task| task.kind.clone()).collect();
    let last = &verbs[verbs.len() - 5..];
    assert_eq!(last, ["qmsuspend", "qmresume", "qmreboot", "qmshutdown", "qmstart"]);
    let data = about(&pod, 130, json!({}));
    world.operate(Operation::Destroy, "d", &data).await.unwrap();
    assert_eq!((world.guests(), world.one(PODS).await.as_str()), (0, "deleted true"));
    world.assert_sound();
}

#[tokio::test]
async fn a_backup_goes_to_the_storage_or_becomes_a_snapshot_and_is_made_once() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    let result = world.operate(Operation::Backup, "b-1", &backup(&pod, 121)).await.unwrap();
    assert_eq!(result, json!({"success": true, "snapshot": "before-upgrade"}));
    assert_eq!(world.sim.guest(121).unwrap().snapshots, ["before-upgrade"]);
    // The same name by another job is that other job's.
    let reason = world.refused(Operation::Backup, "b-2", &backup(&pod, 121)).await;
    assert!(reason.contains("already used"), "{reason}");
    let unnamed = about(&pod, 121, json!({"mode": "suspend", "triggeredBy": "schedule"}));
    let result = world.operate(Operation::Backup, "b-3", &unnamed).await.unwrap();
    assert!(result["snapshot"].as_str().unwrap().starts_with("auto-"), "{result}");

    let service = world.operations(&[("MPANEL_FLEET_CLOUDPODS__BACKUP_STORAGE", "local")]);
    // The answer of the first request is lost: the backup is found, and not made again.
    world.sim.add_fault(Fault::new("POST", "/nodes/*/vzdump", FaultAction::DropAfter).nth(1));
    let job = op_job(Operation::Backup, "b-4");
    let result = service.run(Operation::Backup, &job, &backup(&pod, 121)).await.unwrap();
    let volid = result["snapshot"].as_str().unwrap().to_owned();
    assert!(volid.starts_with("local:backup/vzdump-lxc-121-"), "{volid}");
    let volumes: Vec<_> = world.sim.state().volumes.into_iter().filter(|v| v.content == "backup").collect();
    assert_eq!(volumes.len(), 1);
    assert_eq!(volumes[0].notes.trim(), "mpanel:cloudpods-backup/b-4 before-upgrade");
    let rows = "SELECT string_agg(backup_type || ' ' || status || ' ' || location, ';' ORDER BY created_at) FROM cloud_pod_backups";
    let rows = world.one(rows).await;
    assert!(rows.starts_with("snapshot completed before-upgrade;snapshot completed auto-"), "{rows}");
    assert!(rows.ends_with(&format!(";vzdump completed {volid}")), "{rows}");
    assert_eq!(world.one("SELECT last_backup_at IS NOT NULL FROM cloud_pods").await, "true");
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_events WHERE type = 'BACKUP'").await, "3");
    world.assert_sound();
}

#[tokio::test]
async fn a_backup_storage_that_is_not_there_is_named() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    let service = world.operations(&[("MPANEL_FLEET_CLOUDPODS__BACKUP_STORAGE", "tapes")]);
    let job = op_job(Operation::Backup, "b");
    let error = service.run(Operation::Backup, &job, &backup(&pod, 121)).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Never);
    assert!(error.to_string().starts_with("MPANEL_FLEET_CLOUDPODS__BACKUP_STORAGE tapes "), "{error}");
    service.fail(Operation::Backup, &job, Before::Ran, &backup(&pod, 121), "no").await.unwrap();
    assert_eq!(world.job_row("BACKUP").await, "failed no");
    assert_eq!((world.one(PODS).await.as_str(), world.one(LEASES).await.as_str()), ("active false", "0"));
}

#[tokio::test]
async fn a_pod_grows_and_shrinks_with_its_books() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    let result = world.operate(Operation::Scale, "s-1", &scale(&pod, 121, 4, 4096, true)).await.unwrap();
    assert_eq!(result, json!({"success": true, "newCores": 4, "newMemoryMb": 4096}));
    let guest = world.sim.guest(121).unwrap();
    assert_eq!((guest.cores, guest.memory, guest.status), (4, 4096, "running"));
    assert!(guest.snapshots.iter().all(|name| name.starts_with("pre-scale-")) && guest.snapshots.len() == 1);
    assert_eq!(world.quota_used().await, "1/4/4096/20");
    assert_eq!(world.allocated().await, "4/4096/20");
    assert_eq!(world.one("SELECT cores || '/' || memory_mb FROM cloud_pods").await, "4/4096");
    // Again: only the answer.
    assert_eq!(
        world.operate(Operation::Scale, "s-1", &scale(&pod, 121, 4, 4096, true)).await.unwrap(),
        result
    );
    assert_eq!(world.quota_used().await, "1/4/4096/20");
    world.operate(Operation::Scale, "s-2", &scale(&pod, 121, 1, 1024, false)).await.unwrap();
    assert_eq!(world.quota_used().await, "1/1/1024/20");
    assert_eq!(world.allocated().await, "1/1024/20");
    // The simulator's guests use a fifth of their memory: 204 MiB.
    let reason = world.refused(Operation::Scale, "s-3", &scale(&pod, 121, 1, 128, false)).await;
    assert!(reason.starts_with("Invalid payload: newMemoryMb 128 is too little"), "{reason}");
    let reason = world.refused(Operation::Scale, "s-4", &scale(&pod, 121, 9, 1024, false)).await;
    assert!(reason.starts_with("Quota exceeded: MAX_CPU_EXCEEDED"), "{reason}");
    assert_eq!(world.allocated().await, "1/1024/20");
    world.assert_sound();
}

#[tokio::test]
async fn a_change_of_size_that_fails_for_good_is_undone() {
    let world = World::new().await;
    let pod = world.machine(130).await;
    let config = Fault::new("PUT", "/nodes/*/qemu/*/config", FaultAction::Status);
    world.sim.add_fault(config.nth(1).status(400, "Parameter verification failed."));
    let reason = world.refused(Operation::Scale, "s", &scale(&pod, 130, 4, 4096, false)).await;
    assert!(reason.contains("Parameter verification failed"), "{reason}");
    let guest = world.sim.guest(130).unwrap();
    assert_eq!((guest.cores, guest.memory, guest.status), (2, 2048, "running"), "it was stopped for it");
    assert!(world.job_row("SCALE").await.starts_with("failed "));
    assert_eq!(
        world.one("SELECT cores || '/' || memory_mb || ' ' || status FROM cloud_pods").await,
        "2/2048 active"
    );
}

fn with_disk(mut scale: Value, gib: i64) -> Value {
    scale["newDiskGb"] = json!(gib);
    scale
}

#[tokio::test]
async fn a_disk_grows_once_and_never_shrinks() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    let grow = with_disk(scale(&pod, 121, 2, 2048, false), 30);
    // Its task's name is never heard.
    let resize = Fault::new("PUT", "/nodes/*/lxc/*/resize", FaultAction::DropAfter);
    world.sim.add_fault(resize.nth(1));
    let result = world.operate(Operation::Scale, "s-1", &grow).await.unwrap();
    assert_eq!(result, json!({"success": true, "newCores": 2, "newMemoryMb": 2048, "newDiskGb": 30}));
    let resizes = world.sim.requests().into_iter().filter(|request| request.path.ends_with("/resize"));
    assert_eq!(resizes.count(), 1);
    assert_eq!(
        (world.quota_used().await, world.allocated().await),
        ("1/2/2048/30".into(), "2/2048/30".into())
    );
    assert_eq!(world.one("SELECT disk_gb FROM cloud_pods").await, "30");
    let reason =
        world.refused(Operation::Scale, "s-2", &with_disk(scale(&pod, 121, 2, 2048, false), 20)).await;
    assert!(reason.starts_with("Invalid payload: newDiskGb 20 is less than the 30 GiB"), "{reason}");
    let reason =
        world.refused(Operation::Scale, "s-3", &with_disk(scale(&pod, 121, 2, 2048, false), 5000)).await;
    assert!(reason.contains("MAX_DISK_EXCEEDED"), "{reason}");
    assert_eq!(
        (world.quota_used().await, world.allocated().await),
        ("1/2/2048/30".into(), "2/2048/30".into())
    );
    world.assert_sound();
}

#[tokio::test]
async fn one_node_has_no_room_for_more_and_says_so() {
    let world = World::with(sim_config(1)).await;
    let pod = world.pod(121).await;
    world.execute("UPDATE cloud_pod_nodes SET total_memory_mb = 3000").await;
    let error = world.operate(Operation::Scale, "s", &scale(&pod, 121, 2, 4096, false)).await.unwrap_err();
    assert!(matches!(error, OpError::NoRoom { .. }), "{error}");
    assert_eq!(error.verdict(), Verdict::Retry);
    assert_eq!(world.allocated().await, "2/2048/20");
}

#[tokio::test]
async fn power_is_changed_and_a_pod_at_rest_is_not_ill() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    let health = about(&pod, 121, json!({"triggeredBy": "manual"}));
    world.operate(Operation::Action, "a-1", &action(&pod, 121, "stop")).await.unwrap();
    assert_eq!(world.sim.guest(121).unwrap().status, "stopped");
    assert_eq!(world.one(PODS).await, "active false", "quota, backup and dashboard read it");
    let result = world.operate(Operation::Health, "h-1", &health).await.unwrap();
    assert_eq!(result["health"]["healthy"], true);
    let tasks = world.sim.tasks().len();
    world.operate(Operation::Action, "a-2", &action(&pod, 121, "stop")).await.unwrap();
    assert_eq!(world.sim.tasks().len(), tasks, "stopped already");
    let reason = world.refused(Operation::Action, "a-3", &action(&pod, 121, "reboot")).await;
    assert!(reason.contains("not running"), "{reason}");
    for word in ["start", "suspend", "resume", "reboot"] {
        world.operate(Operation::Action, word, &action(&pod, 121, word)).await.unwrap();
    }
    assert_eq!(world.sim.guest(121).unwrap().status, "running");
    let reason = world.refused(Operation::Action, "a-4", &action(&pod, 121, "explode")).await;
    assert!(reason.starts_with("Invalid payload: action must be one of"), "{reason}");
}

#[tokio::test]
async fn health_is_told_for_one_pod_and_for_all() {
    let world = World::new().await;
    let (well, ill) = (world.pod(121).await, world.pod(122).await);
    let one = |pod: &str, vmid| about(pod, vmid, json!({"triggeredBy": "manual"}));
    let result = world.operate(Operation::Health, "h-1", &one(&well, 121)).await.unwrap();
    assert_eq!((&result["success"], &result["health"]["status"]), (&json!(true), &json!("running")));
    // It is stopped, but not by its owner.
    let at = mpanel_worker::adapters::proxmox::GuestAt {
        node: world.sim.guest(122).unwrap().node,
        kind: mpanel_worker::adapters::proxmox::GuestKind::Lxc,
        vmid: 122,
    };
    let client = world.client();
    ends_well(&client, client.power(&at, mpanel_worker::adapters::proxmox::Power::Stop).await).await;
    world.operate(Operation::Health, "h-2", &one(&ill, 122)).await.unwrap();
    let words = "SELECT string_agg(vmid || ' ' || last_health_status, ';' ORDER BY vmid) FROM cloud_pods";
    assert_eq!(world.one(words).await, "121 ok;122 critical");
    assert_eq!(world.job_row("HEALTH_CHECK").await, "-", "mPanel's health jobs have no row");
    let sweep = json!({"tenantId": "system", "vmid": 0, "cloudPodId": "all", "triggeredBy": "schedule"});
    let result = world.operate(Operation::Health, "sweep", &sweep).await.unwrap();
    assert_eq!(result, json!({"success": true, "total": 2, "healthy": 1}));
    assert_eq!(world.one(words).await, "121 ok;122 warning");
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_events WHERE type = 'HEALTH_CHECK'").await, "3");
    // A node that is down says nothing of its pods.
    world.sim.node_down(&at.node);
    let result = world.operate(Operation::Health, "h-3", &one(&ill, 122)).await.unwrap();
    assert_eq!(result["health"]["status"], "unknown");
}

#[tokio::test]
async fn two_jobs_on_one_pod_take_turns() {
    let world = World::with(PveSimConfig { task_ms: 600, ..sim_config(2) }).await;
    let pod = world.pod(121).await;
    let service = world.operations(&[]);
    let (first, second) = (op_job(Operation::Backup, "b"), op_job(Operation::Destroy, "d"));
    let (backup, destroy) = (backup(&pod, 121), about(&pod, 121, json!({})));
    let work = service.run(Operation::Backup, &first, &backup);
    let late = async {
        while world.one(LEASES).await == "0" {
            tokio::task::yield_now().await;
        }
        service.run(Operation::Destroy, &second, &destroy).await
    };
    let (done, waits) = tokio::join!(work, late);
    done.unwrap();
    let waits = waits.unwrap_err();
    assert!(matches!(waits.verdict(), Verdict::Wait(_)), "{waits}");
    assert_eq!(world.job_row("DESTROY").await, "-", "it has not begun");
    assert_eq!(world.one(PODS).await, "active false");
    service.run(Operation::Destroy, &second, &destroy).await.unwrap();
    assert_eq!(world.guests(), 0);
}

#[tokio::test]
async fn a_payload_that_is_not_about_the_pod_does_nothing_to_it() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    let before = world.mutations();
    let mut other_tenant = about(&pod, 121, json!({}));
    other_tenant["tenantId"] = json!(Uuid::new_v4());
    let nobody = Uuid::new_v4().to_string();
    for (id, data, wanted) in [
        ("d-1", other_tenant, "does not belong to tenant"),
        ("d-2", about(&pod, 122, json!({})), "vmid 122 is not the VMID of pod"),
        ("d-3", about(&nobody, 121, json!({})), "is no pod"),
        ("d-4", json!({"vmid": "x"}), "tenantId is missing"),
    ] {
        let reason = world.refused(Operation::Destroy, id, &data).await;
        assert!(reason.starts_with("Invalid payload: ") && reason.contains(wanted), "{reason}");
    }
    assert_eq!(world.mutations(), before);
    assert_eq!(world.one(PODS).await, "active false");
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_events WHERE type = 'ERROR'").await, "0");
    // A guest of somebody else's at the VMID is never touched.
    let client = world.client();
    let at = mpanel_worker::adapters::proxmox::GuestAt {
        node: world.sim.guest(121).unwrap().node,
        kind: mpanel_worker::adapters::proxmox::GuestKind::Lxc,
        vmid: 121,
    };
    let _ = client.set_guest_config(&at, None, &[("tags", "other")]).await;
    let reason = world.refused(Operation::Destroy, "d-5", &about(&pod, 121, json!({}))).await;
    assert!(reason.contains("is not the pod's guest"), "{reason}");
    assert_eq!((world.guests(), world.one(PODS).await.as_str()), (1, "active false"));
}

#[tokio::test]
async fn a_cancelled_row_is_honoured_and_the_status_before_comes_back() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    world
        .execute(&format!(
            "INSERT INTO cloud_pod_jobs (tenant_id, type, status, error, payload, bull_job_id)
             VALUES ('{TENANT}', 'DESTROY', 'failed', 'Cancelled by admin', '{{}}', 'd')"
        ))
        .await;
    let reason = world.refused(Operation::Destroy, "d", &about(&pod, 121, json!({}))).await;
    assert_eq!(reason, "Cancelled by admin");
    assert_eq!((world.guests(), world.one(PODS).await.as_str()), (1, "active false"));
    // One that cannot succeed leaves the pod as it was.
    let delete = Fault::new("DELETE", "/nodes/*/lxc/*", FaultAction::Status);
    world.sim.add_fault(delete.status(403, "Permission check failed (/vms/121, VM.Allocate)"));
    let reason = world.refused(Operation::Destroy, "d-2", &about(&pod, 121, json!({}))).await;
    assert!(reason.contains("missing privilege"), "{reason}");
    assert_eq!(world.one(PODS).await, "active false");
    assert_eq!(world.sim.guest(121).unwrap().status, "running", "it was stopped for it");
    assert_eq!(world.quota_used().await, "1/2/2048/20");
    assert_eq!(world.one(LEASES).await, "0");
}

#[tokio::test]
async fn lost_answers_warnings_and_locks_end_well() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    let snapshot = "/nodes/*/lxc/*/snapshot";
    world.sim.add_fault(Fault::new("POST", snapshot, FaultAction::DropAfter).nth(1));
    world.operate(Operation::Backup, "b", &backup(&pod, 121)).await.unwrap();
    assert_eq!(world.sim.guest(121).unwrap().snapshots, ["before-upgrade"]);
    world.sim.add_fault(Fault::new("POST", "/nodes/*/lxc/*/status/reboot", FaultAction::DropAfter).nth(1));
    world.operate(Operation::Action, "a", &action(&pod, 121, "reboot")).await.unwrap();
    let reboots = world.sim.tasks().iter().filter(|task| task.kind == "vzreboot").count();
    assert_eq!(reboots, 1, "found by its task, not sent again");
    world.sim.add_fault(
        Fault::new("POST", "/nodes/*/lxc/*/status/stop", FaultAction::TaskError).text("WARNINGS: 1"),
    );
    world.sim.add_fault(Fault::new("DELETE", "/nodes/*/lxc/*", FaultAction::DropAfter).nth(1));
    // Somebody's short backup holds the guest for a moment.
    let held = Fault::new("DELETE", "/nodes/*/lxc/*", FaultAction::Status);
    world.sim.add_fault(held.nth(1).status(500, "CT is locked (backup)"));
    world.operate(Operation::Destroy, "d", &about(&pod, 121, json!({}))).await.unwrap();
    assert_eq!((world.guests(), world.quota_used().await.as_str()), (0, "0/0/0/0"));
    world.assert_sound();
}
