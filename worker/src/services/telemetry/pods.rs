//! The collector of Proxmox: are the nodes there, and how busy are nodes and pods?
//! One question to each cluster, whatever it holds.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use reqwest::Url;
use sqlx::PgPool;

use super::{
    Collected,
    sample::{Check, Reading, Samples},
};
use crate::{
    adapters::{
        db::{
            nodes::{self, NodeRecord},
            pod_metrics::PodRow,
        },
        proxmox::{Pve, PveError, ResourceRow, Usage, tag_set},
    },
    config::{ProxmoxConfig, proxmox::base_url},
};

/// A node whose cores are busier than this is degraded.
const CPU_MAX: f64 = 95.0;
/// So is one whose root disk is fuller.
const DISK_MAX: f64 = 90.0;
/// Tags of pods of ours begin so.
const TAG: &str = "mpanel-pod-";
/// Rows of pods are written once in so much time: their table counts rows by a
/// number of 32 bits that is never used twice.
const ROWS_MS: i64 = 60_000;

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

/// Looks at all nodes and the guests on them.
pub(super) async fn collect(db: &PgPool, clusters: &Clusters, due_ms: i64, interval: Duration) -> Collected {
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
    let with_rows = u128::try_from(due_ms.rem_euclid(ROWS_MS)).is_ok_and(|into| into < interval.as_millis());
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
                if with_rows {
                    collected.pods.extend(rows.iter().filter_map(pod));
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

/// A running guest as a pod's row. Nobody outside knows how full the disk of a
/// virtual machine is: 0.
fn pod(row: &ResourceRow) -> Option<PodRow> {
    let guest = row.guest().filter(|guest| guest.status.as_deref() == Some("running"))?;
    let tags = tag_set(guest.tags.as_deref());
    let own = tags.iter().find_map(|tag| tag.strip_prefix(TAG)).map(str::to_owned);
    Some(PodRow {
        vmid: i32::try_from(guest.vmid?).ok()?,
        pod: own.unwrap_or_default(),
        name: guest.name.unwrap_or_default(),
        cpu: percent(guest.usage.cpu?, 1.0),
        memory: share(guest.usage.mem, guest.usage.maxmem)?,
        disk: share(guest.usage.disk, guest.usage.maxdisk).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn guests_become_rows_when_they_run_and_figures_stay_in_bounds() {
        let row = |value| pod(&serde_json::from_value(value).unwrap());
        let running = json!({"type": "lxc", "vmid": 121, "node": "pve1", "name": "web", "status": "running",
            "tags": "x;mpanel-pod-abc", "cpu": 0.255, "mem": 512, "maxmem": 1024, "disk": 30, "maxdisk": 10});
        let found = row(running.clone()).unwrap();
        assert_eq!((found.vmid, found.pod.as_str(), found.cpu, found.memory), (121, "abc", 25.5, 50.0));
        assert!((found.disk - 100.0).abs() < f64::EPSILON);
        let mut stopped = running.clone();
        stopped["status"] = json!("stopped");
        assert_eq!(row(stopped), None);
        let mut odd = running;
        odd["maxmem"] = json!(0);
        odd["mem"] = json!(0);
        assert!((row(odd).unwrap().memory).abs() < f64::EPSILON);
    }
}
