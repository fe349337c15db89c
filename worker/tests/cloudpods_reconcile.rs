//! The reconciler on a real database and a simulated cluster: guests without a
//! row, rows without a guest, books that were spoiled, several at once, and
//! clusters that say too little to conclude anything.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::time::Duration;

use common::{operations::*, *};
use mpanel_testkit::{
    WorkerProcess, eventually,
    pve::{Fault, FaultAction, PveSimConfig},
};
use mpanel_worker::{
    adapters::{
        db,
        proxmox::{ContainerSpec, GuestAt, GuestKind, Power, Pve},
    },
    services::cloudpods::{
        Sites,
        reconcile::{Reconciler, Report},
    },
};
use serde_json::Value;
use uuid::Uuid;

/// Kind, state and what was done, of everything that was found.
const DRIFT: &str = "SELECT string_agg(kind || ' ' || state || ' ' || COALESCE(action, '-'), ';' ORDER BY id) FROM fleet_drift";
const LOST: &str = "SELECT string_agg((lost_at IS NOT NULL)::text, ';') FROM fleet_pods";

trait Reconciling {
    fn reconciler(&self, extra: &[(&str, &str)]) -> Reconciler;
    async fn round(&self) -> Report;
    async fn later(&self, minutes: u32);
    async fn remove_guest(&self, vmid: u32);
    async fn orphan(&self, vmid: u32) -> Uuid;
}

impl Reconciling for World {
    /// One whose rounds are always due.
    fn reconciler(&self, extra: &[(&str, &str)]) -> Reconciler {
        let mut config = config(&self.url, &self.sim, self.sim.token_secret(), extra);
        let proxmox = config.proxmox.unwrap();
        let sites = Sites::new(Pve::new(&proxmox).unwrap(), &proxmox);
        config.cloudpods.reconcile.every = Duration::ZERO;
        Reconciler::new(db::pool(config.database.options, 10), sites, &config.cloudpods.reconcile)
    }

    async fn round(&self) -> Report {
        self.reconciler(&[]).round().await.unwrap().unwrap()
    }

    /// Moves what was seen before into the past.
    async fn later(&self, minutes: u32) {
        self.execute(&format!(
            "UPDATE fleet_drift SET first_seen_at = first_seen_at - interval '{minutes} minutes'"
        ))
        .await;
    }

    /// An operator removes a guest on Proxmox, past us.
    async fn remove_guest(&self, vmid: u32) {
        let client = self.client();
        let guest = self.sim.guest(vmid).unwrap();
        let at = GuestAt { node: guest.node, kind: GuestKind::Lxc, vmid };
        if guest.status == "running" {
            ends_well(&client, client.power(&at, Power::Stop).await).await;
        }
        ends_well(&client, client.destroy_guest(&at).await).await;
    }

    /// A running guest with the tag of a pod that nobody knows.
    async fn orphan(&self, vmid: u32) -> Uuid {
        let client = self.client();
        let pod = Uuid::new_v4();
        let spec = ContainerSpec {
            vmid,
            ostemplate: "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst".to_owned(),
            hostname: "left-behind".to_owned(),
            cores: 1,
            memory_mb: 512,
            swap_mb: 0,
            rootfs: "clients-main:4".to_owned(),
            net0: "name=eth0,bridge=vmbr0,ip=dhcp".to_owned(),
            pool: None,
            tags: vec![format!("mpanel-pod-{pod}"), "mpanel-gen-1".to_owned()],
            description: String::new(),
        };
        ends_well(&client, client.create_container("pve1", &spec).await).await;
        let at = GuestAt { node: "pve1".to_owned(), kind: GuestKind::Lxc, vmid };
        ends_well(&client, client.power(&at, Power::Start).await).await;
        pod
    }
}

#[tokio::test]
async fn a_sound_world_is_left_alone_and_costs_two_requests() {
    let world = World::new().await;
    world.pod(121).await;
    world.pod(122).await;
    let (mutations, requests) = (world.mutations(), world.sim.requests().len());
    assert_eq!(world.round().await, Report::default());
    assert_eq!(world.sim.requests().len() - requests, 2);
    assert_eq!(world.mutations(), mutations);
    assert_eq!(world.one(DRIFT).await, "-");
}

