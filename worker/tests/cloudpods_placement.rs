//! Where pods go: the books are never overdrawn however many ask at once, and
//! `cloudpods plan` shows the same decision with its reasons.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{
    stage::{ends, program},
    *,
};
use mpanel_testkit::pve::{Fault, FaultAction};
use mpanel_worker::services::cloudpods::{CreateService, Verdict};
use serde_json::Value;

fn without_vmid(n: u32, tenant: &str) -> Value {
    let mut data = payload(1000 + n);
    data.as_object_mut().unwrap().remove("vmid");
    data["tenantId"] = tenant.into();
    data
}

/// Why a creation came to nothing.
async fn refusal(service: &CreateService, job_id: String, data: &Value) -> String {
    loop {
        let error = service.create(&job(&job_id), data, &silent()).await.unwrap_err();
        // A busy database is no answer: the queue tries again, and so do we.
        if !matches!(error.verdict(), Verdict::RetryAfter(_)) {
            return error.to_string();
        }
    }
}

#[tokio::test]
async fn three_workers_at_once_never_promise_what_is_not_there() {
    let world = World::with(sim_config(3)).await;
    let tenants: Vec<String> = (0..5).map(|n| format!("5f0c1a52-6a43-4b7e-9a51-00000000000{n}")).collect();
    for (n, tenant) in tenants.iter().enumerate() {
        world
            .execute(&format!(
                "INSERT INTO tenants (id, name, domain, slug, updated_at)
                 VALUES ('{tenant}', 'T{n}', 't{n}.example', 't{n}', now())"
            ))
            .await;
        world
            .execute(&format!(
                "INSERT INTO cloud_pod_quotas (tenant_id, max_cloud_pods, max_cpu_cores, max_ram_mb, max_disk_gb,
                   updated_at) VALUES ('{tenant}', -1, -1, -1, -1, now())"
            ))
            .await;
    }
    // Twelve pods fit on each node, 36 in all, and there are 40 addresses.
    world.execute("UPDATE cloud_pod_nodes SET total_memory_mb = 24576").await;
    world
        .execute(
            "INSERT INTO fleet_ip_pools (cluster_id, cidr, gateway) VALUES (1, '10.9.0.0/24', '10.9.0.1')",
        )
        .await;
    world
        .execute("INSERT INTO fleet_ips (pool_id, ip) SELECT 1, '10.9.0.10'::inet + n FROM generate_series(0, 39) n")
        .await;
    // Refused by Proxmox: what was reserved stays, and nothing else takes time.
    world.sim.add_fault(Fault::new("POST", "/nodes/*/lxc", FaultAction::Status).status(403, "no"));
    let services: Vec<_> =
        (0..3).map(|_| service(&world.url, &world.sim, world.sim.token_secret(), &[])).collect();
    let payloads: Vec<Value> =
        (0..60).map(|n: u32| without_vmid(n, &tenants[n as usize % tenants.len()])).collect();
    let attempts =
        payloads.iter().enumerate().map(|(n, data)| refusal(&services[n % 3], format!("create-{n}"), data));
    let errors: Vec<String> = futures_util::future::join_all(attempts).await;

    let full = errors.iter().filter(|text| text.contains("not enough memory")).count();
    assert_eq!(full, 24, "{errors:?}");
    assert_eq!(world.one("SELECT count(*) FROM fleet_reservations WHERE state = 'held'").await, "36");
    let by_node = "SELECT string_agg(c::text, ',') FROM (SELECT count(*) AS c FROM fleet_reservations GROUP BY node_id) x";
    assert_eq!(world.one(by_node).await, "12,12,12");
    assert_eq!(world.one("SELECT count(DISTINCT vmid) FROM cloud_pods").await, "36");
    assert_eq!(world.one("SELECT count(DISTINCT ip) FROM cloud_pods").await, "36");
    assert_eq!(world.one("SELECT count(*) FROM fleet_ips WHERE state = 'held'").await, "36");
    assert_eq!(world.one("SELECT count(*) FROM fleet_vmids WHERE state = 'held'").await, "36");
    assert_eq!(world.allocated().await, format!("{}/{}/{}", 36 * 2, 36 * 2048, 36 * 20));
}

