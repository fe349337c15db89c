-- Why:   jobs about a pod that exists. Two of them never work on one pod at once, whatever
--        process they are in; what one of them decided at its start (the status to go back to,
--        the name of its snapshot) must be the same after a crash; and a pod that its owner has
--        stopped is not ill.
-- Locks: none on existing tables.
-- Undo:  DROP TABLE fleet_operations, fleet_pod_leases, fleet_pod_power;  (no job may be running)

-- One row a job, written in the transaction that begins its work.
CREATE TABLE IF NOT EXISTS fleet_operations (
  queue text NOT NULL,
  job_id text NOT NULL,
  pod_id uuid NOT NULL,                           -- cloud_pods.id
  kind text NOT NULL,                             -- DESTROY, BACKUP, SCALE, ACTION
  prior_status text NOT NULL,                     -- what cloud_pods.status was
  prior_cores integer NOT NULL,
  prior_memory_mb integer NOT NULL,
  began_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (queue, job_id));

-- Who works on a pod. A holder that died comes back for its lease, or loses it by its end.
CREATE TABLE IF NOT EXISTS fleet_pod_leases (
  pod_id uuid PRIMARY KEY,
  queue text NOT NULL,
  job_id text NOT NULL,
  expires_at timestamptz NOT NULL);

-- What a pod's owner wants of its power; no row: running.
CREATE TABLE IF NOT EXISTS fleet_pod_power (
  pod_id uuid PRIMARY KEY,
  wanted text NOT NULL CHECK (wanted IN ('running', 'stopped', 'suspended')),
  updated_at timestamptz NOT NULL DEFAULT now());
