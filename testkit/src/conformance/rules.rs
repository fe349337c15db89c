//! The comparison of decision 14, and every exception it allows. No rule names a
//! scenario.

use serde_json::{Map, Value, json};

use super::{dump::sorted, run::Outcome, scenario::Golden};

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

/// 5.x and 6.x cut as many ids from a drained list as they remove jobs, whichever these
/// are: where the current iteration of a scheduler stands among other jobs, an id
/// without a job stays in the list and the iteration may be lost with its schedule. We
/// keep the iteration, so that nothing is left to compare.
pub const DRAINED_ITERATION: &str = "a list with a current iteration among other jobs was drained";

/// 5.x and 6.x take what stands after the last colon of a job's key for its id, when a
/// job with a family is removed: of ids that hold colons they leave the job where it is,
/// or wake none. We find it.
pub const COLON_FAMILY: &str = "removal among parents and children whose ids hold colons";

/// Steps that we refuse on purpose, although Node takes them: the operation, what our
/// error says, and why. Where Node took it, there is nothing to compare from there on.
const REFUSED: [(&str, &str, &str); 9] = [
    ("upsertScheduler", "`every` is ", ODD_INTERVAL),
    ("upsertScheduler", "`every` of a schedule", ODD_INTERVAL),
    ("add", "`every` is ", ODD_INTERVAL),
    ("add", "`every` of a schedule", ODD_INTERVAL),
    (
        "upsertScheduler",
        "`H` has no meaning",
        "6.x seeds the hash at random: each worker has times of its own",
    ),
    ("add", "too large for a repeatable", STORED_WITHOUT_JOB),
    ("add", "is the name of a key of the queue", OWN_KEY),
    ("addBulk", "is the name of a key of the queue", OWN_KEY),
    ("flow", "is the name of a key of the queue", OWN_KEY),
];

// Node may fail half way, too, and leave what it did before.
const OWN_KEY: &str = "a job of that id would be stored over a key of the queue itself";

const ODD_INTERVAL: &str = "an interval that is no whole ms from 1 has slots in the past or between two ms";
const STORED_WITHOUT_JOB: &str = "5.x stores the repeatable before it refuses its job";

/// Why a step was refused on purpose.
#[must_use]
pub fn refused_on_purpose(op: &str, error: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(of, text, _)| *of == op && error.contains(text)).map(|(_, _, why)| *why)
}

/// A number that a reader of ours can say: counts and priorities from 0 to 2^32 - 1,
/// times in whole ms. BullMQ's own methods store others only when they are given them.
#[must_use]
pub fn readable(stored: &str, is_time: bool) -> String {
    match stored.parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, reason = "what is compared is the cut")]
        Ok(n) if is_time => (n as i64).to_string(),
        Ok(n) => n.trunc().clamp(0.0, f64::from(u32::MAX)).to_string(),
        Err(_) => stored.to_owned(),
    }
}

/// Whether npm bullmq lost itself in a step, so that there is nothing to compare with:
/// its scripts recurse without end over jobs that are each other's parents, and it
/// starts jobs that are not there any more, as jobs without a name.
#[must_use]
pub fn is_lost(result: &Value) -> bool {
    let nameless = |job: &Value| job.get("attemptsMade").is_some() && job.get("name").is_none();
    result["error"].as_str().is_some_and(|e| e.contains("stack overflow"))
        || nameless(&result["result"])
        || nameless(&result["result"]["next"])
}

/// From which step on the two part on purpose, and why.
#[must_use]
pub fn parting(golden: &Golden, outcome: &Outcome) -> Option<(usize, &'static str)> {
    let node_took_it = |at: usize| golden.results.get(at).is_some_and(|r| r.get("error").is_none());
    let parts =
        |(at, why): &(usize, &'static str)| node_took_it(*at) || [STORED_WITHOUT_JOB, OWN_KEY].contains(why);
    let lost = golden.results.iter().position(is_lost).map(|at| (at, "npm bullmq lost itself"));
    outcome.partings.iter().copied().filter(parts).chain(lost).min_by_key(|(at, _)| *at)
}

/// Compares what we did with what npm bullmq did; the first difference. Where the two
/// part on purpose, what comes after may differ.
#[must_use]
pub fn compare(golden: &Golden, outcome: &Outcome) -> Option<Difference> {
    let difference = compare_results(&golden.results, &outcome.results)
        .or_else(|| compare_keys(&golden.keys, &with_namesakes(golden, outcome)))?;
    let Some((at, _)) = parting(golden, outcome) else { return Some(difference) };
    let before = |results: &[Value]| results[..at.min(results.len())].to_vec();
    compare_results(&before(&golden.results), &before(&outcome.results))
}

/// Our keys. Jobs with random ids share one name, and which of them the dump shows
/// depends on the ids: the one that npm bullmq's dump shows, if we have it.
fn with_namesakes(golden: &Golden, outcome: &Outcome) -> Map<String, Value> {
    let mut keys = outcome.keys.clone();
    for (key, entry) in &outcome.namesakes {
        let alone = |entry: &Value| Map::from_iter([(key.clone(), entry.clone())]);
        let shown = golden.keys.get(key).is_some_and(|e| compare_keys(&alone(e), &alone(entry)).is_none());
        if shown {
            keys.insert(key.clone(), entry.clone());
        }
    }
    keys
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
        // The version that a queue's `meta` names.
        "rawcmd" => first_difference(&path, &sorted(&unversioned(e)), &sorted(&unversioned(g))),
        // A job with a deferred failure is failed by a manual fetch in 5.x, handed out in 6.x.
        "process" | "fetch" if e["none"] == true && g.get("deferredFailure").is_some() => None,
        _ => first_difference(&path, &sorted(e), &sorted(g)),
    }
}

fn unversioned(reply: &Value) -> Value {
    match reply {
        Value::Array(items) => items.iter().map(unversioned).collect(),
        Value::String(text) if text.starts_with("bullmq:") || text.starts_with("mpanel-fleet:") => {
            json!("<version>")
        }
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
