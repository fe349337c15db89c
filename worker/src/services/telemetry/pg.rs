//! The collector of Postgres: how the server is, and which statements are slow.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use sqlx::PgPool;

use super::{
    Collected, NewBaseline,
    sample::{Check, Reading, Samples},
    scrub::{query_hash, scrub},
    statements::{Delta, Slowness, Snapshot, deltas, slow},
};
use crate::{
    adapters::{
        db::{
            DbError,
            slow_queries::{self, SlowRow},
        },
        pg_stats::{Counters, Missing, PgWatch, ServerFigures, StatementKey, TAG},
    },
    config::TelemetryConfig,
};

/// Its name in `monitoring_service_status`.
pub const SERVICE: &str = "postgres-core";
const BASELINE: &str = "pg_stat_statements";
/// A larger share of connections in use is a warning.
const CLIENTS_MAX: f64 = 0.85;
/// A standby further behind is a warning, seconds.
const LAG_MAX_S: f64 = 60.0;
/// From this age of a transaction id on somebody must look: at 2^31 writing stops.
const XID_AGE_MAX: i64 = 1_500_000_000;
/// Statements that take this share of all time are slow, whatever their mean.
const SHARE_PERCENT: i64 = 5;
/// Texts that are remembered.
const TEXTS_MAX: usize = 10_000;

/// Hash and scrubbed text of statements; `None`: one of ours.
#[derive(Debug, Default)]
pub(super) struct Texts(Mutex<HashMap<StatementKey, Option<(String, String)>>>);

