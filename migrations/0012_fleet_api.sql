-- Why:   a client of the HTTP service that did not hear its answer asks again with the same
--        Idempotency-Key, and gets that answer instead of a second pod. The row is written in
--        the transaction that does the work, so that one is there exactly when the other is.
-- Locks: none on existing tables.
-- Undo:  DROP TABLE fleet_api_requests;  (requests repeated afterwards are done again)

CREATE TABLE IF NOT EXISTS fleet_api_requests (
  scope text NOT NULL,                            -- whose keys: tenant:<uuid>, or admin
  key text NOT NULL,
  fingerprint text NOT NULL,                      -- hash of method, path and body
  status smallint,                                -- of the answer; NULL only inside the transaction
  answer jsonb,
  location text,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (scope, key));
CREATE INDEX IF NOT EXISTS fleet_api_requests_created ON fleet_api_requests (created_at);
