//! Choosing a node: what the books and Proxmox say is gathered here, and
//! [`super::placement`] decides. The same for a job and for `cloudpods plan`.

use std::collections::BTreeMap;

use sqlx::PgPool;
use uuid::Uuid;

use super::{
    CreateError, Sites,
    placement::{self, Candidate, Decision, Lack, Refusal, Signs, Size},
    sites::Survey,
};
use crate::{
    adapters::db::nodes::{self, NodeRecord},
    config::CloudpodsConfig,
};

/// What a node is wanted for.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// The region.
    pub region: String,
    /// How big.
    pub size: Size,
    /// Whose pod it becomes; its pods are spread over nodes.
    pub tenant_id: Option<Uuid>,
    /// The template it is made from.
    pub template: String,
    /// The storage of its root disk.
    pub storage: String,
}

/// What came of it.
#[derive(Debug)]
pub struct Choice {
    /// What Proxmox said; empty when it was not asked.
    pub(super) survey: Survey,
    /// The region's nodes.
    pub candidates: Vec<Candidate>,
    /// The order of nodes, or why there is none.
    pub outcome: Result<Decision, Refusal>,
}

/// Looks at all nodes and ranks them.
///
/// # Errors
/// [`CreateError::Db`], or [`CreateError::Pve`] when no API answers.
pub async fn choose(
    db: &PgPool,
    sites: &Sites,
    config: &CloudpodsConfig,
    ask: &Ask,
) -> Result<Choice, CreateError> {
    let weights = config.placement.weights();
    let records = nodes::all(db).await?;
    let region_of = |node: &NodeRecord| node.region.clone().unwrap_or_else(|| config.default_region.clone());
    let in_region: Vec<NodeRecord> =
        records.iter().filter(|node| region_of(node) == ask.region).cloned().collect();
    if in_region.is_empty() {
        // Known without asking Proxmox.
        let mut known: Vec<String> = records.iter().map(region_of).collect();
        known.sort();
        known.dedup();
        let outcome = Err(Refusal::UnknownRegion { known });
        return Ok(Choice { survey: Survey::default(), candidates: Vec::new(), outcome });
    }
    let survey = sites.survey(&in_region).await?;
    let signs: BTreeMap<i32, nodes::NodeSigns> =
        nodes::signs(db, ask.tenant_id).await?.into_iter().map(|signs| (signs.node_id, signs)).collect();
    let mut candidates: Vec<Candidate> = in_region
        .iter()
        .map(|node| Candidate {
            lack: sites.storage_lack(node, &survey, &ask.storage, ask.size.disk_gb),
            signs: signs_of(signs.get(&node.id), sites.cpu_load(node, &survey)),
            ..sites.candidate(node, &survey, &config.default_region)
        })
        .collect();
    let outcome = placement::decide(&candidates, &ask.region, ask.size, &weights);
    // Only nodes that could take it are asked for the template.
    let Ok(decision) = outcome else { return Ok(Choice { survey, candidates, outcome }) };
    let fitting: Vec<&NodeRecord> =
        in_region.iter().filter(|node| decision.ranked.iter().any(|ranked| ranked.id == node.id)).collect();
    let without = sites.without_template(&fitting, &ask.template).await;
    for candidate in candidates.iter_mut().filter(|candidate| without.contains(&candidate.id)) {
        candidate.lack = Some(Lack::Template(ask.template.clone()));
    }
    let outcome = placement::decide(&candidates, &ask.region, ask.size, &weights);
    Ok(Choice { survey, candidates, outcome })
}

fn signs_of(signs: Option<&nodes::NodeSigns>, cpu_load: f64) -> Signs {
    let count = |number: i64| u32::try_from(number).unwrap_or(0);
    signs.map_or(Signs { cpu_load, ..Signs::default() }, |signs| Signs {
        tenant_pods: count(signs.tenant_pods),
        in_flight: count(signs.in_flight),
        failures: count(signs.failures),
        cpu_load,
    })
}
