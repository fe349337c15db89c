//! The conformance folder through our crates: scenarios whose operations are served
//! must pass; the others are printed.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::path::Path;

use mpanel_connect::Redis;
use mpanel_protocol::peer::Peer;
use mpanel_testkit::{
    RedisServer,
    conformance::{
        reading,
        rules::{compare_keys, compare_results},
        run::run,
        scenario::{Golden, Scenario},
    },
};

/// Operations, and options of `add`, that are not served yet.
fn is_served(scenario: &Scenario) -> bool {
    scenario.steps.iter().all(|step| {
        !matches!(step["op"].as_str(), Some("upsertScheduler" | "removeScheduler"))
            && step.get("opts").is_none_or(|o| o.get("repeat").is_none())
    })
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "what is not served is to be seen")]
async fn the_scenarios_pass_on_every_version() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let server = RedisServer::start().await.unwrap();
    let redis = Redis::open(&server.url()).unwrap();
    let mut wrong = Vec::new();
    for version in ["bullmq-5.28", "bullmq-5", "bullmq-6"] {
        let mut passed = 0;
        for scenario in Scenario::load_all(&data.join("scenarios")).unwrap() {
            let name = scenario.name.clone();
            if !scenario.is_for(version) {
                continue;
            }
            let golden = Golden::load(&data.join("golden").join(version), &name).unwrap().unwrap();
            let difference = if version == "bullmq-5.28" {
                reading::check(&redis, &golden).await.unwrap()
            } else if is_served(&scenario) {
                let peer = if version == "bullmq-6" { Peer::V6 } else { Peer::V5 };
                let ours = run(&redis, &scenario, peer).await.unwrap();
                compare_results(&golden.results, &ours.results)
                    .or_else(|| compare_keys(&golden.keys, &ours.keys))
            } else {
                println!("not served: {version} {name}");
                continue;
            };
            match difference {
                Some(difference) => wrong.push(format!("{version} {name}: {difference}")),
                None => passed += 1,
            }
        }
        assert!(passed >= 60 || !wrong.is_empty(), "{version}: only {passed} scenarios ran");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
