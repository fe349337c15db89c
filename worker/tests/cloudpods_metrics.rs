//! Figures of pods on a real database and a simulated cluster: few requests,
//! each tick once, a table that stays bounded, health that does not flutter.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use chrono::{DateTime, TimeDelta, Utc};
use common::{operations::*, *};
use futures_util::future::join_all;
use mpanel_testkit::pve::{Fault, FaultAction, PveSimConfig};
use mpanel_worker::{
    adapters::{
        db,
        proxmox::{ContainerSpec, GuestAt, GuestKind, Power, Pve, PveClient},
    },
    services::cloudpods::{
        Sites,
        metrics::{Collected, Metrics, MetricsError},
        operation::Operation,
    },
};
use serde_json::json;

const ROWS: &str = "SELECT count(*) FROM cloud_pod_metrics";
const WORDS: &str = "SELECT string_agg(DISTINCT COALESCE(last_health_status, '-'), ',') FROM cloud_pods";
const EVENTS: &str = "SELECT string_agg((data ->> 'from') || '>' || (data ->> 'level'), ',' ORDER BY created_at) FROM cloud_pod_events WHERE data ->> 'triggeredBy' = 'metrics'";

fn metrics(world: &World, extra: &[(&str, &str)]) -> Metrics {
    let mut all = vec![("MPANEL_FLEET_CLOUDPODS__METRICS_SECONDS", "3600")];
    all.extend(extra);
    let config = config(&world.url, &world.sim, world.sim.token_secret(), &all);
    let proxmox = config.proxmox.unwrap();
    let sites = Sites::new(Pve::new(&proxmox).unwrap(), &proxmox);
    let pods = &config.cloudpods;
    Metrics::new(db::pool(config.database.options.clone(), 5), sites, pods.metrics, pods.health)
}

/// A tick so many seconds from now.
fn tick(seconds: i64) -> DateTime<Utc> {
    Utc::now() + TimeDelta::seconds(seconds)
}

/// A running container and its row, as a Node worker leaves them.
async fn guest(client: &PveClient, world: &World, vmid: u32, node: &str) {
    let spec = ContainerSpec {
        vmid,
        ostemplate: "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst".to_owned(),
        hostname: format!("pod-{vmid}"),
        cores: 1,
        memory_mb: 256,
        swap_mb: 0,
        rootfs: "clients-main:4".to_owned(),
        net0: "name=eth0,bridge=vmbr0,ip=dhcp".to_owned(),
        pool: None,
        tags: Vec::new(),
        description: String::new(),
    };
    ends_well(client, client.create_container(node, &spec).await).await;
    let at = GuestAt { node: node.to_owned(), kind: GuestKind::Lxc, vmid };
    ends_well(client, client.power(&at, Power::Start).await).await;
    world
        .execute(&format!(
            "INSERT INTO cloud_pods (tenant_id, vmid, hostname, status, updated_at)
             VALUES ('{TENANT}', {vmid}, 'pod-{vmid}', 'active', now())"
        ))
        .await;
}

