//! Jobs that make no sense: each fails at once and for good, by the name of the
//! field, touches nothing on Proxmox, and the queue goes on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{
    QUEUE, TENANT, payload,
    stage::{SOON, Stage},
};
use serde_json::{Value, json};

/// What the payload says, and what the reason must name.
struct Case {
    data: Value,
    names: String,
}

fn with(field: &str, value: Value) -> Case {
    let mut data = payload(300);
    data[field] = value;
    Case { data, names: field.to_owned() }
}

fn without(field: &str) -> Case {
    let mut data = payload(300);
    data.as_object_mut().unwrap().remove(field);
    Case { data, names: field.to_owned() }
}

fn absurd() -> Vec<Case> {
    let mut cases: Vec<Case> = ["tenantId", "hostname", "cores", "memoryMb", "diskGb"].map(without).into();
    let sizes = [
        json!(0),
        json!(-1),
        json!(1.5),
        json!("x"),
        json!(1e9),
        json!(null),
        json!([2]),
        json!({"n": 2}),
        json!(true),
        json!(""),
    ];
    for field in ["cores", "memoryMb", "diskGb"] {
        // A thousand million MiB or GiB is as absurd as as many cores.
        cases.extend(sizes.iter().map(|value| with(field, value.clone())));
    }
    cases.extend([json!(-1), json!("x"), json!(0.5), json!({})].map(|value| with("swapMb", value)));
    let texts = [
        "a;reboot",
        "$(reboot)",
        "`reboot`",
        "a b",
        "",
        " ",
        "ümlaut",
        "a\0b",
        "a\nb",
        "'; DROP TABLE cloud_pods; --",
        "../../etc/passwd",
        "-x",
        "a..b",
        "a,ip=dhcp",
        "a&b",
        "a|b",
        "<script>",
        "x.".repeat(150).as_str(),
        "x".repeat(64).as_str(),
        "x".repeat(300).as_str(),
        "\u{202e}abc",
        "日本",
    ]
    .map(str::to_owned);
    cases.extend(texts.iter().map(|text| with("hostname", json!(text))));
    cases.extend(
        [json!(7.5), json!(["a"]), json!({"a": 1}), json!(null), json!(false)]
            .map(|value| with("hostname", value)),
    );
    for vmid in [
        json!(0),
        json!(99),
        json!(-1),
        json!(2_147_483_648_u64),
        json!(1e300),
        json!("x"),
        json!(121.5),
        json!([121]),
        json!("1; DROP TABLE cloud_pods"),
    ] {
        cases.push(with("vmid", vmid));
    }
    for tenant in [
        json!("acme"),
        json!(""),
        json!(7),
        json!(null),
        json!("' OR 1=1 --"),
        json!("00000000-0000-4000-8000-000000000000"),
        json!("a\0b"),
    ] {
        cases.push(with("tenantId", tenant));
    }
    for region in [
        json!("atlantis"),
        json!("a b"),
        json!("$(id)"),
        json!(7),
        json!({"x": 1}),
        json!("x".repeat(300)),
        json!("a\0b"),
    ] {
        cases.push(with("region", region));
    }
    for ip in [
        json!("garbage"),
        json!("10.0.0"),
        json!("10.0.0.5;reboot"),
        json!("256.1.1.1"),
        json!("::1"),
        json!("0.0.0.0"),
        json!("10.0.0.5/0"),
        json!("10.0.0.5,gw=1.2.3.4"),
        json!(7),
        json!(["10.0.0.5"]),
        json!("10.0.0.5\0"),
    ] {
        cases.push(with("ip", ip));
    }
    cases.push(with("autoIp", json!("perhaps")));
    cases.push(with("autoIp", json!({})));
    for field in ["requestedBy", "planId", "blueprintId"] {
        cases.extend(
            [json!({}), json!([1]), json!("a\0b"), json!("x".repeat(1_000_000))]
                .map(|value| with(field, value)),
        );
    }
    cases.push(with("blueprintId", json!("'; DROP TABLE cloud_pods; --")));
    cases.push(with("kind", json!("vm")));
    cases.push(with("kind", json!("$(id)")));
    cases.push(with("kind", json!(1)));
    cases.push(with("hostname", json!("x".repeat(1_000_000))));
    cases.extend(
        [json!(null), json!([]), json!("text"), json!(7)]
            .map(|data| Case { data, names: "payload".to_owned() }),
    );
    cases.push(Case { data: json!({}), names: "tenantId".to_owned() });
    cases
}

