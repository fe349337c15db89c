-- Why:   ranges of a pool that are not handed out, pools too large for a row an address
--        (IPv6), and how long a released address rests.
-- Locks: ACCESS EXCLUSIVE on fleet_ip_pools for an instant (constant defaults: no rewrite).
-- Undo:  DROP TABLE fleet_ip_exclusions;
--        ALTER TABLE fleet_ip_pools DROP COLUMN rest_s, DROP COLUMN range_last, DROP COLUMN next_ip;
--        only while no pool has a next_ip.

ALTER TABLE fleet_ip_pools
  ADD COLUMN IF NOT EXISTS rest_s integer NOT NULL DEFAULT 86400 CHECK (rest_s >= 0),
  -- Addresses from next_ip to range_last have no row yet; NULL: every address has one.
  ADD COLUMN IF NOT EXISTS next_ip inet,
  ADD COLUMN IF NOT EXISTS range_last inet;

CREATE TABLE IF NOT EXISTS fleet_ip_exclusions (
  pool_id integer NOT NULL REFERENCES fleet_ip_pools(id) ON DELETE CASCADE,
  first_ip inet NOT NULL,
  last_ip inet NOT NULL,
  note text,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pool_id, first_ip),
  CHECK (family(first_ip) = family(last_ip) AND first_ip <= last_ip));
