//! `cloud_pod_metrics`, written in bulk once a tick and thinned out as it ages,
//! and what is believed of each pod's use (`fleet_pod_health`).

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::Value;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{Attempted, DbError, Tx};

/// A pod's use at a tick, per cent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The pod.
    pub pod_id: Uuid,
    /// Of its own cores.
    pub cpu: f64,
    /// Of its memory.
    pub memory: f64,
    /// Of its disk; 0 for machines, where nobody outside knows.
    pub disk: f64,
}

/// What is believed of a pod's use.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct HealthState {
    /// The pod.
    pub pod_id: Uuid,
    /// The believed levels and what the last ticks said, as the service reads them.
    pub state: Value,
}

/// The beginning of the current interval by the database's clock, on which all
/// workers agree.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn tick(pool: &PgPool, every_s: f64) -> Result<DateTime<Utc>, DbError> {
    sqlx::query_scalar("SELECT to_timestamp(floor(extract(epoch FROM now()) / $1) * $1)")
        .bind(every_s)
        .fetch_one(pool)
        .await
        .attempting("read the clock")
}

/// Whether a tick was written, and how old it is, seconds.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn tick_state(pool: &PgPool, kind: &str, tick: DateTime<Utc>) -> Result<(bool, f64), DbError> {
    sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM fleet_telemetry_ticks WHERE kind = $1 AND tick_at = $2),
                extract(epoch FROM now() - $2)::float8",
    )
    .bind(kind)
    .bind(tick)
    .fetch_one(pool)
    .await
    .attempting("look whether the tick was written")
}

/// Takes a tick for this transaction; false when it was written already.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn take_tick(tx: &mut Tx, kind: &str, tick: DateTime<Utc>, rows: usize) -> Result<bool, DbError> {
    let taken = sqlx::query(
        "INSERT INTO fleet_telemetry_ticks (kind, tick_at, rows) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
    )
    .bind(kind)
    .bind(tick)
    .bind(i32::try_from(rows).unwrap_or(i32::MAX))
    .execute(&mut **tx)
    .await
    .attempting("take the tick")?;
    Ok(taken.rows_affected() > 0)
}

/// Writes the samples of a tick in one statement.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn write(tx: &mut Tx, tick: DateTime<Utc>, samples: &[Sample]) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO cloud_pod_metrics (pod_id, cpu_usage, memory_usage, disk_usage, collected_at)
         SELECT s.pod_id, round(s.cpu::numeric, 2), round(s.memory::numeric, 2), round(s.disk::numeric, 2),
                timezone('utc', $5)
         FROM unnest($1::uuid[], $2::float8[], $3::float8[], $4::float8[]) AS s (pod_id, cpu, memory, disk)",
    )
    .bind(samples.iter().map(|s| s.pod_id).collect::<Vec<_>>())
    .bind(samples.iter().map(|s| s.cpu).collect::<Vec<_>>())
    .bind(samples.iter().map(|s| s.memory).collect::<Vec<_>>())
    .bind(samples.iter().map(|s| s.disk).collect::<Vec<_>>())
    .bind(tick)
    .execute(&mut **tx)
    .await
    .attempting("write the pods' figures")
    .map(|_| ())
}

/// What is believed of these pods; those whose last tick is older than
/// `fresh_s` are as if never seen.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn health(pool: &PgPool, pods: &[Uuid], fresh_s: f64) -> Result<Vec<HealthState>, DbError> {
    sqlx::query_as(
        "SELECT pod_id, state FROM fleet_pod_health
         WHERE pod_id = ANY($1) AND tick_at > now() - make_interval(secs => $2)",
    )
    .bind(pods)
    .bind(fresh_s)
    .fetch_all(pool)
    .await
    .attempting("read what is believed of the pods' use")
}

/// Pods whose guests are on record as lost.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn lost(pool: &PgPool) -> Result<Vec<Uuid>, DbError> {
    sqlx::query_scalar("SELECT pod_id FROM fleet_pods WHERE lost_at IS NOT NULL AND phase <> 'released'")
        .fetch_all(pool)
        .await
        .attempting("read which pods are lost")
}

