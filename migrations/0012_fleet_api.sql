-- Why:   a client of our HTTP service that repeats a request under the same Idempotency-Key
--        gets the answer of the first one, and nothing happens twice. The row is written in
--        the transaction of what it answers for.
-- Locks: none on existing tables.
-- Undo:  DROP TABLE fleet_api_answers;

CREATE TABLE IF NOT EXISTS fleet_api_answers (
  scope text NOT NULL,                            -- whose key it is: tenant:<uuid>, or admin
  key text NOT NULL,
  request_hash text NOT NULL,                     -- of method, path and body
  status smallint NOT NULL,
  answer jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (scope, key));
CREATE INDEX IF NOT EXISTS fleet_api_answers_age ON fleet_api_answers (created_at);
