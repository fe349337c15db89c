//! Reading what JavaScript producers send: numbers as text, 1.0 for 1, null for
//! absent, 0/1 for booleans. Writing stays strict.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serializer};
use serde_json::Value;

/// A number, also when it came as text.
#[must_use]
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.trim().parse().ok().filter(|n: &f64| n.is_finite()),
        _ => None,
    }
}

/// A truth value the way JavaScript code means it.
#[must_use]
pub fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => n.as_f64().map(|n| n != 0.0),
        Value::String(s) => match s.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Some(true),
            "false" | "0" | "no" | "" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// JSON text in which every escaped half of a surrogate pair that stands alone is
/// U+FFFD: JavaScript takes such halves, Rust's texts cannot hold them.
#[must_use]
pub fn without_lone_surrogates(text: &str) -> Cow<'_, str> {
    let is_lone = |text: &str| {
        let half = |at: usize| {
            let hex = text.get(at..at + 6)?.strip_prefix("\\u")?;
            u16::from_str_radix(hex, 16).ok().filter(|unit| (0xD800..0xE000).contains(unit))
        };
        match half(0) {
            Some(0xDC00..) => Some(true),
            Some(_) => Some(half(6).is_none_or(|next| next < 0xDC00)),
            None => None,
        }
    };
    let mut mended = String::new();
    let (mut copied, mut at) = (0, 0);
    while let Some(found) = text[at..].find('\\') {
        at += found;
        match is_lone(&text[at..]) {
            Some(true) => {
                mended.push_str(&text[copied..at]);
                mended.push('\u{FFFD}');
                at += 6;
                copied = at;
            }
            Some(false) => at += 12,
            // Any other escape: the mark and one character, so that `\\\\u` is none.
            None => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    mended.push_str(&text[copied..]);
    Cow::Owned(mended)
}

/// Writes a number as an integer where it is one.
pub(crate) fn write_number<S: Serializer>(n: f64, serializer: S) -> Result<S::Ok, S::Error> {
    if n.fract() == 0.0 && n.abs() < 9.0e15 {
        #[expect(clippy::cast_possible_truncation, reason = "integral and below 2^53")]
        let whole = n as i64;
        serializer.serialize_i64(whole)
    } else {
        serializer.serialize_f64(n)
    }
}

/// An optional number; anything that is none is read as absent.
pub mod opt_f64 {
    use super::{Deserialize, Deserializer, Serializer, Value, number, write_number};

    /// Reads it.
    ///
    /// # Errors
    /// Only when the input is no JSON.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<Value>::deserialize(deserializer)?.as_ref().and_then(number))
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(n) => write_number(*n, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// An optional truth value; anything that is none is read as absent.
pub mod opt_bool {
    use super::{Deserialize, Deserializer, Value, truth};

    /// Reads it.
    ///
    /// # Errors
    /// Only when the input is no JSON.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
        Ok(Option::<Value>::deserialize(deserializer)?.as_ref().and_then(truth))
    }
}
