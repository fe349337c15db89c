-- Why:   what a node keeps for itself, so that it is not promised to pods.
-- Locks: ACCESS EXCLUSIVE on fleet_node_ext for an instant (constant defaults: no rewrite).
-- Undo:  ALTER TABLE fleet_node_ext DROP COLUMN cpu_reserved, DROP COLUMN mem_reserved_mb,
--        DROP COLUMN disk_reserved_gb;

ALTER TABLE fleet_node_ext
  ADD COLUMN IF NOT EXISTS cpu_reserved double precision NOT NULL DEFAULT 0 CHECK (cpu_reserved >= 0),
  ADD COLUMN IF NOT EXISTS mem_reserved_mb integer NOT NULL DEFAULT 0 CHECK (mem_reserved_mb >= 0),
  ADD COLUMN IF NOT EXISTS disk_reserved_gb integer NOT NULL DEFAULT 0 CHECK (disk_reserved_gb >= 0);
