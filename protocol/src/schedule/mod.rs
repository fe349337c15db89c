//! Schedules: job schedulers, and the repeatables that 5.x's `add` with `repeat`
//! leaves (mPanel's health sweep).
//!
//! Pure: when a schedule runs next and what its next job carries. The scripts in
//! [`crate::calls::schedule`] write it. Slots of `every` are computed inside the
//! script, against the slot stored there; patterns here, since Lua knows no zones.

mod cron;
mod pattern;
mod plan;
mod repeat;
mod stored;
mod wall;
mod zone;

use std::fmt;

pub use cron::{Bounds, Cron};
pub(crate) use plan::legacy_ids_of_key;
pub use plan::{
    Continuation, FirstRun, LegacyRun, LegacySuccessor, NextRun, Successor, legacy_removal_keys,
    may_be_scheduled, plan_continuation, plan_legacy, plan_upsert,
};
pub use repeat::{Every, Repeat, Rhythm};
pub use stored::{Repeatable, Scheduler};
pub use zone::Zone;

use crate::ids::NameError;

/// The id of a job scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SchedulerId(String);

impl SchedulerId {
    /// Checks and takes an id: any text but the empty one.
    ///
    /// # Errors
    /// [`NameError::Empty`].
    pub fn new(id: impl Into<String>) -> Result<Self, NameError> {
        let id = id.into();
        if id.is_empty() {
            return Err(NameError::Empty { what: "scheduler id" });
        }
        Ok(Self(id))
    }

    /// Takes an id that was read from Redis; nothing is checked.
    pub fn stored(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SchedulerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a schedule cannot be. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Both rhythms are given.
    #[error("a schedule has either `every` or `pattern`, not both")]
    TwoRhythms,
    /// No rhythm is given.
    #[error("a schedule needs `every` (from 1 ms) or `pattern`")]
    NoRhythm,
    /// `every` is no whole number of milliseconds from 1.
    #[error("`every` is {0}; it must be a whole number of milliseconds from 1")]
    Every(String),
    /// Two ways to choose the first run.
    #[error("`immediately` and `startDate` exclude each other")]
    TwoStarts,
    /// It would be over before it begins.
    #[error("the end date lies in the past")]
    EndPassed,
    /// A date that is none.
    #[error("`{option}` is no date: {value}")]
    Date {
        /// `startDate` or `endDate`.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// An option has a value of a wrong form.
    #[error("`{option}` of a schedule is not valid: {value}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// The pattern means nothing.
    #[error("the cron pattern `{pattern}` is not valid: {why}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        why: String,
    },
    /// No such time zone.
    #[error("there is no time zone `{0}`; use an IANA name such as Europe/Berlin, or UTC")]
    UnknownZone(String),
    /// Deduplication in a template would stop the schedule.
    #[error("a schedule's jobs cannot be deduplicated: each run has an id of its own already")]
    Deduplicated,
    /// 6.x keeps no schedule under such a key.
    #[error("`{0}` is a key of BullMQ 3 or older, which 6.x does not continue; make it a job scheduler")]
    OldKey(String),
    /// A job of a schedule whose options tell no rhythm.
    #[error("the job's options have no `repeat`: its next run cannot be found")]
    Unknown,
    /// The key would give job ids that BullMQ refuses.
    #[error("the repeat key `{0}` contains one `:`; use none")]
    Key(String),
}