#[tokio::test]
async fn fifty_pods_on_three_nodes_cost_one_request_and_are_written_once() {
    let world = World::with(PveSimConfig { task_ms: 5, ..sim_config(3) }).await;
    let client = world.client();
    let nodes = ["pve1", "pve2", "pve3"];
    for vmids in (200..250).collect::<Vec<u32>>().chunks(10) {
        join_all(vmids.iter().map(|n| guest(&client, &world, *n, nodes[*n as usize % 3]))).await;
    }
    // One of a pod that is no more, and one of nobody's.
    world.execute("UPDATE cloud_pods SET status = 'deleted', deleted_at = now() WHERE vmid = 249").await;
    let at = GuestAt { node: "pve3".to_owned(), kind: GuestKind::Lxc, vmid: 248 };
    ends_well(&client, client.power(&at, Power::Stop).await).await;

    let several: Vec<Metrics> = (0..4).map(|_| metrics(&world, &[])).collect();
    let before = world.sim.requests().len();
    let first = tick(0);
    assert_eq!(
        several[0].collect(first).await.unwrap(),
        Some(Collected { pods: 48, ..Collected::default() })
    );
    let asked: Vec<String> = world.sim.requests()[before..].iter().map(|r| r.path.clone()).collect();
    assert_eq!(asked, ["/cluster/resources"]);
    // The same tick again, by whomever.
    assert_eq!(several[1].collect(first).await.unwrap(), None);
    let second = tick(1);
    let done = join_all(several.iter().map(|metrics| metrics.collect(second))).await;
    assert_eq!(done.into_iter().filter_map(Result::unwrap).count(), 1);
    let rounds = join_all(several.iter().map(Metrics::round)).await;
    assert_eq!(rounds.into_iter().filter_map(Result::unwrap).count(), 1);
    let per_pod = "SELECT string_agg(DISTINCT n::text, ',') FROM (SELECT count(*) AS n FROM cloud_pod_metrics GROUP BY pod_id) x";
    assert_eq!((world.one(ROWS).await.as_str(), world.one(per_pod).await.as_str()), ("144", "3"));
    let figures = "SELECT string_agg(DISTINCT cpu_usage || '/' || memory_usage || '/' || disk_usage, ',') FROM cloud_pod_metrics";
    assert_eq!(world.one(figures).await, "2.00/20.00/12.50");
    // UTC, whatever the session thinks.
    let stamped = format!(
        "SELECT count(*) FROM cloud_pod_metrics WHERE collected_at = '{}'::timestamp",
        second.format("%F %T%.6f")
    );
    assert_eq!(world.one(&stamped).await, "48");
    // What was due long ago is a gap: the figures of now are not its.
    assert_eq!(several[0].collect(tick(-7201)).await.unwrap(), None);
}

#[tokio::test]
async fn an_api_that_is_away_leaves_a_gap_and_the_tick_may_be_tried_again() {
    let world = World::new().await;
    world.pod(121).await;
    let metrics = metrics(&world, &[]);
    world.sim.add_fault(Fault::new("GET", "/cluster/resources", FaultAction::Status).status(500, "no"));
    let due = tick(0);
    let error = metrics.collect(due).await.unwrap_err();
    assert!(matches!(error, MetricsError::Pve(_)), "{error}");
    world.sim.clear_faults();
    assert_eq!(metrics.collect(due).await.unwrap().unwrap().pods, 1);
    // A second API that never answers: the first one's pods have their figures.
    world
        .execute(
            "INSERT INTO cloud_pod_nodes (name, provider, api_url, node_name, total_cpu_cores, total_memory_mb,
               total_disk_gb) VALUES ('far', 'proxmox', 'https://127.0.0.1:9', 'pve9', 1, 1, 1)",
        )
        .await;
    let collected = metrics.collect(tick(1)).await.unwrap().unwrap();
    assert_eq!((collected.pods, collected.apis_away), (1, 1));
    assert_eq!(world.one(ROWS).await, "2");
}

/// Figures of pods one to three, every `step`, from one age to another; each is
/// the minute within its hour, so that averages tell what they are of.
async fn figures(world: &World, step: &str, oldest: &str, youngest: &str) {
    world
        .execute(&format!(
            "INSERT INTO cloud_pod_metrics (pod_id, cpu_usage, memory_usage, disk_usage, collected_at)
             SELECT ('00000000-0000-0000-0000-00000000000' || pod)::uuid, extract(minute FROM at), 50, 10, at
             FROM generate_series(1, 3) pod,
                  generate_series(date_trunc('hour', timezone('utc', now())) - interval '{oldest}',
                                  date_trunc('hour', timezone('utc', now())) - interval '{youngest}',
                                  interval '{step}') at"
        ))
        .await;
}

