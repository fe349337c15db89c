//! The differential test: random scenarios through npm bullmq and through our
//! crates, compared under the same rules, and made small where they differ.

use std::sync::atomic::{AtomicU64, Ordering};

use mpanel_connect::Redis;
use mpanel_protocol::peer::Peer;
use serde_json::Value;

use super::{
    oracle::Oracle,
    random,
    rules::{Difference, compare, is_lost},
    run::run,
    scenario::Scenario,
    shrink::smaller,
};
use crate::{RedisServer, TestkitError};

/// A private Redis on which scenarios run in several lanes at once.
#[derive(Debug)]
pub struct Arena {
    lanes: Vec<tokio::sync::Mutex<Lane>>,
    // Last: the clients of the lanes go first.
    _server: RedisServer,
}

/// Two databases: one for npm bullmq, one for us.
#[derive(Debug)]
struct Lane {
    oracle: Oracle,
    ours: Redis,
    peer: Peer,
    /// Scenarios in which npm bullmq gave up or lost itself.
    given_up: u64,
}

/// A scenario in which we differ.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The seed it came from.
    pub seed: u64,
    /// The scenario, as a scenario file holds it.
    pub scenario: Value,
    /// Where.
    pub difference: Difference,
}

impl Lane {
    async fn difference(&mut self, scenario: &Value) -> Result<Option<Difference>, TestkitError> {
        let parsed: Scenario = serde_json::from_value(scenario.clone())
            .map_err(|e| TestkitError::failed("read a scenario", e.to_string()))?;
        let (golden, outcome) = tokio::join!(self.oracle.run(scenario), run(&self.ours, &parsed, self.peer));
        let outcome = outcome?;
        let Some(golden) = golden?.filter(|g| !g.results.iter().any(is_lost)) else {
            self.given_up += 1;
            return Ok(None);
        };
        Ok(compare(&golden, &outcome))
    }
}

impl Arena {
    /// Starts the private Redis, and as many lanes as there are cores.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(version: &str) -> Result<Self, TestkitError> {
        // 16 databases are what a Redis has: two a lane.
        let count = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        let server = RedisServer::builder().appendonly(false).start().await?;
        let base = server.url();
        let database = |number: usize| format!("{}/{number}", base.trim_end_matches("/0"));
        let peer = if version == "bullmq-6" { Peer::V6 } else { Peer::V5 };
        let lanes = (0..count)
            .map(|i| {
                let ours = Redis::open(&database(2 * i + 1))
                    .map_err(|e| TestkitError::failed("connect", e.to_string()))?;
                let oracle = Oracle::new(database(2 * i), version);
                Ok(tokio::sync::Mutex::new(Lane { oracle, ours, peer, given_up: 0 }))
            })
            .collect::<Result<_, TestkitError>>()?;
        Ok(Self { lanes, _server: server })
    }

    /// Runs the scenarios of `seeds`; the findings by seed, not made small. After each
    /// scenario `progress` is told how many are done and how many of them differ.
    ///
    /// # Errors
    /// When Redis or node fails.
    pub async fn explore(
        &self,
        seeds: std::ops::Range<u64>,
        steps: usize,
        progress: impl Fn(u64, usize) + Sync,
    ) -> Result<Vec<Finding>, TestkitError> {
        let next = AtomicU64::new(seeds.start);
        let done = AtomicU64::new(0);
        let findings = std::sync::Mutex::new(Vec::new());
        let lanes = self.lanes.iter().map(|lane| async {
            let mut lane = lane.lock().await;
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return Ok::<_, TestkitError>(());
                }
                let scenario = random::scenario(seed, steps);
                let difference = lane.difference(&scenario).await?;
                let mut found = findings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                found.extend(difference.map(|difference| Finding { seed, scenario, difference }));
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, found.len());
            }
        });
        futures_util::future::try_join_all(lanes).await?;
        let mut findings = findings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        findings.sort_by_key(|f| f.seed);
        Ok(findings)
    }

    /// In how many scenarios so far there was nothing to compare with, since npm bullmq
    /// gave up or lost itself.
    pub async fn given_up(&self) -> u64 {
        let mut sum = 0;
        for lane in &self.lanes {
            sum += lane.lock().await.given_up;
        }
        sum
    }

    /// Where a scenario differs; `None` where it does not, or npm bullmq gives up.
    ///
    /// # Errors
    /// When Redis or node fails.
    pub async fn difference(&self, scenario: &Value) -> Result<Option<Difference>, TestkitError> {
        self.lanes[0].lock().await.difference(scenario).await
    }

    /// The first of `candidates` that differs.
    async fn first_different(
        &self,
        candidates: &[Value],
    ) -> Result<Option<(Value, Difference)>, TestkitError> {
        for chunk in candidates.chunks(self.lanes.len()) {
            let runs = self
                .lanes
                .iter()
                .zip(chunk)
                .map(|(lane, scenario)| async move { lane.lock().await.difference(scenario).await });
            let differences = futures_util::future::try_join_all(runs).await?;
            let hit = chunk.iter().zip(differences).find_map(|(s, d)| d.map(|d| (s.clone(), d)));
            if hit.is_some() {
                return Ok(hit);
            }
        }
        Ok(None)
    }

    /// Drops steps, options, jobs of a bulk and nodes of a flow while the scenario still differs.
    ///
    /// # Errors
    /// When Redis or node fails.
    pub async fn shrink(&self, finding: Finding) -> Result<Finding, TestkitError> {
        let mut best = finding;
        while let Some((scenario, difference)) = self.first_different(&smaller(&best.scenario)).await? {
            best = Finding { seed: best.seed, scenario, difference };
        }
        Ok(best)
    }
}
