//! Which API answers for which node, and what all of them say right now.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use reqwest::Url;

use super::{
    error::CreateError,
    placement::{Candidate, Health, Size},
};
use crate::{
    adapters::{
        db::nodes::NodeRecord,
        proxmox::{GuestAt, GuestKind, GuestRow, NodeRow, Pve, PveClient, PveError},
    },
    config::{ProxmoxConfig, proxmox::base_url},
};

/// The Proxmox APIs of this installation.
#[derive(Debug, Clone)]
pub struct Sites {
    pve: Pve,
    /// Overrides every node's own address: any member of a cluster relays.
    everywhere: Option<Url>,
    fallback: Option<Url>,
}

/// What the APIs said.
#[derive(Debug, Default)]
pub struct Survey {
    /// API to its nodes; absent when it could not be reached.
    nodes: BTreeMap<String, Vec<NodeRow>>,
    /// All guests, with the API that told of them.
    pub guests: Vec<(Url, GuestRow)>,
    /// Whether an API did not answer.
    partial: bool,
}

impl Sites {
    /// The sites of a configuration.
    #[must_use]
    pub fn new(pve: Pve, config: &ProxmoxConfig) -> Self {
        Self { pve, everywhere: config.api_url.clone(), fallback: config.fallback_url.clone() }
    }

    /// The API of a node whose row says `api_url`.
    ///
    /// # Errors
    /// What is wrong with the row.
    pub fn base(&self, api_url: &str) -> Result<Url, String> {
        if let Some(url) = &self.everywhere {
            return Ok(url.clone());
        }
        base_url(api_url).or_else(|problem| self.fallback.clone().ok_or(problem))
    }

    /// A client for the API at `base`.
    #[must_use]
    pub fn at(&self, base: &Url) -> PveClient {
        self.pve.at(base)
    }

    /// Asks every API that the nodes need for its nodes and guests.
    ///
    /// # Errors
    /// When no API answers: what the first one said.
    pub async fn survey(&self, nodes: &[NodeRecord]) -> Result<Survey, PveError> {
        let bases: BTreeSet<Url> = nodes.iter().filter_map(|node| self.base(&node.api_url).ok()).collect();
        let answers = join_all(bases.into_iter().map(|base| async move {
            let client = self.at(&base);
            let answer = async { Ok::<_, PveError>((client.nodes().await?, client.guests().await?)) }.await;
            (base, answer)
        }))
        .await;
        let mut survey = Survey::default();
        let mut first_error = None;
        for (base, answer) in answers {
            match answer {
                Ok((nodes, guests)) => {
                    survey.nodes.insert(base.to_string(), nodes);
                    survey.guests.extend(guests.into_iter().map(|guest| (base.clone(), guest)));
                }
                Err(error) => {
                    tracing::warn!(api = %base, %error, "a Proxmox API does not answer; its nodes are passed over");
                    survey.partial = true;
                    // Wrong credentials matter more than an API that is away.
                    if first_error.as_ref().is_none_or(|known: &PveError| !known.class.is_configuration()) {
                        first_error = Some(error);
                    }
                }
            }
        }
        match first_error {
            Some(error) if survey.nodes.is_empty() => Err(error),
            _ => Ok(survey),
        }
    }

    /// A node as placement sees it.
    #[must_use]
    pub fn candidate(&self, node: &NodeRecord, survey: &Survey, default_region: &str) -> Candidate {
        let base = self.base(&node.api_url).map(|url| url.to_string());
        let health = match base.as_ref().ok().and_then(|base| survey.nodes.get(base)) {
            None => Health::Unreachable,
            Some(rows) => match rows.iter().find(|row| row.node == node.node_name) {
                None => Health::Unknown,
                Some(row) if row.status.as_deref().is_none_or(|status| status == "online") => Health::Online,
                Some(_) => Health::Offline,
            },
        };
        let scaled = |total: i32, ratio: f64| f64::from(total) * ratio;
        #[allow(clippy::cast_precision_loss, reason = "figures of a node are far below 2^52")]
        let used = Size {
            cores: node.used_cores as f64,
            memory_mb: node.used_memory_mb as f64,
            disk_gb: node.used_disk_gb as f64,
        };
        Candidate {
            id: node.id,
            name: node.name.clone(),
            machine: (base.unwrap_or_else(|_| node.api_url.clone()), node.node_name.clone()),
            provider: node.provider.clone(),
            region: node.region.clone().unwrap_or_else(|| default_region.to_owned()),
            status: node.status.clone(),
            drain: node.drain,
            health,
            capacity: Size {
                cores: scaled(node.total_cpu_cores, node.cpu_ratio),
                memory_mb: scaled(node.total_memory_mb, node.mem_ratio),
                disk_gb: scaled(node.total_disk_gb, node.disk_ratio),
            },
            used,
        }
    }

    /// Who holds a VMID on Proxmox. The list lags by seconds, so a container in
    /// it is looked at before it is believed.
    ///
    /// # Errors
    /// [`CreateError::Pve`].
    pub async fn holder(&self, survey: &Survey, vmid: u32) -> Result<Option<String>, CreateError> {
        for (base, guest) in &survey.guests {
            if guest.vmid != Some(i64::from(vmid)) {
                continue;
            }
            let at = GuestKind::of_segment(&guest.kind).map(|kind| GuestAt {
                node: guest.node.clone(),
                kind,
                vmid,
            });
            if let Some(at) = at
                && self.at(base).guest_config(&at).await?.is_none()
            {
                continue;
            }
            let name = guest.name.as_deref().unwrap_or("without a name");
            return Ok(Some(format!("guest `{name}` ({}) on node {}", guest.kind, guest.node)));
        }
        Ok(None)
    }
}

impl Survey {
    /// Whether an API did not answer, so that absence proves nothing.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// The VMIDs of all guests.
    #[must_use]
    pub fn vmids(&self) -> Vec<i32> {
        self.guests.iter().filter_map(|(_, guest)| i32::try_from(guest.vmid?).ok()).collect()
    }
}