#[tokio::test]
async fn old_figures_become_averages_and_then_go() {
    let (url, db) = database().await;
    let sim = mpanel_testkit::pve::PveSim::start(sim_config(1)).await.unwrap();
    let service = service(&url, &sim, sim.token_secret(), &[]);
    let world = World { db, sim, service, url };
    let metrics = metrics(&world, &[]);
    figures(&world, "1 minute", "27 hours", "1 minute").await;
    figures(&world, "5 minutes", "175 hours", "166 hours").await;
    figures(&world, "1 hour", "2162 hours", "2158 hours").await;
    let raw = "SELECT count(*) FROM cloud_pod_metrics WHERE collected_at > timezone('utc', now()) - interval '1430 minutes'";
    let before = world.one(raw).await;
    let done = metrics.tidy().await.unwrap();
    assert!(done.finished && done.averaged > 0 && done.deleted > 0, "{done:?}");
    assert_eq!(world.one(raw).await, before, "what is young stays as it is");
    let spacing = |from: &str, to: &str| {
        format!(
            "SELECT string_agg(DISTINCT (collected_at - last)::text, ',') FROM (
               SELECT collected_at, lag(collected_at) OVER (PARTITION BY pod_id ORDER BY collected_at) AS last
               FROM cloud_pod_metrics
               WHERE collected_at BETWEEN timezone('utc', now()) - interval '{from}' AND timezone('utc', now()) - interval '{to}') x"
        )
    };
    assert_eq!(world.one(&spacing("27 hours", "1450 minutes")).await, "00:05:00");
    assert_eq!(world.one(&spacing("175 hours", "10150 minutes")).await, "01:00:00");
    let means = |width: &str, oldest: &str, youngest: &str| {
        format!(
            "SELECT string_agg(DISTINCT cpu_usage || '@' || extract(minute FROM collected_at), ',') FROM cloud_pod_metrics
             WHERE collected_at >= date_trunc('hour', timezone('utc', now())) - interval '{oldest}'
               AND collected_at < date_trunc('hour', timezone('utc', now())) - interval '{youngest}'
               AND extract(minute FROM collected_at) < {width}"
        )
    };
    assert_eq!(world.one(&means("10", "27 hours", "26 hours")).await, "2.00@0,7.00@5");
    assert_eq!(world.one(&means("60", "170 hours", "169 hours")).await, "27.50@0");
    let oldest =
        "SELECT min(collected_at) > timezone('utc', now()) - interval '90 days' FROM cloud_pod_metrics";
    assert_eq!(world.one(oldest).await, "true");
    // Again: there is nothing to do. Then a day later, and a week after that.
    let rows = world.one(ROWS).await;
    let again = metrics.tidy().await.unwrap();
    assert_eq!((again.averaged, again.deleted, world.one(ROWS).await), (0, 0, rows));
    for (hours, from, to, wanted) in
        [(24, "44 hours", "1445 minutes", "00:05:00"), (168, "215 hours", "193 hours", "01:00:00")]
    {
        world
            .execute(&format!(
                "UPDATE cloud_pod_metrics SET collected_at = collected_at - interval '{hours} hours'"
            ))
            .await;
        world.execute(&format!("UPDATE fleet_metric_passes SET five_upto = five_upto - interval '{hours} hours', hour_upto = hour_upto - interval '{hours} hours'")).await;
        metrics.tidy().await.unwrap();
        assert_eq!(world.one(&spacing(from, to)).await, wanted);
    }
    world.execute("UPDATE cloud_pod_metrics SET collected_at = collected_at - interval '91 days'").await;
    metrics.tidy().await.unwrap();
    assert_eq!(world.one(ROWS).await, "0");
}