/// Looks at the server.
pub(super) async fn collect(
    db: &PgPool,
    watch: &PgWatch,
    texts: &Texts,
    config: &TelemetryConfig,
    at_ms: i64,
) -> Collected {
    let begun = Instant::now();
    let look = match watch.look().await {
        Ok(look) => look,
        Err(error) => {
            let reading = Reading::down(error.to_string());
            return Collected {
                checks: vec![Check::of(SERVICE, reading)],
                problem: Some(format!("{error}; check telemetry.pg_url or DATABASE_URL")),
                ..Collected::default()
            };
        }
    };
    let took = i32::try_from(begun.elapsed().as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    let mut collected = Collected::default();
    figures(&mut collected.samples, &look.server);
    collected.checks.push(Check::of(SERVICE, judged(&look.server, took)));
    let hidden = || Some(Missing::Rights.to_string());
    match look.counters {
        Ok(counters) => {
            match statements(
                db,
                watch,
                texts,
                config,
                (at_ms, look.server.started_us),
                counters,
                &mut collected,
            )
            .await
            {
                Ok(()) => {}
                Err(problem) => collected.problem = Some(problem),
            }
        }
        // Many get along without it.
        Err(missing @ (Missing::Extension | Missing::NotLoaded)) => {
            collected.remark = Some(missing.to_string());
        }
        Err(missing) => collected.problem = Some(missing.to_string()),
    }
    if !look.server.sees_all {
        collected.problem = collected.problem.or_else(hidden);
    }
    collected
}

async fn statements(
    db: &PgPool,
    watch: &PgWatch,
    texts: &Texts,
    config: &TelemetryConfig,
    (at_ms, started_us): (i64, i64),
    counters: Counters,
    collected: &mut Collected,
) -> Result<(), String> {
    let unread = |error: DbError| format!("slow statements are not counted: {error}");
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    {
        collected.samples.add("pg_statements", "", counters.statements.len() as f64);
        collected.samples.add_some(
            "pg_statement_evictions_total",
            "",
            counters.evictions.map(|count| count as f64),
        );
    }
    let before = slow_queries::baseline(db, BASELINE).await.map_err(unread)?;
    let from = before.as_ref().map(|before| before.tick_at);
    let before = before.and_then(|before| serde_json::from_str::<Snapshot>(&before.data).ok());
    let mut now = Snapshot {
        at_ms,
        reset_us: counters.reset_us,
        started_us,
        statements: counters.statements,
        slow: Vec::new(),
    };
    let window_ms = i64::try_from(config.query_window.as_millis()).unwrap_or(i64::MAX);
    if let Some(before) = before {
        let still = |at: i64| at > at_ms.saturating_sub(window_ms);
        let mut lately: BTreeMap<StatementKey, i64> =
            before.slow.iter().copied().filter(|(_, at)| still(*at)).collect();
        let rule = Slowness { mean: config.slow_query, share_percent: SHARE_PERCENT, top: config.query_top };
        let age_max = config.query_window.max(config.interval * 2);
        let followed: BTreeSet<StatementKey> = lately.keys().copied().collect();
        let all = deltas(&before, &now, age_max);
        let found = slow(&all, rule, &followed);
        let known = texts.of(watch, &counters.extension, &found).await?;
        for delta in slow(&all, rule, &BTreeSet::new()) {
            if known.contains_key(&delta.key) {
                lately.insert(delta.key, at_ms);
            }
        }
        collected.slow = summed(&found, &known);
        now.slow = lately.into_iter().collect();
    }
    let data = serde_json::to_string(&now).map_err(|error| error.to_string())?;
    collected.baseline = Some(NewBaseline { name: BASELINE, data, from });
    Ok(())
}

/// One row a hash: entries of several users, or of lists of several lengths, are one statement.
fn summed(found: &[Delta], known: &HashMap<StatementKey, (String, String)>) -> Vec<SlowRow> {
    let mut rows: BTreeMap<&str, SlowRow> = BTreeMap::new();
    for delta in found {
        let Some((hash, text)) = known.get(&delta.key) else { continue };
        let row = rows.entry(hash.as_str()).or_insert_with(|| SlowRow {
            hash: hash.clone(),
            text: text.clone(),
            calls: 0,
            time_us: 0,
        });
        row.calls = row.calls.saturating_add(delta.calls);
        row.time_us = row.time_us.saturating_add(delta.time_us);
    }
    rows.into_values().collect()
}

impl Texts {
    /// Hash and text of these, without those of our own statements. Only what is
    /// not known yet is asked for.
    async fn of(
        &self,
        watch: &PgWatch,
        extension: &crate::adapters::pg_stats::Extension,
        wanted: &[Delta],
    ) -> Result<HashMap<StatementKey, (String, String)>, String> {
        let unknown: Vec<StatementKey> = {
            let texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.iter().map(|delta| delta.key).filter(|key| !texts.contains_key(key)).collect()
        };
        let asked = if unknown.is_empty() {
            Vec::new()
        } else {
            watch.texts(extension, &unknown).await.map_err(|error| error.to_string())?
        };
        let mut texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if texts.len() > TEXTS_MAX {
            texts.clear();
        }
        for (key, database, text) in asked {
            let entry = (!is_ours(&text)).then(|| {
                let scrubbed = scrub(&text);
                (query_hash(&database, &scrubbed), scrubbed)
            });
            texts.insert(key, entry);
        }
        let of_key = |delta: &Delta| Some((delta.key, texts.get(&delta.key)?.clone()?));
        Ok(wanted.iter().filter_map(of_key).collect())
    }
}

/// Whether telemetry itself sent it: what it reads is tagged, what it writes is
/// known by its tables.
fn is_ours(text: &str) -> bool {
    const TABLES: [&str; 4] =
        ["fleet_telemetry_", "fleet_queue_samples", "INTO monitoring_", "INTO cloud_pod_metrics"];
    text.contains(TAG) || TABLES.iter().any(|table| text.contains(table))
}

/// How the server is.
#[must_use]
pub fn judged(server: &ServerFigures, took_ms: i32) -> Reading {
    let mut complaints = Vec::new();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let share = server.clients as f64 / server.clients_max.max(1) as f64;
    if share > CLIENTS_MAX {
        complaints.push(format!("{:.0} % of its connections are in use", share * 100.0));
    }
    if let Some(lag) = server.replication_lag_s.filter(|lag| *lag > LAG_MAX_S) {
        complaints.push(format!("replication is {lag:.0} s behind"));
    }
    let oldest = server.oldest_xid_age.max(server.oldest_mxid_age);
    if oldest > XID_AGE_MAX {
        complaints
            .push(format!("its oldest transaction id is {oldest} old: writing stops at 2147483647; vacuum"));
    }
    if complaints.is_empty() {
        Reading::up(Some(took_ms))
    } else {
        Reading::degraded(Some(took_ms), complaints.join("; "))
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for a graph")]
fn figures(samples: &mut Samples, server: &ServerFigures) {
    for (metric, value) in [
        ("pg_clients", server.clients),
        ("pg_clients_max", server.clients_max),
        ("pg_idle_in_transaction", server.idle_in_transaction),
        ("pg_waiting_for_lock", server.waiting_for_lock),
        ("pg_commits_total", server.commits),
        ("pg_rollbacks_total", server.rollbacks),
        ("pg_deadlocks_total", server.deadlocks),
        ("pg_temp_bytes_total", server.temp_bytes),
        ("pg_oldest_xid_age", server.oldest_xid_age),
        ("pg_oldest_mxid_age", server.oldest_mxid_age),
        ("pg_dead_rows", server.dead_rows),
        ("pg_live_rows", server.live_rows),
        ("pg_database_bytes", server.database_bytes),
    ] {
        samples.add(metric, "", value as f64);
    }
    for (metric, value) in [
        ("pg_longest_transaction_seconds", server.longest_transaction_s.or(Some(0.0))),
        ("pg_longest_lock_wait_seconds", server.longest_lock_wait_s.or(Some(0.0))),
        ("pg_cache_hit_ratio", server.cache_hits),
        ("pg_replication_lag_seconds", server.replication_lag_s),
        ("pg_replication_lag_bytes", server.replication_lag_bytes),
        ("pg_slot_bytes", server.slot_bytes),
    ] {
        samples.add_some(metric, "", value);
    }
    samples.add("pg_standby", "", f64::from(u8::from(server.standby)));
}
