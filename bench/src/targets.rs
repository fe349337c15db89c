//! What is aimed at (`performance.md`, section 3) as a table, and whether the runs
//! reached it.

use crate::{
    sides::{CEILING, FLEET, NODE, OFFICIAL},
    stats::{CLIENT, CaseRuns, Figure, IDLE, P50, P99, RATE, REDIS, RSS, SLOWEST, Spread},
};

/// A figure of some cases, beside something, within bounds.
#[derive(Debug)]
pub struct Target {
    /// The cases.
    pub cases: &'static [&'static str],
    /// The figure.
    pub figure: &'static Figure,
    /// What it is divided by.
    pub beside: Beside,
    /// What is wanted of the median.
    pub wanted: Wanted,
}

/// What a figure is divided by, repetition by repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// A peer's figure in the same case.
    Peer(&'static str),
    /// Our own figure in another case.
    OwnCase(&'static str),
    /// Nothing: the figure itself is judged.
    Nothing,
}

/// Bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wanted {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
    /// No more, in any repetition.
    NeverOver(f64),
    /// Within.
    Between(f64, f64),
}

impl Wanted {
    /// Whether the median is as wanted, or every value where one is too many.
    #[must_use]
    pub fn allows(self, measured: Spread) -> bool {
        match self {
            Self::AtLeast(least) => measured.median >= least,
            Self::AtMost(most) => measured.median <= most,
            Self::NeverOver(most) => measured.max <= most,
            Self::Between(least, most) => (least..=most).contains(&measured.median),
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least:.2}"),
            Self::AtMost(most) | Self::NeverOver(most) => write!(f, "<= {most:.2}"),
            Self::Between(least, most) => write!(f, "{least:.2}-{most:.2}"),
        }
    }
}

impl std::fmt::Display for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Peer(peer) => write!(f, "over {peer}"),
            Self::OwnCase(case) => write!(f, "over its {case}"),
            Self::Nothing => write!(f, "of fleet"),
        }
    }
}

/// What became of a target in one case.
#[derive(Debug)]
pub struct Verdict {
    /// The target.
    pub target: &'static Target,
    /// The case.
    pub case: &'static str,
    /// What was measured; none: it was not run.
    pub measured: Option<Spread>,
}

impl Verdict {
    /// Whether it was reached.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.measured.is_some_and(|spread| self.target.wanted.allows(spread))
    }
}

/// All targets in all their cases.
#[must_use]
pub fn judge(cases: &[CaseRuns<'_>]) -> Vec<Verdict> {
    let find = |name: &str| cases.iter().find(|runs| runs.case.name == name);
    let mut verdicts = Vec::new();
    for target in TARGETS {
        for case in target.cases {
            let measured = find(case).and_then(|runs| match target.beside {
                Beside::Peer(peer) => runs.ratio(peer, target.figure.of),
                Beside::OwnCase(other) => runs.over(find(other)?, FLEET, target.figure.of),
                Beside::Nothing => runs.spread(FLEET, target.figure.of),
            });
            verdicts.push(Verdict { target, case, measured });
        }
    }
    verdicts
}

const DRAINS: &[&str] = &["drain-50-remove", "drain-50-keep", "drain-200-remove", "drain-200-keep"];
const FEATURES: &[&str] = &["flows", "priorities", "metrics", "limit", "features"];

const fn over(
    peer: &'static str,
    cases: &'static [&'static str],
    figure: &'static Figure,
    wanted: Wanted,
) -> Target {
    Target { cases, figure, beside: Beside::Peer(peer), wanted }
}

const fn itself(cases: &'static [&'static str], figure: &'static Figure, wanted: Wanted) -> Target {
    Target { cases, figure, beside: Beside::Nothing, wanted }
}

