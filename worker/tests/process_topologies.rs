//! The program on other forms of Redis: behind Sentinels, as a Cluster, under a user
//! that lacks something.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{
    QUEUE, World, payload, sim_config,
    stage::{RESCUE, Stage, ends},
};
use mpanel_testkit::{BullVersion, Cluster, NodeSidecar, Postgres, RedisServer, Sentinel};

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_made_across_a_fail_over() {
    let topology = Sentinel::start().await.unwrap();
    let (url, redis) = (topology.url(), RedisServer::start().await.unwrap());
    let world = World::on(Postgres::shared().await.unwrap(), sim_config(2)).await;
    let stage = Stage { world, redis, node: NodeSidecar::start(&url).await.unwrap() };
    let worker = stage.worker_with(&[], &[("REDIS_URL", &url)]).await;
    let before = stage.enqueue(payload(121)).await;
    stage.finished(&before).await;
    topology.in_step().await.unwrap();
    let old = topology.primary().await.unwrap();
    old.kill9();
    topology.primary_after(old.port()).await.unwrap();
    let after = stage.enqueue(payload(122)).await;
    stage.queue().wait_until_finished(&after, RESCUE).await.unwrap();
    let pods = "SELECT string_agg(vmid || ' ' || status, ', ' ORDER BY vmid) FROM cloud_pods";
    stage.until(pods, "121 active, 122 active").await;
    assert_eq!(worker.exited(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_needs_a_prefix_with_a_tag_and_then_serves() {
    let cluster = Cluster::start(false).await.unwrap();
    let (url, redis) = (cluster.url(), RedisServer::start().await.unwrap());
    let world = World::on(Postgres::shared().await.unwrap(), sim_config(2)).await;
    let stage = Stage { world, redis, node: NodeSidecar::start(&url).await.unwrap() };
    let (code, text) = ends(stage.program(&["run"], &[("REDIS_URL", &url)])).await;
    assert_eq!(code, 78, "{text}");
    assert!(text.contains("`{bull}`"), "{text}");
    let tagged = [("REDIS_URL", url.as_str()), ("MPANEL_FLEET_REDIS__PREFIX", "{bull}")];
    let worker = stage.worker_with(&[], &tagged).await;
    let queue = stage.node.queue(BullVersion::V5, QUEUE).with_prefix("{bull}");
    let job = queue.add("create", payload(121), serde_json::json!({"attempts": 2})).await.unwrap();
    queue.wait_until_finished(&job.id, RESCUE).await.unwrap();
    stage.until("SELECT count(*) FROM cloud_pods WHERE vmid = 121 AND status = 'active'", "1").await;
    assert_eq!(worker.exited(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_lacks_a_command_is_told_which_and_the_program_ends() {
    let rules = "user fleet on >pw resetchannels ~bull:* &* +@all -xadd";
    let redis = RedisServer::builder().config(rules).start().await.unwrap();
    let stage = Stage::on(Postgres::shared().await.unwrap(), redis, sim_config(2)).await;
    let url = format!("redis://fleet:pw@127.0.0.1:{}", stage.redis.port());
    let (code, text) = ends(stage.program(&["run"], &[("REDIS_URL", &url)])).await;
    assert_eq!(code, 77, "{text}");
    assert!(text.contains("it may not run XADD") && text.contains("topologies.md"), "{text}");
    assert!(!text.contains(":pw@"), "{text}");
}

#[tokio::test]
async fn check_config_shows_where_the_settings_lead() {
    let stage = Stage::new().await;
    for (extra, shown) in [
        (vec![("REDIS_URL", "redis+sentinel://:geheim@a,b:7/m")], "Sentinels a:26379,b:7, primary `m`"),
        (
            vec![("REDIS_URL", "rediss+cluster://u:geheim@a"), ("MPANEL_FLEET_REDIS__PREFIX", "{x}")],
            "Cluster a:6379",
        ),
    ] {
        let (code, text) = ends(stage.program(&["check-config", "--json"], &extra)).await;
        assert_eq!(code, 0, "{text}");
        assert!(text.contains(shown), "{text}");
        assert!(!text.contains("geheim"), "{text}");
    }
}
