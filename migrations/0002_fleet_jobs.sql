-- Why:   what the fleet must remember about jobs, whatever their service: the fence that
--        orders attempts, the effect that happens once, the steps a crash may interrupt.
--        Redis may lose a job or run it twice; these tables are what makes that harmless.
-- Locks: none on existing tables.
-- Undo:  DROP TABLE fleet_job_steps, fleet_effect, fleet_job_fence;  (no job may be running)

-- One row a job. The fence grows with every start of a handler; every transaction of an
-- attempt locks this row first and gives up unless the fence is still its own.
CREATE TABLE IF NOT EXISTS fleet_job_fence (
  queue text NOT NULL,
  job_id text NOT NULL,
  fence bigint NOT NULL,
  attempt integer NOT NULL,      -- which start took the fence (BullMQ's ats)
  attempt_id text NOT NULL,      -- hash of its lock token: tells one start from another
  own_row_id uuid,               -- the cloud_pod_jobs row that we inserted, where mPanel had none yet
  outcome text CHECK (outcome IN ('success', 'failed')),
  outcome_json jsonb,            -- result of a success
  outcome_error text,            -- reason of a failure
  pod_id uuid,                   -- the pod that the job is about, once known
  started_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  PRIMARY KEY (queue, job_id));

-- An effect that was committed; the primary key is what makes it happen once.
CREATE TABLE IF NOT EXISTS fleet_effect (
  queue text NOT NULL,
  job_id text NOT NULL,
  step text NOT NULL,
  result jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (queue, job_id, step));

-- One row a step and generation. `sent` is written before the call leaves, the UPID
-- before the task is first polled.
CREATE TABLE IF NOT EXISTS fleet_job_steps (
  queue text NOT NULL,
  job_id text NOT NULL,
  generation integer NOT NULL,
  step text NOT NULL,
  state text NOT NULL CHECK (state IN ('planned', 'sent', 'observed', 'done', 'failed')),
  sends integer NOT NULL DEFAULT 0,
  upid text,
  request_hash text,
  fence bigint NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  result jsonb,
  PRIMARY KEY (queue, job_id, generation, step));
