//! Which API answers for which node, and what all of them say right now.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use reqwest::Url;

use super::{
    error::CreateError,
    placement::{Candidate, Health, Lack, Signs, Size},
};
use crate::{
    adapters::{
        db::nodes::NodeRecord,
        proxmox::{GuestAt, GuestKind, GuestRow, NodeRow, Pve, PveClient, PveError, ResourceRow},
    },
    config::{ProxmoxConfig, proxmox::base_url},
};

/// How long it is believed that a node has a template, or has none.
const TEMPLATE_KNOWN: Duration = Duration::from_secs(60);
const TEMPLATE_MISSING: Duration = Duration::from_secs(5);
/// Nodes that are asked for their templates at once.
const ASKED_AT_ONCE: usize = 8;
/// Where disk is promised beyond what there is, its storage may be used so far.
const THIN_USE_MAX: f64 = 0.8;
const GIB: f64 = 1_073_741_824.0;

/// API, node and template, and whether it was there when.
type Templates = BTreeMap<(String, String, String), (Instant, bool)>;

/// The Proxmox APIs of this installation.
#[derive(Debug, Clone)]
pub struct Sites {
    pve: Pve,
    /// Overrides every node's own address: any member of a cluster relays.
    everywhere: Option<Url>,
    fallback: Option<Url>,
    templates: Arc<Mutex<Templates>>,
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
    /// API to everything that it listed.
    resources: BTreeMap<String, Vec<ResourceRow>>,
}

impl Sites {
    /// The sites of a configuration.
    #[must_use]
    pub fn new(pve: Pve, config: &ProxmoxConfig) -> Self {
        Self {
            pve,
            everywhere: config.api_url.clone(),
            fallback: config.fallback_url.clone(),
            templates: Arc::default(),
        }
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

    /// The APIs that these nodes need, each once.
    #[must_use]
    pub fn bases(&self, nodes: &[NodeRecord]) -> BTreeSet<Url> {
        nodes.iter().filter_map(|node| self.base(&node.api_url).ok()).collect()
    }

    /// Asks every API that the nodes need for its nodes and guests.
    ///
    /// # Errors
    /// When no API answers: what the first one said.
    pub async fn survey(&self, nodes: &[NodeRecord]) -> Result<Survey, PveError> {
        let answers = join_all(self.bases(nodes).into_iter().map(|base| async move {
            let client = self.at(&base);
            let answer =
                async { Ok::<_, PveError>((client.nodes().await?, client.resources().await?)) }.await;
            (base, answer)
        }))
        .await;
        let mut survey = Survey::default();
        let mut first_error = None;
        for (base, answer) in answers {
            match answer {
                Ok((nodes, resources)) => {
                    survey.nodes.insert(base.to_string(), nodes);
                    let guests = resources.iter().filter_map(ResourceRow::guest);
                    survey.guests.extend(guests.map(|guest| (base.clone(), guest)));
                    survey.resources.insert(base.to_string(), resources);
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
        let scaled = |total: i32, reserved: f64, ratio: f64| (f64::from(total) - reserved).max(0.0) * ratio;
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
            lack: None,
            capacity: Size {
                cores: scaled(node.total_cpu_cores, node.cpu_reserved, node.cpu_ratio),
                memory_mb: scaled(node.total_memory_mb, node.mem_reserved_mb.into(), node.mem_ratio),
                disk_gb: scaled(node.total_disk_gb, node.disk_reserved_gb.into(), node.disk_ratio),
            },
            used,
            signs: Signs::default(),
        }
    }

    /// Whether a node's storage can take a root disk: it is there, and has room
    /// whatever the books say. An API that shows no storage at all (the token
    /// lacks Datastore.Audit) tells nothing.
    #[must_use]
    pub fn storage_lack(
        &self,
        node: &NodeRecord,
        survey: &Survey,
        storage: &str,
        disk_gb: f64,
    ) -> Option<Lack> {
        let base = self.base(&node.api_url).ok()?;
        let rows = survey.resources.get(base.as_str())?;
        let mut storages = rows.iter().filter(|row| row.kind == "storage").peekable();
        storages.peek()?;
        let missing = || Some(Lack::Storage(storage.to_owned()));
        let Some(row) =
            storages.find(|row| row.node == node.node_name && row.storage.as_deref() == Some(storage))
        else {
            return missing();
        };
        let takes_disks =
            row.content.as_deref().is_none_or(|list| list.split(',').any(|kind| kind.trim() == "rootdir"));
        if !takes_disks || row.status.as_deref().is_some_and(|status| status != "available") {
            return missing();
        }
        let (Some(used), Some(total)) = (row.usage.disk, row.usage.maxdisk) else { return None };
        #[allow(clippy::cast_precision_loss, reason = "sizes of storages are far below 2^52")]
        let (used, total) = (used as f64, total as f64);
        let full =
            if node.disk_ratio > 1.0 { used >= total * THIN_USE_MAX } else { total - used < disk_gb * GIB };
        (total > 0.0 && full).then(|| Lack::StorageRoom(storage.to_owned()))
    }

    /// The busy part of a node's CPUs when last seen.
    #[must_use]
    pub fn cpu_load(&self, node: &NodeRecord, survey: &Survey) -> f64 {
        let base = self.base(&node.api_url).map(|url| url.to_string()).unwrap_or_default();
        survey
            .resources
            .get(&base)
            .and_then(|rows| rows.iter().find(|row| row.kind == "node" && row.node == node.node_name))
            .and_then(|row| row.usage.cpu)
            .unwrap_or(0.0)
    }

    /// The ids of those nodes that certainly do not have the template. A node
    /// that does not tell is not among them: the creation itself will say.
    pub async fn without_template(&self, nodes: &[&NodeRecord], template: &str) -> BTreeSet<i32> {
        let Some((storage, _)) = template.split_once(':') else { return BTreeSet::new() };
        let mut without = BTreeSet::new();
        for nodes in nodes.chunks(ASKED_AT_ONCE) {
            let mut asked = Vec::new();
            for node in nodes {
                asked.push(self.has_template(node, storage, template));
            }
            let answers = join_all(asked).await;
            without.extend(nodes.iter().zip(answers).filter(|(_, there)| !there).map(|(node, _)| node.id));
        }
        without
    }

    async fn has_template(&self, node: &NodeRecord, storage: &str, template: &str) -> bool {
        let Ok(base) = self.base(&node.api_url) else { return true };
        let key = (base.to_string(), node.node_name.clone(), template.to_owned());
        let known = self.templates.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some((at, there)) = known
            && at.elapsed() < if there { TEMPLATE_KNOWN } else { TEMPLATE_MISSING }
        {
            return there;
        }
        match self.at(&base).volumes(&node.node_name, storage, "vztmpl").await {
            Ok(volumes) => {
                let there = volumes.iter().any(|volume| volume == template);
                let mut templates = self.templates.lock().unwrap_or_else(PoisonError::into_inner);
                templates.retain(|_, (at, _)| at.elapsed() < TEMPLATE_KNOWN);
                templates.insert(key, (Instant::now(), there));
                there
            }
            Err(error) => {
                tracing::debug!(node = %node.name, %error, "cannot look for the template; the creation will tell");
                true
            }
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
