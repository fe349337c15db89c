//! What running pods use: one question to each Proxmox API a tick, one INSERT
//! for all pods, once however many workers there are; and how they are by it.
//!
//! | file | subject |
//! |---|---|
//! | `sample` | from a cluster's list to figures, pure |
//! | `level` | from figures to ok, warning, critical, pure |
//! | `tidy` | old figures: averages, then nothing |
//!
//! [`Metrics::collect`] is what a job of a scheduler calls with its due time;
//! [`Metrics::round`] is the same by a loop of the worker's own.

pub mod level;
pub mod sample;
mod tidy;

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

pub use self::tidy::Tidied;
use self::{
    level::{Gauges, Level},
    sample::samples,
};
use super::sites::Sites;
use crate::{
    adapters::{
        db::{
            self, DbError, changes,
            metrics::{self, Sample},
            nodes,
            operations::{self, PodRecord},
            pods, rounds,
        },
        proxmox::{GuestRow, PveError, ResourceRow},
    },
    config::{HealthLimits, MetricsConfig},
};

/// The duties' names in `fleet_rounds`, and the kind of tick.
const COLLECT: &str = "cloudpods-metrics";
const TIDY: &str = "cloudpods-metrics-tidy";
const KIND: &str = "pods";
/// A worker that is silent for so long in mid-tick has lost it.
const HOLD: Duration = Duration::from_secs(120);
/// How often old figures are thinned out.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// Figures could not be had or written; there is a gap.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The database refused, or did not answer.
    #[error(transparent)]
    Db(#[from] DbError),
    /// No Proxmox API answered.
    #[error(transparent)]
    Pve(#[from] PveError),
}

/// What a tick gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// Pods with a figure.
    pub pods: usize,
    /// Pods whose level has changed.
    pub changed: usize,
    /// APIs that did not answer; their pods have a gap.
    pub apis_away: usize,
}

/// Collects what pods use.
#[derive(Debug, Clone)]
pub struct Metrics {
    db: PgPool,
    sites: Sites,
    config: MetricsConfig,
    limits: HealthLimits,
}

impl Metrics {
    /// On this database and these Proxmox APIs.
    #[must_use]
    pub fn new(db: PgPool, sites: Sites, config: MetricsConfig, limits: HealthLimits) -> Self {
        Self { db, sites, config, limits }
    }

    /// The tick that is due by the database's clock, unless it was written or
    /// another process is at it. Call it a few times an interval.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub async fn round(&self) -> Result<Option<Collected>, MetricsError> {
        let tick = metrics::tick(&self.db, self.config.every.as_secs_f64().max(1.0)).await?;
        if metrics::tick_state(&self.db, KIND, tick).await?.0 {
            return Ok(None);
        }
        let Some(round) = rounds::claim(&self.db, COLLECT, Duration::ZERO, HOLD).await? else {
            return Ok(None);
        };
        let result = self.collect(tick).await;
        match &result {
            Ok(collected) => rounds::finish(&self.db, &round, Ok(&json!(collected))).await?,
            Err(error) => rounds::finish(&self.db, &round, Err(&error.to_string())).await?,
        }
        result
    }

    /// Once an hour: old figures are thinned out, by one process.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub async fn tidy_round(&self) -> Result<Option<Tidied>, MetricsError> {
        let Some(round) = rounds::claim(&self.db, TIDY, TIDY_EVERY, HOLD).await? else { return Ok(None) };
        let result = self.tidy().await;
        let told = match &result {
            Ok(done) => {
                Ok(json!({ "averaged": done.averaged, "deleted": done.deleted, "finished": done.finished }))
            }
            Err(error) => Err(error.to_string()),
        };
        rounds::finish(&self.db, &round, told.as_ref().map_err(String::as_str)).await?;
        result.map(Some)
    }

    /// Asks the clusters and writes what they say as of `tick`, once: `None`
    /// when it was written already, or is so old that the figures of now are not its.
    ///
    /// # Errors
    /// [`MetricsError`]; nothing was written, and the same tick may be tried again.
    pub async fn collect(&self, tick: DateTime<Utc>) -> Result<Option<Collected>, MetricsError> {
        let (written, age_s) = metrics::tick_state(&self.db, KIND, tick).await?;
        if written || age_s > 2.0 * self.config.every.as_secs_f64().max(1.0) {
            return Ok(None);
        }
        let pods = operations::active_pods(&self.db).await?;
        let (guests, apis_away) = self.guests().await?;
        let samples = samples(&pods, &guests);
        let changes = self.judge(&samples).await?;
        let mut tx = db::begin(&self.db).await?;
        if !metrics::take_tick(&mut tx, KIND, tick, samples.len()).await? {
            return Ok(None);
        }
        metrics::write(&mut tx, tick, &samples).await?;
        let changed = write_levels(&mut tx, tick, &pods, &changes).await?;
        db::commit(tx).await?;
        Ok(Some(Collected { pods: samples.len(), changed, apis_away }))
    }

    /// All guests, by one question to each API. Only when none answers there is nothing to tell.
    async fn guests(&self) -> Result<(Vec<GuestRow>, usize), MetricsError> {
        let nodes = nodes::all(&self.db).await?;
        let bases = self.sites.bases(&nodes);
        let answers =
            join_all(bases.iter().map(|base| async move { self.sites.at(base).resources().await })).await;
        let (mut guests, mut away, mut last) = (Vec::new(), 0, None);
        for answer in answers {
            match answer {
                Ok(rows) => guests.extend(rows.iter().filter_map(ResourceRow::guest)),
                Err(error) => {
                    tracing::debug!(%error, "no figures from a Proxmox API");
                    away += 1;
                    last = Some(error);
                }
            }
        }
        match last {
            Some(error) if away == bases.len() => Err(error.into()),
            _ => Ok((guests, away)),
        }
    }

    async fn judge(&self, samples: &[Sample]) -> Result<Vec<Judged>, MetricsError> {
        let ids: Vec<Uuid> = samples.iter().map(|sample| sample.pod_id).collect();
        let before = gauges(&self.db, &ids, &self.config).await?;
        Ok(samples
            .iter()
            .map(|sample| {
                let before = before.get(&sample.pod_id).copied().unwrap_or_default();
                let after = before.next(sample.cpu, sample.memory, sample.disk, &self.limits);
                Judged { sample: *sample, before, after }
            })
            .collect())
    }
}

