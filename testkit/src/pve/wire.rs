//! Words of the Proxmox wire format: methods, form and JSON parameters, replies, errors.
//!
//! Pure text in, values out. Knows nothing of sockets, of the schema or of the cluster's state.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

/// The four methods the API has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Method {
    Get,
    Post,
    Put,
    Delete,
}

impl Method {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "GET" | "HEAD" => Some(Self::Get),
            "POST" => Some(Self::Post),
            "PUT" => Some(Self::Put),
            "DELETE" => Some(Self::Delete),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A parameter as it came in, before the schema has had its say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RawValue {
    One(String),
    Many(Vec<String>),
    /// A nested JSON object: no parameter of this API takes one.
    Object,
}

pub(crate) type RawParams = BTreeMap<String, RawValue>;

/// Parameters that passed the schema; booleans are `0` or `1`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Params(pub(crate) BTreeMap<String, String>);

impl Params {
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A boolean parameter; absent is false.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.get(key) == Some("1")
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(|text| text.parse().ok())
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }
}

/// What a handler answers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Data(Value),
    /// One page of a longer list; `total` goes beside `data`.
    Page {
        rows: Vec<Value>,
        total: usize,
    },
}

impl Reply {
    pub(crate) fn none() -> Result<Self, ApiError> {
        Ok(Self::Data(Value::Null))
    }
}

/// A refusal: status, one-line reason and, for 400, the texts by parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) text: String,
    pub(crate) errors: BTreeMap<String, String>,
}

impl ApiError {
    pub(crate) fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), errors: BTreeMap::new() }
    }

    /// A failure inside a handler: the API answers all of them with 500.
    pub(crate) fn fail(text: impl Into<String>) -> Self {
        Self::new(500, text)
    }

    pub(crate) fn params(errors: BTreeMap<String, String>) -> Self {
        Self { status: 400, text: "Parameter verification failed.".to_owned(), errors }
    }

    pub(crate) fn param(key: &str, text: impl Into<String>) -> Self {
        Self::params(BTreeMap::from([(key.to_owned(), text.into())]))
    }

    pub(crate) fn forbidden(path: &str, privilege: &str) -> Self {
        Self::new(403, format!("Permission check failed ({path}, {privilege})"))
    }

    /// The part that fits into an HTTP reason phrase.
    pub(crate) fn reason(&self) -> String {
        let line = self.text.lines().next().unwrap_or_default();
        line.chars().filter(|c| !c.is_control()).collect()
    }
}

/// The formats of a URL's third segment that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    ExtJs,
}

/// Encodes an outcome: the HTTP status, the reason phrase where it is not the usual one, the body.
pub(crate) fn encode(format: Format, outcome: Result<Reply, ApiError>) -> (u16, Option<String>, String) {
    match (format, outcome) {
        (Format::Json, Ok(Reply::Data(data))) => (200, None, json!({ "data": data }).to_string()),
        (Format::Json, Ok(Reply::Page { rows, total })) => {
            (200, None, json!({ "data": rows, "total": total }).to_string())
        }
        (Format::ExtJs, Ok(reply)) => {
            let mut body = json!({ "success": 1 });
            match reply {
                Reply::Data(data) => body["data"] = data,
                Reply::Page { rows, total } => {
                    body["data"] = Value::Array(rows);
                    body["total"] = json!(total);
                }
            }
            (200, None, body.to_string())
        }
        (format, Err(error)) => {
            let mut body = json!({ "data": null, "message": format!("{}\n", error.text) });
            if !error.errors.is_empty() {
                body["errors"] = json!(error.errors);
            }
            match format {
                // A failed login shows nothing but its reason phrase.
                _ if error.status == 401 => (401, Some(error.reason()), String::new()),
                Format::Json => (error.status, Some(error.reason()), body.to_string()),
                Format::ExtJs => {
                    body["success"] = json!(0);
                    body["status"] = json!(error.status);
                    (200, None, body.to_string())
                }
            }
        }
    }
}

/// Decodes `%xx`; with `plus_is_space` also `+`. Bytes that are no UTF-8 become replacement characters.
pub(crate) fn percent_decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'+' if plus_is_space => out.push(b' '),
            b'%' => match bytes.get(at + 1..at + 3).and_then(hex_byte) {
                Some(byte) => {
                    out.push(byte);
                    at += 2;
                }
                None => out.push(b'%'),
            },
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex_byte(pair: &[u8]) -> Option<u8> {
    let high = char::from(pair[0]).to_digit(16)?;
    let low = char::from(pair[1]).to_digit(16)?;
    u8::try_from(high * 16 + low).ok()
}

fn push(params: &mut RawParams, key: String, value: String) {
    match params.remove(&key) {
        None => params.insert(key, RawValue::One(value)),
        Some(RawValue::One(first)) => params.insert(key, RawValue::Many(vec![first, value])),
        Some(RawValue::Many(mut all)) => {
            all.push(value);
            params.insert(key, RawValue::Many(all))
        }
        Some(RawValue::Object) => params.insert(key, RawValue::Object),
    };
}

/// Reads a form body or a query string; both `&` and `;` separate, repeated keys become lists.
pub(crate) fn parse_form(text: &str, into: &mut RawParams) {
    for pair in text.split(['&', ';']).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        push(into, percent_decode(key, true), percent_decode(value, true));
    }
}

/// Reads a JSON body, which has to be an object of plain values.
pub(crate) fn parse_json(text: &str, into: &mut RawParams) -> Result<(), ApiError> {
    if text.trim().is_empty() {
        return Ok(());
    }
    let value: Value = serde_json::from_str(text)
        .map_err(|error| ApiError::fail(format!("malformed JSON string: {error}")))?;
    let Value::Object(map) = value else {
        return Err(ApiError::fail("malformed JSON string: an object is expected"));
    };
    for (key, value) in map {
        let raw = match value {
            Value::Null => continue,
            Value::Array(items) => RawValue::Many(items.iter().map(plain).collect()),
            Value::Object(_) => RawValue::Object,
            other => RawValue::One(plain(&other)),
        };
        into.insert(key, raw);
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => u8::from(*flag).to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_pairs_are_split_at_both_separators() {
        let mut params = RawParams::new();
        parse_form("a=1&b=x%3By;c=p+q%2B&d=1&d=2&e=%zz", &mut params);
        assert_eq!(params["b"], RawValue::One("x;y".into()));
        assert_eq!(params["c"], RawValue::One("p q+".into()));
        assert_eq!(params["d"], RawValue::Many(vec!["1".into(), "2".into()]));
        assert_eq!(params["e"], RawValue::One("%zz".into()));
    }

    #[test]
    fn only_the_first_line_is_a_reason() {
        assert_eq!(ApiError::fail("first\nsecond").reason(), "first");
    }
}
