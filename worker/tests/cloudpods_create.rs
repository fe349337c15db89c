//! A job in, a container and its rows out; and what happens when that goes wrong.

mod common;

use std::sync::Arc;

use common::*;
use mpanel_testkit::pve::{Fault, FaultAction};
use mpanel_worker::services::cloudpods::{Before, Step, Verdict, reconcile_late_rows};
use serde_json::json;

const LXC: &str = "/nodes/*/lxc";

#[tokio::test]
async fn a_pod_is_created_end_to_end() {
    let world = World::new().await;
    let row = world.route_row("create-121-1", &payload(121)).await;
    let result = world.attempt("create-121-1", &payload(121)).await.unwrap();
    assert_eq!((result.success, result.vmid), (true, 121));
    let guest = world.sim.guest(121).unwrap();
    assert_eq!(guest.status, "running");
    assert_eq!(guest.addresses.first(), Some(&result.ip));
    assert_eq!(guest.pool.as_deref(), Some("ClientPods"));
    assert_eq!((guest.cores, guest.memory, guest.disk_gib), (2, 2048, 20));
    let pod = world.one("SELECT status || ' ' || ip || ' ' || vmid FROM cloud_pods").await;
    assert_eq!(pod, format!("active {} 121", result.ip));
    let job =
        format!("SELECT status || ' ' || (result ->> 'cloudPodId') FROM cloud_pod_jobs WHERE id = '{row}'");
    assert_eq!(world.one(&job).await, format!("success {}", result.cloud_pod_id));
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_jobs").await, "1");
    assert_eq!(world.one("SELECT string_agg(type, ',') FROM cloud_pod_events").await, "STATE_CHANGE");
    let quota = "SELECT used_cloud_pods || '/' || used_cpu_cores || '/' || used_ram_mb || '/' || used_disk_gb FROM cloud_pod_quotas";
    assert_eq!(world.one(quota).await, "1/2/2048/20");
    assert_eq!(world.allocated().await, "2/2048/20");
    assert_eq!(world.one("SELECT status FROM fleet_cloud_pods").await, "running");
    assert_eq!(world.one("SELECT status FROM fleet_cloud_pod_jobs").await, "completed");
    world.assert_sound();
}

#[tokio::test]
async fn a_job_that_runs_again_after_its_commit_only_answers() {
    let world = World::new().await;
    let first = world.attempt("create-121-1", &payload(121)).await.unwrap();
    let requests = world.sim.requests().len();
    let second = world.attempt("create-121-1", &payload(121)).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(world.sim.requests().len(), requests);
    assert_eq!(world.allocated().await, "2/2048/20");
    // Nor does a failure from outside undo it.
    world.service.fail(&job("create-121-1"), Before::NeverRan, &payload(121), "stalled").await.unwrap();
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "active");
    assert_eq!(world.guests(), 1);
}

#[tokio::test]
async fn a_row_that_the_route_inserts_late_is_brought_up_to_date_and_stays_alone() {
    let world = World::new().await;
    world.attempt("create-121-1", &payload(121)).await.unwrap();
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_jobs").await, "1");
    let row = world.route_row("create-121-1", &payload(121)).await;
    assert_eq!(reconcile_late_rows(&world.db).await.unwrap(), 1);
    let rows = "SELECT string_agg(id || ' ' || status, ',') FROM cloud_pod_jobs";
    assert_eq!(world.one(rows).await, format!("{row} success"));
    assert_eq!(reconcile_late_rows(&world.db).await.unwrap(), 0);
}

#[tokio::test]
async fn bad_input_fails_for_good_by_name_and_touches_nothing_on_proxmox() {
    let world = World::new().await;
    let cases = [
        ("cores", json!(0)),
        ("memoryMb", json!(-5)),
        ("hostname", json!("a;reboot")),
        ("hostname", json!("x".repeat(300))),
        ("diskGb", json!(null)),
        ("region", json!("atlantis")),
        ("tenantId", json!("00000000-0000-4000-8000-000000000000")),
        ("blueprintId", json!("00000000-0000-4000-8000-000000000000")),
        ("requestedBy", json!("a\0b")),
        ("kind", json!("vm")),
    ];
    for (n, (field, value)) in cases.into_iter().enumerate() {
        let mut data = payload(200);
        data[field] = value;
        let job_id = format!("create-200-{n}");
        let row = world.route_row(&job_id, &payload(200)).await;
        let error = world.attempt(&job_id, &data).await.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Never, "{error}");
        let reason = world.fails_for_good(&job_id, &data).await;
        assert!(reason.contains(field), "{field}: {reason}");
        let job = format!("SELECT status || ' ' || error FROM cloud_pod_jobs WHERE id = '{row}'");
        assert_eq!(world.one(&job).await, format!("failed {reason}"));
    }
    assert_eq!(world.mutations(), 0);
    assert_eq!(world.one("SELECT count(*) FROM cloud_pods").await, "0");
    assert_eq!(world.allocated().await, "0/0/0");
    // No JSON at all: the engine calls `fail` alone.
    world.service.fail(&job("create-1-x"), Before::NeverRan, &json!(null), "data is no JSON").await.unwrap();
}

