//! Reading the fields of a payload object with JavaScript's looseness.
//!
//! Collects every problem before it gives up, each under the field's own name.
//! Knows no queue.

use std::fmt;

use serde_json::{Map, Number, Value};
use uuid::Uuid;

/// Integers beyond this are not exact in JavaScript (2^53).
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldProblem {
    /// The field as the producer spells it (`memoryMb`).
    pub field: String,
    /// What is wrong, for the operator.
    pub problem: String,
}

/// A payload that cannot be used. Shows every problem, each with its field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PayloadError {
    /// At least one.
    pub problems: Vec<FieldProblem>,
}

impl PayloadError {
    /// An error about one field.
    #[must_use]
    pub fn one(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { problems: vec![FieldProblem { field: field.into(), problem: problem.into() }] }
    }
}

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Invalid payload: ")?;
        for (index, FieldProblem { field, problem }) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{field} {problem}")?;
        }
        Ok(())
    }
}

/// The fields of one payload object, and the problems found so far.
#[derive(Debug)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    problems: Vec<FieldProblem>,
}

impl<'a> Fields<'a> {
    /// Takes the payload.
    ///
    /// # Errors
    /// When it is not a JSON object.
    pub fn of(value: &'a Value) -> Result<Self, PayloadError> {
        match value {
            Value::Object(map) => Ok(Self { map, problems: Vec::new() }),
            other => Err(PayloadError::one("data", format!("must be a JSON object, is {}", kind(other)))),
        }
    }

    /// Notes a problem of `field`.
    pub fn problem(&mut self, field: &str, problem: impl Into<String>) {
        self.problems.push(FieldProblem { field: field.to_owned(), problem: problem.into() });
    }

    /// The value of `field`; `null` counts as absent.
    fn raw(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Text, or a number written as text. Blank text counts as absent.
    pub fn text(&mut self, field: &str) -> Option<String> {
        let text = match self.raw(field)? {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            other => {
                self.problem(field, format!("must be text, is {}", kind(other)));
                return None;
            }
        };
        if text.contains('\0') {
            self.problem(field, "holds a NUL character, which the database refuses");
            return None;
        }
        (!text.is_empty()).then_some(text)
    }

    /// An integer: `2`, `2.0`, `"2"`.
    pub fn integer(&mut self, field: &str) -> Option<i64> {
        let value = self.raw(field)?;
        let parsed = match value {
            Value::Number(number) => exact_integer(number),
            Value::String(text) if text.trim().is_empty() => return None,
            Value::String(text) => text.trim().parse::<Number>().ok().as_ref().and_then(exact_integer),
            _ => None,
        };
        if parsed.is_none() {
            self.problem(field, format!("must be a whole number, is {}", shown(value)));
        }
        parsed
    }

    /// A yes or no: `true`, `1`, `"true"`, `"1"` and their opposites.
    pub fn flag(&mut self, field: &str) -> Option<bool> {
        let value = self.raw(field)?;
        let parsed = match value {
            Value::Bool(flag) => Some(*flag),
            Value::Number(number) => match number.as_f64() {
                Some(0.0) => Some(false),
                Some(1.0) => Some(true),
                _ => None,
            },
            Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                "" => return None,
                _ => None,
            },
            _ => None,
        };
        if parsed.is_none() {
            self.problem(field, format!("must be true or false, is {}", shown(value)));
        }
        parsed
    }

    /// A UUID written as text.
    pub fn uuid(&mut self, field: &str) -> Option<Uuid> {
        let text = self.text(field)?;
        let parsed = Uuid::parse_str(&text).ok();
        if parsed.is_none() {
            self.problem(field, format!("must be a UUID, is {}", shown(&Value::String(text))));
        }
        parsed
    }

    /// One of the words that `parse` knows.
    pub fn word<T>(
        &mut self,
        field: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        allowed: &str,
    ) -> Option<T> {
        let text = self.text(field)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.problem(field, format!("must be one of {allowed}, is {}", shown(&Value::String(text))));
        }
        parsed
    }

    /// `value`, or the problem that `field` is missing. When the field was
    /// present and wrong, that problem stands alone.
    pub fn required<T>(&mut self, field: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.problems.iter().any(|known| known.field == field) {
            self.problem(field, "is missing");
        }
        value
    }

    /// The decoded payload, or everything that was wrong.
    ///
    /// # Errors
    /// All problems noted so far.
    pub fn finish<T>(self, decoded: Option<T>) -> Result<T, PayloadError> {
        match decoded {
            Some(decoded) if self.problems.is_empty() => Ok(decoded),
            _ => Err(PayloadError { problems: self.problems }),
        }
    }
}

/// The number as an integer that JavaScript can hold exactly.
fn exact_integer(number: &Number) -> Option<i64> {
    let float = number.as_f64()?;
    if !float.is_finite() || float.fract() != 0.0 || float.abs() > MAX_EXACT_INTEGER {
        return None;
    }
    // In range and whole, so the conversion is exact.
    #[allow(clippy::cast_possible_truncation, reason = "checked above")]
    Some(float as i64)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value for an error text, shortened: payloads are not ours to repeat at length.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        return text;
    }
    let head: String = text.chars().take(57).collect();
    format!("{head}…")
}