/// A pod's levels before and after a tick.
struct Judged {
    sample: Sample,
    before: Gauges,
    after: Gauges,
}

/// What is believed of pods' use; nothing of those that were not seen of late.
pub(super) async fn gauges(
    db: &PgPool,
    pods: &[Uuid],
    config: &MetricsConfig,
) -> Result<HashMap<Uuid, Gauges>, DbError> {
    // Ten minutes, or a few ticks where those are rare.
    let fresh_s = (3.0 * config.every.as_secs_f64()).max(600.0);
    let rows = metrics::health(db, pods, fresh_s).await?;
    // A state that a newer version wrote is as if there were none.
    let read = |row: metrics::HealthState| Some((row.pod_id, serde_json::from_value(row.state).ok()?));
    Ok(rows.into_iter().filter_map(read).collect())
}

/// Writes all levels; mPanel's row and an event only where one has changed.
async fn write_levels(
    tx: &mut db::Tx,
    tick: DateTime<Utc>,
    pods: &[PodRecord],
    judged: &[Judged],
) -> Result<usize, MetricsError> {
    let ids: Vec<Uuid> = judged.iter().map(|j| j.sample.pod_id).collect();
    let levels: Vec<&str> = judged.iter().map(|j| j.after.level().as_str()).collect();
    let states: Vec<String> = judged.iter().map(|j| json!(j.after).to_string()).collect();
    metrics::set_health(tx, tick, &ids, &levels, &states).await?;
    let changed: Vec<&Judged> = judged.iter().filter(|j| j.before.level() != j.after.level()).collect();
    let ids: Vec<Uuid> = changed.iter().map(|j| j.sample.pod_id).collect();
    let levels: Vec<&str> = changed.iter().map(|j| j.after.level().as_str()).collect();
    changes::set_health(tx, &ids, &levels).await?;
    for Judged { sample, before, after } in changed.iter().copied() {
        let Some(pod) = pods.iter().find(|pod| pod.id == sample.pod_id) else { continue };
        let parts = format!("cpu {} %, memory {} %, disk {} %", sample.cpu, sample.memory, sample.disk);
        let message = match after.level() {
            Level::Ok => format!("CloudPod {} has enough again: {parts}", pod.hostname),
            level => format!("CloudPod {} is in want ({}): {parts}", pod.hostname, level.as_str()),
        };
        let data = json!({ "from": before.level(), "level": after.level(), "triggeredBy": "metrics",
            "cpuPct": sample.cpu, "memPct": sample.memory, "diskPct": sample.disk });
        pods::event(tx, pod.tenant_id, Some(pod.id), "HEALTH_CHECK", &message, &data).await?;
    }
    Ok(changed.len())
}
