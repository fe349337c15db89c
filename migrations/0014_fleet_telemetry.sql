-- Why:   what telemetry must remember beside mPanel's two monitoring tables: which ticks were
--        written (so that each is written once, by however many workers), the state behind a
--        confirmed status, the latest figures, and what slow queries are counted from.
-- Locks: none on existing tables.
-- Undo:  DROP TABLE fleet_telemetry_collections, fleet_telemetry_services, fleet_telemetry_samples,
--        fleet_telemetry_baselines, fleet_telemetry_query_deltas, fleet_telemetry_status_hourly,
--        fleet_telemetry_upkeep, fleet_queue_samples;  the rows of monitoring_* stay.

-- One row a tick, written in the transaction of its rows: a second writer finds it and writes nothing.
CREATE TABLE IF NOT EXISTS fleet_telemetry_collections (
  collector text NOT NULL,                        -- health, pg, redis, queues, pods
  tick_at timestamptz NOT NULL,                   -- when it was due, by the clock of Redis
  outcome text NOT NULL CHECK (outcome IN ('written', 'skipped')),
  took_ms integer,
  problem text,                                   -- what the collector could not do
  written_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (collector, tick_at));
CREATE INDEX IF NOT EXISTS fleet_telemetry_collections_age ON fleet_telemetry_collections (tick_at);

-- What stands behind the newest row of a service in monitoring_service_status.
CREATE TABLE IF NOT EXISTS fleet_telemetry_services (
  service_name text PRIMARY KEY,
  status text NOT NULL CHECK (status IN ('up', 'degraded', 'down')),   -- confirmed
  since timestamptz NOT NULL,                     -- tick of the last change
  failures integer NOT NULL,                      -- in a row
  successes integer NOT NULL,                     -- in a row
  recent text NOT NULL,                           -- last results, oldest first: u, g (degraded), d
  why text,                                       -- of the newest result that was not good
  latency_ms integer,
  tick_at timestamptz NOT NULL,
  row_at timestamptz NOT NULL);                   -- tick of the newest row

-- The newest value of every figure and the one before it, for rates, /metrics and alert rules.
CREATE TABLE IF NOT EXISTS fleet_telemetry_samples (
  metric text NOT NULL,
  subject text NOT NULL,                          -- a service, queue, database, …; empty: there is but one
  value double precision NOT NULL,
  tick_at timestamptz NOT NULL,
  before double precision,
  before_at timestamptz,
  PRIMARY KEY (metric, subject));
CREATE INDEX IF NOT EXISTS fleet_telemetry_samples_age ON fleet_telemetry_samples (tick_at);

-- Counters as they stood at the last tick, where a tick reports differences.
CREATE TABLE IF NOT EXISTS fleet_telemetry_baselines (
  name text PRIMARY KEY,
  tick_at timestamptz NOT NULL,
  data text NOT NULL);                            -- JSON

-- Calls and time of slow statements, a row a tick; summed over a window into monitoring_slow_queries.
CREATE TABLE IF NOT EXISTS fleet_telemetry_query_deltas (
  query_hash text NOT NULL,
  tick_at timestamptz NOT NULL,
  calls bigint NOT NULL,
  time_us bigint NOT NULL,
  PRIMARY KEY (query_hash, tick_at));
CREATE INDEX IF NOT EXISTS fleet_telemetry_query_deltas_age ON fleet_telemetry_query_deltas (tick_at);

-- Status rows that were too old to be kept, as hours.
CREATE TABLE IF NOT EXISTS fleet_telemetry_status_hourly (
  service_name text NOT NULL,
  hour timestamptz NOT NULL,
  up integer NOT NULL,
  degraded integer NOT NULL,
  down integer NOT NULL,
  latency_count integer NOT NULL,
  latency_sum_ms bigint NOT NULL,
  latency_max_ms integer,
  PRIMARY KEY (service_name, hour));
CREATE INDEX IF NOT EXISTS fleet_telemetry_status_hourly_age ON fleet_telemetry_status_hourly (hour);

CREATE TABLE IF NOT EXISTS fleet_telemetry_upkeep (
  what text PRIMARY KEY,
  done_at timestamptz NOT NULL);

-- What the panel's queue figures come from.
CREATE TABLE IF NOT EXISTS fleet_queue_samples (
  queue text NOT NULL,
  at timestamptz NOT NULL,
  waiting bigint NOT NULL,                        -- waiting, paused, prioritized and delayed
  active bigint NOT NULL,
  failed bigint NOT NULL,                         -- failed and kept
  completed_total bigint NOT NULL,                -- since the first sample; grows
  PRIMARY KEY (queue, at));
CREATE INDEX IF NOT EXISTS fleet_queue_samples_age ON fleet_queue_samples (at);