/// Writes what is believed of pods at a tick: pod, level, state.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn set_health(
    tx: &mut Tx,
    tick: DateTime<Utc>,
    pods: &[Uuid],
    levels: &[&str],
    states: &[String],
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO fleet_pod_health AS h (pod_id, level, state, tick_at)
         SELECT g.pod_id, g.level, g.state::jsonb, $4
         FROM unnest($1::uuid[], $2::text[], $3::text[]) AS g (pod_id, level, state)
         ON CONFLICT (pod_id) DO UPDATE
         SET state = EXCLUDED.state, tick_at = EXCLUDED.tick_at, level = EXCLUDED.level,
             changed_at = CASE WHEN h.level = EXCLUDED.level THEN h.changed_at ELSE now() END
         WHERE h.tick_at < EXCLUDED.tick_at",
    )
    .bind(pods)
    .bind(levels)
    .bind(states)
    .bind(tick)
    .execute(&mut **tx)
    .await
    .attempting("write what is believed of the pods' use")
    .map(|_| ())
}

/// A pass over all pods by which old figures are thinned out.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Pass {
    /// Before this there are five-minute averages already; `None`: nowhere.
    pub five_upto: Option<NaiveDateTime>,
    /// Before this there are hourly averages already.
    pub hour_upto: Option<NaiveDateTime>,
    /// So far this pass makes five-minute averages.
    pub five_to: NaiveDateTime,
    /// So far this pass makes hourly averages.
    pub hour_to: NaiveDateTime,
    /// Pods up to this one are done.
    pub cursor: Option<Uuid>,
}

/// Begins a pass, or goes on with the one under way. Ages are in hours.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn begin_pass(pool: &PgPool, name: &str, raw_h: i32, five_h: i32) -> Result<Pass, DbError> {
    sqlx::query_as(
        "INSERT INTO fleet_metric_passes AS p (name, five_to, hour_to)
         VALUES ($1, date_bin('5 minutes', timezone('utc', now()) - make_interval(hours => $2), '2000-01-01'),
                 date_trunc('hour', timezone('utc', now()) - make_interval(hours => $3)))
         ON CONFLICT (name) DO UPDATE
         SET five_to = COALESCE(p.five_to, EXCLUDED.five_to), hour_to = COALESCE(p.hour_to, EXCLUDED.hour_to)
         RETURNING five_upto, hour_upto, five_to, hour_to, cursor",
    )
    .bind(name)
    .bind(raw_h)
    .bind(five_h)
    .fetch_one(pool)
    .await
    .attempting("begin to thin out old figures")
}

/// Notes how far the pass is; without a cursor it is at its end.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn note_pass(pool: &PgPool, name: &str, cursor: Option<Uuid>) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE fleet_metric_passes
         SET cursor = $2, updated_at = now(),
             five_upto = CASE WHEN $2 IS NULL THEN five_to ELSE five_upto END,
             hour_upto = CASE WHEN $2 IS NULL THEN hour_to ELSE hour_upto END,
             five_to = CASE WHEN $2 IS NULL THEN NULL ELSE five_to END,
             hour_to = CASE WHEN $2 IS NULL THEN NULL ELSE hour_to END
         WHERE name = $1",
    )
    .bind(name)
    .bind(cursor)
    .execute(pool)
    .await
    .attempting("note how far old figures are thinned out")
    .map(|_| ())
}