#[tokio::test]
async fn a_tenants_second_pod_goes_to_another_node_and_a_draining_one_gets_none() {
    let world = World::new().await;
    world.quota(-1, -1, -1, -1).await;
    world.attempt("create-121-1", &payload(121)).await.unwrap();
    world.attempt("create-122-1", &payload(122)).await.unwrap();
    let nodes = [121, 122].map(|vmid| world.sim.guest(vmid).unwrap().node);
    assert_ne!(nodes[0], nodes[1]);
    world.execute("INSERT INTO fleet_node_ext (node_id, drain) SELECT id, true FROM cloud_pod_nodes WHERE node_name = 'pve1'
                   ON CONFLICT (node_id) DO UPDATE SET drain = true").await;
    for vmid in [123, 124] {
        world.attempt(&format!("create-{vmid}-1"), &payload(vmid)).await.unwrap();
        assert_eq!(world.sim.guest(vmid).unwrap().node, "pve2");
    }
}

#[tokio::test]
async fn a_node_where_creations_fail_is_avoided() {
    let world = World::new().await;
    world.quota(-1, -1, -1, -1).await;
    let text = "unable to create CT 121 - command 'mkfs.ext4' failed";
    world.sim.add_fault(Fault::new("POST", "/nodes/pve1/lxc", FaultAction::TaskError).text(text));
    world.attempt("create-121-1", &payload(121)).await.unwrap_err();
    // The other's pods weigh less than a failure of this minute.
    for vmid in [122, 123] {
        world.attempt(&format!("create-{vmid}-1"), &payload(vmid)).await.unwrap();
        assert_eq!(world.sim.guest(vmid).unwrap().node, "pve2");
    }
}

/// `cloudpods plan` in this world: exit code, and everything it wrote.
async fn plan(world: &World, extra: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let args = ["cloudpods", "plan", "--cores", "2", "--memory-mb", "2048", "--disk-gb", "20"];
    let args: Vec<&str> = args.into_iter().chain(extra.iter().copied()).collect();
    let mut program = program(&args)
        .env("DATABASE_URL", world.url.clone())
        .env("PROXMOX_TOKEN_ID", world.sim.token_id())
        .env("PROXMOX_TOKEN_SECRET", world.sim.token_secret())
        .env("PROXMOX_TLS_FINGERPRINT", world.sim.fingerprint());
    for (name, value) in env {
        program = program.env(*name, *value);
    }
    ends(program).await
}

fn document(text: &str) -> Value {
    let json = &text[text.find('{').unwrap()..=text.rfind('}').unwrap()];
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn a_plan_shows_scores_and_reasons_and_reserves_nothing() {
    let world = World::with(sim_config(3)).await;
    world.execute("UPDATE cloud_pod_nodes SET status = 'maintenance' WHERE node_name = 'pve3'").await;
    world.execute("UPDATE cloud_pod_allocations SET used_cpu_cores = 32, used_memory_mb = 16384, used_disk_gb = 250 WHERE node_id = (SELECT id FROM cloud_pod_nodes WHERE node_name = 'pve2')").await;
    let (code, text) = plan(&world, &["--json"], &[]).await;
    assert_eq!(code, 0, "{text}");
    let shown = document(&text);
    assert_eq!(shown["ranked"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!((&shown["chosen"], &shown["ranked"][0]["node"]), (&"node-2".into(), &"node-2".into()));
    assert!(shown["ranked"][0]["score"].as_f64() > shown["ranked"][1]["score"].as_f64());
    assert_eq!(shown["passed"][0]["node"], "node-3");
    assert_eq!(shown["passed"][0]["reason"], "status");
    assert_eq!(world.one("SELECT count(*) FROM fleet_reservations").await, "0");
    assert_eq!(world.mutations(), 0);

    let (code, text) = plan(&world, &[], &[]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("status maintenance") && text.contains("nothing was reserved"), "{text}");
    // The emptiest first, when so set.
    let (_, text) = plan(&world, &["--json"], &[("MPANEL_FLEET_CLOUDPODS__PLACEMENT", "spread")]).await;
    assert_eq!(document(&text)["chosen"], "node-1");
}

#[tokio::test]
async fn a_plan_that_cannot_be_says_so_by_its_exit_code() {
    let world = World::new().await;
    let (code, text) = plan(&world, &["--region", "atlantis"], &[]).await;
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("migra-us-east-1"), "{text}");
    for (setting, value, reason) in [
        ("MPANEL_FLEET_CLOUDPODS__TEMPLATE", "local:vztmpl/none.tar.zst", "noTemplate"),
        ("MPANEL_FLEET_CLOUDPODS__STORAGE", "nowhere", "noStorage"),
        // Takes templates and backups, no root disks.
        ("MPANEL_FLEET_CLOUDPODS__STORAGE", "local", "noStorage"),
    ] {
        let (code, text) = plan(&world, &["--json"], &[(setting, value)]).await;
        assert_eq!(code, 75, "{text}");
        let shown = document(&text);
        assert_eq!(shown["chosen"], Value::Null);
        assert!(shown["passed"].as_array().unwrap().iter().all(|node| node["reason"] == reason), "{shown}");
    }
    let (code, _) =
        plan(&world, &[], &[("PROXMOX_TOKEN_SECRET", "00000000-0000-4000-8000-000000000000")]).await;
    assert_eq!(code, 77);
    let (code, text) = plan(&world, &[], &[("PROXMOX_API_URL", "https://127.0.0.1:9")]).await;
    assert_eq!(code, 69, "{text}");
}

#[tokio::test]
async fn what_a_node_keeps_for_itself_is_not_promised() {
    let world = World::with(sim_config(1)).await;
    let set = ["cloudpods", "nodes", "set", "node-1", "--reserve-memory-mb", "31000", "--cpu-ratio", "2"];
    let (code, text) = ends(program(&set).env("DATABASE_URL", world.url.clone())).await;
    assert_eq!(code, 0, "{text}");
    let (code, text) = plan(&world, &["--json"], &[]).await;
    assert_eq!(code, 75, "{text}");
    assert_eq!(document(&text)["passed"][0]["text"], "not enough memory");
    let set = ["cloudpods", "nodes", "set", "node-9", "--disk-ratio", "1.5"];
    assert_eq!(ends(program(&set).env("DATABASE_URL", world.url.clone())).await.0, 3);
    let set = ["cloudpods", "nodes", "set", "node-1"];
    assert_eq!(ends(program(&set).env("DATABASE_URL", world.url.clone())).await.0, 2);
}
