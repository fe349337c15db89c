//! Ways to choose a node: ours, and those that others use.

use mpanel_worker::services::cloudpods::placement::{self, Candidate, Size, Weights};

use super::trace::Pod;

/// A way to choose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Policy {
    /// The next node that has room.
    RoundRobin,
    /// Any node that has room.
    Random,
    /// The first node that has room.
    FirstFit,
    /// The node that is least used on average (Kubernetes' LeastAllocated).
    LeastLoaded,
    /// The node that is most used on average (MostAllocated).
    MostLoaded,
    /// Nomad's bin packing by free CPU and memory.
    NomadBinpack,
    /// The less used of two random nodes.
    TwoChoices,
    /// Ours, with these weights.
    Ours(&'static str, Weights),
    /// No policy at all: the whole fleet as one node, which nothing can beat at filling up.
    Bound,
}

/// All that are compared.
pub const ALL: [Policy; 10] = [
    Policy::Bound,
    Policy::Ours("ours, pack", Weights::PACK),
    Policy::Ours("ours, spread", Weights::SPREAD),
    Policy::RoundRobin,
    Policy::LeastLoaded,
    Policy::MostLoaded,
    Policy::NomadBinpack,
    Policy::FirstFit,
    Policy::TwoChoices,
    Policy::Random,
];

impl Policy {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::FirstFit => "first fit",
            Self::LeastLoaded => "least loaded",
            Self::MostLoaded => "most loaded",
            Self::NomadBinpack => "Nomad binpack",
            Self::TwoChoices => "two choices",
            Self::Ours(name, _) => name,
            Self::Bound => "bound: one big node",
        }
    }

    /// The place of the chosen node in the list, if any has room.
    pub fn choose(
        &self,
        nodes: &mut [Candidate],
        owners: &[Vec<u32>],
        pod: &Pod,
        state: &mut State,
    ) -> Option<usize> {
        if let Self::Ours(_, weights) = self {
            for (node, owners) in nodes.iter_mut().zip(owners) {
                node.signs.tenant_pods = owners[pod.tenant];
            }
            let decision = placement::decide(nodes, "r", pod.size, weights).ok()?;
            return usize::try_from(decision.ranked[0].id).ok();
        }
        let nodes = &*nodes;
        let free = |n: &usize| has_room(&nodes[*n], pod.size);
        let all = 0..nodes.len();
        match self {
            Self::FirstFit | Self::Bound => all.clone().find(free),
            Self::RoundRobin => {
                let chosen = all.map(|n| (state.next + n) % nodes.len()).find(free)?;
                state.next = chosen + 1;
                Some(chosen)
            }
            Self::Random => state.any(&all.filter(free).collect::<Vec<_>>()),
            Self::LeastLoaded => best(all.filter(free), |n| -mean_use(&nodes[n], pod.size)),
            Self::MostLoaded => best(all.filter(free), |n| mean_use(&nodes[n], pod.size)),
            Self::NomadBinpack => best(all.filter(free), |n| {
                let (cpu, memory) = free_parts(&nodes[n], pod.size);
                20.0 - (10_f64.powf(cpu) + 10_f64.powf(memory))
            }),
            Self::TwoChoices => {
                let fitting: Vec<usize> = all.filter(free).collect();
                let two = [state.any(&fitting)?, state.any(&fitting)?];
                best(two.into_iter(), |n| -mean_use(&nodes[n], pod.size))
            }
            Self::Ours(..) => None,
        }
    }
}

/// What a policy remembers between pods.
#[derive(Debug)]
pub struct State {
    next: usize,
    rng: fastrand::Rng,
}

impl State {
    /// A beginning.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { next: 0, rng: fastrand::Rng::with_seed(seed) }
    }

    fn any(&mut self, of: &[usize]) -> Option<usize> {
        if of.is_empty() { None } else { Some(of[self.rng.usize(..of.len())]) }
    }
}

/// Whether a node has room for that much more.
#[must_use]
pub fn has_room(node: &Candidate, size: Size) -> bool {
    let after = node.used.plus(size);
    after.cores <= node.capacity.cores
        && after.memory_mb <= node.capacity.memory_mb
        && after.disk_gb <= node.capacity.disk_gb
}

fn mean_use(node: &Candidate, size: Size) -> f64 {
    let used = placement::Use::of(node.used.plus(size), node.capacity);
    (used.cpu + used.memory + used.disk) / 3.0
}

fn free_parts(node: &Candidate, size: Size) -> (f64, f64) {
    let used = placement::Use::of(node.used.plus(size), node.capacity);
    (1.0 - used.cpu, 1.0 - used.memory)
}

/// The first of the best.
fn best(nodes: impl Iterator<Item = usize>, score: impl Fn(usize) -> f64) -> Option<usize> {
    nodes
        .map(|n| (score(n), n))
        .fold(None, |best: Option<(f64, usize)>, this| match best {
            Some(known) if known.0 >= this.0 => Some(known),
            _ => Some(this),
        })
        .map(|(_, n)| n)
}
