//! Keeping `cloud_pod_metrics` bounded: raw figures become five-minute
//! averages, those become hourly ones, those go. In small transactions, a few
//! pods and a day at a time; a pass that is interrupted goes on where it was.

use std::time::{Duration, Instant};

use chrono::{NaiveDateTime, NaiveTime, TimeDelta};
use uuid::Uuid;

use super::{Metrics, MetricsError};
use crate::adapters::db::metrics::{self, Pass};

/// The pass's name.
const PASS: &str = "cloud_pod_metrics";
/// Pods in one statement: with a day of minutes some 36,000 rows at the very most.
const PODS_AT_ONCE: i64 = 25;
/// Rows that one statement deletes.
const DELETED_AT_ONCE: i64 = 5000;
/// How long one call may work.
const BUDGET: Duration = Duration::from_secs(60);
const FIVE_MINUTES_S: f64 = 300.0;
const HOUR_S: f64 = 3600.0;
/// Half of the ids that the column has.
const IDS_HALF: i32 = i32::MAX / 2;

/// What a call has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Rows that became part of an average.
    pub averaged: u64,
    /// Rows that were too old.
    pub deleted: u64,
    /// Whether all pods are done; else the next call goes on.
    pub finished: bool,
}

impl Metrics {
    /// Thins out old figures, for a minute at the most.
    ///
    /// # Errors
    /// [`MetricsError::Db`]; what was done stays, and doing it twice changes nothing.
    pub async fn tidy(&self) -> Result<Tidied, MetricsError> {
        let config = &self.config;
        let pass = metrics::begin_pass(&self.db, PASS, config.raw_h, config.five_min_h).await?;
        let (started, mut done, mut cursor) = (Instant::now(), Tidied::default(), pass.cursor);
        loop {
            let (pods, oldest) = metrics::next_pods(&self.db, cursor, PODS_AT_ONCE).await?;
            let (Some(last), Some(oldest)) = (pods.last().copied(), oldest) else {
                done.finished = true;
                break;
            };
            self.thin_out(&pods, oldest, &pass, &mut done).await?;
            cursor = Some(last);
            metrics::note_pass(&self.db, PASS, cursor).await?;
            if started.elapsed() > BUDGET {
                return Ok(done);
            }
        }
        metrics::note_pass(&self.db, PASS, None).await?;
        let highest = metrics::forget(&self.db).await?;
        if highest > IDS_HALF {
            tracing::error!(
                highest,
                "more than half of the ids of cloud_pod_metrics are used up (they are 32 bits wide); collect less \
                 often (cloudpods.metrics_seconds), and plan for ALTER TABLE ... ALTER id TYPE bigint in mPanel"
            );
        }
        Ok(done)
    }

    async fn thin_out(
        &self,
        pods: &[Uuid],
        oldest: NaiveDateTime,
        pass: &Pass,
        done: &mut Tidied,
    ) -> Result<(), MetricsError> {
        loop {
            let gone = metrics::delete_old(&self.db, pods, self.config.hourly_h, DELETED_AT_ONCE).await?;
            done.deleted += gone;
            if gone < DELETED_AT_ONCE.unsigned_abs() {
                break;
            }
        }
        let spans = [(pass.five_upto, pass.five_to, FIVE_MINUTES_S), (pass.hour_upto, pass.hour_to, HOUR_S)];
        for (upto, to, width_s) in spans {
            for (from, to) in slices(upto.unwrap_or(oldest).max(oldest), to) {
                let gone = metrics::average(&self.db, pods, from, to, width_s).await?;
                done.averaged += u64::try_from(gone).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// Days of a span, cut at midnight so that no average is cut.
fn slices(from: NaiveDateTime, to: NaiveDateTime) -> impl Iterator<Item = (NaiveDateTime, NaiveDateTime)> {
    let mut next = from.date().and_time(NaiveTime::MIN);
    std::iter::from_fn(move || {
        let start = next;
        if start >= to {
            return None;
        }
        next = start + TimeDelta::days(1);
        Some((start, next.min(to)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_cut_at_midnight() {
        let at = |text: &str| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap();
        let cut: Vec<_> = slices(at("2026-03-01 22:10"), at("2026-03-03 01:00")).collect();
        assert_eq!(
            cut,
            [
                (at("2026-03-01 00:00"), at("2026-03-02 00:00")),
                (at("2026-03-02 00:00"), at("2026-03-03 00:00")),
                (at("2026-03-03 00:00"), at("2026-03-03 01:00")),
            ]
        );
        assert_eq!(slices(at("2026-03-03 01:00"), at("2026-03-02 00:00")).count(), 0);
    }
}
