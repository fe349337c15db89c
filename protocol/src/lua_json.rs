//! What is left of a JSON value that has been through Redis' Lua: BullMQ's scripts
//! decode the options of a job and encode them again.

use serde::{Serializer, ser::SerializeMap};
use serde_json::{Map, Number, Value};

/// A number as Lua's `%.14g` leaves it.
#[must_use]
pub fn rounded(n: f64) -> f64 {
    if !n.is_finite() || (n.fract() == 0.0 && n.abs() < 1e14) {
        return n;
    }
    format!("{n:.13e}").parse().unwrap_or(n)
}

/// A value as Lua's tables leave it; `None` where nothing is left: an empty array is
/// an empty table, a field without a value is no field, and so is the end of an array
/// that holds none.
#[must_use]
pub fn through_tables(value: &Value) -> Option<Value> {
    Some(match value {
        Value::Null => return None,
        Value::Number(n) => Value::Number(number(n)),
        Value::Array(items) => {
            let full = items.iter().rposition(|item| !item.is_null()).map_or(0, |last| last + 1);
            if full == 0 {
                return Some(Value::Object(Map::new()));
            }
            items[..full].iter().map(|item| through_tables(item).unwrap_or_default()).collect()
        }
        Value::Object(map) => Value::Object(map_through_tables(map)),
        Value::Bool(_) | Value::String(_) => value.clone(),
    })
}

/// The fields of an object as Lua's tables leave them.
#[must_use]
pub fn map_through_tables(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter().filter_map(|(name, value)| Some((name.clone(), through_tables(value)?))).collect()
}

fn number(n: &Number) -> Number {
    let Some(given) = n.as_f64() else { return n.clone() };
    let left = rounded(given);
    #[expect(clippy::cast_possible_truncation, reason = "integral and below 2^53")]
    if left.fract() == 0.0 && left.abs() < 9.0e15 {
        return Number::from(left as i64);
    }
    Number::from_f64(left).unwrap_or_else(|| n.clone())
}

/// Writes fields as Lua's tables leave them.
pub(crate) fn serialize<S: Serializer>(map: &Map<String, Value>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut fields = serializer.serialize_map(None)?;
    for (name, value) in map {
        if let Some(value) = through_tables(value) {
            fields.serialize_entry(name, &value)?;
        }
    }
    fields.end()
}

/// Writes an optional number so.
pub(crate) mod opt_number {
    use serde::Serializer;

    pub(crate) use crate::lenient::opt_f64::deserialize;

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(crate) fn serialize<S: Serializer>(n: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        crate::lenient::opt_f64::serialize(&n.map(super::rounded), serializer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_what_lua_leaves() {
        let given = json!({"a": [], "b": [null, 1, null], "c": {"x": null, "y": [[], {}]}, "d": null,
            "n": 0.123_456_789_012_345_67, "big": 123_456_789_012_345_678_u64, "i": 1_700_000_000_123_u64, "e": 1e300});
        let left = json!({"a": {}, "b": [null, 1], "c": {"y": [{}, {}]},
            "n": 0.123_456_789_012_35, "big": 1.234_567_890_123_5e17, "i": 1_700_000_000_123_u64, "e": 1e300});
        assert_eq!(through_tables(&given), Some(left));
    }
}
