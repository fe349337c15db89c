-- Why:   the five Phase 3 tables of mPanel (phase3_additive.sql). mPanel may have made
--        them already; then nothing happens here, not even an index is added, because
--        the tables are not ours to change.
-- Locks: none on existing tables.
-- Undo:  DROP TABLE cloud_pod_allocations, cloud_pod_nodes, cloud_pod_metrics,
--        monitoring_service_status, monitoring_slow_queries;
--        only where mPanel did not make them and nothing reads them.

DO $phase3$
BEGIN
  IF to_regclass('cloud_pod_nodes') IS NULL THEN
    CREATE TABLE IF NOT EXISTS cloud_pod_nodes (
      id serial PRIMARY KEY, name text NOT NULL, provider text NOT NULL, api_url text NOT NULL,
      node_name text NOT NULL, status text NOT NULL DEFAULT 'active',
      total_cpu_cores integer NOT NULL, total_memory_mb integer NOT NULL, total_disk_gb integer NOT NULL,
      created_at timestamp NOT NULL DEFAULT now(), updated_at timestamp NOT NULL DEFAULT now());
    CREATE INDEX IF NOT EXISTS idx_cloud_pod_nodes_status ON cloud_pod_nodes (status);
    CREATE INDEX IF NOT EXISTS idx_cloud_pod_nodes_provider ON cloud_pod_nodes (provider);
  END IF;

  IF to_regclass('cloud_pod_allocations') IS NULL THEN
    CREATE TABLE IF NOT EXISTS cloud_pod_allocations (
      id serial PRIMARY KEY, node_id integer NOT NULL REFERENCES cloud_pod_nodes(id) ON DELETE CASCADE,
      used_cpu_cores integer NOT NULL DEFAULT 0, used_memory_mb integer NOT NULL DEFAULT 0,
      used_disk_gb integer NOT NULL DEFAULT 0, updated_at timestamp NOT NULL DEFAULT now());
    CREATE INDEX IF NOT EXISTS idx_cloud_pod_allocations_node_id ON cloud_pod_allocations (node_id);
  END IF;

  IF to_regclass('cloud_pod_metrics') IS NULL THEN
    CREATE TABLE IF NOT EXISTS cloud_pod_metrics (
      id serial PRIMARY KEY, pod_id uuid NOT NULL, cpu_usage numeric(5,2) NOT NULL,
      memory_usage numeric(5,2) NOT NULL, disk_usage numeric(5,2) NOT NULL,
      collected_at timestamp NOT NULL DEFAULT now());
    CREATE INDEX IF NOT EXISTS idx_cloud_pod_metrics_pod_time
      ON cloud_pod_metrics (pod_id, collected_at DESC);
  END IF;

  IF to_regclass('monitoring_service_status') IS NULL THEN
    CREATE TABLE IF NOT EXISTS monitoring_service_status (
      id serial PRIMARY KEY, service_name text NOT NULL, status text NOT NULL, latency_ms integer,
      checked_at timestamp NOT NULL DEFAULT now());
    CREATE INDEX IF NOT EXISTS idx_monitoring_service_status_service_time
      ON monitoring_service_status (service_name, checked_at DESC);
  END IF;

  IF to_regclass('monitoring_slow_queries') IS NULL THEN
    CREATE TABLE IF NOT EXISTS monitoring_slow_queries (
      id serial PRIMARY KEY, query_hash text NOT NULL, sample_query text NOT NULL,
      avg_duration_ms numeric(10,2) NOT NULL, calls bigint NOT NULL,
      last_seen_at timestamp NOT NULL DEFAULT now());
    CREATE INDEX IF NOT EXISTS idx_monitoring_slow_queries_hash ON monitoring_slow_queries (query_hash);
    CREATE INDEX IF NOT EXISTS idx_monitoring_slow_queries_last_seen
      ON monitoring_slow_queries (last_seen_at DESC);
  END IF;
END
$phase3$;
