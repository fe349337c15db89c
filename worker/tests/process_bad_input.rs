//! Jobs that make no sense: each fails at once and for good, by the name of the
//! field, touches nothing on Proxmox, and the queue goes on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{
    QUEUE, TENANT, payload,
    stage::{RESCUE, Stage},
};
use mpanel_testkit::eventually;
use redis::aio::MultiplexedConnection;
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
        "10.0.0.5",
    ]
    .map(str::to_owned);
    cases.extend(texts.iter().map(|text| with("hostname", json!(text))));
    cases.extend(
        [json!(7), json!(7.5), json!(["a"]), json!({"a": 1}), json!(null), json!(false)]
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

/// What Redis holds of a job: Node itself cannot read some of these.
async fn hash(redis: &mut MultiplexedConnection, id: &str, field: &str) -> String {
    let key = format!("bull:{QUEUE}:{id}");
    let value: Option<String> = redis::cmd("HGET").arg(key).arg(field).query_async(redis).await.unwrap();
    value.unwrap_or_default()
}

async fn connect(stage: &Stage) -> MultiplexedConnection {
    redis::Client::open(stage.redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Waits until so many jobs have ended, one way or the other.
async fn until_ended(redis: &MultiplexedConnection, wanted: usize) {
    eventually("the ended jobs", RESCUE, || async {
        let mut ended = 0;
        for set in ["failed", "completed"] {
            let key = format!("bull:{QUEUE}:{set}");
            ended += redis::cmd("ZCARD").arg(key).query_async::<usize>(&mut redis.clone()).await.unwrap();
        }
        if ended == wanted { Ok(()) } else { Err(format!("{ended} of {wanted}")) }
    })
    .await
    .unwrap();
}

/// Everything that is wrong with how a job ended; empty when it failed as it should.
async fn complaint(
    stage: &Stage,
    redis: &mut MultiplexedConnection,
    id: &str,
    names: &str,
) -> Option<String> {
    let reason = hash(redis, id, "failedReason").await;
    let attempts = (hash(redis, id, "atm").await, hash(redis, id, "ats").await);
    let row =
        format!("SELECT status || ' ' || COALESCE(error, '') FROM cloud_pod_jobs WHERE bull_job_id = '{id}'");
    let row = stage.world.one(&row).await;
    let fine = reason.contains(names)
        && reason.len() < 2000
        && attempts == ("1".to_owned(), "1".to_owned())
        && row == format!("failed {}", reason.replace('\0', ""));
    let short = |text: &str| text.chars().take(300).collect::<String>();
    (!fine).then(|| {
        format!("{id}: wanted {names}; {attempts:?}; reason: {}; row: {}", short(&reason), short(&row))
    })
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
    stage.finished(&good).await;
    let mut redis = connect(&stage).await;
    until_ended(&redis, cases.len() + 1).await;
    let mut complaints = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        let complaint = complaint(&stage, &mut redis, &format!("bad-{n}"), &case.names).await;
        complaints.extend(complaint.map(|text| format!("{text}; data: {:.300}", case.data)));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
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
    let mut redis = connect(&stage).await;
    let set = async |redis: &mut MultiplexedConnection, id: &str, data: &[u8]| {
        let key = format!("bull:{QUEUE}:{id}");
        redis::cmd("HSET").arg(key).arg("data").arg(data).query_async::<()>(redis).await.unwrap();
    };
    for (id, text, _) in &texts {
        set(&mut redis, id, text.as_bytes()).await;
    }
    enqueue(&stage, "create", payload(300), "no-utf8").await;
    set(&mut redis, "no-utf8", b"{\"hostname\":\"\xff\xfe\"}").await;
    // Ids that our books cannot take as they are: mPanel puts the vmid into them.
    let mut odd_ids = Vec::new();
    for vmid in ["1\0x".to_owned(), "9".repeat(5000)] {
        let Case { data, .. } = with("vmid", json!(vmid));
        odd_ids.push(stage.enqueue(data).await);
    }
    let good = stage.enqueue(payload(121)).await;
    let _worker = stage.worker().await;
    stage.finished(&good).await;
    until_ended(&redis, texts.len() + names.len() + odd_ids.len() + 2).await;
    for id in odd_ids {
        let reason = hash(&mut redis, &id, "failedReason").await;
        assert!(reason.starts_with("Invalid payload: vmid "), "{reason:.300}");
    }
    assert_eq!(stage.world.one("SELECT count(*) FROM cloud_pod_jobs WHERE status <> 'failed'").await, "1");
    let mut complaints = Vec::new();
    for (id, _, names) in &texts {
        complaints.extend(complaint(&stage, &mut redis, id, names).await);
    }
    for (n, name) in names.iter().enumerate() {
        let reason = format!("unknown job name `{name}`");
        complaints.extend(complaint(&stage, &mut redis, &format!("name-{n}"), &reason).await);
    }
    complaints.extend(complaint(&stage, &mut redis, "no-utf8", "").await);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
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
    stage.finished(&good).await;
    let mut redis = connect(&stage).await;
    until_ended(&redis, 6).await;
    for vmid in [201, 202, 203, 204, 9000] {
        let by = match vmid {
            203 => "the deleted pod",
            9000 => "guest `debian-12-cloud`",
            _ => "pod ",
        };
        let reason = format!("VMID {vmid} is taken by {by}");
        assert_eq!(complaint(&stage, &mut redis, &format!("taken-{vmid}"), &reason).await, None);
    }
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
    let mut redis = connect(&stage).await;
    until_ended(&redis, 1).await;
    assert_eq!(complaint(&stage, &mut redis, "linked", "cores").await, None);
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "failed");
    assert_eq!(stage.mutations().len(), 0);
}
