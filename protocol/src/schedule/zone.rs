//! Time zones by the names that Node takes (luxon over ICU): IANA names in any
//! case, `UTC`, `UTC+2`, `+05:30`, and `local`, which is the caller's to say.

use chrono::{DateTime, Offset, TimeZone};
use chrono_tz::{TZ_VARIANTS, Tz};

use super::ScheduleError;

/// A time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fixed { offset_ms: i64 },
    Named(Tz),
}

impl Default for Zone {
    /// UTC.
    fn default() -> Self {
        Self::utc()
    }
}

impl Zone {
    /// UTC.
    #[must_use]
    pub fn utc() -> Self {
        Self(Kind::Fixed { offset_ms: 0 })
    }

    /// The zone of this name; `local` stands for the machine's own.
    ///
    /// # Errors
    /// [`ScheduleError::UnknownZone`].
    pub fn named(name: &str, local: Zone) -> Result<Self, ScheduleError> {
        let lower = name.to_ascii_lowercase();
        if matches!(lower.as_str(), "default" | "local" | "system") {
            return Ok(local);
        }
        if matches!(lower.as_str(), "utc" | "gmt") {
            return Ok(Self::utc());
        }
        if let Some(minutes) = lower.strip_prefix("utc").and_then(|o| offset_minutes(o, false)) {
            return Ok(Self(Kind::Fixed { offset_ms: minutes * 60_000 }));
        }
        if let Some(minutes) = offset_minutes(&lower, true) {
            return Ok(Self(Kind::Fixed { offset_ms: minutes * 60_000 }));
        }
        if let Ok(tz) = name.parse() {
            return Ok(Self(Kind::Named(tz)));
        }
        TZ_VARIANTS
            .iter()
            .find(|tz| tz.name().eq_ignore_ascii_case(name))
            .map(|tz| Self(Kind::Named(*tz)))
            .ok_or_else(|| ScheduleError::UnknownZone(name.to_owned()))
    }

    /// How far local time is ahead of UTC at an instant, ms.
    pub(super) fn offset_ms(self, at_ms: i64) -> i64 {
        match self.0 {
            Kind::Fixed { offset_ms } => offset_ms,
            Kind::Named(tz) => DateTime::from_timestamp_millis(at_ms).map_or(0, |at| {
                i64::from(tz.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc()) * 1000
            }),
        }
    }
}

/// `+2`, `-03:30`; with `strict` only `+hh`, `+hhmm` and `+hh:mm`.
fn offset_minutes(text: &str, strict: bool) -> Option<i64> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let (hours, minutes) = match rest.split_once(':') {
        Some((hours, minutes)) if minutes.len() == 2 => (hours, minutes),
        Some(_) => return None,
        None if strict && rest.len() == 4 && rest.is_ascii() => rest.split_at(2),
        None => (rest, "0"),
    };
    let all_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(hours) || !all_digits(minutes) || hours.len() > 2 || (strict && hours.len() != 2) {
        return None;
    }
    let (hours, minutes): (i64, i64) = (hours.parse().ok()?, minutes.parse().ok()?);
    if strict && (hours > 23 || minutes > 59) {
        return None;
    }
    Some(sign * (hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_as_node_takes_them() {
        let named = |name: &str| Zone::named(name, Zone::utc());
        assert_eq!(named("europe/berlin"), named("Europe/Berlin"));
        assert_eq!(named("Gmt"), Ok(Zone::utc()));
        assert_eq!(named("UTC+2").unwrap().offset_ms(0), 7_200_000);
        assert_eq!(named("utc-3:30").unwrap().offset_ms(0), -12_600_000);
        assert_eq!(named("+05:30").unwrap().offset_ms(0), 19_800_000);
        assert_eq!(named("local"), Ok(Zone::utc()));
        for bad in ["", "Mars/Phobos", "UTC+", "+5", "utc+2:5", "+25:00"] {
            assert!(named(bad).is_err(), "{bad}");
        }
    }
}
