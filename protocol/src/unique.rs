//! Uniqueness over chosen payload fields: a deduplication id made from the job's
//! name and the values of those fields, the same in every language that can parse
//! JSON and hash (`docs/guide/unique.md` has the Node version).
//!
//! Values are written as RFC 8785 says (object keys in UTF-16 order, numbers as
//! JavaScript prints them), so `1`, `1.0` and `1e0` are one value.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde_json::{Number, Value};
use sha2::{Digest as _, Sha256};

use crate::{
    options::Deduplication,
    time::{TimestampMs, millis},
};

/// Integers up to here are exact in every language.
const EXACT: u64 = 1 << 53;

/// How long a job stands for its likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Period {
    /// While it is waiting, delayed or running.
    #[default]
    UntilDone,
    /// So long after it was enqueued, done or not.
    Within(Duration),
    /// Until so long passes without another like it: each refused one starts the
    /// time anew.
    UntilQuiet(Duration),
    /// Until the end of the window it was enqueued in; windows are counted from
    /// the epoch, so that a day is a calendar day in UTC.
    Window(Duration),
}

/// Why no key can be made of a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UniqueError {
    /// No field was named.
    #[error("uniqueness needs at least one field of the payload")]
    NoFields,
    /// The payload lacks a field.
    #[error("the payload has no field `{0}`, which the job is to be unique by")]
    MissingField(String),
    /// An integer that JavaScript cannot hold.
    #[error("field `{0}` holds an integer beyond 2^53, which Node cannot hold exactly: send it as a string")]
    Inexact(String),
    /// The period is shorter than a millisecond.
    #[error("the period must be at least a millisecond")]
    NoPeriod,
}

/// A field's name as a JSON pointer: `vmid` is `/vmid`.
#[must_use]
pub fn pointer(field: &str) -> String {
    if field.starts_with('/') {
        field.to_owned()
    } else {
        format!("/{}", field.replace('~', "~0").replace('/', "~1"))
    }
}

