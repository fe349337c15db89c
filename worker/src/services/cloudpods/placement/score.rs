//! How good a node is for a pod: the parts, their weights, the sum. Pure.
//!
//! `cargo run -p mpanel-bench --bin placement` shows how the weights fare beside
//! other policies.

use super::{Signs, Size};
use crate::config::Placement;

/// Creations at once on a node that count as fully busy.
const IN_FLIGHT_MAX: f64 = 4.0;
/// Failures that count as many as any more.
const FAILURES_MAX: f64 = 3.0;
/// Above this part of busy CPUs a node counts as hot.
const HOT: f64 = 0.7;
/// Largest standard deviation that three parts between 0 and 1 can have.
const DEVIATION_MAX: f64 = 0.471_404_520_791_031_7;

/// The used part of each resource, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Use {
    /// Of the cores that may be promised.
    pub cpu: f64,
    /// Of memory.
    pub memory: f64,
    /// Of disk.
    pub disk: f64,
}

impl Use {
    /// What `used` is of `capacity`; of nothing everything is used.
    #[must_use]
    pub fn of(used: Size, capacity: Size) -> Self {
        let part = |used: f64, capacity: f64| {
            if capacity > 0.0 { (used / capacity).clamp(0.0, 1.0) } else { 1.0 }
        };
        Self {
            cpu: part(used.cores, capacity.cores),
            memory: part(used.memory_mb, capacity.memory_mb),
            disk: part(used.disk_gb, capacity.disk_gb),
        }
    }

    fn highest(self) -> f64 {
        self.cpu.max(self.memory).max(self.disk)
    }

    fn deviation(self) -> f64 {
        let mean = (self.cpu + self.memory + self.disk) / 3.0;
        let square = |part: f64| (part - mean) * (part - mean);
        ((square(self.cpu) + square(self.memory) + square(self.disk)) / 3.0).sqrt()
    }
}

impl Placement {
    /// The weights of this way to fill nodes.
    #[must_use]
    pub fn weights(self) -> Weights {
        match self {
            Self::Pack => Weights::PACK,
            Self::Spread => Weights::SPREAD,
        }
    }
}

/// How much each part of the score counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// What `fit` means.
    pub profile: Placement,
    /// Filling up (or keeping free).
    pub fit: f64,
    /// CPU, memory and disk used alike.
    pub balance: f64,
    /// Few pods of the same tenant.
    pub tenant: f64,
    /// Against many creations at once.
    pub in_flight: f64,
    /// Against busy CPUs.
    pub heat: f64,
    /// Against failures of late.
    pub failures: f64,
}

impl Weights {
    /// For [`Placement::Pack`].
    pub const PACK: Self = Self {
        profile: Placement::Pack,
        fit: 0.40,
        balance: 0.25,
        tenant: 0.20,
        in_flight: 0.10,
        heat: 0.30,
        failures: 0.60,
    };
    /// For [`Placement::Spread`].
    pub const SPREAD: Self = Self { profile: Placement::Spread, ..Self::PACK };
}

/// A node's score with its parts, each from 0 to 1 before its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// What is used once the pod is there.
    pub after: Use,
    /// How well it fills up (or keeps free).
    pub fit: f64,
    /// How alike the resources are used.
    pub balance: f64,
    /// 1 without a pod of the tenant, less with each.
    pub tenant: f64,
    /// How busy it is with creations.
    pub in_flight: f64,
    /// How far its CPUs are beyond warm.
    pub heat: f64,
    /// How much failed there.
    pub failures: f64,
    /// The sum; only its order among nodes means anything.
    pub total: f64,
}

impl Score {
    /// The score of a node that would be used so.
    #[must_use]
    pub fn new(after: Use, signs: Signs, weights: &Weights) -> Self {
        let fit = match weights.profile {
            // Each resource filled counts by how scarce it is; none beats the fullest.
            Placement::Pack => 0.2 * after.cpu + 0.5 * after.memory + 0.3 * after.disk,
            Placement::Spread => 1.0 - after.highest(),
        };
        let balance = 1.0 - after.deviation() / DEVIATION_MAX;
        let tenant = 1.0 / (1.0 + f64::from(signs.tenant_pods));
        let in_flight = (f64::from(signs.in_flight) / IN_FLIGHT_MAX).min(1.0);
        let load = if signs.cpu_load.is_finite() { signs.cpu_load.clamp(0.0, 1.0) } else { 0.0 };
        let heat = (load - HOT).max(0.0) / (1.0 - HOT);
        let failures = (f64::from(signs.failures) / FAILURES_MAX).min(1.0);
        let total = weights.fit * fit + weights.balance * balance + weights.tenant * tenant
            - weights.in_flight * in_flight
            - weights.heat * heat
            - weights.failures * failures;
        Self { after, fit, balance, tenant, in_flight, heat, failures, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVEN: Use = Use { cpu: 0.5, memory: 0.5, disk: 0.5 };

    #[test]
    fn every_part_stays_between_zero_and_one() {
        for after in
            [EVEN, Use { cpu: 0.0, memory: 0.0, disk: 1.0 }, Use { cpu: 1.0, memory: 1.0, disk: 1.0 }]
        {
            for load in [0.0, 0.9, 7.0, f64::NAN] {
                let signs = Signs { tenant_pods: 3, in_flight: 99, failures: 99, cpu_load: load };
                for weights in [Weights::PACK, Weights::SPREAD] {
                    let score = Score::new(after, signs, &weights);
                    let parts =
                        [score.fit, score.balance, score.tenant, score.in_flight, score.heat, score.failures];
                    assert!(parts.iter().all(|part| (-1e-9..=1.0 + 1e-9).contains(part)), "{score:?}");
                    assert!(score.total.is_finite());
                }
            }
        }
    }

    #[test]
    fn every_sign_moves_the_score_the_way_it_should() {
        let total = |signs| Score::new(EVEN, signs, &Weights::PACK).total;
        let calm = total(Signs::default());
        assert!(total(Signs { tenant_pods: 1, ..Signs::default() }) < calm);
        assert!(total(Signs { in_flight: 1, ..Signs::default() }) < calm);
        assert!(total(Signs { failures: 1, ..Signs::default() }) < calm);
        assert!(total(Signs { cpu_load: 0.95, ..Signs::default() }) < calm);
        assert!((total(Signs { cpu_load: 0.5, ..Signs::default() }) - calm).abs() < 1e-12);
        let lopsided = Use { cpu: 0.5, memory: 1.0, disk: 0.0 };
        assert!(Score::new(lopsided, Signs::default(), &Weights::PACK).balance < 0.2);
    }

    #[test]
    fn of_nothing_everything_is_used() {
        let none = Size::default();
        assert_eq!(Use::of(Size { cores: 1.0, ..none }, none), Use { cpu: 1.0, memory: 1.0, disk: 1.0 });
    }
}
