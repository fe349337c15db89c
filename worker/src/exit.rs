//! Exit codes, and errors that carry one. Scripts and systemd rely on the
//! numbers (`RestartPreventExitStatus=78`).

use std::fmt;

use crate::{
    adapters::{
        db::DbError,
        proxmox::{Class, PveError, SetupError},
    },
    config::ConfigError,
    migrate,
};

/// How a command ends when it does not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Anything else.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// What was named is not there.
    NotFound = 3,
    /// Something must be done first.
    Precondition = 4,
    /// Postgres, Redis or Proxmox cannot be reached.
    Unavailable = 69,
    /// It may work later.
    Temporary = 75,
    /// Credentials or privileges are missing.
    Permission = 77,
    /// The configuration is wrong.
    Configuration = 78,
    /// Interrupted by the user.
    Interrupted = 130,
}

/// An error with its exit code; the text is for the operator.
#[derive(Debug)]
pub struct Failed {
    /// The code.
    pub exit: Exit,
    /// What happened and what to do.
    pub text: String,
}

impl Failed {
    /// An error with this code.
    #[must_use]
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failed {}

impl From<ConfigError> for Failed {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Configuration, error.to_string())
    }
}

impl From<SetupError> for Failed {
    fn from(error: SetupError) -> Self {
        Self::new(Exit::Configuration, error.to_string())
    }
}

/// The code for an error of Postgres.
fn of_sql(error: &sqlx::Error) -> Exit {
    match error {
        sqlx::Error::Database(error) => match error.code().as_deref() {
            // Wrong password or role, missing privilege.
            Some("28P01" | "28000" | "42501") => Exit::Permission,
            // No such database.
            Some("3D000") => Exit::Configuration,
            // Locks, deadlocks, too many connections, shutting down.
            Some("55P03" | "40P01" | "40001" | "53300" | "57P01" | "57P03") => Exit::Temporary,
            _ => Exit::Failure,
        },
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Tls(_) => Exit::Unavailable,
        _ => Exit::Failure,
    }
}

impl From<DbError> for Failed {
    fn from(error: DbError) -> Self {
        let exit = match &error {
            DbError::Sql { source, .. } => of_sql(source),
            DbError::Fenced { .. } => Exit::Temporary,
        };
        let no_table = matches!(error.sqlstate().as_deref(), Some("42P01"));
        if no_table {
            let text = format!("{error}; run `mpanel-worker migrate` first");
            return Self::new(Exit::Precondition, text);
        }
        let hint = match exit {
            Exit::Permission | Exit::Configuration | Exit::Unavailable => "; check DATABASE_URL",
            _ => "",
        };
        Self::new(exit, format!("{error}{hint}"))
    }
}

impl From<migrate::Error> for Failed {
    fn from(error: migrate::Error) -> Self {
        let exit = match &error {
            migrate::Error::Unreachable(cause) => match of_sql(cause) {
                Exit::Failure => Exit::Unavailable,
                exit => exit,
            },
            migrate::Error::NotMpanel(_) => Exit::Configuration,
            migrate::Error::WrongShape { .. } | migrate::Error::Pending(_) => Exit::Precondition,
            migrate::Error::Locked(_) => Exit::Temporary,
            migrate::Error::Migrate(_) => Exit::Failure,
            migrate::Error::Sql(cause) => of_sql(cause),
        };
        Self::new(exit, error.to_string())
    }
}

impl From<PveError> for Failed {
    fn from(error: PveError) -> Self {
        let exit = match error.class {
            class if class.is_configuration() => Exit::Permission,
            Class::NodeUnreachable | Class::Ambiguous | Class::NoQuorum => Exit::Unavailable,
            _ => Exit::Failure,
        };
        Self::new(exit, error.to_string())
    }
}
