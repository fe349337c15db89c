-- Why:   the Phase 3 document calls a working pod `running` and a finished job `completed`;
--        mPanel's live code stores `active` and `success`, and so do we. These read-only
--        views show the document's words with all columns of the tables.
-- Locks: ACCESS SHARE on cloud_pods and cloud_pod_jobs for an instant.
-- Undo:  DROP VIEW fleet_cloud_pods, fleet_cloud_pod_jobs;  nothing depends on them. Do so
--        too before a Prisma migration that changes the type of a column they show.

DO $views$
DECLARE
  columns text;
BEGIN
  SELECT string_agg(
           CASE WHEN attname = 'status'
                THEN 'CASE status WHEN ''active'' THEN ''running'' ELSE status END AS status'
                ELSE quote_ident(attname) END, ', ' ORDER BY attnum)
    INTO columns
    FROM pg_attribute
   WHERE attrelid = 'cloud_pods'::regclass AND attnum > 0 AND NOT attisdropped;
  EXECUTE 'CREATE OR REPLACE VIEW fleet_cloud_pods AS SELECT ' || columns || ' FROM cloud_pods';

  SELECT string_agg(
           CASE WHEN attname = 'status'
                THEN 'CASE status WHEN ''success'' THEN ''completed'' ELSE status END AS status'
                ELSE quote_ident(attname) END, ', ' ORDER BY attnum)
    INTO columns
    FROM pg_attribute
   WHERE attrelid = 'cloud_pod_jobs'::regclass AND attnum > 0 AND NOT attisdropped;
  EXECUTE 'CREATE OR REPLACE VIEW fleet_cloud_pod_jobs AS SELECT ' || columns || ' FROM cloud_pod_jobs';
END
$views$;
