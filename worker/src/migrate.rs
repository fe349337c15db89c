//! Bringing the database up to date: additive, repeatable, one process at a time.
//!
//! Before anything is changed the tables that mPanel must have made are looked
//! at, so that a wrong database is refused with a sentence and left as it was.

mod extras;
mod shapes;

use std::{borrow::Cow, time::Duration};

use sqlx::{
    Connection, FromRow, PgConnection, PgPool, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    postgres::PgConnectOptions,
};
use tokio::time::{Instant, sleep};

pub use self::extras::QUEUED_ROWS_CHANNEL;
use self::shapes::{SHAPES, Shape};

/// Our bookkeeping table; sqlx's default name could be taken by another program.
pub const BOOK: &str = "fleet_migrations";
/// Held while migrating.
const LOCK_KEY: &str = "SELECT pg_try_advisory_lock(hashtextextended('fleet migrations', 0))";
/// How long another process may hold it.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How often a migration that met a busy table is tried again.
const BUSY_TRIES: u32 = 10;

const SOURCES: &[(i64, &str, &str)] = &[
    (1, "phase3 tables", include_str!("../../migrations/0001_phase3_tables.sql")),
    (2, "fleet jobs", include_str!("../../migrations/0002_fleet_jobs.sql")),
    (3, "fleet cloudpods", include_str!("../../migrations/0003_fleet_cloudpods.sql")),
    (4, "fleet views", include_str!("../../migrations/0004_fleet_views.sql")),
    (5, "fleet outbox", include_str!("../../migrations/0005_fleet_outbox.sql")),
    (6, "fleet operations", include_str!("../../migrations/0006_fleet_operations.sql")),
    (7, "fleet node limits", include_str!("../../migrations/0007_fleet_node_limits.sql")),
    (8, "fleet ipam", include_str!("../../migrations/0008_fleet_ipam.sql")),
    (9, "fleet dns", include_str!("../../migrations/0009_fleet_dns.sql")),
    (10, "fleet drift", include_str!("../../migrations/0010_fleet_drift.sql")),
    (11, "fleet metrics", include_str!("../../migrations/0011_fleet_metrics.sql")),
    (12, "fleet api", include_str!("../../migrations/0012_fleet_api.sql")),
];

/// The database could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database does not answer.
    #[error("cannot reach the database of DATABASE_URL: {0}")]
    Unreachable(#[source] sqlx::Error),
    /// mPanel's tables are missing.
    #[error(
        "this is not mPanel's database: {0} is missing. Check DATABASE_URL (and its schema parameter); \
         mPanel's own migrations (npx prisma migrate deploy) make these tables. Nothing was changed"
    )]
    NotMpanel(String),
    /// A table has another shape than mPanel's live workers use.
    #[error(
        "table {table} has no column {columns}: it is the variant that no worker of mPanel uses \
         (for cloud_pod_events and cloud_pod_backups the one of migrations/20251128_cloud_pods.sql). \
         Let Prisma's migration replace it, then run this again. Nothing was changed"
    )]
    WrongShape {
        /// The table.
        table: &'static str,
        /// The columns it should have.
        columns: String,
    },
    /// Another process holds the lock for too long.
    #[error("another process has been migrating this database for over {0:?}; try again when it is done")]
    Locked(Duration),
    /// The database is older or newer than this program.
    #[error("{0}")]
    Pending(String),
    /// A migration failed.
    #[error("migration failed, and what it had begun was rolled back: {0}")]
    Migrate(#[source] MigrateError),
    /// A statement failed.
    #[error("database: {0}")]
    Sql(#[from] sqlx::Error),
}

/// One migration and whether it was applied.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Status {
    /// Its number.
    pub version: i64,
    /// What it is about.
    pub description: String,
    /// When it was applied, UTC.
    pub applied_at: Option<String>,
}