#[tokio::test]
async fn an_orphan_is_reported_later_and_removed_only_where_that_is_wanted() {
    let world = World::new().await;
    world.pod(121).await;
    world.orphan(777).await;
    let mutations = world.mutations();
    world.round().await;
    assert_eq!(world.one("SELECT state FROM fleet_drift WHERE kind = 'orphan_guest'").await, "suspected");
    world.later(14).await;
    world.round().await;
    assert_eq!(world.one("SELECT state FROM fleet_drift WHERE kind = 'orphan_guest'").await, "suspected");
    world.later(2).await;
    assert_eq!(world.round().await.opened, 1);
    world.round().await;
    assert_eq!(world.one("SELECT state FROM fleet_drift WHERE kind = 'orphan_guest'").await, "open");
    assert_eq!(world.mutations(), mutations, "nothing is done to it");

    let removing = world.reconciler(&[("MPANEL_FLEET_CLOUDPODS__ORPHAN_DELETE", "true")]);
    eventually("the orphan is gone", Duration::from_secs(30), || async {
        removing.round().await.unwrap();
        match world.sim.guest(777) {
            None => Ok(()),
            Some(guest) => Err(format!("{} {:?}", guest.status, guest.lock)),
        }
    })
    .await
    .unwrap();
    removing.round().await.unwrap();
    assert_eq!(
        world.one("SELECT state || ' ' || action FROM fleet_drift WHERE kind = 'orphan_guest'").await,
        "repaired destroyed it"
    );
    assert_eq!(world.guests(), 1, "the pod's own guest is untouched");
    assert_eq!(world.one("SELECT state FROM fleet_vmids WHERE vmid = 777").await, "cooldown");
    world.assert_sound();
}

#[tokio::test]
async fn an_orphan_that_is_protected_or_in_the_books_after_all_is_not_removed() {
    let world = World::new().await;
    let pod = world.orphan(777).await;
    let at = GuestAt { node: "pve1".to_owned(), kind: GuestKind::Lxc, vmid: 777 };
    let _ = world.client().set_guest_config(&at, None, &[("protection", "1")]).await;
    let removing = world.reconciler(&[("MPANEL_FLEET_CLOUDPODS__ORPHAN_DELETE", "true")]);
    removing.round().await.unwrap();
    world.later(16).await;
    let mutations = world.mutations();
    for _ in 0..2 {
        assert_eq!(removing.round().await.unwrap().unwrap().repaired, 0);
    }
    let orphan = "SELECT state || ' ' || COALESCE(action, '-') FROM fleet_drift WHERE kind = 'orphan_guest'";
    assert_eq!((world.mutations(), world.one(orphan).await.as_str()), (mutations, "open -"));
    let _ = world.client().set_guest_config(&at, None, &[("protection", "0")]).await;
    // A job takes it up at this moment.
    world
        .execute(&format!(
            "INSERT INTO fleet_pod_leases VALUES ('{pod}', 'cloudpods-destroy', 'd', now() + interval '1 minute')"
        ))
        .await;
    let mutations = world.mutations();
    removing.round().await.unwrap();
    assert_eq!((world.mutations(), world.sim.guest(777).unwrap().status), (mutations, "running"));
}

#[tokio::test]
async fn a_pod_whose_guest_was_removed_is_marked_lost_and_never_made_again() {
    let world = World::new().await;
    let pod = world.pod(121).await;
    world.remove_guest(121).await;
    let mutations = world.mutations();
    world.round().await;
    assert_eq!(world.one(DRIFT).await, "lost_guest suspected -");
    assert_eq!(world.one(LOST).await, "false");
    world.later(1).await;
    let report = world.round().await;
    assert_eq!((report.opened, report.repaired), (1, 1));
    for _ in 0..2 {
        assert_eq!(world.round().await.repaired, 0);
    }
    assert_eq!(world.one(DRIFT).await, "lost_guest open marked as lost");
    assert_eq!(world.one(LOST).await, "true");
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_events WHERE type = 'ERROR'").await, "1");
    assert_eq!(
        world.one("SELECT status || ' ' || last_health_status FROM cloud_pods").await,
        "active critical"
    );
    assert_eq!(world.allocated().await, "2/2048/20", "everything stays reserved");
    assert_eq!(world.mutations(), mutations);
    // Somebody restores it.
    let client = world.client();
    let spec = ContainerSpec {
        vmid: 121,
        ostemplate: "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst".to_owned(),
        hostname: "pod-121".to_owned(),
        cores: 2,
        memory_mb: 2048,
        swap_mb: 0,
        rootfs: "clients-main:20".to_owned(),
        net0: "name=eth0,bridge=vmbr0,ip=dhcp".to_owned(),
        pool: None,
        tags: vec![format!("mpanel-pod-{pod}")],
        description: String::new(),
    };
    ends_well(&client, client.create_container("pve1", &spec).await).await;
    world.round().await;
    assert_eq!(world.one(DRIFT).await, "lost_guest repaired marked as lost");
    assert_eq!(world.one(LOST).await, "false");
}