const fn steady(base: &'static str, cases: &'static [&'static str]) -> Target {
    Target { cases, figure: &REDIS, beside: Beside::OwnCase(base), wanted: Between(0.9, 1.1) }
}

use Wanted::{AtLeast, AtMost, Between, NeverOver};

/// The table, row by row.
pub const TARGETS: &[Target] = &[
    over(NODE, DRAINS, &RATE, AtLeast(3.6)),
    over(OFFICIAL, DRAINS, &RATE, AtLeast(2.7)),
    over(CEILING, DRAINS, &RATE, AtLeast(1.0)),
    over(NODE, DRAINS, &REDIS, AtMost(0.28)),
    over(OFFICIAL, DRAINS, &REDIS, AtMost(0.34)),
    over(CEILING, DRAINS, &REDIS, AtMost(1.0)),
    over(NODE, DRAINS, &CLIENT, AtMost(0.15)),
    over(OFFICIAL, DRAINS, &CLIENT, AtMost(0.3)),
    over(NODE, &["drain-1"], &RATE, AtLeast(1.25)),
    over(OFFICIAL, &["drain-1"], &RATE, AtLeast(1.0)),
    over(NODE, &["enqueue-bulk"], &RATE, AtLeast(3.5)),
    over(OFFICIAL, &["enqueue-bulk"], &RATE, AtLeast(2.7)),
    over(CEILING, &["enqueue-bulk"], &RATE, AtLeast(0.85)),
    over(NODE, &["enqueue-single"], &RATE, AtLeast(3.0)),
    over(OFFICIAL, &["enqueue-single"], &RATE, AtLeast(1.6)),
    over(NODE, &["retry"], &RATE, AtLeast(4.0)),
    over(OFFICIAL, &["retry"], &RATE, AtLeast(4.0)),
    over(NODE, &["latency"], &P50, AtMost(0.4)),
    over(NODE, &["latency"], &P99, AtMost(0.2)),
    over(OFFICIAL, &["latency"], &P50, AtMost(0.9)),
    over(OFFICIAL, &["latency"], &P99, AtMost(1.0)),
    over(NODE, &["delayed-1m"], &RATE, AtLeast(3.0)),
    over(OFFICIAL, &["delayed-1m"], &RATE, AtLeast(3.0)),
    itself(&["delayed-1m"], &SLOWEST, NeverOver(5.0)),
    over(NODE, &["waiting-1m"], &RSS, AtMost(0.3)),
    over(OFFICIAL, &["waiting-1m"], &RSS, AtMost(1.0)),
    itself(&["waiting-1m"], &RSS, AtMost(30.0)),
    steady("waiting-1k", &["waiting-10k", "waiting-100k", "waiting-1m"]),
    steady("processes-1", &["processes-2", "processes-4", "processes-8"]),
    steady("queues-1", &["queues-20", "queues-200"]),
    itself(&["idle"], &IDLE, AtMost(2.0)),
    over(NODE, FEATURES, &RATE, AtLeast(2.0)),
    over(OFFICIAL, FEATURES, &RATE, AtLeast(2.0)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cases, stats::tests::run};

    #[test]
    fn every_target_names_cases_and_sides_that_exist() {
        let names: Vec<_> = cases::all(1000).iter().map(|case| case.name).collect();
        for target in TARGETS {
            assert!(target.cases.iter().all(|case| names.contains(case)), "{target:?}");
            match target.beside {
                Beside::Peer(peer) => {
                    let side = crate::sides::SIDES.iter().find(|side| side.key == peer).unwrap();
                    assert!(target.cases.iter().all(|case| side.refusal(case).is_none()), "{target:?}");
                }
                Beside::OwnCase(case) => assert!(names.contains(&case), "{target:?}"),
                Beside::Nothing => {}
            }
        }
    }

    #[test]
    fn bounds_belong_to_what_is_wanted() {
        let at = |median: f64| Spread { median, min: 0.0, max: 9.0, count: 3 };
        assert!(AtLeast(2.0).allows(at(2.0)) && !AtLeast(2.0).allows(at(1.99)));
        assert!(AtMost(2.0).allows(at(2.0)) && !AtMost(2.0).allows(at(2.01)));
        assert!(Between(0.9, 1.1).allows(at(1.1)) && !Between(0.9, 1.1).allows(at(0.89)));
        assert!(NeverOver(9.0).allows(at(2.0)) && !NeverOver(8.0).allows(at(2.0)));
    }

    #[test]
    fn targets_are_judged_by_the_median_and_missing_runs_are_no_success() {
        let cases = cases::all(1000);
        let mut runs = Vec::new();
        for (repetition, rate) in [(1, 10.0), (2, 370.0), (3, 900.0)] {
            runs.push(run("drain-50-keep", FLEET, repetition, rate, 9.0));
            runs.push(run("drain-50-keep", NODE, repetition, 100.0, 10.0));
            runs.push(run("processes-1", FLEET, repetition, 1.0, 10.0));
            runs.push(run("processes-4", FLEET, repetition, 1.0, 12.0));
        }
        let runs: Vec<_> = cases.iter().map(|case| CaseRuns::new(case, &runs)).collect();
        let verdicts = judge(&runs);
        let of = |case: &str, beside: Beside, figure: &str| {
            let is =
                |v: &&Verdict| v.case == case && v.target.beside == beside && v.target.figure.name == figure;
            verdicts.iter().find(is).unwrap()
        };
        assert!(of("drain-50-keep", Beside::Peer(NODE), "jobs/s").is_reached());
        assert!(!of("drain-50-keep", Beside::Peer(NODE), "Redis CPU").is_reached());
        assert!(!of("processes-4", Beside::OwnCase("processes-1"), "Redis CPU").is_reached());
        let missing = of("drain-50-keep", Beside::Peer(OFFICIAL), "jobs/s");
        assert!(missing.measured.is_none() && !missing.is_reached());
    }
}
