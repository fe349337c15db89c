//! What a way to place pods costs: rejected pods and stranded memory over
//! synthetic traces. Everything follows from the seed; no clock is read.

pub mod policy;
pub mod trace;

use std::{cmp::Reverse, collections::BinaryHeap};

use mpanel_worker::services::cloudpods::placement::{Candidate, Health, Signs, Size};

use self::{
    policy::{Policy, State, has_room},
    trace::{DAYS, Kind, Pod, WARM_DAYS},
};

/// The pod that a node with room should still be able to take.
const STANDARD: Size = Size { cores: 2.0, memory_mb: 4096.0, disk_gb: 40.0 };

/// Nodes of the two shapes of mPanel's seed, in turns.
#[must_use]
pub fn fleet(nodes: usize, cpu_ratio: f64) -> Vec<Candidate> {
    (0..nodes)
        .map(|n| {
            let scale = if n % 2 == 0 { 1.0 } else { 2.0 };
            Candidate {
                id: i32::try_from(n).unwrap_or(i32::MAX),
                name: format!("n{n:04}"),
                machine: (String::new(), format!("n{n:04}")),
                provider: "proxmox".to_owned(),
                region: "r".to_owned(),
                status: "active".to_owned(),
                drain: false,
                health: Health::Online,
                lack: None,
                capacity: Size {
                    cores: 16.0 * scale * cpu_ratio,
                    memory_mb: 32_768.0 * scale,
                    disk_gb: 500.0 * scale,
                },
                used: Size::default(),
                signs: Signs::default(),
            }
        })
        .collect()
}

/// What came of one trace under one policy; parts of one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// Memory promised when the first pod was turned away.
    pub full_at: f64,
    /// Pods turned away.
    pub rejected: f64,
    /// Memory turned away.
    pub rejected_memory: f64,
    /// Memory that is free on nodes where a standard pod finds no room.
    pub stranded: f64,
    /// Of a tenant's pods, how many are on one node (those with four or more).
    pub tenant_share: f64,
}

/// The size that is taken away again.
fn minus(a: Size, b: Size) -> Size {
    Size { cores: a.cores - b.cores, memory_mb: a.memory_mb - b.memory_mb, disk_gb: a.disk_gb - b.disk_gb }
}

/// Runs a trace.
#[must_use]
pub fn run(fleet: &[Candidate], kind: Kind, pods: &[Pod], policy: &Policy, seed: u64) -> Figures {
    let mut nodes = if *policy == Policy::Bound { one_node(fleet) } else { fleet.to_vec() };
    let total: f64 = nodes.iter().map(|node| node.capacity.memory_mb).sum();
    let tenants = pods.iter().map(|pod| pod.tenant + 1).max().unwrap_or(1);
    let mut owners = vec![vec![0_u32; tenants]; nodes.len()];
    // When a pod goes, in thousandths of a second so that it can be ordered; its node; which it is.
    let mut leaving: BinaryHeap<Reverse<(u64, usize, usize)>> = BinaryHeap::new();
    let mut state = State::new(seed);
    let mut promised = 0.0;
    let (mut seen, mut seen_memory, mut rejected, mut rejected_memory) = (0.0, 0.0, 0.0, 0.0);
    let (mut samples, mut stranded, mut share) = (0.0, 0.0, 0.0);
    let mut full_at = None;
    for (index, pod) in pods.iter().enumerate() {
        while let Some(Reverse((until, node, which))) = leaving.peek().copied() {
            if until > instant(pod.at) {
                break;
            }
            leaving.pop();
            nodes[node].used = minus(nodes[node].used, pods[which].size);
            owners[node][pods[which].tenant] -= 1;
            promised -= pods[which].size.memory_mb;
        }
        let counts = kind == Kind::Fill || pod.at >= WARM_DAYS;
        let chosen = policy.choose(&mut nodes, &owners, pod, &mut state);
        if counts {
            seen += 1.0;
            seen_memory += pod.size.memory_mb;
        }
        match chosen {
            Some(node) => {
                nodes[node].used = nodes[node].used.plus(pod.size);
                owners[node][pod.tenant] += 1;
                promised += pod.size.memory_mb;
                if pod.until.is_finite() {
                    leaving.push(Reverse((instant(pod.until), node, index)));
                }
            }
            None => {
                full_at.get_or_insert(promised / total);
                if counts {
                    rejected += 1.0;
                    rejected_memory += pod.size.memory_mb;
                }
            }
        }
        let sampled = if kind == Kind::Fill { full_at.is_some() } else { counts && index % 8 == 0 };
        if sampled {
            samples += 1.0;
            stranded += stranded_memory(&nodes) / total;
            share += tenant_share(&owners);
        }
        // Beyond the first pod that is turned away a fill only shows who turns away the big ones.
        if kind == Kind::Fill && full_at.is_some() {
            break;
        }
    }
    let part = |of: f64, all: f64| if all > 0.0 { of / all } else { 0.0 };
    Figures {
        full_at: full_at.unwrap_or(promised / total),
        rejected: part(rejected, seen),
        rejected_memory: part(rejected_memory, seen_memory),
        stranded: part(stranded, samples),
        tenant_share: part(share, samples),
    }
}

