//! The program itself, from mPanel's producer in Node to the rows that mPanel reads.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{
    QUEUE, TENANT, payload,
    stage::{SOON, Stage},
};
use mpanel_testkit::{
    BullVersion,
    pve::{Fault, FaultAction},
};
use serde_json::json;

#[tokio::test]
async fn a_creation_from_each_bullmq_release_is_told_to_node_and_written_to_every_row() {
    let stage = Stage::new().await;
    let world = &stage.world;
    world.quota(-1, -1, -1, -1).await;
    let worker = stage.worker().await;
    for (n, version) in BullVersion::ALL.into_iter().enumerate() {
        let vmid = 121 + u32::try_from(n).unwrap();
        let queue = stage.node.queue(version, QUEUE);
        queue.open_events().await.unwrap();
        let id = stage.node.mpanel(version).enqueue_create(payload(vmid), None).await.unwrap().id;
        let completed = queue.wait_event("completed", Some(&id), SOON).await.unwrap();
        let job = queue.job(&id).await.unwrap().unwrap();
        assert_eq!(job.state, "completed", "{version:?}");
        assert_eq!((job.attempts_made, job.attempts_started), (Some(1), Some(1)));
        assert!(job.processed_by.as_deref().is_some_and(|by| by.starts_with("mpanel-fleet@")), "{job:?}");
        let pod = world.row(&["id", "ip"], &format!("FROM cloud_pods WHERE vmid = {vmid}")).await;
        let (pod_id, ip) = pod.split_once(' ').unwrap();
        let result = json!({"success": true, "vmid": vmid, "ip": ip, "cloudPodId": pod_id});
        assert_eq!(job.returnvalue, result);
        assert_eq!(completed.args["returnvalue"], result, "{completed:?}");
        let events = queue.events().await.unwrap();
        let of_job: Vec<_> = events.iter().filter(|e| e.job_id.as_deref() == Some(id.as_str())).collect();
        for kind in ["active", "progress", "completed"] {
            assert!(of_job.iter().any(|e| e.event == kind), "{version:?}: no {kind} in {of_job:?}");
        }
        let progress = of_job.iter().find(|e| e.event == "progress").unwrap();
        assert_eq!(progress.args["data"], json!({"step": "reserve", "percent": 0}), "{progress:?}");

        let row = world
            .row(
                &[
                    "status",
                    "tenant_id",
                    "hostname",
                    "region",
                    "pool",
                    "cores",
                    "memory_mb",
                    "swap_mb",
                    "disk_gb",
                    "storage",
                    "bridge",
                    "deleted_at",
                ],
                &format!("FROM cloud_pods WHERE vmid = {vmid}"),
            )
            .await;
        assert_eq!(
            row,
            format!(
                "active {TENANT} pod-{vmid} migra-us-east-1 ClientPods 2 2048 512 20 clients-main vmbr0 -"
            )
        );
        let job_row = world
            .row(
                &[
                    "status",
                    "type",
                    "attempts",
                    "error",
                    "cloud_pod_id",
                    "started_at >= created_at",
                    "finished_at >= started_at",
                    "result",
                    "payload",
                ],
                &format!("FROM cloud_pod_jobs WHERE bull_job_id = '{id}'"),
            )
            .await;
        assert!(job_row.starts_with(&format!("success CREATE 1 - {pod_id} true true {{")), "{job_row}");
        let stored = |column: &str| format!("SELECT {column} FROM cloud_pod_jobs WHERE bull_job_id = '{id}'");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&world.one(&stored("result")).await).unwrap(),
            result
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&world.one(&stored("payload")).await).unwrap(),
            payload(vmid)
        );
        let event = world
            .row(
                &["type", "data ->> 'to'", "data ->> 'vmid'", "tenant_id"],
                &format!("FROM cloud_pod_events WHERE cloud_pod_id = '{pod_id}'"),
            )
            .await;
        assert_eq!(event, format!("STATE_CHANGE active {vmid} {TENANT}"));
        let guest = world.sim.guest(vmid).unwrap();
        assert_eq!((guest.cores, guest.memory, guest.disk_gib, guest.status), (2, 2048, 20, "running"));
        assert!(guest.tags.contains(&format!("mpanel-pod-{pod_id}")), "{:?}", guest.tags);
        assert_eq!(guest.addresses, [ip]);
        assert_eq!(guest.hostname, format!("pod-{vmid}"));
    }
    let used = ["max_cloud_pods", "used_cloud_pods", "used_cpu_cores", "used_ram_mb", "used_disk_gb"];
    assert_eq!(world.row(&used, "FROM cloud_pod_quotas").await, "-1 3 6 6144 60");
    assert_eq!(world.allocated().await, "6/6144/60");
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_jobs").await, "3");
    assert!(world.sim.invariants().ok);
    worker.sigterm().unwrap();
    assert_eq!(worker.wait(SOON).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn the_routes_row_becomes_the_only_one_whenever_it_comes() {
    let stage = Stage::new().await;
    let world = &stage.world;
    world.quota(-1, -1, -1, -1).await;
    let _worker = stage.worker().await;
    let mpanel = stage.node.mpanel(BullVersion::V5);
    let rows = |id: &str| {
        format!(
            "SELECT string_agg(id || ' ' || status || ' ' || (result ->> 'vmid'), ';') FROM cloud_pod_jobs WHERE bull_job_id = '{id}'"
        )
    };

    let before = world.route_row("early", &payload(121)).await;
    mpanel.enqueue_create(payload(121), Some("early")).await.unwrap();
    stage.finished("early").await;
    assert_eq!(world.one(&rows("early")).await, format!("{before} success 121"));

    world.sim.add_fault(Fault::new("POST", "/nodes/*/lxc", FaultAction::DelayAfter).nth(1).ms(1500));
    mpanel.enqueue_create(payload(122), Some("meanwhile")).await.unwrap();
    stage
        .until("SELECT state FROM fleet_job_steps WHERE job_id = 'meanwhile' AND step = 'create'", "sent")
        .await;
    let meanwhile = world.route_row("meanwhile", &payload(122)).await;
    stage.finished("meanwhile").await;
    assert_eq!(world.one(&rows("meanwhile")).await, format!("{meanwhile} success 122"));

    mpanel.enqueue_create(payload(123), Some("late")).await.unwrap();
    stage.finished("late").await;
    let late = world.route_row("late", &payload(123)).await;
    stage.until(&rows("late"), &format!("{late} success 123")).await;
    // One that failed, too.
    let mut bad = payload(124);
    bad["cores"] = json!(0);
    mpanel.enqueue_create(bad, Some("late-bad")).await.unwrap();
    let queue = stage.queue();
    queue.wait_until_finished("late-bad", SOON).await.unwrap_err();
    let late = world.route_row("late-bad", &payload(124)).await;
    let failed = "SELECT string_agg(id || ' ' || status || ' ' || error, ';') FROM cloud_pod_jobs WHERE bull_job_id = 'late-bad'";
    stage.until(failed, &format!("{late} failed Invalid payload: cores must be from 1 to 1024, is 0")).await;
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_jobs WHERE status = 'queued'").await, "0");
}