#[tokio::test]
async fn a_taken_vmid_fails_for_good_and_names_who_has_it() {
    let world = World::new().await;
    world.attempt("create-121-1", &payload(121)).await.unwrap();
    let before = world.mutations();
    let reason = world.fails_for_good("create-121-2", &payload(121)).await;
    assert!(reason.contains("VMID 121 is taken by"), "{reason}");
    // The pod that has it is not touched.
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "active");
    // A guest that is not in any row: the simulator's template.
    let reason = world.fails_for_good("create-9000-1", &payload(9000)).await;
    assert!(reason.contains("VMID 9000 is taken by guest `debian-12-cloud`"), "{reason}");
    // A row that was deleted softly still holds its VMID.
    world.execute("UPDATE cloud_pods SET vmid = 130, status = 'deleted', deleted_at = now()").await;
    let reason = world.fails_for_good("create-130-1", &payload(130)).await;
    assert!(reason.contains("VMID 130 is taken by the deleted pod"), "{reason}");
    assert_eq!(world.mutations(), before);
    assert_eq!(world.guests(), 1);
}

#[tokio::test]
async fn a_quota_is_kept_even_when_jobs_race() {
    let world = World::new().await;
    world.quota(2, -1, -1, -1).await;
    let (job_ids, payloads): (Vec<_>, Vec<_>) =
        (0..4).map(|n| (format!("create-{n}-1"), payload(300 + n))).unzip();
    let attempts = job_ids.iter().zip(&payloads).map(|(id, payload)| world.attempt(id, payload));
    let results = futures_util::future::join_all(attempts).await;
    let errors: Vec<String> =
        results.iter().filter_map(|result| result.as_ref().err().map(ToString::to_string)).collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors.iter().all(|text| text.starts_with("Quota exceeded: MAX_PODS_EXCEEDED")), "{errors:?}");
    assert_eq!(world.guests(), 2);
    assert_eq!(world.one("SELECT used_cloud_pods FROM cloud_pod_quotas").await, "2");
}

#[tokio::test]
async fn twenty_at_once_never_overfill_a_node_nor_share_an_address() {
    let world = World::new().await;
    world.quota(-1, -1, -1, -1).await;
    world.execute("UPDATE cloud_pod_nodes SET total_memory_mb = 8192").await;
    world
        .execute(
            "INSERT INTO fleet_ip_pools (cluster_id, cidr, gateway) VALUES (1, '10.9.0.0/24', '10.9.0.1')",
        )
        .await;
    world.execute("INSERT INTO fleet_ips (pool_id, ip) SELECT 1, '10.9.0.10'::inet + n FROM generate_series(0, 19) n").await;
    let (job_ids, payloads): (Vec<_>, Vec<_>) =
        (0..20).map(|n| (format!("create-{n}-1"), payload(300 + n))).unzip();
    let attempts = job_ids.iter().zip(&payloads).map(|(id, payload)| world.attempt(id, payload));
    let results = futures_util::future::join_all(attempts).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 8, "{results:?}");
    for error in results.into_iter().filter_map(Result::err) {
        assert_eq!(error.verdict(), Verdict::Retry, "{error}");
        assert!(error.to_string().contains("not enough memory"), "{error}");
    }
    assert_eq!(world.allocated().await, "16/16384/160");
    assert_eq!(world.one("SELECT count(DISTINCT ip) FROM cloud_pods WHERE status = 'active'").await, "8");
    world.assert_sound();
}

