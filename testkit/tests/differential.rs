//! Random scenarios through npm bullmq and through our crates, with fixed seeds:
//! the short form of `cargo run -p mpanel-testkit --bin differential`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use mpanel_testkit::conformance::differential::Arena;

const SEED: u64 = 1;
const SCENARIOS: u64 = 150;
const STEPS: usize = 30;

async fn nothing_differs(version: &str) {
    let arena = Arena::start().await.unwrap();
    let findings = arena.explore(version, SEED..SEED + SCENARIOS, STEPS).await.unwrap();
    let Some(first) = findings.first().cloned() else { return };
    let small = arena.shrink(version, first).await.unwrap();
    panic!("{} of {SCENARIOS} differ, the first: {}\n{}", findings.len(), small.difference, small.scenario);
}

#[tokio::test(flavor = "multi_thread")]
async fn random_scenarios_leave_what_bullmq_5_leaves() {
    nothing_differs("bullmq-5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_scenarios_leave_what_bullmq_6_leaves() {
    nothing_differs("bullmq-6").await;
}
