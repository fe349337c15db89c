//! The duties beside the queues as processes do them: by themselves, by one
//! process at a time, and on when that one dies.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::stage::{SOON, Stage};
use mpanel_testkit::eventually;

const OFTEN: [(&str, &str); 2] =
    [("MPANEL_FLEET_CLOUDPODS__RECONCILE_SECONDS", "1"), ("MPANEL_FLEET_CLOUDPODS__METRICS_SECONDS", "1")];
const TICKS: &str = "SELECT count(DISTINCT collected_at) FROM cloud_pod_metrics";
const TWICE: &str = "SELECT count(*) FROM (SELECT 1 FROM cloud_pod_metrics GROUP BY pod_id, collected_at HAVING count(*) > 1) x";
const STARTED: &str = "SELECT started_at FROM fleet_rounds WHERE name = 'cloudpods-reconcile'";

async fn more_ticks(stage: &Stage, than: u32) -> u32 {
    eventually("more ticks", SOON, || async {
        let ticks: u32 = stage.world.one(TICKS).await.parse().unwrap();
        if ticks > than { Ok(ticks) } else { Err(ticks.to_string()) }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn workers_compare_and_collect_by_themselves_and_go_on_without_one_that_died() {
    let stage = Stage::new().await;
    let world = &stage.world;
    world.pod(121).await;
    world.execute("UPDATE cloud_pod_allocations SET used_cpu_cores = 99 WHERE used_cpu_cores > 0").await;
    let first = stage.worker_with(&[], &OFTEN).await;
    let second = stage.worker_with(&[], &OFTEN).await;
    stage.until("SELECT string_agg(kind || ' ' || state, ';') FROM fleet_drift", "allocation repaired").await;
    assert_eq!(world.allocated().await, "2/2048/20");
    let ticks = more_ticks(&stage, 2).await;
    first.kill9();
    // It may have died in mid-round: then its time must be up first.
    world.execute("UPDATE fleet_rounds SET until = now() WHERE finished_at IS NULL").await;
    more_ticks(&stage, ticks + 1).await;
    let before = world.one(STARTED).await;
    eventually("another round", SOON, || async {
        let now = world.one(STARTED).await;
        if now == before { Err(now) } else { Ok(()) }
    })
    .await
    .unwrap();
    assert_eq!(world.one(TWICE).await, "0");
    second.sigterm().unwrap();
    assert!(second.wait(SOON).await.unwrap().success());
}

#[tokio::test]
async fn what_is_switched_off_asks_nothing() {
    let stage = Stage::new().await;
    let off = OFTEN.map(|(name, _)| (name, "0"));
    let worker = stage.worker_with(&[], &off).await;
    stage.world.pod(121).await;
    worker.sigterm().unwrap();
    assert!(worker.wait(SOON).await.unwrap().success());
    assert_eq!(stage.world.one("SELECT count(*) FROM fleet_rounds").await, "0");
    assert!(!stage.world.sim.requests().iter().any(|request| request.path == "/cluster/status"));
}
