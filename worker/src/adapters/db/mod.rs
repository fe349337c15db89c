//! Postgres. SQL lives here and nowhere else, one file a subject; decisions
//! live in the services, which compose these statements into transactions.
//!
//! mPanel's timestamps have no zone and hold UTC, whatever the session's time
//! zone is: every statement writes `timezone('utc', now())`.

pub mod api;
pub mod books;
pub mod changes;
pub mod dns;
pub mod drift;
pub mod jobs;
pub mod ledger;
pub mod metrics;
pub mod nodes;
pub mod operations;
pub mod pods;
pub mod pool_admin;
pub mod pools;
pub mod queued_rows;
pub mod quota;
pub mod repairs;
pub mod rounds;

use std::time::Duration;

use sqlx::{
    PgPool, Postgres,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// A transaction.
pub type Tx = sqlx::Transaction<'static, Postgres>;

/// A statement failed, or the attempt has lost its right to write.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Postgres refused or did not answer.
    #[error("database: {what}: {source}")]
    Sql {
        /// What was attempted.
        what: &'static str,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// A newer attempt of the same job has started; this one must write nothing more.
    #[error("a newer attempt of job {job_id} in queue {queue} has taken over; this one stops")]
    Fenced {
        /// The queue.
        queue: String,
        /// The job.
        job_id: String,
    },
}

impl DbError {
    /// The SQLSTATE, if Postgres gave one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<String> {
        match self {
            Self::Sql { source: sqlx::Error::Database(error), .. } => {
                error.code().map(|code| code.into_owned())
            }
            _ => None,
        }
    }

    /// Whether the same transaction may simply be run again: serialisation
    /// failure, deadlock, lock timeout.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self.sqlstate().as_deref(), Some("40001" | "40P01" | "55P03"))
    }

    /// The constraint that refused a row.
    #[must_use]
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Sql { source: sqlx::Error::Database(error), .. } => error.constraint(),
            _ => None,
        }
    }
}

/// Names what was attempted when a statement fails.
pub(crate) trait Attempted<T> {
    fn attempting(self, what: &'static str) -> Result<T, DbError>;
}

impl<T> Attempted<T> for Result<T, sqlx::Error> {
    fn attempting(self, what: &'static str) -> Result<T, DbError> {
        self.map_err(|source| DbError::Sql { what, source })
    }
}

/// A pool that opens its connections when they are needed.
#[must_use]
pub fn pool(options: PgConnectOptions, max_connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(Duration::from_secs(10))
        .idle_timeout(Duration::from_secs(300))
        .connect_lazy_with(options)
}

/// Begins a transaction.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn begin(pool: &PgPool) -> Result<Tx, DbError> {
    pool.begin().await.attempting("begin a transaction")
}

/// Commits it.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn commit(tx: Tx) -> Result<(), DbError> {
    tx.commit().await.attempting("commit a transaction")
}

/// Whether the database answers.
///
/// # Errors
/// [`DbError::Sql`].
pub async fn ping(pool: &PgPool) -> Result<(), DbError> {
    sqlx::query("SELECT 1").execute(pool).await.attempting("reach the database").map(|_| ())
}
