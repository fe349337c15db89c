//! `run` relays what others wrote into the outbox.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::stage::{SOON, Stage};
use mpanel_producer::{EnqueueOptions, outbox::Outbox};
use mpanel_testkit::{BullVersion, eventually};
use serde_json::json;

#[tokio::test]
async fn a_committed_job_reaches_its_queue_before_and_while_the_worker_runs() {
    let stage = Stage::new().await;
    let theirs = stage.node.queue(BullVersion::V5, "orders");
    let commit = async |id: &str| {
        let mut tx = stage.world.db.begin().await.unwrap();
        let options = EnqueueOptions::new().job_id(id);
        Outbox::new().enqueue(&mut tx, "orders", "confirm", &json!({"id": id}), options).await.unwrap();
        tx.commit().await.unwrap();
    };
    let arrives = async |id: &str| {
        eventually(&format!("job {id}"), SOON, || async {
            let job =
                theirs.job(id).await.map_err(|e| e.to_string())?.ok_or_else(|| "not there".to_owned())?;
            if job.data == json!({"id": id}) { Ok(()) } else { Err("other data".to_owned()) }
        })
        .await
        .unwrap();
    };
    commit("before").await;
    let worker = stage.worker().await;
    arrives("before").await;
    commit("while").await;
    arrives("while").await;
    worker.sigterm().unwrap();
    assert!(worker.wait(SOON).await.unwrap().success());
    let sent: i64 = sqlx::query_scalar("SELECT count(*) FROM fleet_outbox WHERE state = 'sent'")
        .fetch_one(&stage.world.db)
        .await
        .unwrap();
    assert_eq!(sent, 2);
}
