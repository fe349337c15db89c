//! Many creations, several workers that die all the time, a Proxmox that fails
//! every tenth request: every pod is there, once, and the books are right.
//! Short by default, longer with FLEET_TEST_TIER=full.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::time::Duration;

use common::{payload, sim_config, stage::Stage};
use mpanel_testkit::{
    WorkerProcess, eventually,
    pve::{Fault, FaultAction, PveSimConfig},
};
use tokio::time::{Instant, interval};

/// How many pods, how many workers, the time between two kills, and how long it may take.
fn size() -> (u32, usize, Duration, Duration) {
    if std::env::var("FLEET_TEST_TIER").is_ok_and(|tier| tier == "full") {
        (500, 4, Duration::from_secs(3), Duration::from_secs(1500))
    } else {
        (24, 3, Duration::from_millis(1500), Duration::from_secs(240))
    }
}

fn every(nth: u64, method: &str, path: &str, action: FaultAction) -> Fault {
    Fault { every: Some(nth), ..Fault::new(method, path, action) }
}

async fn worker(stage: &Stage) -> WorkerProcess {
    stage.program(&["run", "--queues", "cloudpods-create"], &[("RUST_LOG", "warn")]).start().unwrap()
}

#[tokio::test]
async fn every_pod_is_made_once_whoever_dies_and_whatever_fails() {
    let (pods, workers, between, patience) = size();
    let stage = Stage::with(PveSimConfig {
        task_ms: 300,
        node_cores: 4096,
        node_memory_mib: 4_000_000,
        clients_main_gib: 40_000,
        ..sim_config(3)
    })
    .await;
    let world = &stage.world;
    world.quota(-1, -1, -1, -1).await;
    world
        .execute(
            "UPDATE cloud_pod_nodes SET total_cpu_cores = 4096, total_memory_mb = 4000000, total_disk_gb = 20000",
        )
        .await;
    let pool = ["cloudpods", "pools", "add", "10.60.0.0/22", "--gateway", "10.60.0.1"];
    let added = stage.program(&pool, &[]).start().unwrap().wait(patience).await.unwrap();
    assert!(added.success());
    // Every tenth request, by turns: done and not answered, not done, answered by a relay that gave up.
    world.sim.add_fault(every(30, "*", "/**", FaultAction::DropAfter));
    world.sim.add_fault(every(31, "*", "/**", FaultAction::DropBefore));
    world.sim.add_fault(every(33, "*", "/**", FaultAction::StatusAfter).status(596, "Connection timed out"));
    world.sim.add_fault(
        every(97, "POST", "/nodes/*/lxc", FaultAction::Status)
            .status(500, "can't lock file '/run/lock/lxc/pve-config-1.lock' - got timeout"),
    );

    let mpanel = stage.node.mpanel(mpanel_testkit::BullVersion::V5);
    for n in 0..pods {
        mpanel.enqueue_create(payload(1000 + n), None).await.unwrap();
    }
    let mut alive = Vec::new();
    for _ in 0..workers {
        alive.push(worker(&stage).await);
    }
    let deadline = Instant::now() + patience;
    let mut kills = interval(between);
    kills.tick().await;
    let mut killed = 0_usize;
    loop {
        kills.tick().await;
        let active = world.one("SELECT count(*) FROM cloud_pods WHERE status = 'active'").await;
        if active == pods.to_string() {
            break;
        }
        let failed = world
            .one("SELECT string_agg(DISTINCT error, ';') FROM cloud_pod_jobs WHERE status = 'failed'")
            .await;
        assert_eq!(failed, "-", "after {killed} kills, {active} pods");
        assert!(Instant::now() < deadline, "{active} of {pods} pods after {killed} kills");
        let victim = killed % workers;
        alive[victim].kill9();
        alive[victim] = worker(&stage).await;
        killed += 1;
    }
    world.sim.clear_faults();
    eventually("all jobs completed", patience, || async {
        let counts = stage.queue().counts(&["completed"]).await.map_err(|e| e.to_string())?;
        if counts["completed"] == u64::from(pods) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await
    .unwrap();
    assert!(killed > 0, "nobody died");

    let all = pods.to_string();
    for (what, sql) in [
        ("pods", "SELECT count(*) FROM cloud_pods WHERE status = 'active'"),
        ("rows", "SELECT count(*) FROM cloud_pods"),
        ("VMIDs", "SELECT count(DISTINCT vmid) FROM cloud_pods"),
        ("addresses", "SELECT count(DISTINCT ip) FROM cloud_pods"),
        ("jobs", "SELECT count(*) FROM cloud_pod_jobs WHERE status = 'success'"),
        ("events", "SELECT count(*) FROM cloud_pod_events WHERE type = 'STATE_CHANGE'"),
        ("quota", "SELECT used_cloud_pods FROM cloud_pod_quotas"),
        ("reservations", "SELECT count(*) FROM fleet_reservations WHERE state = 'committed'"),
    ] {
        assert_eq!(world.one(sql).await, all, "{what}");
    }
    assert_eq!(
        world
            .one("SELECT count(*) FROM fleet_reservations WHERE state NOT IN ('committed', 'released')")
            .await,
        "0"
    );
    let sums = format!("{}/{}/{}", pods * 2, pods * 2048, pods * 20);
    assert_eq!(world.allocated().await, sums);
    let guests = world.sim.guests();
    let guests: Vec<_> = guests.iter().filter(|guest| !guest.template).collect();
    assert_eq!(guests.len(), usize::try_from(pods).unwrap());
    for guest in guests {
        let owner = world
            .one(&format!("SELECT 'mpanel-pod-' || id FROM cloud_pods WHERE vmid = {}", guest.vmid))
            .await;
        assert!(guest.tags.contains(&owner), "{} has {:?}", guest.vmid, guest.tags);
        assert_eq!(guest.status, "running");
    }
    world.assert_sound();
    println!("{pods} pods, {killed} workers killed, {} requests", world.sim.requests().len());
}
