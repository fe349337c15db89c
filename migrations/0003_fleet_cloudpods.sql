-- Why:   where pods are and what they hold. mPanel's cloud_pods has no node, its nodes no
--        region, its allocations no pod, and there is no table of addresses at all.
--        These tables are the truth; cloud_pod_allocations becomes a projection of them.
--        No foreign key points at an mPanel table: it would be a constraint on theirs.
-- Locks: none on existing tables.
-- Undo:  DROP TABLE fleet_ips, fleet_ip_pools, fleet_vmids, fleet_reservations, fleet_pods,
--        fleet_node_ext, fleet_pve_clusters;  then set cloud_pod_allocations by hand.

CREATE TABLE IF NOT EXISTS fleet_pve_clusters (
  id serial PRIMARY KEY,
  name text NOT NULL UNIQUE,
  region text,                                    -- NULL: the configured default region
  vmid_lower integer NOT NULL DEFAULT 100 CHECK (vmid_lower >= 100),
  vmid_upper integer NOT NULL DEFAULT 999999999 CHECK (vmid_upper <= 999999999),
  created_at timestamptz NOT NULL DEFAULT now(),
  CHECK (vmid_lower <= vmid_upper));

-- Nodes that nobody assigned to a cluster are in this one.
INSERT INTO fleet_pve_clusters (id, name) VALUES (1, 'default') ON CONFLICT DO NOTHING;
SELECT setval(pg_get_serial_sequence('fleet_pve_clusters', 'id'),
              (SELECT max(id) FROM fleet_pve_clusters));

CREATE TABLE IF NOT EXISTS fleet_node_ext (
  node_id integer PRIMARY KEY,                    -- cloud_pod_nodes.id
  cluster_id integer NOT NULL DEFAULT 1 REFERENCES fleet_pve_clusters(id),
  region text,                                    -- NULL: the cluster's
  cpu_ratio double precision NOT NULL DEFAULT 4.0 CHECK (cpu_ratio > 0),
  mem_ratio double precision NOT NULL DEFAULT 1.0 CHECK (mem_ratio > 0),
  disk_ratio double precision NOT NULL DEFAULT 1.0 CHECK (disk_ratio > 0),
  -- Used by guests that are not ours: what cloud_pod_allocations said before our first
  -- reservation on the node (NULL until then).
  cpu_base integer,
  mem_base_mb integer,
  disk_base_gb integer,
  drain boolean NOT NULL DEFAULT false,
  updated_at timestamptz NOT NULL DEFAULT now());

-- One row a generation of a pod. A new generation is made only when the guest of the old
-- one had to be quarantined.
CREATE TABLE IF NOT EXISTS fleet_pods (
  pod_id uuid NOT NULL,                           -- cloud_pods.id
  generation integer NOT NULL,
  tenant_id uuid NOT NULL,
  cluster_id integer NOT NULL REFERENCES fleet_pve_clusters(id),
  node_id integer NOT NULL,
  vmid integer NOT NULL,
  kind text NOT NULL CHECK (kind IN ('lxc', 'vm')),
  phase text NOT NULL CHECK (phase IN
    ('reserved', 'creating', 'settling', 'starting', 'verifying', 'active', 'quarantined', 'released')),
  spec jsonb NOT NULL,
  queue text NOT NULL,                            -- the job that made it
  job_id text NOT NULL,
  fence bigint NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pod_id, generation));
CREATE UNIQUE INDEX IF NOT EXISTS fleet_pods_one_live_generation
  ON fleet_pods (pod_id) WHERE phase NOT IN ('quarantined', 'released');
CREATE UNIQUE INDEX IF NOT EXISTS fleet_pods_vmid_once
  ON fleet_pods (cluster_id, vmid) WHERE phase <> 'released';
CREATE INDEX IF NOT EXISTS fleet_pods_job ON fleet_pods (queue, job_id);

CREATE TABLE IF NOT EXISTS fleet_reservations (
  pod_id uuid NOT NULL,
  generation integer NOT NULL,
  node_id integer NOT NULL,
  cpu_cores integer NOT NULL CHECK (cpu_cores >= 0),
  mem_mb integer NOT NULL CHECK (mem_mb >= 0),
  disk_gb integer NOT NULL CHECK (disk_gb >= 0),
  state text NOT NULL CHECK (state IN ('held', 'committed', 'quarantined', 'released')),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pod_id, generation),
  FOREIGN KEY (pod_id, generation) REFERENCES fleet_pods (pod_id, generation));
CREATE INDEX IF NOT EXISTS fleet_reservations_node
  ON fleet_reservations (node_id) WHERE state <> 'released';

CREATE TABLE IF NOT EXISTS fleet_vmids (
  cluster_id integer NOT NULL REFERENCES fleet_pve_clusters(id),
  vmid integer NOT NULL,
  state text NOT NULL CHECK (state IN ('held', 'used', 'cooldown', 'foreign', 'quarantined')),
  pod_id uuid,
  generation integer,
  cooldown_until timestamptz,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (cluster_id, vmid));

-- Ranges have GiST operators in core, so the overlap rule needs no extension.
CREATE TABLE IF NOT EXISTS fleet_ip_pools (
  id serial PRIMARY KEY,
  cluster_id integer NOT NULL REFERENCES fleet_pve_clusters(id),
  cidr cidr NOT NULL,
  gateway inet,
  bridge text,                                    -- NULL: the pod's bridge
  vlan integer CHECK (vlan BETWEEN 1 AND 4094),
  created_at timestamptz NOT NULL DEFAULT now(),
  CHECK (gateway IS NULL OR gateway << cidr),
  CONSTRAINT fleet_ip_pools_no_overlap EXCLUDE USING gist (
    int4range(cluster_id, cluster_id, '[]') WITH &&,
    int4range(COALESCE(vlan, 0), COALESCE(vlan, 0), '[]') WITH &&,
    cidr inet_ops WITH &&));

CREATE TABLE IF NOT EXISTS fleet_ips (
  pool_id integer NOT NULL REFERENCES fleet_ip_pools(id) ON DELETE CASCADE,
  ip inet NOT NULL,
  state text NOT NULL DEFAULT 'free' CHECK (state IN ('free', 'held', 'used', 'cooldown', 'quarantined')),
  pod_id uuid,
  generation integer,
  cooldown_until timestamptz,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pool_id, ip));
CREATE INDEX IF NOT EXISTS fleet_ips_pod ON fleet_ips (pod_id) WHERE pod_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS fleet_ips_takeable ON fleet_ips (pool_id, ip) WHERE state IN ('free', 'cooldown');
