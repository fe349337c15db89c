//! The collector of Proxmox: are the nodes that pods are on there, and how busy
//! are they? One question to each cluster. Pods' own figures are CloudPods' work.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use reqwest::Url;
use sqlx::PgPool;

use super::{
    Collected,
    sample::{Check, Reading, Samples},
};
use crate::{
    adapters::{
        db::nodes::{self, NodeRecord},
        proxmox::{Pve, PveError, ResourceRow, Usage},
    },
    config::{ProxmoxConfig, proxmox::base_url},
};

/// A node whose cores are busier than this is degraded.
const CPU_MAX: f64 = 95.0;
/// So is one whose root disk is fuller.
const DISK_MAX: f64 = 90.0;

/// How the clusters are reached.
#[derive(Debug, Clone)]
pub(super) struct Clusters {
    pve: Pve,
    everywhere: Option<Url>,
    fallback: Option<Url>,
}

impl Clusters {
    pub(super) fn new(pve: Pve, config: &ProxmoxConfig) -> Self {
        Self { pve, everywhere: config.api_url.clone(), fallback: config.fallback_url.clone() }
    }

    fn base(&self, node: &NodeRecord) -> Result<Url, String> {
        match (&self.everywhere, base_url(&node.api_url)) {
            (Some(url), _) => Ok(url.clone()),
            (None, Ok(url)) => Ok(url),
            (None, Err(problem)) => self.fallback.clone().ok_or(format!("its api_url {problem}")),
        }
    }
}

/// Looks at all nodes.
pub(super) async fn collect(db: &PgPool, clusters: &Clusters) -> Collected {
    let mut collected = Collected::default();
    let nodes = match nodes::all(db).await {
        Ok(nodes) => nodes,
        Err(error) => {
            return Collected { problem: Some(error.to_string()), ..Collected::default() };
        }
    };
    let in_use =
        |node: &&NodeRecord| node.provider.eq_ignore_ascii_case("proxmox") && node.status == "active";
    let mut by_api: BTreeMap<String, (Url, Vec<&NodeRecord>)> = BTreeMap::new();
    for node in nodes.iter().filter(in_use) {
        match clusters.base(node) {
            Ok(url) => by_api.entry(url.to_string()).or_insert_with(|| (url, Vec::new())).1.push(node),
            Err(problem) => collected.checks.push(Check::of(service(node), Reading::down(problem))),
        }
    }
    let asked = by_api.into_values().map(async |(url, nodes)| {
        let answer = clusters.pve.at(&url).resources().await;
        (nodes, answer)
    });
    for (nodes, answer) in join_all(asked).await {
        match answer {
            Ok(rows) => {
                for node in nodes {
                    let row = rows.iter().find(|row| row.kind == "node" && row.node == node.node_name);
                    collected.checks.push(Check::of(service(node), judged(node, row)));
                    if let Some(row) = row {
                        figures(&mut collected.samples, &node.name, &row.usage);
                    }
                }
            }
            Err(error) => {
                let why = reason(&error);
                let checks = nodes.iter().map(|node| Check::of(service(node), Reading::down(why.clone())));
                collected.checks.extend(checks);
            }
        }
    }
    // A seed that ran twice leaves two rows of one name.
    collected.checks.sort_by(|a, b| a.service.cmp(&b.service));
    collected.checks.dedup_by(|a, b| a.service == b.service);
    collected
}

fn service(node: &NodeRecord) -> String {
    format!("node-{}", node.name)
}

fn reason(error: &PveError) -> String {
    format!("its API does not answer: {error}")
}

/// How a node is, by its row in the cluster's list.
fn judged(node: &NodeRecord, row: Option<&ResourceRow>) -> Reading {
    let Some(row) = row else {
        return Reading::down(format!("the cluster has no node {}; check node_name", node.node_name));
    };
    if row.status.as_deref() != Some("online") {
        return Reading::down(format!(
            "the cluster says {}",
            row.status.as_deref().unwrap_or("nothing of it")
        ));
    }
    let cpu = row.usage.cpu.map(|cpu| percent(cpu, 1.0)).unwrap_or_default();
    let disk = share(row.usage.disk, row.usage.maxdisk).unwrap_or_default();
    if cpu > CPU_MAX {
        Reading::degraded(None, format!("{cpu:.0} % of its cores are busy"))
    } else if disk > DISK_MAX {
        Reading::degraded(None, format!("{disk:.0} % of its root disk are used"))
    } else {
        Reading::up(None)
    }
}

/// A share in percent, 0 to 100, whatever came.
fn percent(part: f64, whole: f64) -> f64 {
    let share = 100.0 * part / whole;
    if share.is_finite() { share.clamp(0.0, 100.0) } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "shares of bytes")]
fn share(part: Option<i64>, whole: Option<i64>) -> Option<f64> {
    Some(percent(part? as f64, whole? as f64))
}

fn figures(samples: &mut Samples, name: &str, usage: &Usage) {
    samples.add_some("node_cpu_percent", name, usage.cpu.map(|cpu| percent(cpu, 1.0)));
    samples.add_some("node_memory_percent", name, share(usage.mem, usage.maxmem));
    samples.add_some("node_disk_percent", name, share(usage.disk, usage.maxdisk));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_stay_in_bounds_whatever_came() {
        for (part, whole, wanted) in [
            (Some(512), Some(1024), 50.0),
            (Some(30), Some(10), 100.0),
            (Some(0), Some(0), 0.0),
            (Some(-1), Some(5), 0.0),
        ] {
            let found = share(part, whole).unwrap();
            assert!((found - wanted).abs() < 1e-9, "{part:?} of {whole:?}: {found}");
        }
        assert_eq!(share(None, Some(1)), None);
    }
}