fn instant(days: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "days since the trace began")]
    let instant = (days.min(DAYS * 1e3) * 86_400_000.0) as u64;
    instant
}

fn one_node(fleet: &[Candidate]) -> Vec<Candidate> {
    let capacity = fleet.iter().fold(Size::default(), |sum, node| sum.plus(node.capacity));
    fleet.iter().take(1).map(|node| Candidate { capacity, ..node.clone() }).collect()
}

fn stranded_memory(nodes: &[Candidate]) -> f64 {
    nodes
        .iter()
        .filter(|node| !has_room(node, STANDARD))
        .map(|node| node.capacity.memory_mb - node.used.memory_mb)
        .sum()
}

fn tenant_share(owners: &[Vec<u32>]) -> f64 {
    let tenants = owners.first().map_or(0, Vec::len);
    let shares: Vec<f64> = (0..tenants)
        .filter_map(|tenant| {
            let counts = owners.iter().map(|node| node[tenant]);
            let (sum, most) = (counts.clone().sum::<u32>(), counts.max()?);
            (sum >= 4).then(|| f64::from(most) / f64::from(sum))
        })
        .collect();
    if shares.is_empty() { 0.0 } else { shares.iter().sum::<f64>() / shares.len() as f64 }
}

/// Mean and half the width of its 95 % interval.
#[must_use]
pub fn mean(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count.max(1.0);
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (count - 1.0).max(1.0);
    (mean, 1.96 * (variance / count.max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use mpanel_worker::services::cloudpods::placement::Weights;

    use super::*;

    #[test]
    fn nothing_fills_a_fleet_further_than_the_bound() {
        let fleet = fleet(8, 4.0);
        let memory: f64 = fleet.iter().map(|node| node.capacity.memory_mb).sum();
        for seed in 0..5 {
            let pods = trace::trace(Kind::Fill, memory, 1.0, seed);
            let bound = run(&fleet, Kind::Fill, &pods, &Policy::Bound, seed).full_at;
            for policy in policy::ALL {
                let figures = run(&fleet, Kind::Fill, &pods, &policy, seed);
                assert!(figures.full_at <= bound + 1e-9, "{}: {figures:?} beyond {bound}", policy.name());
            }
        }
    }

    #[test]
    fn a_run_repeats_and_no_node_is_ever_overfilled() {
        let fleet = fleet(8, 4.0);
        let memory: f64 = fleet.iter().map(|node| node.capacity.memory_mb).sum();
        let pods = trace::trace(Kind::Burst, memory, 1.1, 3);
        let ours = Policy::Ours("ours", Weights::PACK);
        let one = run(&fleet, Kind::Burst, &pods, &ours, 3);
        assert_eq!(one, run(&fleet, Kind::Burst, &pods, &ours, 3));
        assert!(one.rejected > 0.0 && one.full_at <= 1.0, "{one:?}");
    }
}
