//! The one fact that is wanted of a certificate: when it ends. A walk over the
//! few elements before it (RFC 5280, 4.1); any byte may be wrong.

use chrono::NaiveDateTime;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When a certificate ends, epoch seconds; `None` when it cannot be read.
pub(super) fn not_after(certificate: &[u8]) -> Option<i64> {
    let (body, _) = expect(certificate, SEQUENCE)?;
    let (mut rest, _) = expect(body, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest)?.2;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (validity, _) = expect(rest, SEQUENCE)?;
    let (_, _, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    let text = std::str::from_utf8(text).ok()?;
    let whole = match tag {
        // Two digits of a year: 50 and more are of the last century.
        UTC_TIME => {
            let century = if text.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
            format!("{century}{text}")
        }
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    Some(NaiveDateTime::parse_from_str(&whole, "%Y%m%d%H%M%SZ").ok()?.and_utc().timestamp())
}

fn expect(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    element(bytes).filter(|(tag, _, _)| *tag == wanted).map(|(_, content, rest)| (content, rest))
}

/// Tag, content and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let digits = usize::from(first & 0x7f);
        if digits == 0 || digits > 4 {
            return None;
        }
        let (length, rest) = rest.split_at_checked(digits)?;
        (length.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82][..], &length, content].concat()
    }

    fn certificate(tag: u8, end: &str) -> Vec<u8> {
        let validity = [wrap(UTC_TIME, b"250101000000Z"), wrap(tag, end.as_bytes())].concat();
        let parts = [
            wrap(VERSION, &[2, 1, 2]),
            wrap(2, &[1; 200]),
            wrap(SEQUENCE, &[]),
            wrap(SEQUENCE, &[]),
            wrap(SEQUENCE, &validity),
        ];
        wrap(SEQUENCE, &wrap(SEQUENCE, &parts.concat()))
    }

    #[test]
    fn the_end_is_found_in_both_forms() {
        assert_eq!(not_after(&certificate(UTC_TIME, "261231235959Z")), Some(1_798_761_599));
        assert_eq!(not_after(&certificate(UTC_TIME, "991231235959Z")), Some(946_684_799));
        assert_eq!(not_after(&certificate(GENERALIZED_TIME, "20510101000000Z")), Some(2_556_144_000));
        assert_eq!(not_after(&certificate(UTC_TIME, "never")), None);
    }

    #[test]
    fn a_certificate_cut_off_anywhere_is_none_and_no_panic() {
        let whole = certificate(UTC_TIME, "261231235959Z");
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None, "{length}");
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] = 0xff;
            let _ = not_after(&bent);
        }
    }
}