async fn failed_for_good(stage: &Stage, id: &str, names: &str) -> String {
    let queue = stage.queue();
    let error = queue.wait_until_finished(id, SOON).await.unwrap_err().to_string();
    let job = queue.job(id).await.unwrap().unwrap();
    assert_eq!(job.state, "failed", "{id}: {error}");
    assert_eq!((job.attempts_made, job.attempts_started), (Some(1), Some(1)), "{id}: {error}");
    let reason = job.failed_reason.unwrap_or_default();
    assert!(reason.contains(names), "{id}: `{names}` is not named by: {reason}");
    assert!(reason.len() < 2000, "{id}: {} bytes of reason", reason.len());
    let row = format!("SELECT status || ' ' || error FROM cloud_pod_jobs WHERE bull_job_id = '{id}'");
    assert_eq!(stage.world.one(&row).await, format!("failed {}", reason.replace('\0', "")), "{id}");
    reason
}

/// The route's row for a job, then the job itself.
async fn enqueue(stage: &Stage, name: &str, data: Value, id: &str) {
    stage.world.route_row(id, &json!({})).await;
    stage.add(name, data, id).await;
}

#[tokio::test]
async fn absurd_fields_are_named_and_cost_nothing() {
    let stage = Stage::new().await;
    let cases = absurd();
    for (n, case) in cases.iter().enumerate() {
        enqueue(&stage, "create", case.data.clone(), &format!("bad-{n}")).await;
    }
    let good = stage.enqueue(payload(121)).await;
    let worker = stage.worker_with(&["--concurrency", "4"], &[]).await;
    for (n, case) in cases.iter().enumerate() {
        failed_for_good(&stage, &format!("bad-{n}"), &case.names).await;
    }
    stage.finished(&good).await;
    assert_eq!(stage.world.one("SELECT string_agg(vmid::text, ',') FROM cloud_pods").await, "121");
    assert!(stage.mutations().iter().all(|r| r.params.get("vmid").is_none_or(|vmid| vmid == "121")));
    assert_eq!(stage.mutations().len(), 2, "{:?}", stage.mutations());
    assert_eq!(stage.world.allocated().await, "2/2048/20");
    assert_eq!(worker.exited(), None);
}

