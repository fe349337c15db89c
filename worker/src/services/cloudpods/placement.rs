//! On which node a pod goes. Pure: from what is known of the nodes to an order
//! of candidates with scores, or the reason why there is none.
//!
//! First filters, each with the reason that an operator reads; then a score
//! ([`score`]). Ties go by name, so that a retry chooses the same.

pub mod score;

use std::{cmp::Ordering, fmt};

pub use self::score::{Score, Use, Weights};

/// Whether a node can be worked on right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Proxmox says that it is online.
    Online,
    /// Proxmox says that it is not.
    Offline,
    /// Its cluster knows no node of that name.
    Unknown,
    /// Its API cannot be reached.
    Unreachable,
}

/// What the pod needs and a node does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// This storage, for root disks.
    Storage(String),
    /// This template.
    Template(String),
    /// Room on this storage, whatever the books say.
    StorageRoom(String),
}

/// A node as placement sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// `cloud_pod_nodes.id`.
    pub id: i32,
    /// The operator's name.
    pub name: String,
    /// What makes it one machine: its API and its name there. Seeds that ran
    /// twice leave two rows of one machine.
    pub machine: (String, String),
    /// `proxmox` or something that is not ours.
    pub provider: String,
    /// Its region.
    pub region: String,
    /// `active` or not.
    pub status: String,
    /// Whether it takes no new pods.
    pub drain: bool,
    /// Whether it can be worked on.
    pub health: Health,
    /// What it does not have.
    pub lack: Option<Lack>,
    /// What may be promised of it.
    pub capacity: Size,
    /// What is promised.
    pub used: Size,
    /// What weighs beside room.
    pub signs: Signs,
}

/// What weighs in the score beside room.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signs {
    /// Pods of the same tenant on it.
    pub tenant_pods: u32,
    /// Pods that are being made on it.
    pub in_flight: u32,
    /// Creations that failed on it lately.
    pub failures: u32,
    /// Part of its CPUs that was busy when last seen, 0 to 1.
    pub cpu_load: f64,
}

/// An amount of each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Size {
    /// CPU cores.
    pub cores: f64,
    /// Memory, MiB.
    pub memory_mb: f64,
    /// Disk, GiB.
    pub disk_gb: f64,
}

impl Size {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cores: self.cores + other.cores,
            memory_mb: self.memory_mb + other.memory_mb,
            disk_gb: self.disk_gb + other.disk_gb,
        }
    }
}

/// Why a node was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed {
    /// Not a Proxmox node.
    Provider(String),
    /// Not `active`.
    Status(String),
    /// Being emptied.
    Draining,
    /// Not online.
    Offline,
    /// Not in its cluster.
    NotInCluster,
    /// Its API does not answer.
    Unreachable,
    /// It does not have what the pod needs.
    Lacks(Lack),
    /// It lacks room for this.
    Full(&'static str),
}

impl Passed {
    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Provider(_) => "provider",
            Self::Status(_) => "status",
            Self::Draining => "draining",
            Self::Offline => "offline",
            Self::NotInCluster => "notInCluster",
            Self::Unreachable => "unreachable",
            Self::Lacks(Lack::Storage(_)) => "noStorage",
            Self::Lacks(Lack::Template(_)) => "noTemplate",
            Self::Lacks(Lack::StorageRoom(_)) => "storageFull",
            Self::Full(_) => "full",
        }
    }
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provider(provider) => write!(f, "provider {provider}"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Draining => f.write_str("draining"),
            Self::Offline => f.write_str("offline"),
            Self::NotInCluster => f.write_str("Proxmox knows no node of that name"),
            Self::Unreachable => f.write_str("API unreachable"),
            Self::Lacks(Lack::Storage(storage)) => write!(f, "no storage {storage} for root disks"),
            Self::Lacks(Lack::Template(template)) => write!(f, "no template {template}"),
            Self::Lacks(Lack::StorageRoom(storage)) => write!(f, "storage {storage} is full"),
            Self::Full(what) => write!(f, "not enough {what}"),
        }
    }
}

/// Why no node was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No node is in that region: the payload is wrong.
    UnknownRegion {
        /// The regions that there are.
        known: Vec<String>,
    },
    /// The region's nodes cannot take it now.
    NoNode {
        /// Each node and why not.
        passed: Vec<(String, Passed)>,
    },
}

