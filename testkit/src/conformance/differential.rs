//! The differential test: random scenarios through npm bullmq and through our
//! crates, compared under the same rules, and made small where they differ.

use std::{path::Path, process::Stdio};

use mpanel_connect::Redis;
use mpanel_protocol::peer::Peer;
use serde_json::Value;

use super::{
    random,
    rules::{Difference, compare_keys, compare_results},
    run::run,
    scenario::{Golden, Scenario},
};
use crate::{RedisServer, TestkitError};

/// How many scenarios one process of the oracle runs.
const BATCH: usize = 50;

/// Two databases of one private Redis: one for npm bullmq, one for us.
#[derive(Debug)]
pub struct Arena {
    server: RedisServer,
    ours: Redis,
}

/// A scenario in which we differ.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The scenario, as a scenario file holds it.
    pub scenario: Value,
    /// Where.
    pub difference: Difference,
}

fn failed(what: &str, why: impl std::fmt::Display) -> TestkitError {
    TestkitError::failed(what, why.to_string())
}

/// The URL of one database of the server.
fn database(server: &RedisServer, number: u8) -> String {
    format!("{}/{number}", server.url().trim_end_matches("/0"))
}

impl Arena {
    /// Starts the private Redis.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start() -> Result<Self, TestkitError> {
        let server = RedisServer::builder().appendonly(false).start().await?;
        let ours = Redis::open(&database(&server, 1)).map_err(|e| failed("connect", e))?;
        Ok(Self { server, ours })
    }

    /// What npm bullmq `version` does with each scenario; `None` where the oracle gave up.
    async fn oracle(&self, version: &str, scenarios: &[Value]) -> Result<Vec<Option<Golden>>, TestkitError> {
        let dir = tempfile::tempdir().map_err(|e| failed("make a directory", e))?;
        let home = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = tokio::process::Command::new("node");
        command
            .arg(home.join("data/oracle.mjs"))
            .args(["--redis", &database(&self.server, 0), "--version", version])
            .arg("--out")
            .arg(dir.path())
            .env("NODE_PATH", home.join("node/node_modules"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for (i, scenario) in scenarios.iter().enumerate() {
            let path = dir.path().join(format!("s{i}.json"));
            let mut named = scenario.clone();
            named["name"] = format!("s{i}").into();
            std::fs::write(&path, named.to_string()).map_err(|e| failed("write a scenario", e))?;
            command.arg(path);
        }
        let output = command.output().await.map_err(|e| failed("run node", e))?;
        let golden = dir.path().join(version);
        let goldens = (0..scenarios.len())
            .map(|i| Golden::load(&golden, &format!("s{i}")))
            .collect::<Result<Vec<_>, _>>()?;
        if goldens.iter().all(Option::is_none) {
            let detail = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
            return Err(failed("run the oracle", detail));
        }
        Ok(goldens)
    }

    /// The first difference of each scenario.
    async fn differences(
        &self,
        version: &str,
        scenarios: &[Value],
    ) -> Result<Vec<Option<Difference>>, TestkitError> {
        let peer = if version == "bullmq-6" { Peer::V6 } else { Peer::V5 };
        let ours = async {
            let mut outcomes = Vec::with_capacity(scenarios.len());
            for scenario in scenarios {
                let parsed: Scenario =
                    serde_json::from_value(scenario.clone()).map_err(|e| failed("read a scenario", e))?;
                outcomes.push(run(&self.ours, &parsed, peer).await?);
            }
            Ok::<_, TestkitError>(outcomes)
        };
        let (goldens, outcomes) = tokio::try_join!(self.oracle(version, scenarios), ours)?;
        Ok(goldens
            .into_iter()
            .zip(outcomes)
            .map(|(golden, outcome)| {
                // Where the oracle gives up within its time limit there is nothing to compare with.
                let golden = golden?;
                compare_results(&golden.results, &outcome.results)
                    .or_else(|| compare_keys(&golden.keys, &outcome.keys))
            })
            .collect())
    }

    /// Runs the scenarios of `seeds`; the findings, not made small.
    ///
    /// # Errors
    /// When Redis or node fails.
    pub async fn explore(
        &self,
        version: &str,
        seeds: std::ops::Range<u64>,
        steps: usize,
    ) -> Result<Vec<Finding>, TestkitError> {
        let scenarios: Vec<Value> = seeds.map(|seed| random::scenario(seed, steps)).collect();
        let mut findings = Vec::new();
        for batch in scenarios.chunks(BATCH) {
            for (scenario, difference) in batch.iter().zip(self.differences(version, batch).await?) {
                if let Some(difference) = difference {
                    findings.push(Finding { scenario: scenario.clone(), difference });
                }
            }
        }
        Ok(findings)
    }

    /// Drops steps and options while the scenario still differs.
    ///
    /// # Errors
    /// When Redis or node fails.
    pub async fn shrink(&self, version: &str, finding: Finding) -> Result<Finding, TestkitError> {
        let mut best = finding;
        loop {
            let candidates = smaller(&best.scenario);
            if candidates.is_empty() {
                return Ok(best);
            }
            let differences = self.differences(version, &candidates).await?;
            let still = candidates.into_iter().zip(differences).find_map(|(scenario, difference)| {
                difference.map(|difference| Finding { scenario, difference })
            });
            match still {
                Some(finding) => best = finding,
                None => return Ok(best),
            }
        }
    }
}

/// Variants with something taken away, the largest cuts first.
fn smaller(scenario: &Value) -> Vec<Value> {
    let steps = scenario["steps"].as_array().cloned().unwrap_or_default();
    let mut variants = Vec::new();
    let mut cut = steps.len() / 2;
    while cut > 0 {
        for start in (0..steps.len()).step_by(cut) {
            let mut variant = scenario.clone();
            variant["steps"] = steps
                .iter()
                .enumerate()
                .filter(|(i, _)| *i < start || *i >= start + cut)
                .map(|(_, s)| s.clone())
                .collect();
            variants.push(variant);
        }
        cut /= 2;
    }
    for name in ["queueOptions", "workerOptions"] {
        for option in scenario[name].as_object().into_iter().flat_map(|o| o.keys()) {
            let mut variant = scenario.clone();
            if let Some(options) = variant[name].as_object_mut() {
                options.shift_remove(option);
            }
            variants.push(variant);
        }
    }
    for (i, step) in steps.iter().enumerate() {
        for option in step["opts"].as_object().into_iter().flat_map(|o| o.keys()) {
            let mut variant = scenario.clone();
            if let Some(options) = variant["steps"][i]["opts"].as_object_mut() {
                options.shift_remove(option);
            }
            variants.push(variant);
        }
    }
    variants
}