/// The next pods that have figures, and the moment of their oldest one. Skips
/// along the index, one probe a pod.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn next_pods(
    pool: &PgPool,
    after: Option<Uuid>,
    most: i64,
) -> Result<(Vec<Uuid>, Option<NaiveDateTime>), DbError> {
    sqlx::query_as(
        "WITH RECURSIVE pods AS (
           (SELECT pod_id, 1 AS n FROM cloud_pod_metrics WHERE $1::uuid IS NULL OR pod_id > $1
            ORDER BY pod_id LIMIT 1)
           UNION ALL
           SELECT next.pod_id, pods.n + 1 FROM pods
           CROSS JOIN LATERAL (SELECT m.pod_id FROM cloud_pod_metrics m WHERE m.pod_id > pods.pod_id
                               ORDER BY m.pod_id LIMIT 1) next
           WHERE pods.n < $2)
         SELECT COALESCE(array_agg(pods.pod_id ORDER BY pods.pod_id), '{}'), min(oldest.collected_at)
         FROM pods
         CROSS JOIN LATERAL (SELECT collected_at FROM cloud_pod_metrics m WHERE m.pod_id = pods.pod_id
                             ORDER BY collected_at LIMIT 1) oldest",
    )
    .bind(after)
    .bind(most)
    .fetch_one(pool)
    .await
    .attempting("find pods with figures")
}

/// Replaces the figures of these pods in a span of time by averages over
/// `width_s` seconds; those that stand alone in theirs stay as they are, so that
/// doing it twice changes nothing. Answers how many rows went.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn average(
    pool: &PgPool,
    pods: &[Uuid],
    from: NaiveDateTime,
    to: NaiveDateTime,
    width_s: f64,
) -> Result<i64, DbError> {
    sqlx::query_scalar(
        "WITH old AS MATERIALIZED (
           SELECT id, pod_id, date_bin(make_interval(secs => $4), collected_at, '2000-01-01') AS bucket,
                  cpu_usage, memory_usage, disk_usage
           FROM cloud_pod_metrics WHERE pod_id = ANY($1) AND collected_at >= $2 AND collected_at < $3),
         averages AS MATERIALIZED (
           SELECT pod_id, bucket, min(id) AS kept, round(avg(cpu_usage), 2) AS cpu,
                  round(avg(memory_usage), 2) AS memory, round(avg(disk_usage), 2) AS disk
           FROM old GROUP BY pod_id, bucket HAVING count(*) > 1),
         written AS (
           UPDATE cloud_pod_metrics m
           SET cpu_usage = a.cpu, memory_usage = a.memory, disk_usage = a.disk, collected_at = a.bucket
           FROM averages a WHERE m.id = a.kept),
         gone AS (
           DELETE FROM cloud_pod_metrics m USING old o JOIN averages a USING (pod_id, bucket)
           WHERE m.id = o.id AND o.id <> a.kept RETURNING 1)
         SELECT count(*) FROM gone",
    )
    .bind(pods)
    .bind(from)
    .bind(to)
    .bind(width_s)
    .fetch_one(pool)
    .await
    .attempting("average old figures")
}

/// Removes figures of these pods that are older than so many hours, at most
/// `most` rows. Answers how many went.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn delete_old(pool: &PgPool, pods: &[Uuid], hours: i32, most: i64) -> Result<u64, DbError> {
    sqlx::query(
        "DELETE FROM cloud_pod_metrics WHERE id IN (
           SELECT id FROM cloud_pod_metrics
           WHERE pod_id = ANY($1) AND collected_at < timezone('utc', now()) - make_interval(hours => $2)
           LIMIT $3)",
    )
    .bind(pods)
    .bind(hours)
    .bind(most)
    .execute(pool)
    .await
    .attempting("remove old figures")
    .map(|done| done.rows_affected())
}

/// Forgets ticks that nobody can ask for any more, and pods that are not seen
/// any more. Answers the highest id that `cloud_pod_metrics` has given.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn forget(pool: &PgPool) -> Result<i32, DbError> {
    sqlx::query(
        "DELETE FROM fleet_telemetry_ticks WHERE kind = 'pods' AND tick_at < now() - interval '2 days'",
    )
    .execute(pool)
    .await
    .attempting("forget old ticks")?;
    sqlx::query("DELETE FROM fleet_pod_health WHERE tick_at < now() - interval '7 days'")
        .execute(pool)
        .await
        .attempting("forget pods that are gone")?;
    sqlx::query_scalar("SELECT COALESCE(max(id), 0) FROM cloud_pod_metrics")
        .fetch_one(pool)
        .await
        .attempting("read the highest id of the figures")
}
