//! What time it is for a log that is read now, and from the fields of a date
//! to a point in time.

use chrono::{DateTime, Datelike as _, Days, NaiveDate, NaiveDateTime, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;

use super::zones;

/// The time and the zone that a log is read at.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    now: DateTime<Utc>,
    zone: Tz,
}

/// Why there is no such clock.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// Not RFC 3339.
    #[error("`{0}` is no RFC 3339 time, such as 2026-01-31T12:00:00+01:00")]
    Now(String),
    /// Not in the time zone database.
    #[error("`{0}` is no time zone, such as Europe/Zurich or UTC")]
    Zone(String),
}

/// A date's fields by the letter of their directive (`%Y`), where the form has them.
pub(super) type Fields<'t> = Vec<(&'static str, &'t str)>;

impl Clock {
    /// A clock that stands at this time.
    #[must_use]
    pub fn at(now: DateTime<Utc>, zone: Tz) -> Self {
        Self { now, zone }
    }

    /// A clock from what was given on the command line: an RFC 3339 time and the name of a zone.
    ///
    /// # Errors
    /// When one of them is malformed.
    pub fn parse(now: Option<&str>, zone: Option<&str>) -> Result<Self, ClockError> {
        let now = match now {
            Some(text) => DateTime::parse_from_rfc3339(text)
                .map_err(|_| ClockError::Now(text.to_owned()))?
                .with_timezone(&Utc),
            None => Utc::now(),
        };
        let zone = match zone {
            Some(name) => name.parse().map_err(|_| ClockError::Zone(name.to_owned()))?,
            None => Tz::UTC,
        };
        Ok(Self { now, zone })
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// The time of a syslog line's head: `Jan  2 03:04:05` or RFC 3339.
    #[must_use]
    pub(crate) fn syslog(&self, text: &str) -> Option<DateTime<Utc>> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let time = DateTime::parse_from_rfc3339(text).ok()?.with_timezone(&Utc);
            return DateTime::from_timestamp(time.timestamp(), 0);
        }
        let (month, rest) = text.split_once(' ')?;
        let (day, clock) = rest.trim_start().split_once(' ')?;
        let fields = [("b", month), ("d", day), ("H", clock.get(..2)?), ("M", clock.get(3..5)?)];
        let mut fields = fields.to_vec();
        fields.push(("S", clock.get(6..8)?));
        self.resolve(&fields)
    }

    fn local_now(&self) -> NaiveDateTime {
        self.now.with_timezone(&self.zone).naive_local()
    }

    /// A local time; one that the clock was set over is an hour later, one that comes twice is the first.
    fn to_utc(self, local: NaiveDateTime) -> Option<DateTime<Utc>> {
        let at = |local: NaiveDateTime| self.zone.from_local_datetime(&local).earliest();
        at(local).or_else(|| at(local + TimeDelta::hours(1))).map(|time| time.with_timezone(&Utc))
    }

    /// The point in time that the fields name, `None` when there is no such day or hour. Without a year it is
    /// the latest one that puts the time no more than a day after now; without a day it is today, or yesterday.
    pub(super) fn resolve(&self, fields: &Fields<'_>) -> Option<DateTime<Utc>> {
        let get = |key: &str| fields.iter().find(|(name, _)| *name == key).map(|(_, value)| value.trim());
        let number = |key: &str| get(key).and_then(|text| text.parse::<u32>().ok());
        let year = match (number("Y"), number("y")) {
            (Some(year), _) => Some(year),
            (None, Some(year)) => Some(if year <= 2000 { year + 2000 } else { year }),
            _ => None,
        };
        let year = match year.or_else(|| number("G")) {
            Some(year) => Some(i32::try_from(year).ok()?),
            None => None,
        };
        let mut month = number("m").or_else(|| get("b").or_else(|| get("B")).and_then(month));
        let mut day = number("d");
        let hour = match (number("H"), number("I")) {
            (Some(hour), _) => hour,
            (None, Some(hour)) => half_day(hour, get("p")),
            _ => 0,
        };
        let (minute, second) = (number("M").unwrap_or(0), number("S").unwrap_or(0));
        let offset = match get("z").or_else(|| get("Z")) {
            Some(zone) => Some(zones::offset_minutes(zone)?),
            None => None,
        };
        let now = self.local_now();
        let assumed_year = year.unwrap_or_else(|| now.year());
        if (month.is_none() || day.is_none())
            && let Some(date) = by_week_or_day(assumed_year, &get)
        {
            (month, day) = (Some(date.month()), Some(date.day()));
        }
        let today = month.is_none() && day.is_none();
        if today {
            (month, day) = (Some(now.month()), Some(now.day()));
        }
        let local = |year: i32| {
            let date = NaiveDate::from_ymd_opt(year, month?, day?)?.and_hms_opt(hour, minute, second)?;
            Some(date - TimeDelta::minutes(i64::from(offset.unwrap_or(0))))
        };
        let mut time = local(assumed_year)?;
        if today && time > now {
            time = time.checked_sub_days(Days::new(1))?;
        }
        if year.is_none() && time > now.checked_add_days(Days::new(1))? {
            time = local(assumed_year - 1)?;
        }
        if offset.is_some() { Some(time.and_utc()) } else { self.to_utc(time) }
    }
}

