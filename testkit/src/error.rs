//! What can go wrong while a test environment is built, said so that the reader knows what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Error of every testkit helper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestkitError {
    /// A program, directory or account that the machine does not have.
    #[error("{what} is missing (looked in {looked}); {remedy}")]
    Missing {
        /// The thing itself.
        what: String,
        /// Where it was looked for.
        looked: String,
        /// What to run to get it.
        remedy: &'static str,
    },
    /// A program is there but could not be started.
    #[error("cannot start {what}: {source}")]
    Spawn {
        /// The program.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file or directory of the test environment.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A child process ended although it should have gone on, or failed at its task.
    #[error("{what} failed: {detail}")]
    Failed {
        /// The program and its task.
        what: String,
        /// Exit status and the end of its log.
        detail: String,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {within:?}; seen: {seen}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The deadline.
        within: Duration,
        /// What was there instead.
        seen: String,
    },
    /// The side-car (real npm bullmq) answered with an error.
    #[error("node {op}: {name}: {message}")]
    Node {
        /// The operation asked for.
        op: String,
        /// JavaScript error class.
        name: String,
        /// JavaScript error message.
        message: String,
    },
    /// An answer of the side-car that does not have the expected form.
    #[error("node {op}: unexpected answer: {source}")]
    Answer {
        /// The operation asked for.
        op: String,
        /// Where the form differs.
        source: serde_json::Error,
    },
    /// Postgres refused a statement of the test environment.
    #[error("postgres, {action}: {source}")]
    Postgres {
        /// What was tried.
        action: &'static str,
        /// The driver's error.
        source: sqlx::Error,
    },
}

impl TestkitError {
    /// A [`TestkitError::Failed`].
    pub fn failed(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), detail: detail.into() }
    }

    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