#[tokio::test]
async fn what_is_no_json_or_nobodys_job_fails_and_the_queue_goes_on() {
    let stage = Stage::new().await;
    let raw = |hostname: &str| payload(300).to_string().replace("\"pod-300\"", hostname);
    let texts = [
        ("no-json", "{tenantId: 1".to_owned(), "payload"),
        ("empty", String::new(), "payload"),
        ("bytes", "\u{1}\u{2}not json".to_owned(), "payload"),
        ("trailing", format!("{} x", payload(300)), "payload"),
        ("deep", format!("{}{}", "[".repeat(5000), "]".repeat(5000)), "payload"),
        ("surrogate", raw("\"a\\ud800b\""), "hostname"),
        ("surrogates", raw("\"\\udc00\\ud800\""), "hostname"),
        ("infinite", payload(300).to_string().replace("\"cores\":2", "\"cores\":1e999"), "cores"),
    ];
    for (id, _, _) in &texts {
        enqueue(&stage, "create", payload(300), id).await;
    }
    let names = ["destroy", "", "create ", "CREATE", "__proto__", "'; DROP TABLE cloud_pods; --"];
    for (n, name) in names.iter().enumerate() {
        enqueue(&stage, name, payload(300), &format!("name-{n}")).await;
    }
    let client = redis::Client::open(stage.redis.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let set = async |redis: &mut redis::aio::MultiplexedConnection, id: &str, data: &[u8]| {
        let key = format!("bull:{QUEUE}:{id}");
        redis::cmd("HSET").arg(key).arg("data").arg(data).query_async::<()>(redis).await.unwrap();
    };
    for (id, text, _) in &texts {
        set(&mut redis, id, text.as_bytes()).await;
    }
    enqueue(&stage, "create", payload(300), "no-utf8").await;
    set(&mut redis, "no-utf8", b"{\"hostname\":\"\xff\xfe\"}").await;
    let good = stage.enqueue(payload(121)).await;
    let _worker = stage.worker().await;
    for (id, _, names) in &texts {
        failed_for_good(&stage, id, names).await;
    }
    for (n, name) in names.iter().enumerate() {
        let reason = failed_for_good(&stage, &format!("name-{n}"), "unknown job name").await;
        assert!(reason.contains(&format!("`{name}`")), "{reason}");
    }
    stage.queue().wait_until_finished("no-utf8", SOON).await.unwrap_err();
    stage.finished(&good).await;
    assert_eq!(stage.mutations().len(), 2, "{:?}", stage.mutations());
    assert_eq!(stage.world.allocated().await, "2/2048/20");
}

#[tokio::test]
async fn a_vmid_that_is_taken_is_never_touched() {
    let stage = Stage::new().await;
    let world = &stage.world;
    world.quota(-1, -1, -1, -1).await;
    let other = "6f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e12";
    world.execute(&format!("INSERT INTO tenants (id, name, domain, slug, updated_at) VALUES ('{other}', 'B', 'b.example', 'b', now())")).await;
    let pod = |vmid: u32, tenant: &str, status: &str, deleted: &str| {
        format!(
            "INSERT INTO cloud_pods (tenant_id, vmid, hostname, region, cores, memory_mb, swap_mb, disk_gb, status, deleted_at, updated_at)
             VALUES ('{tenant}', {vmid}, 'h-{vmid}', 'migra-us-east-1', 1, 512, 0, 5, '{status}', {deleted}, now())"
        )
    };
    world.execute(&pod(201, TENANT, "active", "NULL")).await;
    world.execute(&pod(202, other, "active", "NULL")).await;
    world.execute(&pod(203, TENANT, "deleted", "now()")).await;
    world.execute(&pod(204, other, "provisioning", "NULL")).await;
    let before = "SELECT md5(string_agg(p::text, ';' ORDER BY vmid)) FROM cloud_pods p WHERE vmid < 300";
    let rows = world.one(before).await;
    for vmid in [201, 202, 203, 204, 9000] {
        enqueue(&stage, "create", payload(vmid), &format!("taken-{vmid}")).await;
    }
    let good = stage.enqueue(payload(300)).await;
    let _worker = stage.worker().await;
    for vmid in [201, 202, 203, 204, 9000] {
        let reason =
            failed_for_good(&stage, &format!("taken-{vmid}"), &format!("VMID {vmid} is taken by")).await;
        assert!(vmid != 203 || reason.contains("deleted pod"), "{reason}");
        assert!(vmid != 9000 || reason.contains("guest `debian-12-cloud`"), "{reason}");
    }
    stage.finished(&good).await;
    assert_eq!(world.one(before).await, rows);
    assert_eq!(stage.mutations().len(), 2, "{:?}", stage.mutations());
}

#[tokio::test]
async fn the_pod_row_of_a_job_that_makes_no_sense_says_failed() {
    let stage = Stage::new().await;
    let world = &stage.world;
    // As mPanel's own worker leaves it when it dies: a pod row, and a job row that names it.
    world
        .execute(&format!(
            "INSERT INTO cloud_pods (tenant_id, vmid, hostname, region, cores, memory_mb, swap_mb, disk_gb, status, updated_at)
             VALUES ('{TENANT}', 300, 'h', 'migra-us-east-1', 1, 512, 0, 5, 'provisioning', now())"
        ))
        .await;
    let case = with("cores", json!(0));
    enqueue(&stage, "create", case.data, "linked").await;
    world.execute("UPDATE cloud_pod_jobs SET cloud_pod_id = (SELECT id FROM cloud_pods)").await;
    let _worker = stage.worker().await;
    failed_for_good(&stage, "linked", "cores").await;
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "failed");
    assert_eq!(stage.mutations().len(), 0);
}
