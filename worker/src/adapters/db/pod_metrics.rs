//! How busy pods are: mPanel's `cloud_pod_metrics`.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::{Attempted, DbError, Tx};

/// Rows in a batch of the upkeep.
const BATCH: i64 = 5000;

/// A guest at a tick; shares in percent, 0 to 100.
#[derive(Debug, Clone, PartialEq)]
pub struct PodRow {
    /// Its VMID.
    pub vmid: i32,
    /// The pod's id by its tag; empty where it has none.
    pub pod: String,
    /// Its name.
    pub name: String,
    /// Cores.
    pub cpu: f64,
    /// Memory.
    pub memory: f64,
    /// Disk.
    pub disk: f64,
}

/// Writes the rows of those that are pods: by their tag, or where a Node worker
/// made them, by VMID and name. Answers how many.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn write(tx: &mut Tx, at: DateTime<Utc>, rows: &[PodRow]) -> Result<u64, DbError> {
    let column = |of: fn(&PodRow) -> f64| rows.iter().map(of).collect::<Vec<f64>>();
    sqlx::query(
        "INSERT INTO cloud_pod_metrics (pod_id, cpu_usage, memory_usage, disk_usage, collected_at)
         SELECT p.id, round(v.c::numeric, 2), round(v.m::numeric, 2), round(v.d::numeric, 2), timezone('utc', $7)
         FROM unnest($1::int[], $2::text[], $3::text[], $4::float8[], $5::float8[], $6::float8[])
                AS v(vmid, pod, name, c, m, d)
         JOIN cloud_pods p ON p.vmid = v.vmid AND p.deleted_at IS NULL
          AND (p.id::text = v.pod OR (v.pod = '' AND p.hostname = v.name))",
    )
    .bind(rows.iter().map(|row| row.vmid).collect::<Vec<i32>>())
    .bind(rows.iter().map(|row| row.pod.as_str()).collect::<Vec<&str>>())
    .bind(rows.iter().map(|row| row.name.as_str()).collect::<Vec<&str>>())
    .bind(column(|row| row.cpu))
    .bind(column(|row| row.memory))
    .bind(column(|row| row.disk))
    .bind(at)
    .execute(&mut **tx)
    .await
    .attempting("write how busy the pods are")
    .map(|done| done.rows_affected())
}

/// Turns a batch of rows from before `limit` into hours, as
/// [`super::telemetry_upkeep::status_to_hours`] does.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn to_hours(pool: &PgPool, limit: DateTime<Utc>) -> Result<u64, DbError> {
    sqlx::query_scalar::<_, i64>(
        "WITH oldest AS (
           SELECT id, collected_at FROM cloud_pod_metrics ORDER BY id LIMIT $2
         ), gone AS (
           DELETE FROM cloud_pod_metrics m USING oldest o
           WHERE m.id = o.id AND o.collected_at < timezone('utc', $1)
           RETURNING m.pod_id, m.cpu_usage, m.memory_usage, m.disk_usage, m.collected_at
         ), hours AS (
           INSERT INTO fleet_telemetry_pods_hourly AS h
             (pod_id, hour, samples, cpu_sum, cpu_max, memory_sum, memory_max, disk_max)
           SELECT pod_id, date_trunc('hour', collected_at) AT TIME ZONE 'utc', count(*), sum(cpu_usage),
                  max(cpu_usage), sum(memory_usage), max(memory_usage), max(disk_usage)
           FROM gone GROUP BY 1, 2
           ON CONFLICT (pod_id, hour) DO UPDATE
           SET samples = h.samples + EXCLUDED.samples, cpu_sum = h.cpu_sum + EXCLUDED.cpu_sum,
               cpu_max = GREATEST(h.cpu_max, EXCLUDED.cpu_max),
               memory_sum = h.memory_sum + EXCLUDED.memory_sum,
               memory_max = GREATEST(h.memory_max, EXCLUDED.memory_max),
               disk_max = GREATEST(h.disk_max, EXCLUDED.disk_max)
         )
         SELECT count(*) FROM gone",
    )
    .bind(limit)
    .bind(BATCH)
    .fetch_one(pool)
    .await
    .attempting("turn old rows of pods into hours")
    .map(i64::unsigned_abs)
}
