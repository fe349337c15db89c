//! The reconciler: every minute one process compares the books with Proxmox,
//! tells what differs, and mends what is safe to mend.
//!
//! | file | subject |
//! |---|---|
//! | `finding` | what can differ, and what may be done about it |
//! | `view` | what the clusters say; whether it may be believed |
//! | `judge`, `memory`, `ledger` | from books and views to findings, pure |
//! | `repair` | the repairs |
//!
//! Nothing is believed at first sight where a list may lag or a job be under
//! way: `fleet_drift` remembers what was seen, and only what is seen again later
//! counts. A guest that is gone is never made again: its data would be missing.

pub mod finding;
pub mod judge;
mod ledger;
mod memory;
mod repair;
#[cfg(test)]
mod tests;
pub mod view;

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;
use tokio::time::timeout;

use self::{
    finding::{Finding, Limits, Repair, Step},
    judge::{Judgement, PassedOver, World, judge},
    view::Clusters,
};
use super::sites::Sites;
use crate::{
    adapters::{
        db::{
            self, DbError, books, drift, nodes,
            rounds::{self, Round},
        },
        proxmox::PveError,
    },
    config::ReconcileConfig,
};

/// The duty's name in `fleet_rounds`.
pub const DUTY: &str = "cloudpods-reconcile";
/// A leader that is silent for so long has lost its round.
const HOLD: Duration = Duration::from_secs(120);
/// A round that takes longer is given up before that.
const ROUND_MAX: Duration = Duration::from_secs(90);
/// Most guests whose absence one round confirms; the others wait for the next.
const CONFIRMED_AT_ONCE: usize = 50;
/// Most orphans that one round removes.
const REMOVED_AT_ONCE: usize = 5;

/// A round could not be finished; the next one begins anew.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The database refused, or did not answer.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Proxmox refused, or did not answer.
    #[error(transparent)]
    Pve(#[from] PveError),
    /// It took too long.
    #[error("the round took longer than {0:?}; is a Proxmox API very slow? The next round begins anew")]
    TooLong(Duration),
}

/// What a round did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Differences seen, suspicions included.
    pub seen: usize,
    /// Those believed from this round on.
    pub opened: usize,
    /// Those that are over.
    pub closed: usize,
    /// Repairs made.
    pub repaired: usize,
    /// Clusters of which nothing was concluded.
    pub passed_over: Vec<PassedOver>,
}

/// Compares books and Proxmox.
#[derive(Debug, Clone)]
pub struct Reconciler {
    db: PgPool,
    sites: Sites,
    every: Duration,
    limits: Limits,
}

impl Reconciler {
    /// On this database and these Proxmox APIs.
    #[must_use]
    pub fn new(db: PgPool, sites: Sites, config: &ReconcileConfig) -> Self {
        let limits = Limits::new(config.orphan, config.orphan_delete);
        Self { db, sites, every: config.every, limits }
    }

    /// One round, if it is due and no other process is at it. Call it often:
    /// the pace is kept in the database.
    ///
    /// # Errors
    /// [`ReconcileError`]; what was recorded or repaired until then stays.
    pub async fn round(&self) -> Result<Option<Report>, ReconcileError> {
        let Some(round) = rounds::claim(&self.db, DUTY, self.every, HOLD).await? else { return Ok(None) };
        let result = match timeout(ROUND_MAX, Box::pin(self.go_round(&round))).await {
            Ok(result) => result,
            Err(_) => Err(ReconcileError::TooLong(ROUND_MAX)),
        };
        match &result {
            Ok(report) => rounds::finish(&self.db, &round, Ok(&json!(report))).await?,
            Err(error) => rounds::finish(&self.db, &round, Err(&error.to_string())).await?,
        }
        result.map(Some)
    }

