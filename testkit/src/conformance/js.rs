//! What JavaScript would do with the values of a scenario: number text, long
//! option names, undefined.

use std::io;

use mpanel_protocol::{lenient, options::JobOptions};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Number, Serializer, Value, ser::Formatter, value::RawValue};

/// Long option names of Node and the short ones stored.
const SHORT_NAMES: [(&str, &str); 7] = [
    ("keepLogs", "kl"),
    ("debounce", "de"),
    ("deduplication", "de"),
    ("failParentOnFailure", "fpof"),
    ("continueParentOnFailure", "cpof"),
    ("ignoreDependencyOnFailure", "idof"),
    ("removeDependencyOnFailure", "rdof"),
];

/// Numbers as JSON.stringify prints them: no `.0`.
#[must_use]
pub fn normalised(value: &Value) -> Value {
    match value {
        Value::Number(n) => match n.as_f64() {
            #[expect(clippy::cast_possible_truncation, reason = "integral and below 2^53")]
            Some(f) if n.is_f64() && f.fract() == 0.0 && f.abs() < 9.0e15 => {
                Value::Number(Number::from(f as i64))
            }
            // Larger ones are not exact.
            Some(f) if f.abs() >= 9.0e15 => Number::from_f64(f).map_or_else(|| value.clone(), Value::Number),
            _ => value.clone(),
        },
        Value::Array(items) => items.iter().map(normalised).collect(),
        Value::Object(map) => {
            // Names that are array indices come first, by size.
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(name, _)| array_index(name).map_or((1, 0), |index| (0, index)));
            Value::Object(fields.into_iter().map(|(k, v)| (k.clone(), normalised(v))).collect())
        }
        _ => value.clone(),
    }
}

fn array_index(name: &str) -> Option<u32> {
    let index: u32 = name.parse().ok().filter(|index| *index < u32::MAX)?;
    (index.to_string() == name).then_some(index)
}

/// A value as a number, as arithmetic takes it.
#[must_use]
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Null => Some(0.0),
        other => lenient::number(other),
    }
}

/// A value as a client of Redis sends it.
#[must_use]
pub fn argument(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => stringify(other),
    }
}

/// `JSON.parse`: of any depth, and with halves of characters, which become U+FFFD.
///
/// # Errors
/// When the text is no JSON.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    let text = lenient::without_lone_surrogates(text);
    let mut deserializer = serde_json::Deserializer::from_str(&text);
    deserializer.disable_recursion_limit();
    let value = T::deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Numbers as JavaScript writes them.
struct JsNumbers;

impl Formatter for JsNumbers {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, number: f64) -> io::Result<()> {
        let size = number.abs();
        if size == 0.0 {
            writer.write_all(b"0")
        } else if (1e-6..1e21).contains(&size) {
            write!(writer, "{number}")
        } else {
            let text = format!("{number:e}");
            writer.write_all(if size < 1.0 { text.clone() } else { text.replace('e', "e+") }.as_bytes())
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "as JavaScript does")]
    fn write_i64<W: ?Sized + io::Write>(&mut self, writer: &mut W, number: i64) -> io::Result<()> {
        self.write_f64(writer, number as f64)
    }

    #[expect(clippy::cast_precision_loss, reason = "as JavaScript does")]
    fn write_u64<W: ?Sized + io::Write>(&mut self, writer: &mut W, number: u64) -> io::Result<()> {
        self.write_f64(writer, number as f64)
    }
}

/// `JSON.stringify`.
#[must_use]
pub fn stringify(value: &Value) -> String {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, JsNumbers);
    // A Value has no keys that are not text, and the buffer takes everything.
    if normalised(value).serialize(&mut serializer).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// `JSON.stringify`, as data for the producer.
///
/// # Errors
/// None that is known.
pub fn raw(value: &Value) -> Result<Box<RawValue>, serde_json::Error> {
    RawValue::from_string(stringify(value))
}

/// Node's job options under the names that are stored.
#[must_use]
pub fn short_names(options: Map<String, Value>) -> Map<String, Value> {
    let mut stored = Map::new();
    for (name, value) in options {
        if name == "telemetry" {
            if let Some(metadata) = value.get("metadata") {
                stored.insert("tm".into(), metadata.clone());
            }
            if let Some(omit) = value.get("omitContext") {
                stored.insert("omc".into(), omit.clone());
            }
            continue;
        }
        let short =
            SHORT_NAMES.iter().find(|(long, _)| *long == name).map_or(name.as_str(), |(_, short)| short);
        stored.insert(short.to_owned(), value);
    }
    stored
}

/// Node's job options in the form the producer takes.
///
/// # Errors
/// When they are of a form that no option has.
pub fn job_options(options: Map<String, Value>) -> Result<JobOptions, String> {
    let options = normalised(&Value::Object(short_names(options)));
    JobOptions::as_given(options.as_object().cloned().unwrap_or_default()).map_err(|e| e.to_string())
}
