//! What is aimed at (`performance.md`, section 3), and whether a run of the benchmark
//! reached it: medians of ratios within a repetition.

use crate::{
    adapter::{CEILING, NODE, OFFICIAL},
    report::{CLIENT, Figure, P50, P99, RATE, REDIS},
};

/// One figure of some cases beside one peer.
#[derive(Debug)]
pub struct Target {
    /// The cases.
    pub cases: &'static [&'static str],
    /// The figure.
    pub figure: &'static Figure,
    /// Key of the peer.
    pub peer: &'static str,
    /// Ours over the peer's: at least this where more is better, else at most.
    pub ratio: f64,
}

const DRAINS: &[&str] = &["drain-50-remove", "drain-50-keep", "drain-200-remove", "drain-200-keep"];

const fn target(
    cases: &'static [&'static str],
    figure: &'static Figure,
    peer: &'static str,
    ratio: f64,
) -> Target {
    Target { cases, figure, peer, ratio }
}

/// All of them that are ratios of one case.
pub const TARGETS: &[Target] = &[
    target(DRAINS, &RATE, NODE, 3.6),
    target(DRAINS, &RATE, OFFICIAL, 2.7),
    target(DRAINS, &RATE, CEILING, 1.0),
    target(DRAINS, &REDIS, NODE, 0.28),
    target(DRAINS, &REDIS, OFFICIAL, 0.34),
    target(DRAINS, &REDIS, CEILING, 1.0),
    target(DRAINS, &CLIENT, NODE, 0.15),
    target(DRAINS, &CLIENT, OFFICIAL, 0.3),
    target(&["drain-1"], &RATE, NODE, 1.25),
    target(&["drain-1"], &RATE, OFFICIAL, 1.0),
    target(&["enqueue-bulk"], &RATE, NODE, 3.5),
    target(&["enqueue-bulk"], &RATE, OFFICIAL, 2.7),
    target(&["enqueue-bulk"], &RATE, CEILING, 0.85),
    target(&["enqueue-single"], &RATE, NODE, 3.0),
    target(&["enqueue-single"], &RATE, OFFICIAL, 1.6),
    target(&["retry"], &RATE, NODE, 4.0),
    target(&["retry"], &RATE, OFFICIAL, 4.0),
    target(&["latency"], &P50, NODE, 0.4),
    target(&["latency"], &P99, NODE, 0.2),
    target(&["latency"], &P50, OFFICIAL, 0.9),
    target(&["latency"], &P99, OFFICIAL, 1.0),
];
