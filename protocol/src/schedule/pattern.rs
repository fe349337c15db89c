//! Cron patterns, read as the cron-parser of each BullMQ generation reads them:
//! 4.9 under 5.x, 5.10 under 6.x. What would mean something random or nothing
//! there (`H`, a weekday `L` without its day) is refused.

use super::ScheduleError;
use crate::peer::Peer;

/// Longer patterns say nothing that a shorter one cannot.
const LENGTH_MAX: usize = 1024;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const DAYS_IN_MONTH: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// The values of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    bits: u64,
    /// How many values the list has, repeated ones counted.
    pub(super) count: usize,
    /// It was written `*` or `?`.
    pub(super) is_star: bool,
}

impl Field {
    pub(super) fn has(&self, value: u32) -> bool {
        value < 64 && self.bits & (1 << value) != 0
    }

    pub(super) fn first(&self) -> u32 {
        self.bits.trailing_zeros()
    }

    /// The next value after this one.
    pub(super) fn after(&self, value: u32) -> Option<u32> {
        (value + 1..64).find(|v| self.has(*v))
    }

    fn push(&mut self, value: u32) {
        self.bits |= 1 << value;
        self.count += 1;
    }
}

/// A pattern, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) second: Field,
    pub(super) minute: Field,
    pub(super) hour: Field,
    pub(super) day: Field,
    /// The last day of the month too.
    pub(super) last_day: bool,
    pub(super) month: Field,
    pub(super) weekday: Field,
    /// Weekdays (bits) of which the last of the month counts.
    pub(super) last_weekdays: u8,
    /// Only the so-many-th of the weekday in the month; 0: all.
    pub(super) nth: u32,
}

/// Which field, with its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Weekday,
}

impl Unit {
    fn bounds(self) -> (u32, u32) {
        match self {
            Self::Second | Self::Minute => (0, 59),
            Self::Hour => (0, 23),
            Self::Day => (1, 31),
            Self::Month => (1, 12),
            Self::Weekday => (0, 7),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day of month",
            Self::Month => "month",
            Self::Weekday => "day of week",
        }
    }
}

fn alias(pattern: &str, peer: Peer) -> Option<&'static str> {
    Some(match (pattern, peer) {
        ("@yearly", _) | ("@annually", Peer::V6) => "0 0 0 1 1 *",
        ("@monthly", _) => "0 0 0 1 * *",
        ("@weekly", _) => "0 0 0 * * 0",
        ("@daily", _) => "0 0 0 * * *",
        ("@hourly", _) => "0 0 * * * *",
        ("@minutely", Peer::V6) => "0 * * * * *",
        ("@secondly", Peer::V6) => "* * * * * *",
        ("@weekdays", Peer::V6) => "0 0 0 * * 1-5",
        ("@weekends", Peer::V6) => "0 0 0 * * 0,6",
        _ => return None,
    })
}

impl Pattern {
    pub(super) fn parse(text: &str, peer: Peer) -> Result<Self, ScheduleError> {
        Reader { text, peer }.read()
    }
}

struct Reader<'a> {
    text: &'a str,
    peer: Peer,
}

/// One field, read.
struct Read {
    field: Field,
    /// In the order in which they were written.
    values: Vec<u32>,
    /// Entries with `L`: the digit before it.
    lasts: Vec<Option<u32>>,
}

/// One entry of a list.
enum Entry {
    Values(Vec<u32>),
    /// With `L`: the digits before it.
    Last(Option<u32>),
}

