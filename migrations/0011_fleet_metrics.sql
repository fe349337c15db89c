-- Why:   figures of pods are written once a tick by any number of workers; health changes only
--        after several ticks say the same; and thinning out old figures goes on where it stopped.
--        mPanel's cloud_pod_metrics itself stays as it is.
-- Locks: none on existing tables.
-- Undo:  DROP TABLE fleet_telemetry_ticks, fleet_pod_health, fleet_metric_passes;

-- A tick that was written. The primary key is what makes it happen once.
CREATE TABLE IF NOT EXISTS fleet_telemetry_ticks (
  kind text NOT NULL,                             -- pods, ...
  tick_at timestamptz NOT NULL,
  rows integer NOT NULL DEFAULT 0,
  written_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (kind, tick_at));

-- What of a pod's use is believed, and what the last ticks said.
CREATE TABLE IF NOT EXISTS fleet_pod_health (
  pod_id uuid PRIMARY KEY,                        -- cloud_pods.id
  level text NOT NULL CHECK (level IN ('ok', 'warning', 'critical')),
  state jsonb NOT NULL,
  tick_at timestamptz NOT NULL,
  changed_at timestamptz NOT NULL DEFAULT now());

-- How far old figures are thinned out. Times without zone are UTC, as in mPanel's table.
CREATE TABLE IF NOT EXISTS fleet_metric_passes (
  name text PRIMARY KEY,
  five_upto timestamp,                            -- five-minute averages before this
  hour_upto timestamp,                            -- hourly averages before this
  five_to timestamp,                              -- the pass under way goes so far; NULL: none is
  hour_to timestamp,
  cursor uuid,                                    -- pods up to this one are done in it
  updated_at timestamptz NOT NULL DEFAULT now());
