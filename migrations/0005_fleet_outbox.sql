-- Why:   a job that must be enqueued exactly when a transaction commits. The row is written
--        in that transaction; relays put it into Redis afterwards, at least once, under the
--        job id that stands in the row, so that a second time is a duplicate.
-- Locks: none on existing tables.
-- Undo:  DROP TABLE fleet_outbox;  (rows in state 'pending' are jobs that nobody has yet)

CREATE TABLE IF NOT EXISTS fleet_outbox (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  queue text NOT NULL,
  job_id text NOT NULL,
  name text NOT NULL,
  data text NOT NULL,                             -- JSON text, as it is stored in Redis
  options text NOT NULL,                          -- JSON text under BullMQ's stored names
  -- When the job was created: a delay counts from here, however late the relay is.
  timestamp_ms bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
  run_at_ms bigint,                               -- instead of a delay
  state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'parked')),
  tries integer NOT NULL DEFAULT 0,               -- failures of this row by itself, not outages
  not_before timestamptz NOT NULL DEFAULT '-infinity',
  reason text,                                    -- why it is parked, or was put off
  created_at timestamptz NOT NULL DEFAULT now(),
  settled_at timestamptz,                         -- when it was sent or parked
  UNIQUE (queue, job_id));
CREATE INDEX IF NOT EXISTS fleet_outbox_pending ON fleet_outbox (id) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS fleet_outbox_sent ON fleet_outbox (settled_at) WHERE state = 'sent';