impl Reader<'_> {
    fn wrong(&self, why: impl Into<String>) -> ScheduleError {
        ScheduleError::Pattern { pattern: self.text.chars().take(100).collect(), why: why.into() }
    }

    fn read(&self) -> Result<Pattern, ScheduleError> {
        if self.text.len() > LENGTH_MAX {
            return Err(self.wrong(format!("it is longer than {LENGTH_MAX} characters")));
        }
        let text = alias(self.text, self.peer).unwrap_or(self.text);
        let mut fields: Vec<&str> = text.split_whitespace().collect();
        match fields.len() {
            0 => return Err(self.wrong("it is empty")),
            1..=6 => {}
            n => return Err(self.wrong(format!("it has {n} fields, at most 6 are allowed"))),
        }
        // What is missing is missing on the left.
        let defaults = ["0", "*", "*", "*", "*", "*"];
        let missing = 6 - fields.len();
        fields.splice(..0, defaults[..missing].iter().copied());

        let second = self.unique(Unit::Second, self.field(Unit::Second, fields[0])?)?.field;
        let minute = self.unique(Unit::Minute, self.field(Unit::Minute, fields[1])?)?.field;
        let hour = self.unique(Unit::Hour, self.field(Unit::Hour, fields[2])?)?.field;
        let month = self.unique(Unit::Month, self.field(Unit::Month, fields[4])?)?.field;
        let mut days = self.field(Unit::Day, fields[3])?;
        if month.count == 1 {
            self.fit_days(&mut days, month.first())?;
        }
        let days = self.unique(Unit::Day, days)?;
        let (weekday_text, nth) = self.nth(fields[5])?;
        let weekdays = self.unique(Unit::Weekday, self.field(Unit::Weekday, weekday_text)?)?;
        // 6.x refuses a day that never comes, unless days of the week make up for it.
        if self.peer == Peer::V6 && month.count == 1 && days.lasts.is_empty() && weekdays.field.is_star {
            let most = DAYS_IN_MONTH[month.first() as usize - 1];
            if days.values.iter().min().is_some_and(|first| *first > most) {
                return Err(self.wrong("the month does not have that day"));
            }
        }
        let mut last_weekdays = 0;
        for digits in weekdays.lasts {
            let day =
                digits.ok_or_else(|| self.wrong("an `L` in the day of week needs its day, as in `5L`"))?;
            last_weekdays |= 1 << (day % 7);
        }
        Ok(Pattern {
            second,
            minute,
            hour,
            day: days.field,
            last_day: !days.lasts.is_empty(),
            month,
            weekday: weekdays.field,
            last_weekdays,
            nth,
        })
    }

    /// 6.x takes nothing twice.
    fn unique(&self, unit: Unit, read: Read) -> Result<Read, ScheduleError> {
        let twice = |what: String| Err(self.wrong(format!("the {} has {what} twice", unit.name())));
        if self.peer == Peer::V6 {
            if let Some(i) = (1..read.values.len()).find(|i| read.values[..*i].contains(&read.values[*i])) {
                return twice(read.values[i].to_string());
            }
            if (1..read.lasts.len()).any(|i| read.lasts[..i].contains(&read.lasts[i])) {
                return twice("an `L`".to_owned());
            }
        }
        Ok(read)
    }

    /// With one month, days it does not have are left out.
    fn fit_days(&self, days: &mut Read, month: u32) -> Result<(), ScheduleError> {
        let most = DAYS_IN_MONTH[month as usize - 1];
        if self.peer == Peer::V5 {
            if days.values.iter().min().is_some_and(|first| *first > most) {
                return Err(self.wrong("the month does not have that day"));
            }
            days.lasts.retain(Option::is_none);
        }
        let mut fitting = Field { bits: 0, count: days.lasts.len(), is_star: days.field.is_star };
        for value in days.values.iter().filter(|v| **v <= most) {
            fitting.push(*value);
        }
        // 6.x keeps days that never come rather than none.
        if fitting.count > 0 || self.peer == Peer::V5 {
            days.values.retain(|v| *v <= most);
            days.field = fitting;
        }
        Ok(())
    }

    /// `5#3`: the third Friday.
    fn nth<'t>(&self, text: &'t str) -> Result<(&'t str, u32), ScheduleError> {
        let Some((day, nth)) = text.split_once('#') else { return Ok((text, 0)) };
        if text.contains([',', '-', '/']) {
            return Err(self.wrong("`#` in the day of week goes with no `,`, `-` or `/`"));
        }
        match nth.parse() {
            Ok(n @ 1..=5) => Ok((day, n)),
            _ => Err(self.wrong("`#` in the day of week is followed by 1 to 5")),
        }
    }

    fn field(&self, unit: Unit, raw: &str) -> Result<Read, ScheduleError> {
        let text = self.names_replaced(unit, raw)?;
        let allowed = |c: char| match c {
            '0'..='9' | ',' | '*' | '/' | '-' => true,
            '?' => self.peer == Peer::V6 || matches!(unit, Unit::Day | Unit::Weekday),
            'L' => matches!(unit, Unit::Day | Unit::Weekday),
            _ => false,
        };
        if let Some(c) = text.chars().find(|c| !allowed(*c)) {
            let hint =
                if c == 'H' { "; a hashed value is another in each worker: write the number" } else { "" };
            return Err(self.wrong(format!("`{c}` has no meaning in the {}{hint}", unit.name())));
        }
        let mut field = Field { bits: 0, count: 0, is_star: matches!(raw, "*" | "?") };
        let (mut values, mut lasts) = (Vec::new(), Vec::new());
        for entry in text.split(',') {
            match self.entry(unit, entry)? {
                Entry::Values(more) => {
                    for value in more {
                        field.push(value);
                        values.push(value);
                    }
                }
                Entry::Last(digits) => {
                    lasts.push(digits);
                }
            }
        }
        field.count += lasts.len();
        Ok(Read { field, values, lasts })
    }

    fn names_replaced(&self, unit: Unit, raw: &str) -> Result<String, ScheduleError> {
        if !matches!(unit, Unit::Month | Unit::Weekday) {
            return Ok(raw.to_owned());
        }
        let mut out = String::with_capacity(raw.len());
        let mut rest = raw;
        while let Some(c) = rest.chars().next() {
            let name = rest.get(..3).filter(|n| n.bytes().all(|b| b.is_ascii_alphabetic()));
            if let Some(name) = name {
                let lower = name.to_ascii_lowercase();
                let month = MONTHS.iter().position(|m| *m == lower).map(|i| i + 1);
                let day = WEEKDAYS.iter().position(|d| *d == lower);
                // 6.x takes names of both kinds in both fields.
                let number = match (unit, self.peer) {
                    (_, Peer::V6) => month.or(day),
                    (Unit::Month, Peer::V5) => month,
                    (_, Peer::V5) => day,
                };
                let number =
                    number.ok_or_else(|| self.wrong(format!("`{name}` is no name of a {}", unit.name())))?;
                out.push_str(&number.to_string());
                rest = &rest[3..];
            } else {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        Ok(out)
    }

    fn entry(&self, unit: Unit, text: &str) -> Result<Entry, ScheduleError> {
        let wrong = |why: &str| Err(self.wrong(format!("`{text}` in the {}: {why}", unit.name())));
        if text.is_empty() {
            return Err(self.wrong(format!("an entry of the {} is empty", unit.name())));
        }
        if let Some(digits) = text.strip_suffix('L') {
            if digits.is_empty() {
                return Ok(Entry::Last(None));
            }
            return match digits.parse() {
                Ok(number @ 0..=7) if digits.len() == 1 => Ok(Entry::Last(Some(number))),
                _ => wrong("an `L` stands alone or after one digit from 0 to 7"),
            };
        }
        let (min, max) = unit.bounds();
        let (range, step) = match text.split_once('/') {
            None => (text, None),
            Some((range, step)) => match step.parse::<u32>() {
                Ok(step) if step > 0 => (range, Some(step)),
                _ => return wrong("a step is a whole number from 1"),
            },
        };
        let number = |digits: &str| digits.parse::<u32>().ok().filter(|n| (min..=max).contains(n));
        let (from, to) = if matches!(range, "*" | "?") {
            (min, max)
        } else if let Some((from, to)) = range.split_once('-') {
            match (number(from), number(to)) {
                (Some(from), Some(to)) if from <= to => (from, to),
                (Some(_), Some(_)) => return wrong("the range runs backwards"),
                _ => return wrong(&format!("a range lies between {min} and {max}")),
            }
        } else {
            let Some(value) = number(range) else {
                return wrong(&format!("a value lies between {min} and {max}"));
            };
            if step.is_none() {
                return Ok(Entry::Values(vec![if unit == Unit::Weekday { value % 7 } else { value }]));
            }
            (value, max)
        };
        let step = step.unwrap_or(1);
        let mut values: Vec<u32> = (from..=to).step_by(step as usize).collect();
        // 7 is Sunday too; 5.x counts it in every range that reaches it.
        let reaches = self.peer == Peer::V5 || (to - from).is_multiple_of(step);
        if unit == Unit::Weekday && to.is_multiple_of(7) && reaches && !values.contains(&0) {
            values.insert(0, 0);
        }
        Ok(Entry::Values(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_refused_with_a_reason() {
        for (pattern, word) in [
            ("", "empty"),
            ("* * * * * * *", "7 fields"),
            ("60 * * * *", "between 0 and 59"),
            ("* * * * L", "needs its day"),
            ("H * * * *", "hashed"),
            ("1,,2 * * * *", "empty"),
            ("5-1 * * * *", "backwards"),
            ("*/0 * * * *", "step"),
            ("* * * foo *", "no name"),
            ("* * * * 5#6", "1 to 5"),
            ("* * * * 1-5#2", "goes with no"),
            ("@reboot", ""),
        ] {
            for peer in [Peer::V5, Peer::V6] {
                let error = Pattern::parse(pattern, peer).unwrap_err().to_string();
                assert!(error.contains(word), "{pattern}: {error}");
            }
        }
    }

    #[test]
    fn generations_differ_where_their_parsers_do() {
        assert!(Pattern::parse("@weekdays", Peer::V5).is_err());
        assert!(Pattern::parse("@weekdays", Peer::V6).is_ok());
        assert!(Pattern::parse("5,5 * * * *", Peer::V5).is_ok());
        assert!(Pattern::parse("5,5 * * * *", Peer::V6).is_err());
        assert!(Pattern::parse("0 0 31 2 *", Peer::V5).is_err());
        assert!(Pattern::parse("0 0 31 2 *", Peer::V6).is_err());
        assert!(Pattern::parse("0 0 31 2 1", Peer::V6).is_ok());
    }
}
