//! What the clusters say, in few requests: two to each API. A cluster is judged
//! only when it is seen whole: every API of it answered, it has quorum, and it
//! knows every node that the books place pods on. (A wrong API address, or a
//! token that sees nothing, must not look like a cluster whose pods are gone.)

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use reqwest::Url;

use super::super::sites::Sites;
use crate::adapters::{
    db::nodes::NodeRecord,
    proxmox::{GuestAt, GuestKind, PveClient, PveError, ResourceRow, tag_set},
};

/// A guest in a cluster's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenGuest {
    /// Where it is.
    pub at: GuestAt,
    /// Its name.
    pub name: String,
    /// `running`, `stopped`, `unknown`, …
    pub status: String,
    /// Its tags.
    pub tags: BTreeSet<String>,
    /// The operation that holds it.
    pub lock: Option<String>,
    /// Memory that it may use, MiB.
    pub memory_mb: i64,
    /// Whether it is a template.
    pub template: bool,
}

/// A cluster as its APIs show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// `fleet_pve_clusters.id`.
    pub id: i32,
    /// Why nothing may be concluded from it.
    pub unusable: Option<String>,
    /// Its guests.
    pub guests: Vec<SeenGuest>,
    /// Its nodes that are online.
    pub online: BTreeSet<String>,
}

/// All clusters, and the clients by which they were seen.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    pub(super) views: Vec<ClusterView>,
    pub(super) apis: BTreeMap<i32, Vec<Url>>,
}

/// Asks every API of every cluster.
pub(super) async fn look(sites: &Sites, nodes: &[NodeRecord]) -> Clusters {
    let mut apis: BTreeMap<i32, BTreeSet<Url>> = BTreeMap::new();
    let mut broken: BTreeMap<i32, String> = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.provider.eq_ignore_ascii_case("proxmox")) {
        match sites.base(&node.api_url) {
            Ok(base) => {
                apis.entry(node.cluster_id).or_default().insert(base);
            }
            Err(problem) => {
                apis.entry(node.cluster_id).or_default();
                broken.insert(node.cluster_id, format!("api_url of node {} {problem}", node.name));
            }
        }
    }
    let mut clusters = Clusters::default();
    for (id, bases) in apis {
        let bases: Vec<Url> = bases.into_iter().collect();
        let answers = join_all(bases.iter().map(|base| ask(sites.at(base)))).await;
        let mut view = ClusterView { id, unusable: broken.remove(&id), ..ClusterView::default() };
        let (mut known, mut seen) = (BTreeSet::new(), BTreeSet::new());
        for (base, answer) in bases.iter().zip(answers) {
            match answer {
                Ok((false, _)) => view.unusable = Some(format!("{base} says that its cluster has no quorum")),
                Ok((true, rows)) => add(&mut view, &mut known, &mut seen, &rows),
                Err(error) => view.unusable = Some(format!("not every API answers: {error}")),
            }
        }
        let needed = |node: &&NodeRecord| {
            node.cluster_id == id
                && node.provider.eq_ignore_ascii_case("proxmox")
                && (node.pods > 0 || node.status == "active")
        };
        if let Some(node) = nodes.iter().filter(needed).find(|node| !known.contains(&node.node_name)) {
            view.unusable.get_or_insert_with(|| {
                format!("no API of it knows a node {} (node row {})", node.node_name, node.name)
            });
        }
        clusters.views.push(view);
        clusters.apis.insert(id, bases);
    }
    clusters
}

async fn ask(client: PveClient) -> Result<(bool, Vec<ResourceRow>), PveError> {
    // Quorum last: a list that was read without it is not believed.
    let rows = client.resources().await?;
    Ok((client.is_quorate().await?, rows))
}

/// Two members of one cluster tell of the same guests; they count once.
fn add(
    view: &mut ClusterView,
    known: &mut BTreeSet<String>,
    seen: &mut BTreeSet<(String, u32)>,
    rows: &[ResourceRow],
) {
    for row in rows {
        if row.kind == "node" {
            known.insert(row.node.clone());
            if row.status.as_deref() == Some("online") {
                view.online.insert(row.node.clone());
            }
        }
        let (Some(kind), Some(vmid)) = (GuestKind::of_segment(&row.kind), row.vmid) else { continue };
        let Ok(vmid) = u32::try_from(vmid) else { continue };
        let at = GuestAt { node: row.node.clone(), kind, vmid };
        if !seen.insert((at.node.clone(), vmid)) {
            continue;
        }
        view.guests.push(SeenGuest {
            at,
            name: row.name.clone().unwrap_or_default(),
            status: row.status.clone().unwrap_or_default(),
            tags: tag_set(row.tags.as_deref()),
            lock: row.lock.clone().filter(|lock| !lock.is_empty()),
            memory_mb: row.usage.maxmem.unwrap_or_default() / 1_048_576,
            template: row.template,
        });
    }
}
