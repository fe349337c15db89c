//! Every rule of the judgement, by the smallest world in which it shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use uuid::Uuid;

use super::{
    finding::{Finding, Kind, Limits, Repair, Scope, Step},
    judge::{Judgement, PassedOver, World, judge},
    view::{ClusterView, SeenGuest},
};
use crate::adapters::{
    db::{
        books::{AllocationBook, Books, HoldBook, LeaseBook, PodBook, QuotaBook},
        drift::{Key, Known},
        nodes::NodeRecord,
    },
    proxmox::{GuestAt, GuestKind},
};

const POD: Uuid = Uuid::from_u128(1);

fn pod() -> PodBook {
    PodBook {
        pod_id: POD,
        tenant_id: Uuid::nil(),
        hostname: "shop".to_owned(),
        vmid: 121,
        status: Some("active".to_owned()),
        deleted: false,
        ip: Some("10.0.0.5".to_owned()),
        generation: Some(1),
        cluster_id: Some(1),
        phase: Some("active".to_owned()),
        lost: false,
        leased: false,
    }
}

fn guest() -> SeenGuest {
    SeenGuest {
        at: GuestAt { node: "pve1".to_owned(), kind: GuestKind::Lxc, vmid: 121 },
        name: "shop".to_owned(),
        status: "running".to_owned(),
        tags: BTreeSet::from([format!("mpanel-pod-{POD}")]),
        lock: None,
        memory_mb: 2048,
        template: false,
    }
}

fn node() -> NodeRecord {
    NodeRecord {
        id: 7,
        name: "node-1".to_owned(),
        provider: "proxmox".to_owned(),
        api_url: String::new(),
        node_name: "pve1".to_owned(),
        status: "active".to_owned(),
        total_cpu_cores: 16,
        total_memory_mb: 32_768,
        total_disk_gb: 500,
        region: None,
        cluster_id: 1,
        cpu_ratio: 4.0,
        mem_ratio: 1.0,
        disk_ratio: 1.0,
        cpu_reserved: 0.0,
        mem_reserved_mb: 0,
        disk_reserved_gb: 0,
        drain: false,
        used_cores: 2,
        used_memory_mb: 2048,
        used_disk_gb: 20,
        pods: 1,
    }
}

/// A world that can be spoiled; sound as it is.
struct Stage {
    books: Books,
    views: Vec<ClusterView>,
    known: BTreeMap<Key, Known>,
    limits: Limits,
}

impl Stage {
    fn sound() -> Self {
        let view = ClusterView {
            id: 1,
            unusable: None,
            guests: vec![guest()],
            online: BTreeSet::from(["pve1".to_owned()]),
        };
        Self {
            books: Books { pods: vec![pod()], ..Books::default() },
            views: vec![view],
            known: BTreeMap::new(),
            limits: Limits::new(Duration::from_secs(900), false),
        }
    }

    fn pod(&mut self) -> &mut PodBook {
        &mut self.books.pods[0]
    }

    fn guests(&mut self) -> &mut Vec<SeenGuest> {
        &mut self.views[0].guests
    }

    fn judge(&self) -> Judgement {
        let nodes = [node()];
        judge(&World {
            books: &self.books,
            nodes: &nodes,
            views: &self.views,
            known: &self.known,
            limits: &self.limits,
        })
    }

    /// The only finding now, and again after so many seconds.
    fn over(&mut self, seconds: f64) -> (Finding, Finding) {
        let first = only(self.judge());
        let key = (first.kind.as_str().to_owned(), first.subject.clone());
        self.known.insert(key, Known { age_s: seconds, acted: false });
        (first, only(self.judge()))
    }
}

fn only(judgement: Judgement) -> Finding {
    let mut findings = judgement.findings;
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings.remove(0)
}

#[test]
fn a_sound_world_has_no_findings() {
    let judgement = Stage::sound().judge();
    assert_eq!(judgement.findings, []);
    assert_eq!(judgement.judged, BTreeSet::from([Scope::Books, Scope::Cluster(1), Scope::AllClusters]));
}

#[test]
fn a_tagged_guest_without_a_live_row_is_an_orphan_at_its_second_sighting() {
    let spoil: [fn(&mut Stage); 3] = [
        |stage| stage.books.pods.clear(),
        |stage| stage.pod().deleted = true,
        |stage| {
            // The row's guest is elsewhere: this one is a second of the same pod.
            stage.pod().vmid = 122;
            let mut other = guest();
            other.at.vmid = 122;
            stage.guests().push(other);
            stage.limits.settled = Duration::MAX;
        },
    ];
    for (case, spoil) in spoil.into_iter().enumerate() {
        let mut stage = Stage::sound();
        spoil(&mut stage);
        // Of the memory that the other guest uses another test tells.
        stage.views[0].online.clear();
        let (first, second) = stage.over(899.0);
        assert_eq!(
            (first.kind, first.step, second.step),
            (Kind::OrphanGuest, Step::Suspect, Step::Suspect),
            "{case}"
        );
        let (_, second) = stage.over(900.0);
        assert_eq!(second.step, Step::Report, "{case}");
        assert!(second.advice.contains("take its tag"), "{}", second.advice);
        // A job is at it: nobody knows yet.
        stage.books.leased.push(POD);
        assert_eq!(stage.over(9000.0).1.step, Step::Suspect, "{case}");
        stage.books.leased.clear();
        stage.limits.orphan_delete = true;
        assert!(matches!(stage.over(900.0).1.step, Step::Repair(Repair::RemoveOrphan { running: true, .. })));
        stage.guests()[0].lock = Some("backup".to_owned());
        assert_eq!(stage.over(900.0).1.step, Step::Report, "a locked one is not touched");
    }
}