/// The id that jobs named `name` share when their `fields` are equal: `u-` and 32
/// hexadecimal digits.
///
/// It is the beginning of SHA-256 over the canonical JSON of `[name, {pointer: value, …}]`.
///
/// # Errors
/// [`UniqueError`].
pub fn key(name: &str, data: &Value, fields: &[String]) -> Result<String, UniqueError> {
    if fields.is_empty() {
        return Err(UniqueError::NoFields);
    }
    let mut chosen = BTreeMap::new();
    for field in fields {
        let pointer = pointer(field);
        let value = data.pointer(&pointer).ok_or_else(|| UniqueError::MissingField(field.clone()))?;
        chosen.insert(utf16(&pointer), (pointer, field, value));
    }
    let mut text = String::from("[");
    write_text(&mut text, name);
    text.push_str(",{");
    for (i, (pointer, field, value)) in chosen.values().enumerate() {
        if i > 0 {
            text.push(',');
        }
        write_text(&mut text, pointer);
        text.push(':');
        write_value(&mut text, value).map_err(|()| UniqueError::Inexact((*field).clone()))?;
    }
    text.push_str("}]");
    let mut id = String::from("u-");
    for byte in &Sha256::digest(text.as_bytes())[..16] {
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

/// The deduplication that keeps `key` unique for `period`.
///
/// # Errors
/// [`UniqueError::NoPeriod`].
pub fn deduplication(key: String, period: Period, now: TimestampMs) -> Result<Deduplication, UniqueError> {
    let whole = |span: Duration| Some(millis(span)).filter(|ms| *ms > 0).ok_or(UniqueError::NoPeriod);
    #[expect(clippy::cast_precision_loss, reason = "options travel as JSON numbers")]
    Ok(match period {
        Period::UntilDone => Deduplication { id: key, ..Deduplication::default() },
        Period::Within(span) => {
            Deduplication { id: key, ttl: Some(whole(span)? as f64), ..Deduplication::default() }
        }
        Period::UntilQuiet(span) => Deduplication {
            id: key,
            ttl: Some(whole(span)? as f64),
            extend: Some(true),
            ..Deduplication::default()
        },
        Period::Window(span) => {
            let span = whole(span)?;
            let left = span - now.0.rem_euclid(span);
            Deduplication {
                id: format!("{key}-{}", now.0.div_euclid(span)),
                ttl: Some(left as f64),
                ..Deduplication::default()
            }
        }
    })
}

fn utf16(text: &str) -> Vec<u16> {
    text.encode_utf16().collect()
}

fn write_text(out: &mut String, text: &str) {
    // serde_json escapes exactly what JSON.stringify escapes.
    out.push_str(&Value::from(text).to_string());
}

fn write_value(out: &mut String, value: &Value) -> Result<(), ()> {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => out.push_str(&value.to_string()),
        Value::Number(number) => out.push_str(&number_text(number)?),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(out, item)?;
            }
            out.push(']');
        }
        Value::Object(map) => {
            let sorted: BTreeMap<Vec<u16>, (&String, &Value)> =
                map.iter().map(|(name, value)| (utf16(name), (name, value))).collect();
            out.push('{');
            for (i, (name, value)) in sorted.values().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_text(out, name);
                out.push(':');
                write_value(out, value)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

/// A number as JavaScript prints it.
fn number_text(number: &Number) -> Result<String, ()> {
    let integer = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
    match integer {
        Some(n) if n > EXACT => Err(()),
        Some(_) => Ok(number.to_string()),
        None => Ok(number.as_f64().map_or_else(|| "null".to_owned(), float_text)),
    }
}

/// ECMAScript's Number::toString: the shortest digits, an exponent only from 1e21
/// and below 1e-6.
fn float_text(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{:e}", value.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    // The decimal point stands after so many digits.
    let point = exponent + 1;
    let at = |n: i32| usize::try_from(n).unwrap_or(0);
    let text = if (1..=21).contains(&point) {
        if count <= point {
            format!("{digits}{}", "0".repeat(at(point - count)))
        } else {
            format!("{}.{}", &digits[..at(point)], &digits[at(point)..])
        }
    } else if (-5..=0).contains(&point) {
        format!("0.{}{digits}", "0".repeat(at(-point)))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        let rest = if count > 1 { format!(".{}", &digits[1..]) } else { String::new() };
        format!("{}{rest}e{sign}{}", &digits[..1], exponent.abs())
    };
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(data: &Value, fields: &[&str]) -> Result<String, UniqueError> {
        key("create", data, &fields.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn floats_are_printed_as_javascript_does() {
        for (value, text) in [
            (1.0, "1"),
            (-0.0, "0"),
            (0.5, "0.5"),
            (-12.25, "-12.25"),
            (1e21, "1e+21"),
            (1.5e21, "1.5e+21"),
            (1e20, "100000000000000000000"),
            (1e-6, "0.000001"),
            (1.5e-7, "1.5e-7"),
            (123_456.789, "123456.789"),
            (1e300, "1e+300"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(float_text(value), text);
        }
    }

    #[test]
    fn only_the_chosen_values_count() {
        let base = of(&json!({"tenantId": "a", "vmid": 1, "note": "x"}), &["tenantId", "vmid"]).unwrap();
        for same in [json!({"vmid": 1.0, "tenantId": "a"}), json!({"tenantId": "a", "vmid": 1, "note": "y"})]
        {
            assert_eq!(of(&same, &["/vmid", "tenantId", "vmid"]).unwrap(), base);
        }
        for other in [json!({"tenantId": "a", "vmid": "1"}), json!({"tenantId": "b", "vmid": 1})] {
            assert_ne!(of(&other, &["tenantId", "vmid"]).unwrap(), base);
        }
        assert_ne!(of(&json!({"a": null}), &["a"]).unwrap(), of(&json!({"a": "null"}), &["a"]).unwrap());
        assert!(base.len() == 34 && base.starts_with("u-"), "{base}");
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        assert_eq!(of(&json!({}), &[]), Err(UniqueError::NoFields));
        assert_eq!(of(&json!({"a": 1}), &["b"]), Err(UniqueError::MissingField("b".into())));
        assert_eq!(of(&json!({"a": u64::MAX}), &["a"]), Err(UniqueError::Inexact("a".into())));
        assert_eq!(of(&json!([1]), &["/0/x"]), Err(UniqueError::MissingField("/0/x".into())));
        assert!(deduplication("k".into(), Period::Within(Duration::ZERO), TimestampMs(0)).is_err());
    }

    #[test]
    fn a_window_ends_at_its_own_edge() {
        let hour = Duration::from_secs(3600);
        let at = |ms| deduplication("k".into(), Period::Window(hour), TimestampMs(ms)).unwrap();
        assert_eq!((at(3_600_000).id.as_str(), at(3_600_000).ttl), ("k-1", Some(3_600_000.0)));
        assert_eq!((at(7_199_999).id.as_str(), at(7_199_999).ttl), ("k-1", Some(1.0)));
        assert_eq!(at(7_200_000).id, "k-2");
    }
}