#[tokio::test]
async fn an_answer_that_is_lost_makes_no_second_guest() {
    for action in [FaultAction::DropAfter, FaultAction::DropBefore, FaultAction::StatusAfter] {
        let world = World::new().await;
        let fault = Fault::new("POST", LXC, action).nth(1).status(596, "Connection timed out");
        world.sim.add_fault(fault);
        world.attempt("create-121-1", &payload(121)).await.unwrap();
        assert_eq!(world.guests(), 1, "{action:?}");
        world.assert_sound();
    }
}

#[tokio::test]
async fn a_failed_task_is_told_and_the_next_attempt_goes_on_with_the_same_reservation() {
    let world = World::new().await;
    let text = "unable to create CT 121 - command 'mkfs.ext4' failed";
    world.sim.add_fault(Fault::new("POST", LXC, FaultAction::TaskError).nth(1).text(text));
    let error = world.attempt("create-121-1", &payload(121)).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Retry);
    assert!(error.to_string().contains("mkfs.ext4"), "{error}");
    assert_eq!(world.allocated().await, "2/2048/20");
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "provisioning");
    let result = world.attempt("create-121-1", &payload(121)).await.unwrap();
    assert_eq!(result.vmid, 121);
    assert_eq!(world.allocated().await, "2/2048/20");
    world.assert_sound();
}

#[tokio::test]
async fn what_proxmox_refuses_for_a_moment_is_sent_again_in_the_same_attempt() {
    let world = World::new().await;
    let text = "can't lock file '/run/lock/lxc/pve-config-121.lock' - got timeout";
    world.sim.add_fault(Fault::new("POST", LXC, FaultAction::Status).nth(1).status(500, text));
    world.sim.add_fault(Fault::new("POST", LXC, FaultAction::Status).nth(2).status(595, "No route to host"));
    let start = "/nodes/*/lxc/*/status/start";
    world.sim.add_fault(Fault::new("POST", start, FaultAction::DropAfter).nth(1));
    world.attempt("create-121-1", &payload(121)).await.unwrap();
    assert_eq!(world.guests(), 1);
    assert_eq!(world.one("SELECT sends FROM fleet_job_steps WHERE step = 'create'").await, "3");
}

#[tokio::test]
async fn wrong_credentials_are_told_at_once_and_never_tried_again() {
    let world = World::new().await;
    let wrong = service(&world.url, &world.sim, "00000000-0000-4000-8000-000000000000", &[]);
    let error = wrong.create(&job("create-121-1"), &payload(121), &silent()).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Never);
    assert!(error.to_string().contains("PROXMOX_TOKEN_SECRET"), "{error}");
    assert!(world.sim.requests().len() <= 4, "{:?}", world.sim.requests());
    wrong.fail(&job("create-121-1"), Before::NeverRan, &payload(121), &error.to_string()).await.unwrap();
    assert_eq!(world.one("SELECT status FROM cloud_pod_jobs").await, "failed");
}

#[tokio::test]
async fn a_failure_for_good_takes_everything_back() {
    let world = World::new().await;
    let start = "/nodes/*/lxc/*/status/start";
    world.sim.add_fault(
        Fault::new("POST", start, FaultAction::TaskError).text("startup for container '121' failed"),
    );
    let reason = world.fails_for_good("create-121-1", &payload(121)).await;
    assert!(reason.contains("vzstart"), "{reason}");
    assert_eq!(world.guests(), 0);
    assert_eq!(world.allocated().await, "0/0/0");
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "failed");
    assert_eq!(
        world.one("SELECT status || ' ' || (error IS NOT NULL) FROM cloud_pod_jobs").await,
        "failed true"
    );
    assert_eq!(world.one("SELECT string_agg(type, ',') FROM cloud_pod_events").await, "ERROR");
    assert_eq!(world.one("SELECT state FROM fleet_vmids").await, "cooldown");
    world.assert_sound();
    // It may run twice.
    world.service.fail(&job("create-121-1"), Before::NeverRan, &payload(121), &reason).await.unwrap();
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_events").await, "1");
    // An operator retries the job: the same row, the same VMID.
    world.sim.clear_faults();
    let result = world.attempt("create-121-1", &payload(121)).await.unwrap();
    assert_eq!(result.vmid, 121);
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "active");
    assert_eq!(world.one("SELECT status FROM cloud_pod_jobs").await, "success");
}