#[tokio::test]
async fn a_pass_that_was_interrupted_goes_on_where_it_was() {
    let (url, db) = database().await;
    let sim = mpanel_testkit::pve::PveSim::start(sim_config(1)).await.unwrap();
    let service = service(&url, &sim, sim.token_secret(), &[]);
    let world = World { db, sim, service, url };
    let metrics = metrics(&world, &[]);
    figures(&world, "1 minute", "27 hours", "25 hours").await;
    // As if it had ended after the second pod.
    metrics.tidy().await.unwrap();
    world.execute("DELETE FROM cloud_pod_metrics").await;
    figures(&world, "1 minute", "27 hours", "25 hours").await;
    world
        .execute(
            "UPDATE fleet_metric_passes SET five_to = five_upto, hour_to = hour_upto, five_upto = NULL, hour_upto = NULL,
               cursor = '00000000-0000-0000-0000-000000000002'",
        )
        .await;
    assert!(metrics.tidy().await.unwrap().finished);
    let rows = "SELECT string_agg(n::text, ',' ORDER BY pod_id) FROM (SELECT pod_id, count(*) AS n FROM cloud_pod_metrics GROUP BY pod_id) x";
    assert_eq!(world.one(rows).await, "121,121,25");
    assert_eq!(
        world.one("SELECT cursor IS NULL AND five_upto IS NOT NULL FROM fleet_metric_passes").await,
        "true"
    );
    assert!(metrics.tidy_round().await.unwrap().is_some());
    assert_eq!(metrics.tidy_round().await.unwrap(), None, "once an hour");
}

#[tokio::test]
async fn health_changes_after_several_ticks_and_the_sweep_agrees() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    let sweep = json!({"tenantId": "system", "vmid": 0, "cloudPodId": "all", "triggeredBy": "schedule"});
    // The simulator's guests use a fifth of their memory.
    let strict = [("MPANEL_FLEET_CLOUDPODS__HEALTH_MEMORY", "15,50")];
    let service = world.operations(&strict);
    let swept = |id: &'static str| {
        let (service, sweep) = (service.clone(), sweep.clone());
        async move { service.run(Operation::Health, &op_job(Operation::Health, id), &sweep).await.unwrap() }
    };
    let warning = metrics(&world, &strict);
    for n in 0..2 {
        assert_eq!(warning.collect(tick(n)).await.unwrap().unwrap().changed, 0);
        swept(if n == 0 { "s-0" } else { "s-1" }).await;
        assert_eq!(world.one(WORDS).await, "ok", "not believed yet");
    }
    assert_eq!(warning.collect(tick(2)).await.unwrap().unwrap().changed, 1);
    assert_eq!(world.one(WORDS).await, "warning");
    assert_eq!(swept("s-2").await["healthy"], 0);
    assert_eq!(world.one(WORDS).await, "warning");
    let one = about(&pod, 121, json!({"triggeredBy": "manual"}));
    let health = service.run(Operation::Health, &op_job(Operation::Health, "h"), &one).await.unwrap();
    assert_eq!(health["health"]["issues"], json!(["memory at 20 %"]));

    let critical = metrics(&world, &[("MPANEL_FLEET_CLOUDPODS__HEALTH_MEMORY", "10,20")]);
    for n in 3..6 {
        critical.collect(tick(n)).await.unwrap().unwrap();
    }
    swept("s-3").await;
    assert_eq!(world.one(WORDS).await, "critical", "the sweep takes it not back");
    // Within the margin below the threshold nothing changes; far below it does.
    let margin = metrics(&world, &[("MPANEL_FLEET_CLOUDPODS__HEALTH_MEMORY", "10,24")]);
    let well = metrics(&world, &[]);
    for n in 6..9 {
        margin.collect(tick(n)).await.unwrap().unwrap();
    }
    assert_eq!(world.one(WORDS).await, "critical");
    for n in 9..12 {
        well.collect(tick(n)).await.unwrap().unwrap();
    }
    assert_eq!(world.one(WORDS).await, "ok");
    assert_eq!(world.one(EVENTS).await, "ok>warning,warning>critical,critical>ok");
    assert_eq!(swept("s-4").await["healthy"], 1);
}
