//! A moment on a wall clock, moved about as luxon moves it under npm's
//! cron-parser: date arithmetic keeps the local time, and a local time that
//! exists twice or not at all becomes an instant by the offset held before.

use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveDateTime, NaiveTime, Timelike};

use super::zone::Zone;

const HOUR_MS: i64 = 3_600_000;
const MINUTE_MS: i64 = 60_000;
const SECOND_MS: i64 = 1_000;

/// A moment, with its local reading. Far outside the calendar it stands still.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wall {
    zone: Zone,
    pub(super) at_ms: i64,
    offset_ms: i64,
    local: NaiveDateTime,
}

impl Wall {
    pub(super) fn new(at_ms: i64, zone: Zone) -> Self {
        let offset_ms = zone.offset_ms(at_ms);
        let local =
            DateTime::from_timestamp_millis(at_ms + offset_ms).map_or(NaiveDateTime::MAX, |d| d.naive_utc());
        Self { zone, at_ms, offset_ms, local }
    }

    pub(super) fn month(&self) -> u32 {
        self.local.month()
    }

    pub(super) fn day(&self) -> u32 {
        self.local.day()
    }

    /// 0 is Sunday.
    pub(super) fn weekday(&self) -> u32 {
        self.local.weekday().num_days_from_sunday()
    }

    pub(super) fn hour(&self) -> u32 {
        self.local.hour()
    }

    pub(super) fn minute(&self) -> u32 {
        self.local.minute()
    }

    pub(super) fn second(&self) -> u32 {
        self.local.second()
    }

    pub(super) fn millisecond(&self) -> u32 {
        self.local.nanosecond() / 1_000_000
    }

    pub(super) fn offset_ms(&self) -> i64 {
        self.offset_ms
    }

    fn days_in_month(&self) -> u32 {
        let first = self.local.date().with_day(1);
        first
            .and_then(|d| d.checked_add_months(Months::new(1)))
            .and_then(|d| d.pred_opt())
            .map_or(31, |d| d.day())
    }

    pub(super) fn is_last_day_of_month(&self) -> bool {
        self.day() == self.days_in_month()
    }

    /// Whether this weekday comes no more in the month.
    pub(super) fn is_last_weekday_of_month(&self) -> bool {
        self.day() + 7 > self.days_in_month()
    }

    /// The instant of a local time. The offset held so far is tried first; where
    /// clocks were put forward over that time, the later reading is taken.
    fn at_local(&self, local: NaiveDateTime) -> Self {
        let local_ms = local.and_utc().timestamp_millis();
        let guess = local_ms - self.offset_ms;
        let second = self.zone.offset_ms(guess);
        if second == self.offset_ms {
            return Self::new(guess, self.zone);
        }
        let guess = local_ms - second;
        let third = self.zone.offset_ms(guess);
        let at = if third == second { guess } else { local_ms - second.min(third) };
        Self::new(at, self.zone)
    }

    fn with_time(&self, hour: u32, minute: u32, second: u32, keep_ms: bool) -> Self {
        let ms = if keep_ms { self.millisecond() } else { 0 };
        let time = NaiveTime::from_hms_milli_opt(hour, minute, second, ms).unwrap_or_default();
        self.at_local(self.local.date().and_time(time))
    }

    fn with_date(&self, date: Option<NaiveDate>) -> Self {
        date.map_or(*self, |date| self.at_local(date.and_time(self.local.time())))
    }

    fn later(&self, ms: i64) -> Self {
        Self::new(self.at_ms.saturating_add(ms), self.zone)
    }

    pub(super) fn start_of_day(&self) -> Self {
        self.with_time(0, 0, 0, false)
    }

    pub(super) fn end_of_day(&self) -> Self {
        self.next_day().later(-1)
    }

    pub(super) fn next_month(&self) -> Self {
        let moved = self.with_date(self.local.date().checked_add_months(Months::new(1)));
        let first = moved.local.date().with_day(1).unwrap_or(moved.local.date());
        moved.at_local(first.and_time(NaiveTime::default()))
    }

    pub(super) fn next_day(&self) -> Self {
        self.with_date(self.local.date().succ_opt()).start_of_day()
    }

    pub(super) fn next_hour(&self) -> Self {
        let moved = self.later(HOUR_MS);
        moved.with_time(moved.hour(), 0, 0, false)
    }

    pub(super) fn next_minute(&self) -> Self {
        let moved = self.later(MINUTE_MS);
        moved.with_time(moved.hour(), moved.minute(), 0, false)
    }

    pub(super) fn next_second(&self) -> Self {
        self.later(SECOND_MS)
    }

    /// Without its milliseconds.
    pub(super) fn whole_second(&self) -> Self {
        self.with_time(self.hour(), self.minute(), self.second(), false)
    }

    pub(super) fn an_hour_later(&self) -> Self {
        self.later(HOUR_MS)
    }

    pub(super) fn set_hour(&self, hour: u32) -> Self {
        self.with_time(hour, self.minute(), self.second(), true)
    }

    pub(super) fn set_minute(&self, minute: u32) -> Self {
        self.with_time(self.hour(), minute, self.second(), true)
    }

    pub(super) fn set_second(&self, second: u32) -> Self {
        self.with_time(self.hour(), self.minute(), second, true)
    }
}
