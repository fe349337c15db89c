//! A Postgres server looked into: what it says of itself, and the counters of
//! pg_stat_statements. Needs `pg_monitor`, never more.
//!
//! One connection, kept open, so that there is one when no further ones are to
//! be had. It only reads, and no statement of it runs or waits for long.

mod server;
mod statements;

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection,
    postgres::{PgConnectOptions, PgDatabaseError},
};
use tokio::sync::Mutex;

pub use self::{
    server::ServerFigures,
    statements::{Counters, Extension, Missing, Statement, StatementKey, column_sets},
};

/// How our session is bounded.
const SESSION: [(&str, &str); 5] = [
    ("TimeZone", "UTC"),
    ("statement_timeout", "3s"),
    ("lock_timeout", "200ms"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("default_transaction_read_only", "on"),
];
/// Stands in every statement of ours, so that they are not told of.
pub const TAG: &str = "mpanel-telemetry";

/// The server cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum PgStatsError {
    /// It does not let us in, or is away.
    #[error("Postgres does not let us in: {0}")]
    Connect(#[source] sqlx::Error),
    /// A statement failed.
    #[error("Postgres: {what}: {source}")]
    Sql {
        /// What was attempted.
        what: &'static str,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
}

impl PgStatsError {
    fn sqlstate(&self) -> Option<&str> {
        let Self::Sql { source: sqlx::Error::Database(error), .. } = self else { return None };
        error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::code)
    }

    /// Whether the connection may still be used.
    fn is_of_the_statement(&self) -> bool {
        matches!(self, Self::Sql { source: sqlx::Error::Database(_), .. })
            // Shutting down, or ended by an operator.
            && !self.sqlstate().is_some_and(|state| state.starts_with("57P"))
    }
}

fn failed(what: &'static str) -> impl FnOnce(sqlx::Error) -> PgStatsError {
    move |source| PgStatsError::Sql { what, source }
}

/// A look at a server.
#[derive(Debug, Clone, PartialEq)]
pub struct PgLook {
    /// What it says of itself.
    pub server: ServerFigures,
    /// The counters of statements, or why there are none.
    pub counters: Result<Counters, Missing>,
}

/// One server and our connection to it.
#[derive(Debug)]
pub struct PgWatch {
    options: PgConnectOptions,
    connection: Mutex<Option<PgConnection>>,
}

impl PgWatch {
    /// The server of these options. Opens no connection.
    #[must_use]
    pub fn new(options: PgConnectOptions) -> Self {
        let options = options.application_name(TAG).options(SESSION).disable_statement_logging();
        Self { options, connection: Mutex::new(None) }
    }

    /// Looks at the server.
    ///
    /// # Errors
    /// [`PgStatsError`].
    pub async fn look(&self) -> Result<PgLook, PgStatsError> {
        let mut held = self.held().await?;
        let looked = async {
            let connection = held.as_mut().ok_or_else(gone)?;
            let server = server::figures(connection).await?;
            let counters = statements::counters(connection).await?;
            Ok(PgLook { server, counters })
        };
        let looked = looked.await;
        Self::settle(&mut held, &looked).await;
        looked
    }

    /// Texts of statements, with the names of their databases.
    ///
    /// # Errors
    /// [`PgStatsError`].
    pub async fn texts(
        &self,
        extension: &Extension,
        keys: &[StatementKey],
    ) -> Result<Vec<(StatementKey, String, String)>, PgStatsError> {
        let mut held = self.held().await?;
        let texts = match held.as_mut() {
            Some(connection) => statements::texts(connection, extension, keys).await,
            None => Err(gone()),
        };
        Self::settle(&mut held, &texts).await;
        texts
    }

    async fn held(&self) -> Result<tokio::sync::MutexGuard<'_, Option<PgConnection>>, PgStatsError> {
        let mut held = self.connection.lock().await;
        if held.is_none() {
            *held = Some(PgConnection::connect_with(&self.options).await.map_err(PgStatsError::Connect)?);
        }
        Ok(held)
    }

    /// A connection that broke is made anew the next time.
    async fn settle<T>(held: &mut Option<PgConnection>, looked: &Result<T, PgStatsError>) {
        if looked.as_ref().is_err_and(|error| !error.is_of_the_statement())
            && let Some(connection) = held.take()
        {
            // It is of no use any more, however it ends.
            let _ = connection.close_hard().await;
        }
    }
}

fn gone() -> PgStatsError {
    PgStatsError::Connect(sqlx::Error::PoolClosed)
}
