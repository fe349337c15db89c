//! On which node a pod goes. Pure: from what is known of the nodes to an order
//! of candidates, or the reason why there is none.
//!
//! The simplest correct choice: it fits, and leaves the most room in the
//! scarcest resource; ties go by name, so that a retry chooses the same.

use std::{cmp::Ordering, fmt};

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
    /// What may be promised of it.
    pub capacity: Size,
    /// What is promised.
    pub used: Size,
}

/// An amount of each resource.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// CPU cores.
    pub cores: f64,
    /// Memory, MiB.
    pub memory_mb: f64,
    /// Disk, GiB.
    pub disk_gb: f64,
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
    /// It lacks room for this.
    Full(&'static str),
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

/// The nodes that can take the pod, best first.
///
/// # Errors
/// [`Refusal`].
pub fn rank(nodes: &[Candidate], region: &str, wanted: Size) -> Result<Vec<i32>, Refusal> {
    let in_region: Vec<&Candidate> = nodes.iter().filter(|node| node.region == region).collect();
    if in_region.is_empty() {
        let mut known: Vec<String> = nodes.iter().map(|node| node.region.clone()).collect();
        known.sort();
        known.dedup();
        return Err(Refusal::UnknownRegion { known });
    }
    let mut passed = Vec::new();
    let mut fitting: Vec<(f64, &Candidate)> = Vec::new();
    for node in machines(&in_region) {
        // A machine is usable only if every row of it says so.
        let rows: Vec<&Candidate> =
            in_region.iter().copied().filter(|row| row.machine == node.machine).collect();
        match rows.iter().find_map(|row| unusable(row)).or_else(|| lacking(node, &rows, wanted)) {
            Some(reason) => passed.push((node.name.clone(), reason)),
            None => fitting.push((headroom(node, &rows, wanted), node)),
        }
    }
    if fitting.is_empty() {
        return Err(Refusal::NoNode { passed });
    }
    fitting.sort_by(|(a, node_a), (b, node_b)| {
        b.partial_cmp(a).unwrap_or(Ordering::Equal).then_with(|| node_a.name.cmp(&node_b.name))
    });
    Ok(fitting.into_iter().map(|(_, node)| node.id).collect())
}

/// One row a machine: the one with the lowest id.
fn machines<'a>(rows: &[&'a Candidate]) -> Vec<&'a Candidate> {
    let mut machines: Vec<&Candidate> = Vec::new();
    let mut sorted = rows.to_vec();
    sorted.sort_by_key(|row| row.id);
    for row in sorted {
        if !machines.iter().any(|known| known.machine == row.machine) {
            machines.push(row);
        }
    }
    machines
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
        Health::Online => None,
        Health::Offline => Some(Passed::Offline),
        Health::Unknown => Some(Passed::NotInCluster),
        Health::Unreachable => Some(Passed::Unreachable),
    }
}

/// What all rows of a machine have promised together.
fn promised(rows: &[&Candidate]) -> Size {
    rows.iter().fold(Size { cores: 0.0, memory_mb: 0.0, disk_gb: 0.0 }, |sum, row| Size {
        cores: sum.cores + row.used.cores,
        memory_mb: sum.memory_mb + row.used.memory_mb,
        disk_gb: sum.disk_gb + row.used.disk_gb,
    })
}

fn lacking(node: &Candidate, rows: &[&Candidate], wanted: Size) -> Option<Passed> {
    let used = promised(rows);
    let full = |used: f64, wanted: f64, capacity: f64| used + wanted > capacity;
    if full(used.memory_mb, wanted.memory_mb, node.capacity.memory_mb) {
        Some(Passed::Full("memory"))
    } else if full(used.disk_gb, wanted.disk_gb, node.capacity.disk_gb) {
        Some(Passed::Full("disk"))
    } else if full(used.cores, wanted.cores, node.capacity.cores) {
        Some(Passed::Full("CPU"))
    } else {
        None
    }
}

/// The free part of the scarcest resource once the pod is there.
fn headroom(node: &Candidate, rows: &[&Candidate], wanted: Size) -> f64 {
    let used = promised(rows);
    let free = |used: f64, wanted: f64, capacity: f64| {
        if capacity > 0.0 { 1.0 - (used + wanted) / capacity } else { 0.0 }
    };
    free(used.cores, wanted.cores, node.capacity.cores)
        .min(free(used.memory_mb, wanted.memory_mb, node.capacity.memory_mb))
        .min(free(used.disk_gb, wanted.disk_gb, node.capacity.disk_gb))
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
            capacity: Size { cores: 64.0, memory_mb, disk_gb: 500.0 },
            used: Size { cores: 0.0, memory_mb: 0.0, disk_gb: 0.0 },
        }
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
        let mut nodes: Vec<Candidate> = (1..=6).map(|id| node(id, &format!("n{id}"), 8192.0)).collect();
        nodes[0].status = "maintenance".to_owned();
        nodes[1].drain = true;
        nodes[2].health = Health::Offline;
        nodes[3].health = Health::Unknown;
        nodes[4].health = Health::Unreachable;
        nodes[5].provider = "aws".to_owned();
        let Err(Refusal::NoNode { passed }) = rank(&nodes, "east", WANTED) else { panic!("no refusal") };
        assert_eq!(passed.len(), 6);
    }

    #[test]
    fn an_unknown_region_is_another_matter_than_a_full_one() {
        let refusal = rank(&[node(1, "a", 8192.0)], "west", WANTED).unwrap_err();
        assert_eq!(refusal, Refusal::UnknownRegion { known: vec!["east".to_owned()] });
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