    async fn go_round(&self, round: &Round) -> Result<Report, ReconcileError> {
        let nodes = nodes::all(&self.db).await?;
        let clusters = view::look(&self.sites, &nodes).await;
        // After the look: what was made meanwhile has a row already.
        let books = books::read(&self.db).await?;
        let known = drift::known(&self.db).await?;
        let world = World {
            books: &books,
            nodes: &nodes,
            views: &clusters.views,
            known: &known,
            limits: &self.limits,
        };
        let mut judgement = judge(&world);
        self.confirm(&clusters, &mut judgement).await;
        let recorded = self.record(&judgement).await?;
        for PassedOver { cluster, why } in &judgement.passed_over {
            tracing::warn!(cluster, %why, "nothing is concluded about the cluster's guests this round");
        }
        let opened: Vec<&Finding> = judgement
            .findings
            .iter()
            .filter(|f| recorded.opened.contains(&(f.kind.as_str().to_owned(), f.subject.clone())))
            .collect();
        for finding in &opened {
            tell(finding);
        }
        let repaired = self.repair_all(round, &clusters, &judgement).await;
        for pod_id in &judgement.returned {
            self.welcome_back(*pod_id).await?;
        }
        Ok(Report {
            seen: judgement.findings.len(),
            opened: opened.len(),
            closed: recorded.closed.len(),
            repaired,
            passed_over: judgement.passed_over,
        })
    }

    /// Asks the clusters themselves about guests that are to be given up: lists
    /// lag, and are empty for a token without rights. What is not confirmed is
    /// only suspected.
    async fn confirm(&self, clusters: &Clusters, judgement: &mut Judgement) {
        let mut asked = 0;
        for finding in &mut judgement.findings {
            let (Some(vmid), Step::Repair(_)) = (finding.absent_vmid, &finding.step) else { continue };
            asked += 1;
            let absent =
                if asked > CONFIRMED_AT_ONCE { None } else { self.is_absent(clusters, finding, vmid).await };
            if absent != Some(true) {
                finding.step = Step::Suspect;
            }
        }
    }

    /// `None`: nobody can tell.
    async fn is_absent(&self, clusters: &Clusters, finding: &Finding, vmid: u32) -> Option<bool> {
        for (cluster, apis) in &clusters.apis {
            if matches!(finding.scope, finding::Scope::Cluster(id) if id != *cluster) {
                continue;
            }
            for api in apis {
                match self.sites.at(api).vmid_is_free(vmid).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::warn!(vmid, %api, "a guest is in no list and yet there; may the token see guests (VM.Audit)?");
                        return Some(false);
                    }
                    Err(error) => {
                        tracing::warn!(vmid, %error, "cannot confirm that a guest is gone; trying again");
                        return None;
                    }
                }
            }
        }
        Some(true)
    }

    async fn record(&self, judgement: &Judgement) -> Result<drift::Recorded, ReconcileError> {
        // One row each, whatever was said twice.
        let unique: BTreeMap<_, _> = judgement
            .findings
            .iter()
            .map(|finding| ((finding.kind, finding.subject.as_str()), finding.sighting()))
            .collect();
        let seen: Vec<drift::Sighting> = unique.into_values().collect();
        let judged: Vec<String> = judgement.judged.iter().map(|scope| scope.word()).collect();
        let mut tx = db::begin(&self.db).await?;
        let recorded = drift::record(&mut tx, &seen, &judged).await?;
        db::commit(tx).await?;
        for (kind, subject) in &recorded.closed {
            tracing::info!(kind, subject, "drift is over");
        }
        Ok(recorded)
    }

    /// One repair that fails does not keep the others from being made.
    async fn repair_all(&self, round: &Round, clusters: &Clusters, judgement: &Judgement) -> usize {
        let (mut repaired, mut removals) = (0, 0);
        for finding in &judgement.findings {
            let Step::Repair(repair) = &finding.step else { continue };
            let mut apis: &[reqwest::Url] = &[];
            if let Repair::RemoveOrphan { cluster_id, .. } = repair {
                removals += 1;
                if removals > REMOVED_AT_ONCE {
                    continue;
                }
                apis = clusters.apis.get(cluster_id).map_or(&[], Vec::as_slice);
            }
            match self.repair(round, finding, apis).await {
                Ok(made) => repaired += usize::from(made),
                Err(error) => {
                    tracing::warn!(kind = finding.kind.as_str(), subject = %finding.subject, %error, "not repaired; trying again");
                }
            }
        }
        repaired
    }
}

/// The alert: once a finding. What mends itself is worth a line, what waits for
/// the operator is an error.
fn tell(finding: &Finding) {
    let kind = finding.kind.as_str();
    if finding.advice.is_empty() {
        tracing::warn!(kind, subject = %finding.subject, "drift: {}", finding.what);
    } else {
        tracing::error!(kind, subject = %finding.subject, advice = %finding.advice, "drift: {}", finding.what);
    }
}
