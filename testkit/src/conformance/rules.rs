//! The comparison of decision 14, and every exception it allows. No rule names a
//! scenario.

use serde_json::{Map, Value, json};

use super::dump::sorted;

/// A place where our side differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where, as a path of keys.
    pub path: String,
    /// What npm bullmq left.
    pub expected: String,
    /// What we left.
    pub got: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, expected {}, got {}", self.path, self.expected, self.got)
    }
}

/// Keys in the form in which they are compared: what a rule frees is taken out of both sides.
fn comparable(keys: &Map<String, Value>) -> Value {
    let mut out = Map::new();
    for (key, entry) in keys {
        let mut entry = entry.clone();
        match entry["type"].as_str() {
            Some("hash") => {
                if let Some(fields) = entry["value"].as_object_mut() {
                    // The id of the following iteration: written by 5.x only, read by nobody.
                    fields.shift_remove("nrjid");
                    // Stack text is free, the number of traces and their messages are not.
                    if let Some(traces) = fields.get("stacktrace").and_then(Value::as_str) {
                        let messages = stack_messages(traces);
                        fields.insert("stacktrace".to_owned(), messages);
                    }
                    if key.ends_with(":meta") && fields.contains_key("version") {
                        fields.insert("version".to_owned(), json!("<version>"));
                    }
                }
            }
            Some("stream") => {
                // `debounced` is an older word for `deduplicated`, which stands beside it.
                if let Some(events) = entry["value"].as_array_mut() {
                    events.retain(|event| event[0][1] != "debounced");
                }
            }
            _ => {}
        }
        out.insert(key.clone(), entry);
    }
    sorted(&Value::Object(out))
}

/// Of each trace its message: the first line without the class name.
fn stack_messages(traces: &str) -> Value {
    let Ok(traces) = serde_json::from_str::<Vec<String>>(traces) else { return json!(traces) };
    traces
        .iter()
        .map(|trace| {
            let first = trace.lines().next().unwrap_or_default();
            first.split_once(": ").map_or(first, |(_, message)| message).to_owned()
        })
        .collect()
}

/// Compares the keys; the first difference.
#[must_use]
pub fn compare_keys(expected: &Map<String, Value>, got: &Map<String, Value>) -> Option<Difference> {
    first_difference("keys", &comparable(expected), &comparable(got))
}

/// Compares the results of the steps; the first difference.
#[must_use]
pub fn compare_results(expected: &[Value], got: &[Value]) -> Option<Difference> {
    if expected.len() != got.len() {
        return Some(differ("results", &json!(expected.len()), &json!(got.len())));
    }
    expected.iter().zip(got).enumerate().find_map(|(i, (e, g))| compare_result(i, e, g))
}

fn compare_result(i: usize, expected: &Value, got: &Value) -> Option<Difference> {
    let op = expected["op"].as_str().unwrap_or_default();
    let path = format!("results[{i}].{op}");
    // A bulk with a job whose parent is missing: Node hands out the error code as the
    // job's id and says nothing; we say what is wrong. The keys are the same.
    if op == "addBulk"
        && let Some(code) = got.get("code").and_then(Value::as_i64)
        && expected["result"].as_array().is_some_and(|ids| ids.contains(&json!(code.to_string())))
    {
        return None;
    }
    // Errors by class: BullMQ's code where it has one, else that there is one.
    if expected.get("error").is_some() || got.get("error").is_some() {
        let same = expected.get("error").is_some() == got.get("error").is_some()
            && (expected.get("code").is_none() || expected.get("code") == got.get("code"));
        return (!same).then(|| differ(&path, expected, got));
    }
    let (e, g) = (&expected["result"], &got["result"]);
    match op {
        "dump" => {
            let empty = Map::new();
            let keys = |v: &Value| v["dump"].as_object().unwrap_or(&empty).clone();
            compare_keys(&keys(e), &keys(g)).map(|d| Difference { path: format!("{path}.{}", d.path), ..d })
        }
        "counts" => {
            // A count that is missing is 0.
            let empty = Map::new();
            let (e, g) = (e.as_object().unwrap_or(&empty), g.as_object().unwrap_or(&empty));
            let names = e.keys().chain(g.keys());
            let count = |m: &Map<String, Value>, name: &str| m.get(name).and_then(Value::as_i64).unwrap_or(0);
            names
                .into_iter()
                .find(|n| count(e, n) != count(g, n))
                .map(|n| differ(&format!("{path}.{n}"), &json!(count(e, n)), &json!(count(g, n))))
        }
        // The library's name and version, as `meta` has them.
        "rawcmd" => first_difference(&path, &without_version(e), &without_version(g)),
        // A job with a deferred failure is failed by a manual fetch in 5.x, handed out in 6.x.
        "process" | "fetch" if e["none"] == true && g.get("deferredFailure").is_some() => None,
        _ => first_difference(&path, &sorted(e), &sorted(g)),
    }
}

