//! A node's memory: what guests may use of it, and what the books know of.
//! Guests that are not ours count against what can be promised. Pure.

use serde_json::json;

use super::{
    finding::{Finding, Kind, Scope},
    judge::{World, owner, report_or_suspect},
    view::{ClusterView, SeenGuest},
};
use crate::adapters::db::nodes::NodeRecord;

/// Memory by which a node's guests and its books may differ, MiB.
const MEMORY_SLACK_MB: i64 = 64;
/// Guests that a finding names.
const NAMED_MAX: usize = 5;

pub(super) fn judge(world: &World<'_>, view: &ClusterView, findings: &mut Vec<Finding>) {
    for name in &view.online {
        let rows: Vec<&NodeRecord> =
            world.nodes.iter().filter(|node| node.cluster_id == view.id && node.node_name == *name).collect();
        let Some(row) = rows.first() else { continue };
        // A seed run twice leaves two rows for one machine.
        let books: i64 = rows.iter().map(|n| n.used_memory_mb + i64::from(n.mem_reserved_mb)).sum();
        let here = || view.guests.iter().filter(|guest| guest.at.node == *name && !guest.template);
        let actual: i64 = here().map(|guest| guest.memory_mb).sum();
        if actual <= books + MEMORY_SLACK_MB {
            continue;
        }
        let foreign: Vec<&SeenGuest> = here()
            .filter(|guest| {
                let pod = owner(guest);
                !world.books.pods.iter().any(|book| {
                    Some(book.pod_id) == pod && book.cluster_id == Some(view.id) && book.generation.is_some()
                })
            })
            .collect();
        let mut names: Vec<String> =
            foreign.iter().take(NAMED_MAX).map(|g| format!("{} `{}`", g.at.vmid, g.name)).collect();
        if foreign.len() > NAMED_MAX {
            names.push(format!("{} more", foreign.len() - NAMED_MAX));
        }
        let kind = Kind::NodeMemory;
        let subject = format!("{}/{name}", view.id);
        findings.push(Finding {
            step: report_or_suspect(world.seen_before(kind, &subject, world.limits.settled)),
            kind,
            subject,
            scope: Scope::Cluster(view.id),
            pod_id: None,
            absent_vmid: None,
            what: format!(
                "guests on node {} may use {actual} MiB, the books know of {books} MiB; not in the books: {}",
                row.name,
                if names.is_empty() {
                    "none, pods are larger than reserved".to_owned()
                } else {
                    names.join(", ")
                }
            ),
            advice: format!(
                "keep it from being promised: mpanel-worker cloudpods nodes set {} --reserve-memory-mb {}",
                row.name,
                i64::from(row.mem_reserved_mb) + actual - books
            ),
            data: json!({ "cluster": view.id, "node": name, "actualMb": actual, "booksMb": books }),
        });
    }
}
