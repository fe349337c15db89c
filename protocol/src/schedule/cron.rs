//! When a cron pattern comes up next, to the millisecond as Node finds it.
//!
//! Two searches, since 5.x carries cron-parser 4.9 and 6.x carries 5.10, and the
//! two part ways on days when clocks are changed. Each walks a wall clock in the
//! steps its model takes; what they skip, repeat or move on such a day follows
//! from the steps, which is why no general crate agrees (docs/adr/0010).

use super::{ScheduleError, pattern::Pattern, wall::Wall, zone::Zone};
use crate::{peer::Peer, time::TimestampMs};

/// Node gives up after so many steps.
const STEPS_MAX: usize = 10_000;

/// A cron pattern in the reading of one BullMQ generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cron {
    pattern: Pattern,
    peer: Peer,
}

/// Between which times a pattern may come up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Not before.
    pub start: Option<TimestampMs>,
    /// Not after.
    pub end: Option<TimestampMs>,
}

impl Cron {
    /// Reads a pattern: five fields, six with seconds, fewer filled up on the
    /// left; names, ranges, steps, `L`, `#`, `@daily` and the like.
    ///
    /// # Errors
    /// [`ScheduleError::Pattern`] with what is wrong.
    pub fn parse(pattern: &str, peer: Peer) -> Result<Self, ScheduleError> {
        Ok(Self { pattern: Pattern::parse(pattern, peer)?, peer })
    }

    /// The first time after `after` (not `after` itself). `None`: it never comes
    /// up within the bounds, or not within what Node searches.
    #[must_use]
    pub fn next_after(&self, after: TimestampMs, zone: Zone, bounds: Bounds) -> Option<TimestampMs> {
        let mut from = bounds.start.map_or(after, |start| start.max(after));
        if self.peer == Peer::V6
            && let Some(end) = bounds.end
        {
            from = from.min(end);
        }
        let now = Wall::new(from.0, zone);
        match self.peer {
            Peer::V5 => Older { p: &self.pattern, now, shifted_to: None, repeats: None }.search(bounds),
            Peer::V6 => {
                Newer { p: &self.pattern, now, gap: None, repeats: None, day_of_change: None }.search(bounds)
            }
        }
    }
}

/// The search of cron-parser 4.9.
struct Older<'p> {
    p: &'p Pattern,
    now: Wall,
    /// The hour on which a step over a gap landed.
    shifted_to: Option<u32>,
    /// The hour that a step found for the second time.
    repeats: Option<u32>,
}

impl Older<'_> {
    fn search(mut self, bounds: Bounds) -> Option<TimestampMs> {
        let from = self.now.at_ms;
        for _ in 1..STEPS_MAX {
            if bounds.end.is_some_and(|end| end.0 < self.now.at_ms) {
                return None;
            }
            if !self.day_fits() {
                let before = self.now.at_ms;
                self.now = self.now.next_day();
                self.leave_gap(before);
            } else if !self.p.month.has(self.now.month()) {
                let before = self.now.at_ms;
                self.now = self.now.next_month();
                self.leave_gap(before);
            } else if !self.hour_fits() {
            } else if !self.p.minute.has(self.now.minute()) {
                self.step(Self::minute);
            } else if !self.p.second.has(self.now.second()) || from == self.now.at_ms {
                self.step(|now| now.next_second().whole_second());
            } else {
                return Some(TimestampMs(self.now.at_ms));
            }
        }
        None
    }

    fn day_fits(&self) -> bool {
        let (p, now) = (self.p, &self.now);
        let day = p.day.has(now.day()) || (p.last_day && now.is_last_day_of_month());
        let weekday = p.weekday.has(now.weekday())
            || (p.last_weekdays & (1 << now.weekday()) != 0 && now.is_last_weekday_of_month());
        // A list as long as the month counts as `*`, however it was written.
        let days_in_month = match now.month() {
            2 => 29,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let any_day = p.day.count >= days_in_month;
        let any_weekday = p.weekday.count == 8;
        let fits = match (any_day, any_weekday) {
            (_, true) => day,
            (true, false) => weekday,
            (false, false) => day || weekday,
        };
        fits && (p.nth == 0 || now.day().div_ceil(7) == p.nth)
    }

    /// A day that begins after a gap at midnight is begun where it begins.
    fn leave_gap(&mut self, before: i64) {
        if self.now.at_ms == before && self.now.minute() == 0 && self.now.second() == 0 {
            self.now = Self::hour(&self.now);
        }
    }

    /// Whether the hour fits; moves on where it does not.
    fn hour_fits(&mut self) -> bool {
        let hour = self.now.hour();
        if !self.p.hour.has(hour) {
            if self.shifted_to != Some(hour) {
                self.shifted_to = None;
                self.step(Self::hour);
                return false;
            }
            // What was due in the missing hour runs in the one after it.
            if hour == 0 || !self.p.hour.has(hour - 1) {
                self.now = Self::hour(&self.now);
                return false;
            }
        } else if self.repeats == Some(hour) {
            self.repeats = None;
            self.step(Self::hour);
            return false;
        }
        true
    }

    fn hour(now: &Wall) -> Wall {
        let next = now.next_hour();
        if next.at_ms <= now.at_ms { next.an_hour_later() } else { next }
    }

    fn minute(now: &Wall) -> Wall {
        let next = now.next_minute();
        if next.at_ms < now.at_ms { next.an_hour_later() } else { next }
    }

    /// A step of an hour or less; notes what the clocks did under it.
    fn step(&mut self, step: impl Fn(&Wall) -> Wall) {
        let before = self.now.hour();
        self.now = step(&self.now);
        let hour = self.now.hour();
        if hour == before + 2 {
            if self.p.hour.count != 24 {
                self.shifted_to = Some(hour);
            }
        } else if hour == before
            && self.now.minute() == 0
            && self.now.second() == 0
            && self.p.hour.count != 24
        {
            self.repeats = Some(hour);
        }
    }
}

