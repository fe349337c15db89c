-- Why:   what the name server was told of a pod, so that a name is written once, follows its
--        pod and goes with it. The row is there before the record and goes after it.
-- Locks: none on existing tables.
-- Undo:  DROP TABLE fleet_dns;  the records stay at the name server.

CREATE TABLE IF NOT EXISTS fleet_dns (
  pod_id uuid PRIMARY KEY,                        -- cloud_pods.id
  zone text NOT NULL,
  name text NOT NULL,                             -- empty: the host name is of another zone
  hostname text NOT NULL,
  v4 text,
  v6 text,
  state text NOT NULL CHECK (state IN ('pending', 'written', 'elsewhere', 'taken')),
  error text,
  retry_at timestamptz,
  updated_at timestamptz NOT NULL DEFAULT now());
