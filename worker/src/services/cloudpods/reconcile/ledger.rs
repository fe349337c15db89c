//! Differences within the books: sums, holds, leases, addresses, counters. Pure,
//! and needs no look at Proxmox.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::json;
use uuid::Uuid;

use super::{
    finding::{Finding, Kind, Repair, Scope, Step},
    judge::World,
};
use crate::adapters::db::books::{AllocationBook, HoldBook, LeaseBook, QuotaBook};

pub(super) fn judge(world: &World<'_>, findings: &mut Vec<Finding>) {
    let books = world.books;
    let wrong = |row: &&AllocationBook| row.says.as_ref() != Some(&row.should);
    findings.extend(books.allocations.iter().filter(wrong).map(allocation));
    findings.extend(books.holds.iter().filter_map(|hold| idle_hold(world, hold)));
    findings.extend(books.leases.iter().filter_map(|lease| stale_lease(world, lease)));
    addresses(world, findings);
    let differs = |row: &&QuotaBook| row.says != row.should && !row.busy;
    findings.extend(books.quotas.iter().filter(differs).map(|row| quota(world, row)));
}

fn of_books(kind: Kind, subject: String, pod_id: Option<Uuid>, step: Step) -> Finding {
    Finding {
        kind,
        subject,
        scope: Scope::Books,
        pod_id,
        absent_vmid: None,
        what: String::new(),
        advice: String::new(),
        data: json!({}),
        step,
    }
}

fn figures(list: &[i64]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join("/")
}

fn passed(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 1e9))
}

/// Both figures are of one moment and are written in one transaction: a
/// difference is no race.
fn allocation(row: &AllocationBook) -> Finding {
    let step = Step::Repair(Repair::Project { node_id: row.node_id });
    let says = row.says.as_deref().map_or_else(|| "no row".to_owned(), figures);
    Finding {
        what: format!(
            "cloud_pod_allocations of node {} says {says} (cores/MiB/GiB); the reservations come to {}",
            row.name,
            figures(&row.should)
        ),
        data: json!({ "nodeId": row.node_id, "says": row.says, "should": row.should }),
        ..of_books(Kind::Allocation, row.node_id.to_string(), None, step)
    }
}

fn idle_hold(world: &World<'_>, hold: &HoldBook) -> Option<Finding> {
    let idle = passed(hold.idle_s);
    if idle < world.limits.hold || world.books.leased.contains(&hold.pod_id) {
        return None;
    }
    let HoldBook { pod_id, generation, .. } = *hold;
    // Once a request may have left, only its job can find out what became of it.
    let (step, advice) = if hold.sent {
        let advice = format!(
            "retry job {} of queue {}: it finds out what became of the guest, or undoes it. Nothing is released \
             on a guess",
            hold.job_id, hold.queue
        );
        (Step::Report, advice)
    } else {
        (Step::Repair(Repair::ReleaseHold { pod_id, generation }), String::new())
    };
    Some(Finding {
        what: format!(
            "creation {}/{} holds capacity and VMID {} and has been silent for {} minutes",
            hold.queue,
            hold.job_id,
            hold.vmid,
            idle.as_secs() / 60
        ),
        advice,
        data: json!({ "queue": hold.queue, "jobId": hold.job_id, "vmid": hold.vmid, "sent": hold.sent }),
        ..of_books(Kind::IdleHold, format!("{pod_id}/{generation}"), Some(pod_id), step)
    })
}

/// A lease that is over keeps nobody out; it is only there to be misread.
fn stale_lease(world: &World<'_>, lease: &LeaseBook) -> Option<Finding> {
    if passed(lease.over_s) < world.limits.lease {
        return None;
    }
    let pod_id = lease.pod_id;
    Some(Finding {
        what: format!(
            "the lease of job {}/{} on pod {pod_id} has been over for {} minutes",
            lease.queue,
            lease.job_id,
            passed(lease.over_s).as_secs() / 60
        ),
        data: json!({ "queue": lease.queue, "jobId": lease.job_id }),
        ..of_books(
            Kind::StaleLease,
            pod_id.to_string(),
            Some(pod_id),
            Step::Repair(Repair::DropLease { pod_id }),
        )
    })
}

fn addresses(world: &World<'_>, findings: &mut Vec<Finding>) {
    let mut holders: BTreeMap<&str, BTreeSet<Uuid>> = BTreeMap::new();
    for pod in &world.books.pods {
        let Some(ip) = pod.ip.as_deref().and_then(|ip| ip.split('/').next()).filter(|ip| !ip.is_empty())
        else {
            continue;
        };
        if !pod.deleted && pod.status.as_deref() != Some("failed") {
            holders.entry(ip).or_default().insert(pod.pod_id);
        }
    }
    for address in &world.books.addresses {
        holders.entry(&address.ip).or_default().insert(address.pod_id);
    }
    for (ip, pods) in holders.into_iter().filter(|(_, pods)| pods.len() > 1) {
        let kind = Kind::DoubleAddress;
        let believed = world.seen_before(kind, ip, world.limits.second_look);
        let names: Vec<String> = pods.iter().map(ToString::to_string).collect();
        findings.push(Finding {
            what: format!("address {ip} belongs to {} pods: {}", names.len(), names.join(", ")),
            advice:
                "give all but one of them another address on Proxmox and in cloud_pods.ip; traffic goes to \
                     whichever answers first"
                    .to_owned(),
            data: json!({ "ip": ip, "pods": names }),
            ..of_books(kind, ip.to_owned(), None, if believed { Step::Report } else { Step::Suspect })
        });
    }
}

fn quota(world: &World<'_>, row: &QuotaBook) -> Finding {
    let kind = Kind::Quota;
    let subject = row.tenant_id.to_string();
    let settled = world.seen_before(kind, &subject, world.limits.settled);
    let (step, advice) = match (settled, row.odd) {
        (false, _) => (Step::Suspect, String::new()),
        (true, false) => (Step::Repair(Repair::SetCounters { tenant_id: row.tenant_id }), String::new()),
        (true, true) => {
            let advice = "the tenant has pods in states that mPanel's counting of CloudPods does not know; see \
                          which of them count, then set used_* of cloud_pod_quotas by hand";
            (Step::Report, advice.to_owned())
        }
    };
    Finding {
        what: format!(
            "counters of tenant {} say {} (pods/cores/MiB/GiB); its pods come to {}",
            row.tenant_id,
            figures(&row.says),
            figures(&row.should)
        ),
        advice,
        data: json!({ "tenantId": row.tenant_id, "says": row.says, "should": row.should }),
        ..of_books(kind, subject, None, step)
    }
}