#[tokio::test]
async fn what_cannot_be_verified_stays_reserved() {
    let world = World::with(sim_config(1)).await;
    let start = "/nodes/*/lxc/*/status/start";
    world.sim.add_fault(Fault::new("POST", start, FaultAction::TaskError).text("failed"));
    let delete = "/nodes/*/lxc/*";
    world.sim.add_fault(
        Fault::new("DELETE", delete, FaultAction::Status)
            .status(500, "can't remove CT 121 - protection mode enabled"),
    );
    world.fails_for_good("create-121-1", &payload(121)).await;
    assert_eq!(world.guests(), 1);
    assert_eq!(world.allocated().await, "2/2048/20");
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "failed");
    assert_eq!(world.one("SELECT state FROM fleet_vmids").await, "quarantined");
    let event = world.one("SELECT message FROM cloud_pod_events WHERE type = 'ERROR'").await;
    assert!(event.contains("VMID 121 is quarantined"), "{event}");
}

#[tokio::test]
async fn a_node_that_dies_in_mid_creation_costs_its_vmid_and_the_pod_moves() {
    let world = World::new().await;
    world.sim.add_fault(Fault::new("POST", LXC, FaultAction::NodeDown).nth(1));
    let mut outcome = world.attempt("create-121-1", &payload(121)).await;
    if outcome.is_err() {
        outcome = world.attempt("create-121-1", &payload(121)).await;
    }
    let result = outcome.unwrap();
    assert_ne!(result.vmid, 121);
    assert_eq!(result.moved_from_vmid, Some(121));
    assert_eq!(
        world.one("SELECT vmid || ' ' || status FROM cloud_pods").await,
        format!("{} active", result.vmid)
    );
    assert_eq!(world.one("SELECT state FROM fleet_vmids WHERE vmid = 121").await, "quarantined");
    let event = world.one("SELECT message FROM cloud_pod_events WHERE type = 'STATE_CHANGE'").await;
    assert!(event.contains("VMID 121 had to be given up"), "{event}");
    // Both places stay reserved: the old guest may come back with its node.
    assert_eq!(world.allocated().await, "4/4096/40");
}