fn without_version(reply: &Value) -> Value {
    match reply {
        Value::String(text) if text.starts_with("bullmq:") || text.starts_with("mpanel-fleet:") => {
            json!("<version>")
        }
        Value::Array(values) => values.iter().map(without_version).collect(),
        other => other.clone(),
    }
}

fn differ(path: &str, expected: &Value, got: &Value) -> Difference {
    Difference { path: path.to_owned(), expected: expected.to_string(), got: got.to_string() }
}

fn first_difference(path: &str, expected: &Value, got: &Value) -> Option<Difference> {
    match (expected, got) {
        (Value::Object(e), Value::Object(g)) => {
            let absent = json!("(absent)");
            e.keys().chain(g.keys().filter(|k| !e.contains_key(*k))).find_map(|key| {
                let at = format!("{path}.{key}");
                match (e.get(key), g.get(key)) {
                    (Some(e), Some(g)) => first_difference(&at, e, g),
                    (e, g) => Some(differ(&at, e.unwrap_or(&absent), g.unwrap_or(&absent))),
                }
            })
        }
        (Value::Array(e), Value::Array(g)) => {
            let absent = json!("(absent)");
            (0..e.len().max(g.len())).find_map(|i| {
                let at = format!("{path}[{i}]");
                match (e.get(i), g.get(i)) {
                    (Some(e), Some(g)) => first_difference(&at, e, g),
                    (e, g) => Some(differ(&at, e.unwrap_or(&absent), g.unwrap_or(&absent))),
                }
            })
        }
        _ if expected == got => None,
        // The same number, written otherwise.
        (Value::Number(e), Value::Number(g)) if e.as_f64() == g.as_f64() => None,
        _ => Some(differ(path, expected, got)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn the_first_difference_is_named() {
        let e = keys(json!({"conf:q:wait": {"type": "list", "ttl": "none", "value": ["1", "2"]}}));
        let g = keys(json!({"conf:q:wait": {"type": "list", "ttl": "none", "value": ["1", "3"]}}));
        let d = compare_keys(&e, &g).unwrap();
        assert_eq!(d.to_string(), r#"keys.conf:q:wait.value[1], expected "2", got "3""#);
        assert_eq!(compare_keys(&e, &e), None);
    }

    #[test]
    fn stack_text_is_free_but_messages_are_not() {
        let hash =
            |trace: &str| keys(json!({"k": {"type": "hash", "ttl": "none", "value": {"stacktrace": trace}}}));
        let e = hash(r#"["UnrecoverableError: no\n  at x"]"#);
        assert_eq!(compare_keys(&e, &hash(r#"["Error: no\n  at y"]"#)), None);
        assert!(compare_keys(&e, &hash(r#"["Error: yes"]"#)).is_some());
        assert!(compare_keys(&e, &hash("[]")).is_some());
    }

    #[test]
    fn errors_are_compared_by_code() {
        let e = json!({"op": "remove", "error": "a", "code": -8});
        assert_eq!(
            compare_results(std::slice::from_ref(&e), &[json!({"op": "remove", "error": "b", "code": -8})]),
            None
        );
        assert!(
            compare_results(std::slice::from_ref(&e), &[json!({"op": "remove", "error": "b", "code": -1})])
                .is_some()
        );
        assert!(compare_results(&[e], &[json!({"op": "remove", "result": 1})]).is_some());
    }

    #[test]
    fn a_missing_count_is_zero() {
        let e = json!({"op": "counts", "result": {"waiting": 1}});
        assert_eq!(
            compare_results(
                std::slice::from_ref(&e),
                &[json!({"op": "counts", "result": {"waiting": 1, "paused": 0}})]
            ),
            None
        );
        assert!(
            compare_results(&[e], &[json!({"op": "counts", "result": {"waiting": 1, "paused": 2}})])
                .is_some()
        );
    }
}
