//! Writing a tick: all of it or nothing, and once.
//!
//! The tick's key is booked in the transaction of its rows. Who finds it booked
//! writes nothing; who finds a newer tick written comes too late.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::{
    Collected, NewBaseline, TelemetryError,
    clock::Tick,
    sample::{Check, Status},
    state::{self, ServiceState},
};
use crate::adapters::db::{
    self, DbError, queue_samples, slow_queries,
    telemetry::{self, ServiceRow, TickRow},
};

/// What became of a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Its rows are there now: so many of services.
    Rows(u64),
    /// They were there already.
    Already,
    /// A newer tick of the collector had been written.
    Overtaken,
}

/// How rows are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) row_every: Duration,
    pub(super) query_window: Duration,
}

/// A tick's time as Postgres takes it.
pub(super) fn at(tick: &Tick) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(tick.due_ms).unwrap_or_default()
}

/// Books a tick that is passed over.
pub(super) async fn skip(db: &PgPool, tick: &Tick, why: &str) -> Result<(), DbError> {
    let mut tx = db::begin(db).await?;
    let row = TickRow {
        collector: tick.collector.as_str(),
        at: at(tick),
        written: false,
        took: Duration::ZERO,
        problem: Some(why),
    };
    telemetry::book(&mut tx, &row).await?;
    db::commit(tx).await
}

/// Writes what a tick collected.
pub(super) async fn write(
    db: &PgPool,
    tick: &Tick,
    collected: &Collected,
    took: Duration,
    rules: Rules,
) -> Result<Written, TelemetryError> {
    let at = at(tick);
    let mut tx = db::begin(db).await?;
    let newest = telemetry::lock(&mut tx, tick.collector.as_str()).await?;
    let overtaken = newest.is_some_and(|newest| newest > at);
    let problem =
        if overtaken { Some("a newer tick was written before") } else { collected.problem.as_deref() };
    let row = TickRow { collector: tick.collector.as_str(), at, written: !overtaken, took, problem };
    if !telemetry::book(&mut tx, &row).await? {
        return Ok(Written::Already);
    }
    if overtaken {
        db::commit(tx).await?;
        return Ok(Written::Overtaken);
    }
    let rows = write_services(&mut tx, at, &collected.checks, rules.row_every).await?;
    let samples = &collected.samples.0;
    if !samples.is_empty() {
        let metrics: Vec<&str> = samples.iter().map(|sample| sample.metric).collect();
        let subjects: Vec<&str> = samples.iter().map(|sample| sample.subject.as_str()).collect();
        let values: Vec<f64> = samples.iter().map(|sample| sample.value).collect();
        telemetry::write_samples(&mut tx, at, &metrics, &subjects, &values).await?;
    }
    if !collected.queues.is_empty() {
        queue_samples::write(&mut tx, at, &collected.queues).await?;
    }
    if !collected.slow.is_empty() {
        slow_queries::write(&mut tx, at, rules.query_window, &collected.slow).await?;
    }
    if let Some(NewBaseline { name, data, from }) = &collected.baseline {
        // What was counted may have been counted by a tick that ran beside this one.
        if slow_queries::baseline_tick(&mut tx, name).await? != *from {
            return Err(TelemetryError::Raced(tick.collector));
        }
        slow_queries::keep_baseline(&mut tx, name, at, data).await?;
    }
    db::commit(tx).await?;
    Ok(Written::Rows(rows))
}

async fn write_services(
    tx: &mut db::Tx,
    at: DateTime<Utc>,
    checks: &[Check],
    row_every: Duration,
) -> Result<u64, DbError> {
    if checks.is_empty() {
        return Ok(0);
    }
    let names: Vec<String> = checks.iter().map(|check| check.service.clone()).collect();
    let before = telemetry::services(tx, &names).await?;
    let before: BTreeMap<&str, &ServiceRow> =
        before.iter().map(|row| (row.service_name.as_str(), row)).collect();
    let rows: Vec<ServiceRow> = checks
        .iter()
        .filter_map(|check| next_row(before.get(check.service.as_str()).copied(), check, at, row_every))
        .collect();
    for row in &rows {
        let old = before.get(row.service_name.as_str()).map(|old| old.status.as_str());
        if old.is_some_and(|old| old != row.status) || (old.is_none() && row.status != "up") {
            let why = row.why.as_deref().unwrap_or("");
            tracing::info!(service = row.service_name, from = old, to = row.status, why, "status changed");
        }
    }
    telemetry::write_services(tx, &rows).await
}

/// A service's row after a check; `None` when there is nothing to say.
fn next_row(
    before: Option<&ServiceRow>,
    check: &Check,
    at: DateTime<Utc>,
    row_every: Duration,
) -> Option<ServiceRow> {
    if check.quiet && before.is_none() && check.readings.iter().all(|r| r.status == Status::Up) {
        return None;
    }
    let state = state::after_all(before.and_then(state_of), &check.readings)?;
    let status = state.status.as_str();
    let changed = before.is_none_or(|before| before.status != status);
    let due = before.is_none_or(|before| (at - before.row_at).to_std().is_ok_and(|since| since >= row_every));
    let clean = |text: String| text.replace('\0', "\u{fffd}");
    Some(ServiceRow {
        service_name: check.service.clone(),
        status: status.to_owned(),
        since: before.filter(|_| !changed).map_or(at, |before| before.since),
        failures: i32::try_from(state.failures).unwrap_or(i32::MAX),
        successes: i32::try_from(state.successes).unwrap_or(i32::MAX),
        recent: state.recent,
        why: state.why.map(clean),
        latency_ms: state.latency_ms,
        tick_at: at,
        row_at: before.filter(|_| !changed && !due).map_or(at, |before| before.row_at),
    })
}

fn state_of(row: &ServiceRow) -> Option<ServiceState> {
    Some(ServiceState {
        status: Status::parse(&row.status)?,
        failures: u32::try_from(row.failures).unwrap_or(0),
        successes: u32::try_from(row.successes).unwrap_or(0),
        recent: row.recent.clone(),
        why: row.why.clone(),
        latency_ms: row.latency_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::telemetry::sample::Reading;

    fn tick(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
    }

    #[test]
    fn a_row_is_written_when_the_state_changes_and_else_when_one_is_due() {
        let every = Duration::from_secs(60);
        let up = Check::of("a", Reading::up(Some(3)));
        let down = Check { readings: vec![Reading::down("x"); 3], ..up.clone() };
        let first = next_row(None, &up, tick(0), every).unwrap();
        assert_eq!((first.row_at, first.since), (tick(0), tick(0)));
        let second = next_row(Some(&first), &up, tick(30), every).unwrap();
        assert_eq!((second.row_at, second.since, second.tick_at), (tick(0), tick(0), tick(30)));
        let third = next_row(Some(&second), &up, tick(60), every).unwrap();
        assert_eq!((third.row_at, third.since), (tick(60), tick(0)));
        let fourth = next_row(Some(&third), &down, tick(70), every).unwrap();
        assert_eq!((fourth.row_at, fourth.since, fourth.status.as_str()), (tick(70), tick(70), "down"));
    }
}