/// The search of cron-parser 5.10.
struct Newer<'p> {
    p: &'p Pattern,
    now: Wall,
    /// The first hour that a step skipped, and the one on which it landed.
    gap: Option<(u32, u32)>,
    /// The hour that a step found for the second time.
    repeats: Option<u32>,
    /// Whether clocks are changed on the day last asked for.
    day_of_change: Option<(u32, u32, bool)>,
}

impl Newer<'_> {
    fn search(mut self, bounds: Bounds) -> Option<TimestampMs> {
        let from = self.now.at_ms;
        if self.now.millisecond() > 0 {
            self.now = self.now.whole_second();
            self.step(Wall::next_second);
        }
        for _ in 1..STEPS_MAX {
            let at = self.now.at_ms;
            if bounds.start.is_some_and(|start| at < start.0) || bounds.end.is_some_and(|end| at > end.0) {
                return None;
            }
            if !self.p.month.has(self.now.month()) {
                self.now = self.now.next_month();
            } else if !self.day_fits() {
                self.now = self.now.next_day();
            } else if !self.hour_fits() {
            } else if !self.p.minute.has(self.now.minute()) {
                self.advance_minute();
            } else if !self.p.second.has(self.now.second()) {
                self.advance_second();
            } else if from == at {
                self.step(Wall::next_second);
            } else {
                return Some(TimestampMs(at));
            }
        }
        None
    }

    fn day_fits(&self) -> bool {
        let (p, now) = (self.p, &self.now);
        let day = p.day.has(now.day()) || (p.last_day && now.is_last_day_of_month());
        let nth = p.nth == 0 || now.day().div_ceil(7) == p.nth;
        let last = p.last_weekdays & (1 << now.weekday()) != 0 && now.is_last_weekday_of_month();
        let weekday = (p.weekday.has(now.weekday()) && nth) || last;
        match (p.day.is_star, p.weekday.is_star) {
            (false, false) => day || weekday,
            (_, true) => day,
            (true, false) => weekday,
        }
    }

    /// Whether the hour fits; moves on where it does not.
    fn hour_fits(&mut self) -> bool {
        let hour = self.now.hour();
        let hours = self.p.hour;
        if let Some((first, landed)) = self.gap
            && landed == hour
        {
            let mut skipped = first;
            while skipped != hour {
                if hours.has(skipped) {
                    return true;
                }
                skipped = (skipped + 1) % 24;
            }
        }
        if self.repeats == Some(hour) {
            self.repeats = None;
            self.step(Wall::next_hour);
            return false;
        }
        if hours.has(hour) {
            return true;
        }
        self.gap = None;
        let Some(next) = hours.after(hour) else {
            self.now = self.now.next_day();
            return false;
        };
        if self.clocks_change_today() {
            for _ in hour..next {
                self.step(Wall::next_hour);
                if self.now.hour() >= next {
                    break;
                }
            }
        } else {
            self.now = self.now.set_hour(next);
        }
        self.now = self.now.set_minute(self.p.minute.first());
        self.now = self.now.set_second(self.p.second.first());
        false
    }

    fn advance_minute(&mut self) {
        match self.p.minute.after(self.now.minute()) {
            Some(next) => self.now = self.now.set_minute(next),
            None => {
                self.step(Wall::next_hour);
                self.now = self.now.set_minute(self.p.minute.first());
            }
        }
        self.now = self.now.set_second(self.p.second.first());
    }

    fn advance_second(&mut self) {
        match self.p.second.after(self.now.second()) {
            Some(next) => self.now = self.now.set_second(next),
            None => {
                self.step(Wall::next_minute);
                self.now = self.now.set_second(self.p.second.first());
            }
        }
    }

    fn clocks_change_today(&mut self) -> bool {
        let today = (self.now.month(), self.now.day());
        if let Some((month, day, changes)) = self.day_of_change
            && (month, day) == today
        {
            return changes;
        }
        let changes = self.now.start_of_day().offset_ms() != self.now.end_of_day().offset_ms();
        self.day_of_change = Some((today.0, today.1, changes));
        changes
    }

    /// A step of an hour or less; notes what the clocks did under it.
    fn step(&mut self, step: impl Fn(&Wall) -> Wall) {
        let before = self.now;
        self.now = step(&self.now);
        let hour = self.now.hour();
        let advance = (hour + 24 - before.hour()) % 24;
        if self.now.offset_ms() > before.offset_ms() && advance >= 2 {
            if self.p.hour.count != 24 {
                self.gap = Some(((before.hour() + 1) % 24, hour));
            }
        } else if advance == 0 && self.now.minute() == 0 && self.now.second() == 0 && self.p.hour.count != 24
        {
            self.repeats = Some(hour);
        }
    }
}