#[tokio::test]
async fn a_guest_that_only_the_list_does_not_show_is_not_lost() {
    // The list is older than the pod.
    let world = World::with(PveSimConfig { stats_lag_ms: 600_000, ..sim_config(2) }).await;
    world.pod(121).await;
    for _ in 0..2 {
        world.round().await;
        assert_eq!(world.one(DRIFT).await, "lost_guest suspected -");
        world.later(60).await;
    }
    assert_eq!(world.one(LOST).await, "false");
}

#[tokio::test]
async fn a_guest_without_its_tag_is_told_and_left_alone() {
    let world = World::new().await;
    world.pod(121).await;
    let at = GuestAt { node: world.sim.guest(121).unwrap().node, kind: GuestKind::Lxc, vmid: 121 };
    let _ = world.client().set_guest_config(&at, None, &[("tags", "other")]).await;
    let mutations = world.mutations();
    world.round().await;
    world.later(1).await;
    world.round().await;
    assert_eq!(world.one("SELECT state FROM fleet_drift WHERE kind = 'foreign_guest'").await, "open");
    assert_eq!((world.one(LOST).await.as_str(), world.mutations()), ("false", mutations));
}

#[tokio::test]
async fn without_quorum_or_with_an_api_away_nothing_is_concluded() {
    let world = World::new().await;
    world.pod(121).await;
    world.remove_guest(121).await;
    world.round().await;
    world.later(60).await;
    world.sim.set_quorum(false);
    let report = world.round().await;
    assert!(report.passed_over[0].why.contains("no quorum"), "{report:?}");
    world.sim.set_quorum(true);
    // A second node of the cluster, whose own API does not answer.
    world
        .execute(
            "INSERT INTO cloud_pod_nodes (name, provider, api_url, node_name, total_cpu_cores, total_memory_mb,
               total_disk_gb) VALUES ('far', 'proxmox', 'https://127.0.0.1:9', 'pve2', 1, 1, 1)",
        )
        .await;
    let report = world.round().await;
    assert!(report.passed_over[0].why.contains("not every API answers"), "{report:?}");
    world.execute("UPDATE cloud_pod_nodes SET api_url = (SELECT min(api_url) FROM cloud_pod_nodes WHERE name <> 'far'), node_name = 'pve9' WHERE name = 'far'").await;
    let report = world.round().await;
    assert!(report.passed_over[0].why.contains("knows a node pve9"), "{report:?}");
    assert_eq!(
        (world.one(DRIFT).await.as_str(), world.one(LOST).await.as_str()),
        ("lost_guest suspected -", "false")
    );
    let (code, text) = drift(&world, &[]).await;
    assert!(
        code == 0 && text.contains("nothing was concluded about the guests of cluster 1"),
        "{code} {text}"
    );
    // The books are judged all the same.
    world.execute("UPDATE cloud_pod_allocations SET used_memory_mb = 1").await;
    assert_eq!(world.round().await.repaired, 1);
    world.execute("DELETE FROM cloud_pod_nodes WHERE name = 'far'").await;
    world.round().await;
    assert_eq!(world.one(LOST).await, "true");
}

#[tokio::test]
async fn spoiled_books_are_mended() {
    let world = World::new().await;
    world.quota(-1, -1, -1, -1).await;
    let pod = world.pod(121).await;
    world.execute("UPDATE cloud_pod_allocations SET used_cpu_cores = 99 WHERE node_id IN (SELECT node_id FROM fleet_reservations)").await;
    world
        .execute(&format!(
            "INSERT INTO fleet_pod_leases VALUES ('{pod}', 'cloudpods-scale', 's', now() - interval '11 minutes')"
        ))
        .await;
    // A job row from now on would make the tenant busy; those there are done.
    world.execute("UPDATE cloud_pod_quotas SET used_ram_mb = 7").await;
    assert_eq!(world.round().await.repaired, 2);
    assert_eq!(world.allocated().await, "2/2048/20");
    assert_eq!(world.one("SELECT count(*) FROM fleet_pod_leases").await, "0");
    world.later(11).await;
    assert_eq!(world.round().await.repaired, 1);
    assert_eq!(world.quota_used().await, "1/2/2048/20");
    assert_eq!(world.round().await, Report::default());
}

