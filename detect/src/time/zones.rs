//! Zones as log lines name them: `Z`, `+0200`, `CET`, `UTC+1:30`.

/// Hours and minutes from UTC of the abbreviations that mean one place to everyone who writes logs.
const NAMED: [(&str, i32); 40] = [
    ("Z", 0),
    ("UTC", 0),
    ("GMT", 0),
    ("WET", 0),
    ("WEST", 60),
    ("CET", 60),
    ("CEST", 120),
    ("EET", 120),
    ("EEST", 180),
    ("MSK", 180),
    ("MSD", 240),
    ("SAST", 120),
    ("CAT", 120),
    ("EAT", 180),
    ("WAT", 60),
    ("PKT", 300),
    ("NPT", 345),
    ("ICT", 420),
    ("WIB", 420),
    ("HKT", 480),
    ("SGT", 480),
    ("JST", 540),
    ("KST", 540),
    ("AEST", 600),
    ("AEDT", 660),
    ("ACST", 570),
    ("ACDT", 630),
    ("NZST", 720),
    ("NZDT", 780),
    ("EST", -300),
    ("EDT", -240),
    ("CST", -360),
    ("CDT", -300),
    ("MST", -420),
    ("MDT", -360),
    ("PST", -480),
    ("PDT", -420),
    ("AKST", -540),
    ("AKDT", -480),
    ("HST", -600),
];

/// Minutes east of UTC, `None` for a name that we do not know.
pub(super) fn offset_minutes(text: &str) -> Option<i32> {
    let at = text.find(['+', '-']).unwrap_or(text.len());
    let (name, offset) = text.split_at(at);
    let base =
        if name.is_empty() { 0 } else { NAMED.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?.1 };
    if offset.is_empty() {
        return Some(base);
    }
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let digits: String = offset.chars().filter(char::is_ascii_digit).collect();
    let hours: i32 = digits.get(..2)?.parse().ok()?;
    let minutes: i32 = if digits.len() >= 4 { digits.get(2..4)?.parse().ok()? } else { 0 };
    Some(base + sign * (hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_offsets_are_read() {
        for (text, minutes) in [
            ("Z", Some(0)),
            ("+02", Some(120)),
            ("-05:30", Some(-330)),
            ("CET+0100", Some(120)),
            ("XXX", None),
        ] {
            assert_eq!(offset_minutes(text), minutes, "{text}");
        }
    }
}