fn migrator() -> Migrator {
    let migrations = SOURCES
        .iter()
        .map(|(version, description, sql)| {
            Migration::new(
                *version,
                Cow::Borrowed(*description),
                MigrationType::Simple,
                sql.into_sql_str(),
                false,
            )
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.dangerous_set_table_name(BOOK);
    // A newer program may have been here: additive migrations do no harm to us.
    migrator.set_ignore_missing(true);
    // Our own lock below is tried and not waited for without end.
    migrator.set_locking(false);
    migrator
}

/// Applies what is missing. Answers the numbers that were applied.
///
/// # Errors
/// [`Error`]; nothing is left half done.
pub async fn up(options: &PgConnectOptions) -> Result<Vec<i64>, Error> {
    let mut connection = PgConnection::connect_with(options).await.map_err(Error::Unreachable)?;
    lock(&mut connection).await?;
    // The lock ends with the connection, whatever happens.
    let result = apply(&mut connection).await;
    let _ = connection.close().await;
    result
}

async fn lock(connection: &mut PgConnection) -> Result<(), Error> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        if sqlx::query_scalar::<_, bool>(LOCK_KEY).fetch_one(&mut *connection).await? {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(Error::Locked(LOCK_PATIENCE));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn apply(connection: &mut PgConnection) -> Result<Vec<i64>, Error> {
    check_shapes(connection).await?;
    let before = applied(connection).await?;
    // A migration that waits for a busy table would make everybody wait behind it.
    sqlx::query("SET lock_timeout = '2s'").execute(&mut *connection).await?;
    let migrator = migrator();
    let mut tries = 0;
    loop {
        match migrator.run(&mut *connection).await {
            Ok(()) => break,
            Err(error) if tries < BUSY_TRIES && is_busy(&error) => {
                tries += 1;
                tracing::warn!(tries, "a table is busy; trying the migration again");
                sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(Error::Migrate(error)),
        }
    }
    let after = applied(connection).await?;
    extras::make(connection).await;
    Ok(after.into_iter().filter(|version| !before.contains(version)).collect())
}

fn is_busy(error: &MigrateError) -> bool {
    let (MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) = error else {
        return false;
    };
    matches!(cause, sqlx::Error::Database(error) if error.code().as_deref() == Some("55P03"))
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('fleet_migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_scalar("SELECT version FROM fleet_migrations WHERE success ORDER BY version")
        .fetch_all(connection)
        .await?)
}

/// Refuses a database whose tables are not what we rely on.
async fn check_shapes(connection: &mut PgConnection) -> Result<(), Error> {
    let mut missing = Vec::new();
    for Shape { table, columns, required } in SHAPES {
        let present: Option<Vec<String>> = sqlx::query_scalar(
            "SELECT array_agg(attname::text) FROM pg_attribute
             WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
        )
        .bind(table)
        .fetch_one(&mut *connection)
        .await?;
        match present {
            None if *required => missing.push(*table),
            None => {}
            Some(present) => {
                let lacking: Vec<&str> = columns
                    .iter()
                    .copied()
                    .filter(|column| !present.iter().any(|known| known == column))
                    .collect();
                if !lacking.is_empty() {
                    return Err(Error::WrongShape { table, columns: lacking.join(", ") });
                }
            }
        }
    }
    match missing.as_slice() {
        [] => Ok(()),
        [one] => Err(Error::NotMpanel(format!("table {one}"))),
        many => Err(Error::NotMpanel(format!("tables {}", many.join(", ")))),
    }
}

/// What is applied and what is not.
///
/// # Errors
/// [`Error::Unreachable`] or [`Error::Sql`].
pub async fn status(options: &PgConnectOptions) -> Result<Vec<Status>, Error> {
    let mut connection = PgConnection::connect_with(options).await.map_err(Error::Unreachable)?;
    let exists = !applied(&mut connection).await?.is_empty();
    let mut known: Vec<Status> = SOURCES
        .iter()
        .map(|(version, description, _)| Status {
            version: *version,
            description: (*description).to_owned(),
            applied_at: None,
        })
        .collect();
    if exists {
        let rows: Vec<Status> = sqlx::query_as(
            "SELECT version, description,
                    to_char(timezone('utc', installed_on), 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS applied_at
             FROM fleet_migrations WHERE success ORDER BY version",
        )
        .fetch_all(&mut connection)
        .await?;
        for row in rows {
            match known.iter_mut().find(|known| known.version == row.version) {
                Some(known) => known.applied_at = row.applied_at,
                None => known.push(row),
            }
        }
    }
    let _ = connection.close().await;
    Ok(known)
}

/// Before work begins: the tables are mPanel's, and every migration was applied.
///
/// # Errors
/// [`Error`]; [`Error::Sql`] and [`Error::Unreachable`] may pass, the others need the operator.
pub async fn check_current(pool: &PgPool) -> Result<(), Error> {
    let mut connection = pool.acquire().await.map_err(Error::Unreachable)?;
    check_shapes(&mut connection).await?;
    let applied = applied(&mut connection).await?;
    let missing: Vec<String> = SOURCES
        .iter()
        .filter(|(version, _, _)| !applied.contains(version))
        .map(|(version, description, _)| format!("{version} ({description})"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Pending(format!(
        "the database lacks migration {}; run `mpanel-worker migrate` first",
        missing.join(", ")
    )))
}