#[tokio::test]
async fn what_a_silent_creation_or_a_deleted_pod_holds_is_given_back() {
    let world = World::new().await;
    world.quota(-1, -1, -1, -1).await;
    let pod = world.pod(121).await;
    // A Node worker destroyed it, and knows nothing of our books.
    world.remove_guest(121).await;
    world
        .execute(&format!("UPDATE cloud_pods SET status = 'deleted', deleted_at = now() WHERE id = '{pod}'"))
        .await;
    // A creation that reserved, and then nobody ever went on with.
    world.sim.add_fault(
        Fault::new("GET", "/nodes/*/lxc/122/config", FaultAction::Status)
            .status(403, "Permission check failed"),
    );
    world.attempt("create-122", &payload(122)).await.unwrap_err();
    world.sim.clear_faults();
    assert_eq!(world.allocated().await, "4/4096/40");
    world.round().await;
    world.later(1).await;
    assert_eq!(world.round().await.repaired, 1);
    assert_eq!(world.allocated().await, "2/2048/20", "the deleted pod's");
    let old = "now() - interval '61 minutes'";
    world.execute(&format!("UPDATE fleet_pods SET updated_at = {old}")).await;
    world.execute(&format!("UPDATE fleet_reservations SET updated_at = {old}")).await;
    let report = world.round().await;
    assert_eq!(report.repaired, 1, "{}", world.one(DRIFT).await);
    assert_eq!(world.allocated().await, "0/0/0");
    // The job is retried after all: it begins anew.
    let made = world.attempt("create-122", &payload(122)).await.unwrap();
    assert_eq!((made.vmid, world.allocated().await.as_str()), (122, "2/2048/20"));
    world.assert_sound();
}

#[tokio::test]
async fn of_several_at_once_one_works() {
    let world = World::new().await;
    world.pod(121).await;
    world.remove_guest(121).await;
    world.round().await;
    world.later(60).await;
    let before = world.sim.requests().len();
    // Slow enough that all have asked for the round before the first is done.
    world.sim.add_fault(Fault::new("GET", "/cluster/status", FaultAction::Delay).ms(500));
    let several: Vec<Reconciler> = (0..4).map(|_| world.reconciler(&[])).collect();
    let rounds = futures_util::future::join_all(several.iter().map(Reconciler::round)).await;
    let reports: Vec<Report> = rounds.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!(reports[0].repaired, 1);
    assert_eq!(world.sim.requests().len() - before, 3, "one survey and one question");
    assert_eq!(world.one("SELECT count(*) FROM cloud_pod_events WHERE type = 'ERROR'").await, "1");
    // A leader that died keeps nobody for ever.
    world.execute("UPDATE fleet_rounds SET finished_at = NULL, until = now() + interval '1 hour'").await;
    assert_eq!(several[0].round().await.unwrap(), None);
    world.execute("UPDATE fleet_rounds SET until = now() - interval '1 second'").await;
    assert!(several[0].round().await.unwrap().is_some());
}

#[tokio::test]
async fn memory_of_guests_that_are_not_ours_is_told() {
    let world = World::new().await;
    world.pod(121).await;
    world.machine(130).await;
    world.round().await;
    world.later(11).await;
    world.round().await;
    let found = world.one("SELECT what || ' -> ' || advice FROM fleet_drift WHERE state = 'open'").await;
    assert!(
        found.contains("130 `pod-130`") && found.contains("nodes set node-1 --reserve-memory-mb 2048"),
        "{found}"
    );
    world.execute("INSERT INTO fleet_node_ext (node_id, mem_reserved_mb) SELECT id, 2048 FROM cloud_pod_nodes WHERE name = 'node-1' ON CONFLICT (node_id) DO UPDATE SET mem_reserved_mb = 2048").await;
    assert_eq!(world.round().await.closed, 1);
}

#[tokio::test]
async fn the_command_shows_what_waits_and_what_to_do() {
    let world = World::new().await;
    let (code, text) = drift(&world, &[]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("no worker has compared pods with Proxmox yet"), "{text}");
    world.pod(121).await;
    world.remove_guest(121).await;
    world.execute("UPDATE cloud_pod_allocations SET used_cpu_cores = 99 WHERE used_cpu_cores > 0").await;
    world.round().await;
    world.later(1).await;
    world.round().await;
    let (code, text) = drift(&world, &[]).await;
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("one difference waits for you") && text.contains("last compared"), "{text}");
    let (code, text) = drift(&world, &["--json"]).await;
    assert_eq!(code, 4);
    let json: String = text.lines().filter(|line| !line.starts_with("mpanel-worker: ")).collect();
    let document: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&document["version"], &document["waiting"]), (&1.into(), &1.into()));
    let kinds: Vec<String> = document["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| format!("{} {} {}", f["kind"], f["state"], f["waits"]))
        .collect();
    assert_eq!(kinds, [r#""lost_guest" "open" true"#, r#""allocation" "repaired" false"#]);
    assert!(document["lastRound"]["finished"].is_string());
}

/// `mpanel-worker cloudpods drift`: exit code and output.
async fn drift(world: &World, more: &[&str]) -> (i32, String) {
    let process = WorkerProcess::builder(env!("CARGO_BIN_EXE_mpanel-worker"))
        .args(["cloudpods", "drift"].iter().chain(more).copied())
        .env("DATABASE_URL", world.url.as_str());
    stage::ends(process).await
}
