-- Why:   what the reconciler finds where books and Proxmox differ must outlive the process that
--        found it: a finding counts only when it is seen again later, by whichever process then
--        leads. fleet_rounds is what makes one process lead: who has a round, until when.
-- Locks: ACCESS EXCLUSIVE on fleet_pods for an instant (a column without default: no rewrite).
-- Undo:  DROP TABLE fleet_drift, fleet_rounds;  ALTER TABLE fleet_pods DROP COLUMN lost_at;

-- One row a duty that one process at a time does for all.
CREATE TABLE IF NOT EXISTS fleet_rounds (
  name text PRIMARY KEY,
  holder uuid NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  until timestamptz NOT NULL,                     -- a holder that died loses the round then
  finished_at timestamptz,                        -- NULL: under way
  report jsonb,                                   -- what the last finished round did
  error text);                                    -- why the last one failed; NULL: it did not

CREATE TABLE IF NOT EXISTS fleet_drift (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind text NOT NULL,
  subject text NOT NULL,                          -- what it is about: a pod, a node, cluster/vmid
  scope text NOT NULL,                            -- which part of the world must be seen to close it
  pod_id uuid,                                    -- cloud_pods.id, where it is about a pod
  state text NOT NULL CHECK (state IN ('suspected', 'open', 'repaired', 'gone')),
  what text NOT NULL,                             -- one sentence
  advice text NOT NULL,                           -- what the operator should do; empty: nothing
  data jsonb NOT NULL DEFAULT '{}',
  action text,                                    -- what the reconciler did about it
  sightings integer NOT NULL DEFAULT 1,
  first_seen_at timestamptz NOT NULL DEFAULT now(),
  last_seen_at timestamptz NOT NULL DEFAULT now(),
  opened_at timestamptz,                          -- when it was believed
  closed_at timestamptz);
CREATE UNIQUE INDEX IF NOT EXISTS fleet_drift_one_each
  ON fleet_drift (kind, subject) WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS fleet_drift_closed ON fleet_drift (closed_at) WHERE closed_at IS NOT NULL;

-- When a pod's guest was found to be gone. Everything it holds stays reserved; the guest is
-- never made again by itself, since its data would be missing.
ALTER TABLE fleet_pods ADD COLUMN IF NOT EXISTS lost_at timestamptz;
