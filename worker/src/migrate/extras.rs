//! What helps and may be absent: an index and a trigger on mPanel's own tables,
//! made only where the role may. Nothing depends on them.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};

/// The channel of NOTIFY on which a row that becomes `queued` is told of.
pub const QUEUED_ROWS_CHANNEL: &str = "fleet_cloud_pod_jobs";

/// An extra and its statements; each runs by itself.
struct Extra {
    what: &'static str,
    without: &'static str,
    /// Answers whether it is there, and whole.
    exists: &'static str,
    statements: &'static [&'static str],
    /// What a broken attempt leaves.
    undo: &'static str,
}

const EXTRAS: &[Extra] = &[
    Extra {
        what: "an index on cloud_pod_jobs (bull_job_id)",
        without: "job rows are found by reading the table",
        exists: "SELECT EXISTS (SELECT 1 FROM pg_index WHERE indisvalid
                   AND indexrelid = to_regclass('fleet_cloud_pod_jobs_bull'))",
        statements: &["CREATE INDEX CONCURRENTLY fleet_cloud_pod_jobs_bull ON cloud_pod_jobs (bull_job_id)"],
        undo: "DROP INDEX IF EXISTS fleet_cloud_pod_jobs_bull",
    },
    Extra {
        what: "a trigger on cloud_pod_jobs that tells of queued rows",
        without: "they are looked for every two seconds",
        exists: "SELECT EXISTS (SELECT 1 FROM pg_trigger WHERE tgname = 'fleet_queued_row'
                   AND tgrelid = to_regclass('cloud_pod_jobs'))",
        statements: &[
            "CREATE OR REPLACE FUNCTION fleet_tell_of_queued_row() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_notify('fleet_cloud_pod_jobs', ''); RETURN NULL; END $$",
            "CREATE TRIGGER fleet_queued_row AFTER INSERT OR UPDATE OF status ON cloud_pod_jobs
             FOR EACH ROW WHEN (NEW.status = 'queued') EXECUTE FUNCTION fleet_tell_of_queued_row()",
        ],
        undo: "DROP TRIGGER IF EXISTS fleet_queued_row ON cloud_pod_jobs",
    },
];

/// Makes what is missing. What cannot be made is told of and left.
pub(super) async fn make(connection: &mut PgConnection) {
    for extra in EXTRAS {
        match one(connection, extra).await {
            Ok(()) => {}
            Err(error) if is_forbidden(&error) => {
                tracing::info!("{} is not made, since this role may not: {}", extra.what, extra.without);
            }
            Err(error) => {
                tracing::warn!(%error, "{} is not made: {}; the next `migrate` tries again", extra.what, extra.without);
            }
        }
    }
}

async fn one(connection: &mut PgConnection, extra: &Extra) -> sqlx::Result<()> {
    if sqlx::query_scalar::<_, bool>(extra.exists).fetch_one(&mut *connection).await? {
        return Ok(());
    }
    // An index that is made beside others' work waits for their transactions.
    let patience = Duration::from_secs(30).as_millis();
    let patience = sqlx::AssertSqlSafe(format!("SET lock_timeout = {patience}"));
    sqlx::query(patience).execute(&mut *connection).await?;
    let mut made = sqlx::query(extra.undo).execute(&mut *connection).await.map(drop);
    for statement in extra.statements {
        if made.is_ok() {
            made = sqlx::query(*statement).execute(&mut *connection).await.map(drop);
        }
    }
    if made.is_err() {
        // Only what this attempt has begun; a role that may not make it may not drop it either.
        let _ = sqlx::query(extra.undo).execute(&mut *connection).await;
    }
    connection.ping().await?;
    made
}

fn is_forbidden(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some("42501"))
}
