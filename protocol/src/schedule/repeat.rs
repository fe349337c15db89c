//! How often, from when, until when: the `repeat` options of a schedule, under
//! the names Node stores. Reading is tolerant and keeps what it does not know.

use std::time::Duration;

use chrono::{DateTime, NaiveDate};
use serde_json::{Map, Value};

use super::{Bounds, Cron, ScheduleError, Zone};
use crate::{
    lenient,
    peer::Peer,
    time::{TimestampMs, millis},
};

/// When a schedule runs.
///
/// ```
/// use std::time::Duration;
/// use mpanel_protocol::schedule::Repeat;
///
/// let every_five_minutes = Repeat::every(Duration::from_secs(300)).limit(12);
/// let weekdays_at_nine = Repeat::cron("0 9 * * 1-5").time_zone("Europe/Berlin");
/// # assert!(every_five_minutes != weekdays_at_nine);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Repeat(Map<String, Value>);

/// What gives a schedule its times.
#[derive(Debug, Clone, PartialEq)]
pub enum Rhythm {
    /// A fixed interval.
    Every(Every),
    /// A cron pattern.
    Pattern(String),
}

/// A fixed interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Every {
    /// The interval, ms.
    pub every_ms: i64,
    /// How far slots lie behind multiples of the interval, ms; 0 is none.
    pub offset_ms: i64,
}

impl Repeat {
    /// At a fixed interval.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        Self::default().with("every", millis(interval))
    }

    /// By a cron pattern: five fields, or six with seconds first.
    #[must_use]
    pub fn cron(pattern: impl Into<String>) -> Self {
        Self::default().with("pattern", pattern.into())
    }

    /// In which zone the pattern is read; without one in the machine's own.
    #[must_use]
    pub fn time_zone(self, name: impl Into<String>) -> Self {
        self.with("tz", name.into())
    }

    /// At most so many runs.
    #[must_use]
    pub fn limit(self, runs: u32) -> Self {
        self.with("limit", runs)
    }

    /// How far slots of [`Repeat::every`] lie behind multiples of the interval.
    #[must_use]
    pub fn offset(self, offset: Duration) -> Self {
        self.with("offset", millis(offset))
    }

    /// The first run now instead of at the pattern's next time. (Job schedulers
    /// with [`Repeat::every`] begin at once anyway.)
    #[must_use]
    pub fn immediately(self) -> Self {
        self.with("immediately", true)
    }

    /// No run before.
    #[must_use]
    pub fn starting(self, at: TimestampMs) -> Self {
        self.with("startDate", at.0)
    }

    /// No run after.
    #[must_use]
    pub fn ending(self, at: TimestampMs) -> Self {
        self.with("endDate", at.0)
    }

    /// Takes the options under Node's names, as they are; they are checked when used.
    #[must_use]
    pub fn from_json(options: Map<String, Value>) -> Self {
        Self(options)
    }

    /// The options under Node's names.
    #[must_use]
    pub fn as_json(&self) -> &Map<String, Value> {
        &self.0
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// Text that says something: not empty, not null.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str).filter(|t| !t.is_empty())
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(lenient::truth).unwrap_or(false)
    }

    /// A whole number that is not 0, which Node takes for none.
    pub(super) fn whole(&self, name: &'static str) -> Result<Option<i64>, ScheduleError> {
        let Some(value) = self.0.get(name).filter(|v| !v.is_null()) else { return Ok(None) };
        match lenient::number(value) {
            #[expect(clippy::cast_possible_truncation, reason = "integral and below 2^53")]
            Some(n) if n.fract() == 0.0 && n.abs() < 9.0e15 => Ok(Some(n as i64).filter(|n| *n != 0)),
            _ => Err(ScheduleError::Option { option: name, value: value.to_string() }),
        }
    }

    /// A date: epoch ms, or text.
    pub(super) fn date(&self, name: &'static str) -> Result<Option<TimestampMs>, ScheduleError> {
        let Some(value) = self.0.get(name).filter(|v| !v.is_null()) else { return Ok(None) };
        let at = match value {
            Value::String(text) if text.is_empty() => return Ok(None),
            Value::String(text) => {
                DateTime::parse_from_rfc3339(text).map(|d| d.timestamp_millis()).ok().or_else(|| {
                    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
                    Some(day.and_hms_opt(0, 0, 0)?.and_utc().timestamp_millis())
                })
            }
            // Node takes the number 0 for none.
            other if other.as_f64() == Some(0.0) => return Ok(None),
            #[expect(clippy::cast_possible_truncation, reason = "a time in ms; saturates")]
            other => other.as_f64().map(|n| n as i64),
        };
        match at {
            Some(at) => Ok(Some(TimestampMs(at))),
            None => Err(ScheduleError::Date { option: name, value: value.to_string() }),
        }
    }

    /// `every` or `pattern`, whichever is given.
    ///
    /// # Errors
    /// Both, none, or an interval that is none.
    pub fn rhythm(&self) -> Result<Rhythm, ScheduleError> {
        // BullMQ 3 and older called it `cron`.
        let pattern = self.text("pattern").or_else(|| self.text("cron"));
        match (self.whole("every")?, pattern) {
            (Some(_), Some(_)) => Err(ScheduleError::TwoRhythms),
            (None, None) => Err(ScheduleError::NoRhythm),
            (None, Some(pattern)) => Ok(Rhythm::Pattern(pattern.to_owned())),
            (Some(every), None) if every < 0 => Err(ScheduleError::Every(every.to_string())),
            (Some(every_ms), None) => {
                Ok(Rhythm::Every(Every { every_ms, offset_ms: self.whole("offset")?.unwrap_or(0) }))
            }
        }
    }

    /// How many runs the schedule has had with the next one; `None` when that is
    /// more than the limit.
    pub(super) fn next_count(&self) -> Result<Option<i64>, ScheduleError> {
        let count = self.whole("count")?.map_or(1, |count| count + 1);
        // A limit of 0 is a limit, unlike the other zeros.
        let limit = self.0.get("limit").and_then(lenient::number);
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let over = limit.is_some_and(|limit| count as f64 > limit);
        Ok((!over).then_some(count))
    }

    pub(super) fn zone(&self, local: Zone, peer: Peer) -> Result<Zone, ScheduleError> {
        if peer == Peer::V5 && self.flag("utc") {
            return Ok(Zone::utc());
        }
        self.text("tz").map_or(Ok(local), |name| Zone::named(name, local))
    }

    /// The pattern's next time after `after`.
    pub(super) fn next_of_pattern(
        &self,
        pattern: &str,
        after: TimestampMs,
        local: Zone,
        peer: Peer,
    ) -> Result<Option<TimestampMs>, ScheduleError> {
        let bounds = Bounds { start: self.date("startDate")?, end: self.date("endDate")? };
        Ok(Cron::parse(pattern, peer)?.next_after(after, self.zone(local, peer)?, bounds))
    }
}
