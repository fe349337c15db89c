//! Beside Node workers, beside its own kind, told to stop, told to stop again.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{
    QUEUE, payload, sim_config,
    stage::{SOON, Stage, ends},
};
use mpanel_testkit::{
    eventually,
    pve::{Fault, FaultAction, PveSimConfig},
};
use serde_json::json;

#[tokio::test]
async fn a_node_worker_is_told_of_by_address_and_refused_beside_exclusive() {
    let stage = Stage::new().await;
    let queue = stage.queue();
    // Paused, so that Node takes none of the jobs; it still waits on the queue.
    let node = queue.start_worker(json!({}), json!({})).await.unwrap();
    let address = eventually("Node among the workers", SOON, || async {
        let workers = queue.workers().await.map_err(|e| e.to_string())?;
        workers.first().and_then(|w| w.get("addr").cloned()).ok_or_else(|| format!("{workers:?}"))
    })
    .await
    .unwrap();
    let worker = stage.worker().await;
    let line = worker.wait_line("Node workers serve this queue too", SOON).await.unwrap();
    assert!(line.contains("WARN") && line.contains(&address) && line.contains(QUEUE), "{line}");

    let (code, text) = ends(stage.program(&["run", "--queues", QUEUE, "--exclusive"], &[])).await;
    assert_eq!(code, 4, "{text}");
    assert!(text.contains(&format!("{QUEUE} at {address}")), "{text}");

    // Without Node, our own first worker is no reason to refuse.
    node.close(true).await.unwrap();
    eventually("Node's end", SOON, || async {
        let workers = queue.workers().await.map_err(|e| e.to_string())?;
        if workers.len() == 1 { Ok(()) } else { Err(format!("{workers:?}")) }
    })
    .await
    .unwrap();
    let second = stage.worker_with(&["--exclusive"], &[]).await;
    assert!(!second.lines().iter().any(|line| line.text.contains("Node workers")));
    eventually("both of ours in getWorkers()", SOON, || async {
        let workers = queue.workers().await.map_err(|e| e.to_string())?;
        let named = workers
            .iter()
            .filter(|w| w.get("name").is_some_and(|name| name == QUEUE || name.contains("mpanel-fleet")))
            .count();
        if named == 2 && workers.len() == 2 { Ok(()) } else { Err(format!("{workers:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn only_known_queues_are_served() {
    let stage = Stage::new().await;
    let (code, text) = ends(stage.program(&["run", "--queues", "cloudpods-create,nosuch"], &[])).await;
    assert_eq!(code, 78, "{text}");
    assert!(text.contains("nosuch") && text.contains(QUEUE), "{text}");
    // Another queue's jobs are left alone by a worker of ours.
    let other = stage.node.queue(mpanel_testkit::BullVersion::V5, "cloudpods-destroy");
    let job = other.add("destroy", json!({}), json!({})).await.unwrap();
    let _worker = stage.worker().await;
    let id = stage.enqueue(payload(121)).await;
    stage.finished(&id).await;
    assert_eq!(other.state(&job.id).await.unwrap(), "waiting");
}

#[tokio::test]
async fn drain_ends_when_the_queue_is_empty() {
    let stage = Stage::new().await;
    stage.world.quota(-1, -1, -1, -1).await;
    let mut ids = Vec::new();
    for vmid in 121..=123 {
        ids.push(stage.enqueue(payload(vmid)).await);
    }
    let worker = stage.worker_with(&["--drain"], &[]).await;
    assert_eq!(worker.wait(SOON).await.unwrap().code(), Some(0));
    for id in ids {
        assert_eq!(stage.queue().state(&id).await.unwrap(), "completed");
    }
    // With nothing to do it ends as well.
    let worker = stage.program(&["run", "--drain"], &[]).start().unwrap();
    assert_eq!(worker.wait(SOON).await.unwrap().code(), Some(0));
}

const SENT: &str = "SELECT upid IS NOT NULL FROM fleet_job_steps WHERE step = 'create'";

#[tokio::test]
async fn sigterm_lets_a_running_creation_finish_and_takes_no_other() {
    let stage = Stage::with(PveSimConfig { task_ms: 1500, ..sim_config(2) }).await;
    stage.queue().open_events().await.unwrap();
    let worker = stage.worker_with(&["--concurrency", "1"], &[]).await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(SENT, "true").await;
    let next = stage.enqueue(payload(122)).await;
    worker.sigterm().unwrap();
    assert_eq!(worker.wait(SOON).await.unwrap().code(), Some(0));
    assert_eq!(stage.queue().state(&next).await.unwrap(), "waiting");
    stage.assert_one_pod(&id, 121).await;
}

#[tokio::test]
async fn a_quiet_worker_finishes_what_it_has_and_takes_more_only_when_told() {
    let stage = Stage::with(PveSimConfig { task_ms: 1000, ..sim_config(2) }).await;
    stage.queue().open_events().await.unwrap();
    let worker = stage.worker().await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(SENT, "true").await;
    worker.signal("TSTP").unwrap();
    worker.wait_line("quiet: no new jobs", SOON).await.unwrap();
    let next = stage.enqueue(payload(122)).await;
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
    assert_eq!(stage.queue().state(&next).await.unwrap(), "waiting");
    worker.signal("CONT").unwrap();
    stage.finished(&next).await;
    worker.signal("TSTP").unwrap();
    worker.sigterm().unwrap();
    assert_eq!(worker.wait(SOON).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_second_sigterm_ends_it_at_once_and_the_next_worker_finishes() {
    let stage = Stage::with(PveSimConfig { task_ms: 3000, ..sim_config(2) }).await;
    stage.queue().open_events().await.unwrap();
    let worker = stage.worker().await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(SENT, "true").await;
    worker.sigterm().unwrap();
    worker.wait_line("signal again to leave at once", SOON).await.unwrap();
    worker.sigterm().unwrap();
    assert_eq!(worker.wait(SOON).await.unwrap().code(), Some(130));
    assert_eq!(stage.queue().state(&id).await.unwrap(), "active");
    let _next = stage.worker().await;
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
}

#[tokio::test]
async fn what_does_not_end_in_the_drain_time_is_given_back_without_an_attempt() {
    let stage = Stage::with(PveSimConfig { task_ms: 3000, ..sim_config(2) }).await;
    stage.queue().open_events().await.unwrap();
    stage.world.sim.add_fault(Fault::new("GET", "/nodes/*/tasks/**", FaultAction::Delay).ms(500));
    let extra = [("MPANEL_FLEET_RUN__DRAIN_SECONDS", "1")];
    let worker = stage.worker_with(&[], &extra).await;
    let id = stage.enqueue(payload(121)).await;
    stage.until(SENT, "true").await;
    worker.sigterm().unwrap();
    assert_eq!(worker.wait(SOON).await.unwrap().code(), Some(0));
    stage.world.sim.clear_faults();
    // Given back, not left to be rescued.
    assert_eq!(stage.queue().state(&id).await.unwrap(), "waiting");
    let _next = stage.worker().await;
    stage.finished(&id).await;
    stage.assert_one_pod(&id, 121).await;
    assert_eq!(stage.queue().job(&id).await.unwrap().unwrap().attempts_made, Some(1));
}
