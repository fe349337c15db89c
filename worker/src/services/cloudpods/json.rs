//! The payload's text as JSON, with the tolerance of Node's parser: a lone
//! surrogate, which `JSON.stringify` writes and serde refuses, becomes U+FFFD;
//! the field that holds it is then judged like any other. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Value, value::RawValue};

/// A payload of any shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload(pub Value);

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        read(raw.get()).map(Self).map_err(D::Error::custom)
    }
}

/// Reads a text; an error names the fields that hold what cannot be read.
///
/// # Errors
/// Why it cannot be read, for the operator.
pub(super) fn read(text: &str) -> Result<Value, String> {
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let mended = without_lone_surrogates(text);
    serde_json::from_str(&mended).map_err(|error| {
        let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&mended).unwrap_or_default();
        let broken: Vec<String> = fields
            .iter()
            .filter_map(|(name, raw)| {
                let error = serde_json::from_str::<Value>(raw.get()).err()?;
                Some(format!("{name} cannot be read ({error})"))
            })
            .collect();
        if broken.is_empty() { error.to_string() } else { broken.join("; ") }
    })
}

fn without_lone_surrogates(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match escaped_unit(rest) {
            Some(0xD800..=0xDBFF) if matches!(escaped_unit(&rest[6..]), Some(0xDC00..=0xDFFF)) => 12,
            Some(0xD800..=0xDFFF) => {
                out.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            Some(_) => 6,
            // The escaped character may be a backslash, which begins no escape of its own.
            None => rest.char_indices().nth(2).map_or(rest.len(), |(end, _)| end),
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
}

/// The code unit of a text that begins with `\uXXXX`.
fn escaped_unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lone_surrogates_are_replaced_and_pairs_and_backslashes_kept() {
        let cases = [
            (r#""a\ud800b""#, "a\u{fffd}b"),
            (r#""\udc00\ud800""#, "\u{fffd}\u{fffd}"),
            (r#""\ud83d\ude00\ud83d""#, "😀\u{fffd}"),
            (r#""\ud800\n\\ud800\\\ud800""#, "\u{fffd}\n\\ud800\\\u{fffd}"),
            (r#""\ud800\ud83d\ude00é""#, "\u{fffd}😀é"),
        ];
        for (text, wanted) in cases {
            assert_eq!(read(text), Ok(json!(wanted)), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_by_field_where_there_is_one() {
        let text = read(r#"{"hostname":"h","cores":1e999,"memoryMb":1}"#).unwrap_err();
        assert!(text.starts_with("cores cannot be read (number out of range"), "{text}");
        for text in ["", "{", "{\"a\":1}}", "\\", "\"\\", "\"\\u", "\"\\ud8é\"", "\"\\ud800", "{\"a\\ud800"]
        {
            assert!(read(text).is_err(), "{text}");
            assert!(serde_json::from_str::<Payload>(text).is_err(), "{text}");
        }
        let deep = format!("{}{}", "[".repeat(9000), "]".repeat(9000));
        assert!(read(&deep).unwrap_err().contains("recursion limit"));
    }
}