#[tokio::test]
async fn a_creation_may_be_dropped_at_every_step_and_goes_on() {
    for step in [Step::Create, Step::Settle, Step::Start, Step::Verify, Step::Commit] {
        let world = World::new().await;
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let progress: mpanel_worker::services::cloudpods::Progress = Arc::new(move |reached| {
            let _ = sender.send(reached);
        });
        let (first_job, data) = (job("create-121-1"), payload(121));
        let reached = async {
            while let Some(reached) = receiver.recv().await {
                if reached == step {
                    // Lets the step begin, then drops it.
                    tokio::time::sleep(std::time::Duration::from_millis(15)).await;
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = reached => {}
            _ = world.service.create(&first_job, &data, &progress) => {}
        }
        let result = world.attempt("create-121-1", &data).await.unwrap();
        assert_eq!(result.vmid, 121, "{step:?}");
        assert_eq!(world.guests(), 1, "{step:?}");
        assert_eq!(world.allocated().await, "2/2048/20", "{step:?}");
        assert_eq!(world.one("SELECT used_cloud_pods FROM cloud_pod_quotas").await, "1", "{step:?}");
        world.assert_sound();
    }
}

#[tokio::test]
async fn an_overtaken_attempt_sends_nothing_more() {
    let world = World::new().await;
    world.sim.add_fault(Fault::new("GET", "/nodes", FaultAction::DelayAfter).nth(1).ms(400));
    let (data, id, silent) = (payload(121), "create-121-1", silent());
    let slow_job = job(id);
    let slow = world.service.create(&slow_job, &data, &silent);
    let fast = async {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        world.attempt(id, &data).await
    };
    let (slow, fast) = tokio::join!(slow, fast);
    assert!(fast.is_ok(), "{fast:?}");
    let error = slow.unwrap_err();
    assert!(error.to_string().contains("taken over"), "{error}");
    assert_eq!(error.verdict(), Verdict::Retry);
    // Nor does its failure take the newer attempt's work away.
    world.execute("DELETE FROM fleet_effect").await;
    world.service.fail(&slow_job, Before::Ran, &data, "exhausted").await.unwrap();
    assert_eq!(world.one("SELECT status FROM cloud_pods").await, "active");
    assert_eq!(world.guests(), 1);
    assert_eq!(world.allocated().await, "2/2048/20");
}

#[tokio::test]
async fn a_cancelled_job_does_not_start() {
    let world = World::new().await;
    let row = world.route_row("create-121-1", &payload(121)).await;
    world
        .execute(&format!(
            "UPDATE cloud_pod_jobs SET status = 'failed', error = 'Cancelled by admin' WHERE id = '{row}'"
        ))
        .await;
    let reason = world.fails_for_good("create-121-1", &payload(121)).await;
    assert_eq!(reason, "Cancelled by admin");
    assert_eq!(world.mutations(), 0);
    assert_eq!(world.one("SELECT count(*) FROM cloud_pods").await, "0");
}

#[tokio::test]
async fn a_seed_that_ran_twice_works_and_counts_each_machine_once() {
    let world = World::with(sim_config(1)).await;
    world.execute("INSERT INTO cloud_pod_nodes (name, provider, api_url, node_name, status, total_cpu_cores, total_memory_mb, total_disk_gb) SELECT name, provider, api_url, node_name, status, total_cpu_cores, total_memory_mb, total_disk_gb FROM cloud_pod_nodes").await;
    world.execute("INSERT INTO cloud_pod_allocations (node_id) SELECT id FROM cloud_pod_nodes").await;
    world.quota(-1, -1, -1, -1).await;
    world.attempt("create-121-1", &payload(121)).await.unwrap();
    let used = "SELECT string_agg(used_cpu_cores::text, ',' ORDER BY id) FROM cloud_pod_allocations";
    assert_eq!(world.one(used).await, "2,0,0");
    let mut big = payload(122);
    big["memoryMb"] = json!(32_768);
    let error = world.attempt("create-122-1", &big).await.unwrap_err();
    assert!(error.to_string().contains("not enough memory"), "{error}");
}

#[tokio::test]
async fn a_static_address_is_kept_and_belongs_to_one_pod() {
    let world = World::new().await;
    world.quota(-1, -1, -1, -1).await;
    let mut data = payload(121);
    data["ip"] = json!("10.50.0.7");
    let result = world.attempt("create-121-1", &data).await.unwrap();
    assert_eq!(result.ip, "10.50.0.7");
    assert!(world.sim.guest(121).unwrap().config["net0"].contains("ip=10.50.0.7/24"));
    data["vmid"] = json!(122);
    let reason = world.fails_for_good("create-122-1", &data).await;
    assert!(reason.contains("ip 10.50.0.7 is taken"), "{reason}");
    // Without a VMID the pod gets the lowest free one.
    let mut data = payload(1);
    data["vmid"] = json!(null);
    let result = world.attempt("create-0-1", &data).await.unwrap();
    assert_eq!(result.vmid, 100);
}

#[tokio::test]
async fn the_handler_speaks_the_engines_language() {
    use mpanel_engine::{
        handler::{ErrorKind, FinalCause, Handler},
        testing::FakeJob,
    };
    use mpanel_protocol::ids::QueueName;
    use mpanel_worker::services::cloudpods::{CreateHandler, Payload};

    let world = World::new().await;
    let handler = CreateHandler::new(world.service.clone());
    let context = |id: &str, data: &serde_json::Value| {
        let job = FakeJob::new("create", data).queue(QueueName::new(QUEUE).unwrap()).id(id).attempts(2);
        job.into_context()
    };
    let good = context("create-121-1", &payload(121));
    assert_eq!(handler.run(&good, Payload(payload(121))).await.unwrap().vmid, 121);
    let mut data = payload(122);
    data["cores"] = json!(0);
    let bad = context("create-122-1", &data);
    let error = handler.run(&bad, Payload(data)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Never, "{error}");
    handler.on_failed(&bad, FinalCause::NeverRetry, error.reason()).await.unwrap();
    let row = "SELECT status || ' ' || error FROM cloud_pod_jobs WHERE bull_job_id = 'create-122-1'";
    assert_eq!(world.one(row).await, "failed Invalid payload: cores must be from 1 to 1024, is 0");
}

#[tokio::test]
async fn a_database_that_is_away_is_a_reason_to_try_again() {
    let world = World::new().await;
    let url = "postgres://fleet@127.0.0.1:1/none";
    let service = service(url, &world.sim, world.sim.token_secret(), &[]);
    let error = service.create(&job("create-121-1"), &payload(121), &silent()).await.unwrap_err();
    assert!(matches!(error.verdict(), Verdict::RetryAfter(_)), "{error}");
    assert_eq!(world.mutations(), 0);
}