/// A node that can take the pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// `cloud_pod_nodes.id`.
    pub id: i32,
    /// The operator's name.
    pub name: String,
    /// How good it is, and why.
    pub score: Score,
}

/// Where the pod goes, and what became of the other nodes of its region.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Those that can take it, best first; at least one.
    pub ranked: Vec<Ranked>,
    /// Those that cannot, and why.
    pub passed: Vec<(String, Passed)>,
}

/// Decides.
///
/// # Errors
/// [`Refusal`].
pub fn decide(
    nodes: &[Candidate],
    region: &str,
    wanted: Size,
    weights: &Weights,
) -> Result<Decision, Refusal> {
    let in_region: Vec<&Candidate> = nodes.iter().filter(|node| node.region == region).collect();
    if in_region.is_empty() {
        let mut known: Vec<String> = nodes.iter().map(|node| node.region.clone()).collect();
        known.sort();
        known.dedup();
        return Err(Refusal::UnknownRegion { known });
    }
    let mut passed = Vec::new();
    let mut ranked = Vec::new();
    for (node, rows) in machines(&in_region) {
        // A machine is usable only if every row of it says so.
        let used = rows.iter().fold(Size::default(), |sum, row| sum.plus(row.used));
        match rows.iter().find_map(|row| unusable(row)).or_else(|| lacking(used, wanted, node.capacity)) {
            Some(reason) => passed.push((node.name.clone(), reason)),
            None => {
                let after = Use::of(used.plus(wanted), node.capacity);
                let score = Score::new(after, node.signs, weights);
                ranked.push(Ranked { id: node.id, name: node.name.clone(), score });
            }
        }
    }
    if ranked.is_empty() {
        return Err(Refusal::NoNode { passed });
    }
    ranked.sort_by(|a, b| {
        b.score
            .total
            .partial_cmp(&a.score.total)
            .unwrap_or(Ordering::Equal)
            .then_with(|| a.name.cmp(&b.name))
            .then_with(|| a.id.cmp(&b.id))
    });
    Ok(Decision { ranked, passed })
}

/// The machines behind the rows: of each the row with the lowest id, and all its rows.
fn machines<'a>(rows: &[&'a Candidate]) -> Vec<(&'a Candidate, Vec<&'a Candidate>)> {
    let mut sorted = rows.to_vec();
    sorted.sort_by(|a, b| a.machine.cmp(&b.machine).then(a.id.cmp(&b.id)));
    sorted.chunk_by(|a, b| a.machine == b.machine).map(|rows| (rows[0], rows.to_vec())).collect()
}

fn unusable(node: &Candidate) -> Option<Passed> {
    if !node.provider.eq_ignore_ascii_case("proxmox") {
        return Some(Passed::Provider(node.provider.clone()));
    }
    if node.status != "active" {
        return Some(Passed::Status(node.status.clone()));
    }
    if node.drain {
        return Some(Passed::Draining);
    }
    match node.health {
        Health::Online => node.lack.clone().map(Passed::Lacks),
        Health::Offline => Some(Passed::Offline),
        Health::Unknown => Some(Passed::NotInCluster),
        Health::Unreachable => Some(Passed::Unreachable),
    }
}

