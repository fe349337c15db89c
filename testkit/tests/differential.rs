//! The oracle that the differential test asks, against the goldens; and a few random
//! scenarios. The many are a stage of `make test`: `make differential`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::path::Path;

use mpanel_testkit::{
    RedisServer,
    conformance::{
        differential::Arena,
        js,
        oracle::Oracle,
        scenario::{Golden, Scenario},
    },
};

const SEEDS: std::ops::Range<u64> = 1..101;
const STEPS: usize = 30;

async fn the_server_says_what_the_goldens_hold(version: &str, database: u8) {
    let server = RedisServer::builder().appendonly(false).start().await.unwrap();
    let url = format!("{}/{database}", server.url().trim_end_matches("/0"));
    let mut oracle = Oracle::new(url, version);
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    for scenario in Scenario::load_all(&data.join("scenarios")).unwrap() {
        if !scenario.is_for(version) {
            continue;
        }
        let name = &scenario.name;
        let text = std::fs::read_to_string(data.join("scenarios").join(format!("{name}.json"))).unwrap();
        let golden = Golden::load(&data.join("golden").join(version), name).unwrap().unwrap();
        let answer = oracle.run(&serde_json::from_str(&text).unwrap()).await.unwrap().unwrap();
        assert_eq!(answer.results, golden.results, "{version} {name}");
        assert_eq!(answer.keys, golden.keys, "{version} {name}");
    }
}

#[tokio::test]
async fn the_oracle_server_is_bullmq_5_28() {
    the_server_says_what_the_goldens_hold("bullmq-5.28", 0).await;
}

#[tokio::test]
async fn the_oracle_server_is_bullmq_5() {
    the_server_says_what_the_goldens_hold("bullmq-5", 1).await;
}

#[tokio::test]
async fn the_oracle_server_is_bullmq_6() {
    the_server_says_what_the_goldens_hold("bullmq-6", 2).await;
}

/// What random scenarios once found, made small.
async fn what_was_found_stays_fixed(arena: &Arena, version: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions");
    for scenario in Scenario::load_all(&folder).unwrap().iter().filter(|s| s.is_for(version)) {
        let name = &scenario.name;
        let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let difference = arena.difference(&js::parse(&text).unwrap()).await.unwrap();
        assert_eq!(difference.map(|d| d.to_string()), None, "{version} {name}");
    }
}

async fn nothing_differs(version: &str) {
    let arena = Arena::start(version).await.unwrap();
    what_was_found_stays_fixed(&arena, version).await;
    let findings = arena.explore(SEEDS, STEPS, |_, _| ()).await.unwrap();
    assert!(arena.given_up().await * 20 < SEEDS.end, "npm bullmq gives up too often");
    let count = findings.len();
    let Some(first) = findings.into_iter().next() else { return };
    let small = arena.shrink(first).await.unwrap();
    panic!("{count} differ, the first: {}\n{}", small.difference, small.scenario);
}

#[tokio::test(flavor = "multi_thread")]
async fn random_scenarios_leave_what_bullmq_5_leaves() {
    nothing_differs("bullmq-5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_scenarios_leave_what_bullmq_6_leaves() {
    nothing_differs("bullmq-6").await;
}
