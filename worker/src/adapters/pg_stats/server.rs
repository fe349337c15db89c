//! What a Postgres server says of itself, in one statement that every version
//! from 13 on takes.

use sqlx::{FromRow, PgConnection};

use super::{PgStatsError, failed};

/// Figures of a server. Shares and ages are absent where there is nothing to
/// tell of.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct ServerFigures {
    /// `server_version_num`.
    pub version: i32,
    /// When it was started, µs.
    pub started_us: i64,
    /// Whether it follows another.
    pub standby: bool,
    /// Whether we may see what others do.
    pub sees_all: bool,
    /// Connections of clients.
    pub clients: i64,
    /// Of which idle in a transaction.
    pub idle_in_transaction: i64,
    /// Connections that ordinary users may open.
    pub clients_max: i64,
    /// Age of the oldest transaction of a client, seconds.
    pub longest_transaction_s: Option<f64>,
    /// Sessions that wait for a lock.
    pub waiting_for_lock: i64,
    /// How long the first of them has waited, seconds.
    pub longest_lock_wait_s: Option<f64>,
    /// Transactions committed, all databases.
    pub commits: i64,
    /// Transactions rolled back.
    pub rollbacks: i64,
    /// Deadlocks.
    pub deadlocks: i64,
    /// Bytes of temporary files.
    pub temp_bytes: i64,
    /// Share of blocks that were found in memory.
    pub cache_hits: Option<f64>,
    /// Transactions since the oldest was frozen: at two thousand million it stops.
    pub oldest_xid_age: i64,
    /// The same of multixacts.
    pub oldest_mxid_age: i64,
    /// Dead rows of this database.
    pub dead_rows: i64,
    /// Live rows of this database.
    pub live_rows: i64,
    /// Bytes of this database.
    pub database_bytes: i64,
    /// How far behind the standby that is furthest behind is, seconds.
    pub replication_lag_s: Option<f64>,
    /// The same in bytes.
    pub replication_lag_bytes: Option<f64>,
    /// Most bytes that a replication slot keeps from being removed.
    pub slot_bytes: Option<f64>,
}

const FIGURES: &str = "
SELECT /* mpanel-telemetry */
  current_setting('server_version_num')::int AS version,
  (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started_us,
  pg_is_in_recovery() AS standby,
  pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all,
  a.clients, a.idle_in_transaction, a.longest_transaction_s, a.waiting_for_lock, a.longest_lock_wait_s,
  (current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
    - COALESCE(current_setting('reserved_connections', true)::int, 0))::bigint AS clients_max,
  d.*, t.dead_rows, t.live_rows, pg_database_size(current_database()) AS database_bytes,
  CASE WHEN pg_is_in_recovery() THEN
    -- An idle primary sends nothing to replay: that is no lag.
    CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0::float8
         ELSE extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8 END
  ELSE r.lag_s END AS replication_lag_s,
  r.lag_bytes AS replication_lag_bytes, s.slot_bytes
FROM (
  SELECT count(*) FILTER (WHERE backend_type = 'client backend') AS clients,
         count(*) FILTER (WHERE state LIKE 'idle in transaction%') AS idle_in_transaction,
         max(extract(epoch FROM now() - xact_start))
           FILTER (WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())::float8 AS longest_transaction_s,
         count(*) FILTER (WHERE wait_event_type = 'Lock') AS waiting_for_lock,
         max(extract(epoch FROM now() - query_start))
           FILTER (WHERE wait_event_type = 'Lock')::float8 AS longest_lock_wait_s
  FROM pg_stat_activity
) a, (
  SELECT COALESCE(sum(xact_commit), 0)::bigint AS commits, COALESCE(sum(xact_rollback), 0)::bigint AS rollbacks,
         COALESCE(sum(deadlocks), 0)::bigint AS deadlocks, COALESCE(sum(temp_bytes), 0)::bigint AS temp_bytes,
         (sum(blks_hit)::float8 / NULLIF(sum(blks_hit) + sum(blks_read), 0))::float8 AS cache_hits,
         (SELECT max(age(datfrozenxid))::bigint FROM pg_database) AS oldest_xid_age,
         (SELECT max(mxid_age(datminmxid))::bigint FROM pg_database) AS oldest_mxid_age
  FROM pg_stat_database
) d, (
  SELECT COALESCE(sum(n_dead_tup), 0)::bigint AS dead_rows, COALESCE(sum(n_live_tup), 0)::bigint AS live_rows
  FROM pg_stat_user_tables
) t, (
  SELECT max(extract(epoch FROM replay_lag))::float8 AS lag_s,
         max(CASE WHEN NOT pg_is_in_recovery()
                  THEN pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) END)::float8 AS lag_bytes
  FROM pg_stat_replication
) r, (
  SELECT max(CASE WHEN NOT pg_is_in_recovery()
                  THEN pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) END)::float8 AS slot_bytes
  FROM pg_replication_slots
) s";

pub(super) async fn figures(connection: &mut PgConnection) -> Result<ServerFigures, PgStatsError> {
    sqlx::query_as(FIGURES).fetch_one(connection).await.map_err(failed("ask the server about itself"))
}
