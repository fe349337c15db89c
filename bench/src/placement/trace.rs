//! Synthetic traces: pods that come and go. The same seed gives the same trace.

use mpanel_worker::services::cloudpods::placement::Size;

/// A pod of a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pod {
    /// When it comes, days.
    pub at: f64,
    /// When it goes, days; infinite for one that stays.
    pub until: f64,
    /// How big it is.
    pub size: Size,
    /// Whose it is.
    pub tenant: usize,
}

/// What kind of trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Pods come and stay, until long after the first is turned away.
    Fill,
    /// Pods come one by one and go, around the load wanted.
    Churn,
    /// The same, in batches of one tenant.
    Burst,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fill, Self::Churn, Self::Burst];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Churn => "churn",
            Self::Burst => "burst",
        }
    }
}

/// Cores, GiB of memory, GiB of disk, and how many of a hundred pods.
const MIX: [(f64, f64, f64, f64); 5] = [
    (1.0, 1.0, 10.0, 45.0),
    (2.0, 4.0, 40.0, 30.0),
    (4.0, 8.0, 80.0, 17.0),
    (8.0, 16.0, 160.0, 6.0),
    // Much memory, little else.
    (2.0, 16.0, 40.0, 2.0),
];
const LIFE_MEDIAN_DAYS: f64 = 20.0;
const LIFE_SIGMA: f64 = 1.0;
const TENANTS: usize = 60;

/// How long a trace with departures is, days; the first part warms up.
pub const DAYS: f64 = 240.0;
/// From when on figures count.
pub const WARM_DAYS: f64 = 120.0;

/// A pod without disk or cores in mind: the memory of an average one, MiB.
fn mean_memory_mb() -> f64 {
    MIX.iter().map(|(_, memory, _, share)| memory * 1024.0 * share / 100.0).sum()
}

/// A trace for a fleet with so much memory, of which `load` is wanted on average.
#[must_use]
pub fn trace(kind: Kind, memory_mb: f64, load: f64, seed: u64) -> Vec<Pod> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let pods = memory_mb / mean_memory_mb();
    if kind == Kind::Fill {
        let count = (1..).take_while(|n| f64::from(*n) < pods * 1.5).count();
        return (0..count).map(|n| pod(&mut rng, n as f64, f64::INFINITY, None)).collect();
    }
    let mean_life = LIFE_MEDIAN_DAYS * (LIFE_SIGMA * LIFE_SIGMA / 2.0).exp();
    let per_day = load * pods / mean_life;
    let batch = if kind == Kind::Burst { 12.0 } else { 1.0 };
    let mut trace = Vec::new();
    let mut at = 0.0;
    loop {
        at += -(1.0 - rng.f64()).ln() / (per_day / batch);
        if at > DAYS {
            return trace;
        }
        let size = if kind == Kind::Burst { rng.usize(4..=20) } else { 1 };
        let tenant = tenant(&mut rng);
        for _ in 0..size {
            let life = LIFE_MEDIAN_DAYS * (LIFE_SIGMA * normal(&mut rng)).exp();
            trace.push(pod(&mut rng, at, at + life, Some(tenant)));
        }
    }
}

fn pod(rng: &mut fastrand::Rng, at: f64, until: f64, owner: Option<usize>) -> Pod {
    let mut draw = rng.f64() * 100.0;
    let (cores, memory, disk, _) = MIX
        .into_iter()
        .find(|(_, _, _, share)| {
            draw -= share;
            draw < 0.0
        })
        .unwrap_or(MIX[0]);
    let size = Size { cores, memory_mb: memory * 1024.0, disk_gb: disk };
    Pod { at, until, size, tenant: owner.unwrap_or_else(|| tenant(rng)) }
}

/// Few tenants have many pods.
fn tenant(rng: &mut fastrand::Rng) -> usize {
    let draw = rng.f64();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below TENANTS")]
    let tenant = (draw * draw * TENANTS as f64) as usize;
    tenant.min(TENANTS - 1)
}

/// Box and Muller's.
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let (a, b) = (1.0 - rng.f64(), rng.f64());
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_trace_and_another_gives_another() {
        for kind in Kind::ALL {
            let one = trace(kind, 1e6, 0.95, 7);
            assert_eq!(one, trace(kind, 1e6, 0.95, 7));
            assert_ne!(one, trace(kind, 1e6, 0.95, 8));
        }
    }

    #[test]
    fn the_load_is_what_was_wanted() {
        let memory_mb = 1e7;
        let pods = trace(Kind::Churn, memory_mb, 0.9, 1);
        let at = 200.0;
        let wanted: f64 = pods.iter().filter(|p| p.at <= at && p.until > at).map(|p| p.size.memory_mb).sum();
        assert!((0.8..1.0).contains(&(wanted / memory_mb)), "{}", wanted / memory_mb);
    }
}