#[test]
fn guests_of_creations_and_quarantined_ones_are_no_orphans() {
    for (phase, deleted) in [("creating", false), ("quarantined", false), ("quarantined", true)] {
        let mut stage = Stage::sound();
        stage.pod().phase = Some(phase.to_owned());
        stage.pod().deleted = deleted;
        assert_eq!(stage.judge().findings, [], "{phase} {deleted}");
    }
}

#[test]
fn a_row_without_a_guest_is_lost_at_the_second_look_and_told_once() {
    let mut stage = Stage::sound();
    stage.guests().clear();
    let (first, second) = stage.over(20.0);
    assert_eq!((first.kind, first.step), (Kind::LostGuest, Step::Suspect));
    assert!(matches!(second.step, Step::Repair(Repair::MarkLost { generation: Some(1), .. })));
    assert_eq!(second.absent_vmid, Some(121), "to be confirmed");
    let key = (second.kind.as_str().to_owned(), second.subject);
    stage.known.insert(key, Known { age_s: 9000.0, acted: true });
    assert_eq!(only(stage.judge()).step, Step::Report);
    // Where a job is at it, or is about to be, nothing is said.
    let quiet: [fn(&mut PodBook); 3] = [
        |pod| pod.leased = true,
        |pod| pod.status = Some("deleting".to_owned()),
        |pod| pod.phase = Some("creating".to_owned()),
    ];
    for (case, spoil) in quiet.into_iter().enumerate() {
        let mut stage = Stage::sound();
        stage.guests().clear();
        spoil(stage.pod());
        assert_eq!(stage.judge().findings, [], "{case}");
    }
    // A guest that is back.
    let mut stage = Stage::sound();
    stage.pod().lost = true;
    assert_eq!(stage.judge().returned, [POD]);
}

#[test]
fn a_pod_of_another_maker_is_lost_only_when_every_cluster_was_seen() {
    let mut stage = Stage::sound();
    (stage.pod().generation, stage.pod().cluster_id, stage.pod().phase) = (None, None, None);
    stage.guests()[0].tags.clear();
    stage.views[0].online.clear();
    assert_eq!(stage.judge().findings, [], "its guest carries no tag");
    stage.guests().clear();
    assert!(matches!(stage.over(20.0).1.step, Step::Repair(Repair::MarkLost { generation: None, .. })));
    stage.views.push(ClusterView { id: 2, unusable: Some("away".to_owned()), ..ClusterView::default() });
    let judgement = stage.judge();
    assert_eq!(judgement.findings, []);
    assert_eq!(judgement.judged, BTreeSet::from([Scope::Books, Scope::Cluster(1)]));
    assert_eq!(judgement.passed_over, [PassedOver { cluster: 2, why: "away".to_owned() }]);
}

#[test]
fn a_cluster_that_was_not_seen_whole_says_nothing() {
    let mut stage = Stage::sound();
    stage.guests().clear();
    stage.views[0].unusable = Some("no quorum".to_owned());
    let judgement = stage.judge();
    assert_eq!(judgement.findings, []);
    assert_eq!(judgement.judged, BTreeSet::from([Scope::Books]));
}

#[test]
fn what_a_deleted_pod_holds_is_given_back_when_its_guest_is_gone() {
    let mut stage = Stage::sound();
    stage.guests().clear();
    stage.pod().deleted = true;
    let (first, second) = stage.over(20.0);
    assert_eq!((first.kind, first.step), (Kind::LeftOver, Step::Suspect));
    assert_eq!(second.step, Step::Repair(Repair::GiveBack { pod_id: POD, generation: 1 }));
    assert_eq!(second.absent_vmid, Some(121));
}

#[test]
fn another_guest_at_the_vmid_and_locks_are_reported() {
    let mut stage = Stage::sound();
    stage.guests()[0].tags.clear();
    stage.views[0].online.clear();
    let (first, second) = stage.over(20.0);
    assert_eq!((first.kind, first.step, second.step), (Kind::ForeignGuest, Step::Suspect, Step::Report));

    let mut stage = Stage::sound();
    stage.guests()[0].lock = Some("create".to_owned());
    assert_eq!(stage.over(3599.0).1.step, Step::Suspect);
    let (first, second) = stage.over(3600.0);
    assert_eq!((first.kind, second.step), (Kind::StuckLock, Step::Report));
    assert!(second.advice.ends_with("pct unlock 121"), "{}", second.advice);
    stage.guests()[0].lock = Some("backup".to_owned());
    assert_eq!(stage.over(3600.0).1.step, Step::Suspect, "backups take long");
    stage.pod().leased = true;
    assert_eq!(stage.judge().findings, [], "its job sees to it");
}