fn lacking(used: Size, wanted: Size, capacity: Size) -> Option<Passed> {
    let after = used.plus(wanted);
    if after.memory_mb > capacity.memory_mb {
        Some(Passed::Full("memory"))
    } else if after.disk_gb > capacity.disk_gb {
        Some(Passed::Full("disk"))
    } else if after.cores > capacity.cores {
        Some(Passed::Full("CPU"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Size = Size { cores: 2.0, memory_mb: 2048.0, disk_gb: 20.0 };

    fn node(id: i32, name: &str, memory_mb: f64) -> Candidate {
        Candidate {
            id,
            name: name.to_owned(),
            machine: ("https://pve".to_owned(), name.to_owned()),
            provider: "proxmox".to_owned(),
            region: "east".to_owned(),
            status: "active".to_owned(),
            drain: false,
            health: Health::Online,
            lack: None,
            capacity: Size { cores: 64.0, memory_mb, disk_gb: 500.0 },
            used: Size::default(),
            signs: Signs::default(),
        }
    }

    fn rank(nodes: &[Candidate], region: &str, wanted: Size) -> Result<Vec<i32>, Refusal> {
        let decision = decide(nodes, region, wanted, &Weights::SPREAD)?;
        Ok(decision.ranked.into_iter().map(|node| node.id).collect())
    }

    #[test]
    fn the_roomiest_comes_first_and_ties_go_by_name() {
        let nodes = [node(1, "b", 8192.0), node(2, "a", 8192.0), node(3, "c", 65_536.0)];
        assert_eq!(rank(&nodes, "east", WANTED).unwrap(), [3, 2, 1]);
    }

    #[test]
    fn a_pod_that_just_fits_fits_and_one_more_does_not() {
        let mut only = node(1, "a", 2048.0);
        assert_eq!(rank(&[only.clone()], "east", WANTED).unwrap(), [1]);
        only.used.memory_mb = 1.0;
        let refusal = rank(&[only], "east", WANTED).unwrap_err();
        assert_eq!(refusal, Refusal::NoNode { passed: vec![("a".to_owned(), Passed::Full("memory"))] });
    }

    #[test]
    fn every_reason_to_pass_a_node_over_is_told() {
        let mut nodes: Vec<Candidate> = (1..=9).map(|id| node(id, &format!("n{id}"), 8192.0)).collect();
        nodes[0].status = "maintenance".to_owned();
        nodes[1].drain = true;
        nodes[2].health = Health::Offline;
        nodes[3].health = Health::Unknown;
        nodes[4].health = Health::Unreachable;
        nodes[5].provider = "aws".to_owned();
        nodes[6].lack = Some(Lack::Storage("clients-main".to_owned()));
        nodes[7].lack = Some(Lack::Template("local:vztmpl/t".to_owned()));
        nodes[8].used.disk_gb = 490.0;
        let Err(Refusal::NoNode { passed }) = rank(&nodes, "east", WANTED) else { panic!("no refusal") };
        let mut codes: Vec<&str> = passed.iter().map(|(_, reason)| reason.code()).collect();
        codes.dedup();
        assert_eq!(codes.len(), 9, "{passed:?}");
    }

    #[test]
    fn an_unknown_region_is_another_matter_than_a_full_one() {
        let refusal = rank(&[node(1, "a", 8192.0)], "west", WANTED).unwrap_err();
        assert_eq!(refusal, Refusal::UnknownRegion { known: vec!["east".to_owned()] });
    }

    #[test]
    fn a_tenants_pods_are_spread_and_a_node_that_fails_is_avoided() {
        let (mut a, b) = (node(1, "a", 8192.0), node(2, "b", 8192.0));
        for weights in [Weights::PACK, Weights::SPREAD] {
            let first = |nodes: &[Candidate]| decide(nodes, "east", WANTED, &weights).unwrap().ranked[0].id;
            a.signs = Signs::default();
            assert_eq!(first(&[a.clone(), b.clone()]), 1);
            a.signs.tenant_pods = 1;
            assert_eq!(first(&[a.clone(), b.clone()]), 2);
            a.signs = Signs { failures: 1, ..Signs::default() };
            assert_eq!(first(&[a.clone(), b.clone()]), 2);
        }
    }

    #[test]
    fn packing_fills_what_is_begun_and_spreading_what_is_empty() {
        let (mut a, b) = (node(1, "a", 8192.0), node(2, "b", 8192.0));
        a.used = Size { cores: 16.0, memory_mb: 2048.0, disk_gb: 125.0 };
        let first = |weights| decide(&[a.clone(), b.clone()], "east", WANTED, &weights).unwrap().ranked[0].id;
        assert_eq!((first(Weights::PACK), first(Weights::SPREAD)), (1, 2));
    }

    #[test]
    fn two_rows_of_one_machine_count_once_and_share_its_room() {
        let mut twin = node(2, "a", 4096.0);
        twin.used.memory_mb = 2048.0;
        let first = node(1, "a", 4096.0);
        assert_eq!(rank(&[twin.clone(), first.clone()], "east", WANTED).unwrap(), [1]);
        twin.used.memory_mb = 2049.0;
        assert!(rank(&[twin.clone(), first.clone()], "east", WANTED).is_err());
        twin.used.memory_mb = 0.0;
        twin.status = "disabled".to_owned();
        assert!(rank(&[twin, first], "east", WANTED).is_err());
    }
}