fn month(name: &str) -> Option<u32> {
    const MONTHS: [&str; 12] =
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let name = name.get(..3)?.to_ascii_lowercase();
    let index = MONTHS.iter().position(|month| *month == name)?;
    u32::try_from(index + 1).ok()
}

fn half_day(hour: u32, mark: Option<&str>) -> u32 {
    let afternoon = mark.is_some_and(|mark| mark.eq_ignore_ascii_case("pm"));
    match (hour, afternoon) {
        (12, false) => 0,
        (12, true) | (_, false) => hour,
        (_, true) => hour + 12,
    }
}

/// A day by its number in the year, or by week and weekday.
fn by_week_or_day<'t>(year: i32, get: &dyn Fn(&str) -> Option<&'t str>) -> Option<NaiveDate> {
    if let Some(day) = get("j") {
        return NaiveDate::from_yo_opt(year, day.parse().ok()?);
    }
    let (form, week) = get("U").map(|week| ("%U", week)).or_else(|| get("W").map(|week| ("%W", week)))?;
    let (day_form, day) = match (get("w"), get("a"), get("A")) {
        (Some(day), _, _) => ("%w", day),
        (_, Some(day), _) => ("%a", day),
        (_, _, day) => ("%A", day?),
    };
    NaiveDate::parse_from_str(&format!("{year} {week} {day}"), &format!("%Y {form} {day_form}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(now: &str, zone: &str, fields: &[(&'static str, &str)]) -> Option<String> {
        let clock = Clock::parse(Some(now), Some(zone)).unwrap();
        clock.resolve(&fields.to_vec()).map(|time| time.to_rfc3339())
    }

    #[test]
    fn a_year_that_is_left_out_is_the_latest_that_is_not_ahead() {
        let day = |month| [("b", month), ("d", "14"), ("H", "10"), ("M", "00"), ("S", "00")];
        let at = |month| resolve("2005-08-14T10:00:00Z", "Europe/Zurich", &day(month)).unwrap();
        assert_eq!(at("Aug"), "2005-08-14T08:00:00+00:00");
        assert_eq!(at("Sep"), "2004-09-14T08:00:00+00:00");
        assert_eq!(at("Jan"), "2005-01-14T09:00:00+00:00");
    }

    #[test]
    fn what_is_no_date_is_none() {
        let now = "2005-08-14T10:00:00Z";
        assert_eq!(resolve(now, "UTC", &[("Y", "2005"), ("m", "2"), ("d", "30")]), None);
        assert_eq!(resolve(now, "UTC", &[("H", "10"), ("S", "61")]), None);
        assert_eq!(resolve(now, "UTC", &[("d", "3")]), None);
    }

    #[test]
    fn zones_and_halves_of_the_day_count() {
        let fields = [("Y", "2005"), ("m", "2"), ("d", "3"), ("I", "12"), ("p", "PM"), ("z", "+0130")];
        assert_eq!(
            resolve("2005-08-14T10:00:00Z", "Asia/Tokyo", &fields).unwrap(),
            "2005-02-03T10:30:00+00:00"
        );
        assert!(
            Clock::parse(Some("yesterday"), None).is_err() && Clock::parse(None, Some("Mars/X")).is_err()
        );
    }
}
