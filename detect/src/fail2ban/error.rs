//! Why a filter cannot be used.

use std::{io, path::PathBuf};

use crate::pattern::CompileError;

/// Why a filter cannot be used; each names the file or the option to look at.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// No such filter.
    #[error("no filter `{name}`: neither {} nor {} is there", tried[0].display(), tried[1].display())]
    NotFound {
        /// The filter that was asked for.
        name: String,
        /// Where it was looked for.
        tried: [PathBuf; 2],
    },
    /// The name has characters that would lead out of the directory.
    #[error("`{0}` is no name of a filter: only letters, digits, `-`, `_` and `.`")]
    Name(String),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not of the form it should have.
    #[error("{}, line {line}: {what}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// An option refers to what is not there, or to itself.
    #[error("option `{option}`: {what}")]
    Interpolation {
        /// The option.
        option: String,
        /// What is wrong.
        what: String,
    },
    /// The filter has modes, and this is none of them.
    #[error("filter `{filter}` has no mode `{mode}`; it has: {}", known.join(", "))]
    Mode {
        /// The filter.
        filter: String,
        /// The mode that was asked for.
        mode: String,
        /// Those it has.
        known: Vec<String>,
    },
    /// `maxlines` is no number from 1 to 20.
    #[error("maxlines is `{0}`, it must be a number from 1 to 20")]
    MaxLines(String),
    /// Nothing is searched for.
    #[error("filter `{0}` has no failregex")]
    NoFailRegex(String),
    /// An expression names no address, user or connection.
    #[error("failregex `{0}` has neither <HOST> nor <ADDR>, <F-ID> or <F-MLFID>")]
    NoFailureId(String),
    /// An expression is malformed.
    #[error("{option}: {source}")]
    Regex {
        /// The option it stands in.
        option: &'static str,
        /// What is wrong.
        source: CompileError,
    },
}
