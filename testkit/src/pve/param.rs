//! One parameter's rule: type, bounds, choices, pattern, format.
//!
//! Checks a single value; which parameters a method has is `schema`'s part.

use regex_lite::Regex;
use serde_json::Value;

use super::formats::{self, Shape};
use super::wire::RawValue;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    List,
}

#[derive(Debug)]
pub(crate) struct ParamSpec {
    pub(crate) kind: Kind,
    pub(super) optional: bool,
    shape: Shape,
    choices: Vec<String>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    min_length: Option<usize>,
    max_length: Option<usize>,
    pattern: Option<Regex>,
    pub(super) requires: Option<String>,
}

/// A bound; the extract writes some of them as text.
fn bound(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn length(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

/// Perl writes `(?^:…)` and `(?^i:…)`; what then still cannot be read is not checked.
pub(super) fn pattern(text: &str) -> Option<Regex> {
    let text = text.replace("(?^:", "(?:").replace("(?^i:", "(?i:").replace("\\0", "\\x00");
    Regex::new(&format!("^(?:{text})$")).ok()
}

impl ParamSpec {
    pub(crate) fn parse(spec: &Value) -> Self {
        Self {
            kind: match spec["type"].as_str() {
                Some("integer") => Kind::Integer,
                Some("number") => Kind::Number,
                Some("boolean") => Kind::Boolean,
                Some("array") => Kind::List,
                _ => Kind::Text,
            },
            optional: spec["optional"].as_i64() == Some(1),
            shape: Shape::parse(&spec["format"]),
            choices: spec["enum"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|choice| choice.as_str().map(str::to_owned).or_else(|| Some(choice.to_string())))
                .collect(),
            minimum: bound(&spec["minimum"]),
            maximum: bound(&spec["maximum"]),
            min_length: length(&spec["minLength"]),
            max_length: length(&spec["maxLength"]),
            pattern: spec["pattern"].as_str().and_then(pattern),
            requires: spec["requires"].as_str().map(str::to_owned),
        }
    }

    pub(crate) fn is_optional(&self) -> bool {
        self.optional
    }

    pub(super) fn accept(&self, raw: &RawValue) -> Result<String, String> {
        match raw {
            RawValue::One(text) => self.check(text),
            RawValue::Many(items) if self.kind == Kind::List || self.shape.is_list() => {
                for item in items {
                    self.check(item)?;
                }
                Ok(items.join(","))
            }
            RawValue::Many(_) => Err(format!("type check ('{}') failed - got ARRAY", self.kind.name())),
            RawValue::Object => Err(format!("type check ('{}') failed - got HASH", self.kind.name())),
        }
    }

    /// Checks one value and returns its normal form.
    pub(crate) fn check(&self, text: &str) -> Result<String, String> {
        let wrong = || format!("type check ('{}') failed - got '{text}'", self.kind.name());
        let normal = match self.kind {
            Kind::Boolean => match text.to_ascii_lowercase().as_str() {
                "1" | "on" | "yes" | "true" => "1".to_owned(),
                "0" | "off" | "no" | "false" => "0".to_owned(),
                _ => return Err(wrong()),
            },
            Kind::Integer => {
                let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(wrong());
                }
                text.to_owned()
            }
            Kind::Number => {
                let plain = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
                if !plain || text.parse::<f64>().is_err() {
                    return Err(wrong());
                }
                text.to_owned()
            }
            Kind::Text | Kind::List => text.to_owned(),
        };
        if matches!(self.kind, Kind::Integer | Kind::Number) {
            let value: f64 = text.parse().map_err(|_| wrong())?;
            if let Some(minimum) = self.minimum
                && value < minimum
            {
                return Err(format!("value must have a minimum value of {minimum}"));
            }
            if let Some(maximum) = self.maximum
                && value > maximum
            {
                return Err(format!("value must have a maximum value of {maximum}"));
            }
        }
        let chars = text.chars().count();
        if let Some(least) = self.min_length
            && chars < least
        {
            return Err(format!("value must be at least {least} characters long"));
        }
        if let Some(most) = self.max_length
            && chars > most
        {
            return Err(format!("value may only be {most} characters long"));
        }
        if !self.choices.is_empty() && !self.choices.contains(&normal) {
            return Err(format!(
                "value '{text}' does not have a value in the enumeration '{}'",
                self.choices.join(", ")
            ));
        }
        if let Some(pattern) = &self.pattern
            && !pattern.is_match(text)
        {
            return Err("value does not match the regex pattern".to_owned());
        }
        formats::check(&self.shape, text).map_err(|why| format!("invalid format - {why}"))?;
        Ok(normal)
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::List => "array",
        }
    }
}