#[test]
fn memory_of_foreign_guests_is_told_with_the_command_that_helps() {
    let mut stage = Stage::sound();
    let mut foreign = guest();
    (foreign.at.vmid, foreign.name, foreign.memory_mb) = (900, "ldap".to_owned(), 4096);
    foreign.tags.clear();
    stage.guests().push(foreign.clone());
    let (first, second) = stage.over(600.0);
    assert_eq!((first.kind, first.step, second.step), (Kind::NodeMemory, Step::Suspect, Step::Report));
    assert!(second.what.contains("6144 MiB") && second.what.contains("900 `ldap`"), "{}", second.what);
    assert!(second.advice.ends_with("nodes set node-1 --reserve-memory-mb 4096"), "{}", second.advice);
    foreign.template = true;
    stage.guests()[1] = foreign;
    assert_eq!(stage.judge().findings, [], "a template uses none");
}

#[test]
fn sums_holds_and_leases_are_judged_by_the_books_alone() {
    let mut stage = Stage::sound();
    stage.views.clear();
    let allocation = |says: Option<Vec<i64>>| AllocationBook {
        node_id: 7,
        name: "node-1".to_owned(),
        says,
        should: vec![2, 2048, 20],
    };
    for (says, wrong) in [(Some(vec![2, 2048, 20]), false), (Some(vec![3, 2048, 20]), true), (None, true)] {
        stage.books.allocations = vec![allocation(says)];
        let findings = stage.judge().findings;
        assert_eq!(findings.len(), usize::from(wrong));
        assert!(findings.iter().all(|f| f.step == Step::Repair(Repair::Project { node_id: 7 })));
    }
    stage.books.allocations.clear();

    let hold = |idle_s, sent| HoldBook {
        pod_id: POD,
        generation: 1,
        vmid: 121,
        queue: "q".to_owned(),
        job_id: "j".to_owned(),
        sent,
        idle_s,
    };
    stage.books.holds = vec![hold(3599.0, false)];
    assert_eq!(stage.judge().findings, []);
    stage.books.holds = vec![hold(3600.0, false)];
    assert!(matches!(only(stage.judge()).step, Step::Repair(Repair::ReleaseHold { .. })));
    stage.books.holds = vec![hold(3600.0, true)];
    let finding = only(stage.judge());
    assert_eq!(finding.step, Step::Report, "nothing is released on a guess");
    assert!(finding.advice.starts_with("retry job j of queue q"), "{}", finding.advice);
    stage.books.leased.push(POD);
    assert_eq!(stage.judge().findings, []);
    stage.books.holds.clear();

    let lease = |over_s| LeaseBook { pod_id: POD, queue: "q".to_owned(), job_id: "j".to_owned(), over_s };
    stage.books.leases = vec![lease(599.0)];
    assert_eq!(stage.judge().findings, []);
    stage.books.leases = vec![lease(600.0)];
    assert_eq!(only(stage.judge()).step, Step::Repair(Repair::DropLease { pod_id: POD }));
}

#[test]
fn an_address_of_two_pods_is_told_and_a_failed_pods_is_none() {
    let mut stage = Stage::sound();
    stage.views.clear();
    let other = PodBook { pod_id: Uuid::from_u128(2), ip: Some("10.0.0.5/24".to_owned()), ..pod() };
    stage.books.pods.push(other);
    let (first, second) = stage.over(20.0);
    assert_eq!((first.kind, first.step, second.step), (Kind::DoubleAddress, Step::Suspect, Step::Report));
    assert_eq!(first.subject, "10.0.0.5");
    stage.books.pods[1].status = Some("failed".to_owned());
    assert_eq!(stage.judge().findings, []);
}

#[test]
fn counters_are_set_right_only_when_nothing_moves_and_everything_is_known() {
    let row = |busy, odd| QuotaBook {
        tenant_id: POD,
        says: vec![2, 4, 4096, 40],
        should: vec![1, 2, 2048, 20],
        busy,
        odd,
    };
    let mut stage = Stage::sound();
    stage.views.clear();
    stage.books.quotas = vec![row(false, false)];
    let (first, second) = stage.over(600.0);
    assert_eq!((first.kind, first.step), (Kind::Quota, Step::Suspect));
    assert_eq!(second.step, Step::Repair(Repair::SetCounters { tenant_id: POD }));
    stage.books.quotas = vec![row(false, true)];
    assert_eq!(stage.over(600.0).1.step, Step::Report);
    stage.books.quotas = vec![row(true, false)];
    assert_eq!(stage.judge().findings, []);
}
