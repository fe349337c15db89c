//! Job options under BullMQ's compact names, as stored in the job hash's `opts`.
//!
//! Reading is tolerant (Node producers put anything there); what we do not know
//! is kept in `other`, so that nothing is lost when options are written back.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{
    backoff::{Backoff, BackoffKind},
    calls::add::ParentRef,
    lenient, lua_json,
};

/// Largest priority; 0 means none, 1 is the most urgent.
pub const PRIORITY_MAX: u32 = 2_097_151;

/// Options of one job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobOptions {
    /// How many attempts are allowed; 0 and 1 mean one.
    #[serde(with = "count")]
    pub attempts: u32,
    /// Pause between attempts.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "any_backoff")]
    pub backoff: Option<Backoff>,
    /// Delay before the first attempt, ms.
    #[serde(skip_serializing_if = "Option::is_none", with = "lua_json::opt_number")]
    pub delay: Option<f64>,
    /// Priority, 1 (most urgent) to [`PRIORITY_MAX`].
    #[serde(skip_serializing_if = "Option::is_none", with = "lua_json::opt_number")]
    pub priority: Option<f64>,
    /// Next in line instead of last.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient::opt_bool::deserialize")]
    pub lifo: Option<bool>,
    /// The id the producer chose.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "opt_text")]
    pub job_id: Option<String>,
    /// Creation time, epoch ms, when the producer set it.
    #[serde(skip_serializing_if = "Option::is_none", with = "lua_json::opt_number")]
    pub timestamp: Option<f64>,
    /// What stays of completed jobs.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "keep_jobs")]
    pub remove_on_complete: Option<KeepJobs>,
    /// What stays of failed jobs.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "keep_jobs")]
    pub remove_on_fail: Option<KeepJobs>,
    /// How many stack traces are kept.
    #[serde(skip_serializing_if = "Option::is_none", with = "lua_json::opt_number")]
    pub stack_trace_limit: Option<f64>,
    /// Largest size of the data, bytes.
    #[serde(skip_serializing_if = "Option::is_none", with = "lua_json::opt_number")]
    pub size_limit: Option<f64>,
    /// How many log lines are kept.
    #[serde(rename = "kl", skip_serializing_if = "Option::is_none", with = "lua_json::opt_number")]
    pub keep_logs: Option<f64>,
    /// Deduplication.
    #[serde(rename = "de", skip_serializing_if = "Option::is_none")]
    pub deduplication: Option<Deduplication>,
    /// Telemetry metadata (`telemetry.metadata`): the trace that the job belongs to,
    /// see [`crate::trace`].
    #[serde(rename = "tm", skip_serializing_if = "Option::is_none", deserialize_with = "metadata")]
    pub telemetry: Option<String>,
    /// The trace is not to be continued of itself (`telemetry.omitContext`): a Node
    /// producer with telemetry stores none, a failure leaves none.
    #[serde(
        rename = "omc",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient::opt_bool::deserialize"
    )]
    pub omit_context: Option<bool>,
    /// What else the producer put there (flow flags `fpof`, `cpof`, `idof`, `rdof`,
    /// `parent`, `repeat`, …).
    #[serde(flatten, serialize_with = "lua_json::serialize")]
    pub other: Map<String, Value>,
    /// Fields that were given in a form that the ones above do not keep, as given.
    #[serde(skip)]
    pub given: Map<String, Value>,
}

/// Deduplication of a job, under the names BullMQ stores in `de`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Deduplication {
    /// The deduplication key.
    #[serde(deserialize_with = "text")]
    pub id: String,
    /// How long the key lives, ms; absent: until the job is finished.
    #[serde(skip_serializing_if = "Option::is_none", with = "lua_json::opt_number")]
    pub ttl: Option<f64>,
    /// A hit starts `ttl` anew.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient::opt_bool::deserialize")]
    pub extend: Option<bool>,
    /// A hit replaces a job that is still delayed.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient::opt_bool::deserialize")]
    pub replace: Option<bool>,
    /// While the holder is active, the last refused job runs after it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient::opt_bool::deserialize")]
    pub keep_last_if_active: Option<bool>,
    /// A hit moves a delayed holder to the new delay (6.x).
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "lenient::opt_bool::deserialize")]
    pub reschedule: Option<bool>,
}

/// What stays of finished jobs: `removeOnComplete`, `removeOnFail`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum KeepJobs {
    /// `true`: nothing stays; `false`: all stay.
    Remove(bool),
    /// The newest so many stay.
    Count(i64),
    /// By age and count.
    Policy(KeepPolicy),
}

/// Retention by age and count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeepPolicy {
    /// Seconds a finished job stays.
    #[serde(skip_serializing_if = "Option::is_none", with = "lua_json::opt_number")]
    pub age: Option<f64>,
    /// How many stay.
    #[serde(skip_serializing_if = "Option::is_none", with = "lua_json::opt_number")]
    pub count: Option<f64>,
    /// Most removals a call.
    #[serde(skip_serializing_if = "Option::is_none", with = "lua_json::opt_number")]
    pub limit: Option<f64>,
}

/// Retention in the form the scripts take.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Retention {
    /// Newest so many stay; `Some(0)`: nothing is stored.
    pub count: Option<i64>,
    /// Seconds.
    pub age_s: Option<f64>,
    /// Most removals for age a call.
    pub limit: Option<i64>,
}

impl KeepJobs {
    /// The script's form. A negative count keeps all, as in BullMQ.
    #[must_use]
    pub fn retention(self) -> Retention {
        match self {
            Self::Remove(true) => Retention { count: Some(0), ..Retention::default() },
            Self::Remove(false) => Retention::default(),
            Self::Count(n) => Retention { count: (n >= 0).then_some(n), ..Retention::default() },
            Self::Policy(p) => Retention {
                count: p.count.filter(|n| *n >= 0.0).map(whole),
                age_s: p.age.filter(|n| *n >= 0.0),
                limit: p.limit.filter(|n| *n >= 0.0).map(whole),
            },
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates, and floors as Lua's comparison would")]
fn whole(n: f64) -> i64 {
    n.floor() as i64
}

impl JobOptions {
    /// Reads stored options as Node reads them: of a field that stands twice the last
    /// counts, and one that is of no use counts as absent.
    ///
    /// # Errors
    /// When the text is no JSON object.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let refused = match serde_json::from_str(text) {
            Ok(options) => return Ok(options),
            Err(error) => error,
        };
        let text = lenient::without_lone_surrogates(text);
        let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(&text) else { return Err(refused) };
        fields.retain(|name, value| {
            let alone = Map::from_iter([(name.clone(), value.clone())]);
            serde_json::from_value::<Self>(Value::Object(alone)).is_ok()
        });
        serde_json::from_value(Value::Object(fields))
    }

    /// Options that a producer gave, under the names that are stored: read like stored
    /// ones, and stored as Node stores what it is given (`"3"`, 2.5, fields nobody
    /// knows).
    ///
    /// # Errors
    /// When a field is of a form that no option has.
    pub fn as_given(fields: Map<String, Value>) -> Result<Self, serde_json::Error> {
        let fields: Map<String, Value> =
            fields.into_iter().filter(|(name, value)| !value.is_null() || name == "attempts").collect();
        let mut options: Self = serde_json::from_value(Value::Object(fields.clone()))?;
        let kept = options.fields()?;
        options.given = fields
            .into_iter()
            // A number of milliseconds is stored as the backoff it means.
            .filter(|(name, value)| !(name == "backoff" && value.is_number()))
            .filter(|(name, value)| kept.get(name) != lua_json::through_tables(value).as_ref())
            .collect();
        Ok(options)
    }

    /// The options as they are stored: JSON text.
    ///
    /// # Errors
    /// None that is known.
    pub fn to_stored(&self) -> Result<String, serde_json::Error> {
        if self.given.is_empty() {
            return serde_json::to_string(self);
        }
        let mut fields = self.fields()?;
        for (name, given) in &self.given {
            // What was changed since then is not what was given.
            let alone = Map::from_iter([(name.clone(), given.clone())]);
            let read = serde_json::from_value::<Self>(Value::Object(alone))?.fields()?;
            if read.get(name) != fields.get(name) {
                continue;
            }
            match lua_json::through_tables(given) {
                Some(value) => fields.insert(name.clone(), value),
                None => fields.shift_remove(name),
            };
        }
        serde_json::to_string(&fields)
    }

    fn fields(&self) -> Result<Map<String, Value>, serde_json::Error> {
        match serde_json::to_value(self)? {
            Value::Object(fields) => Ok(fields),
            _ => Ok(Map::new()),
        }
    }

    /// These options, and what they leave open from `defaults`: Node's
    /// `{...defaultJobOptions, ...opts}`.
    #[must_use]
    pub fn with_defaults(self, defaults: &Self) -> Self {
        let mut other = defaults.other.clone();
        other.extend(self.other);
        let mut given = defaults.given.clone();
        given.extend(self.given);
        // In Node the two are one option, `telemetry`.
        let traced = self.telemetry.is_some() || self.omit_context.is_some();
        let (telemetry, omit_context) = if traced {
            (self.telemetry, self.omit_context)
        } else {
            (defaults.telemetry.clone(), defaults.omit_context)
        };
        Self {
            attempts: if self.attempts == 0 { defaults.attempts } else { self.attempts },
            backoff: self.backoff.or_else(|| defaults.backoff.clone()),
            delay: self.delay.or(defaults.delay),
            priority: self.priority.or(defaults.priority),
            lifo: self.lifo.or(defaults.lifo),
            // As in Node, where an id among the defaults is none.
            job_id: self.job_id,
            timestamp: self.timestamp.or(defaults.timestamp),
            remove_on_complete: self.remove_on_complete.or(defaults.remove_on_complete),
            remove_on_fail: self.remove_on_fail.or(defaults.remove_on_fail),
            stack_trace_limit: self.stack_trace_limit.or(defaults.stack_trace_limit),
            size_limit: self.size_limit.or(defaults.size_limit),
            keep_logs: self.keep_logs.or(defaults.keep_logs),
            deduplication: self.deduplication.or_else(|| defaults.deduplication.clone()),
            telemetry,
            omit_context,
            other,
            given,
        }
    }

    /// The parent that they name, `parent: {id, queue}`, with what is to happen to it
    /// when the job fails for good.
    #[must_use]
    pub fn parent_ref(&self) -> Option<ParentRef> {
        let parent = self.other.get("parent")?;
        let text = |name| parent.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let (id, queue) = (text("id")?, text("queue")?);
        let mut json = serde_json::json!({ "id": id, "queueKey": queue });
        for policy in ["fpof", "cpof", "idof", "rdof"] {
            if self.other.get(policy).is_some_and(|v| v == true) {
                json[policy] = true.into();
            }
        }
        Some(ParentRef { key: format!("{queue}:{id}"), json: json.to_string() })
    }

    /// Attempts allowed, at least 1.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.attempts.max(1)
    }

    /// Whether a retry goes to the front of the line.
    #[must_use]
    pub fn is_lifo(&self) -> bool {
        self.lifo.unwrap_or(false)
    }

    /// Keeps the newest stack traces, as `stackTraceLimit` says; no limit keeps all.
    #[must_use]
    pub fn limit_stacktrace(&self, mut traces: Vec<String>) -> Vec<String> {
        if let Some(limit) = self.stack_trace_limit {
            let keep = usize::try_from(whole(limit.max(0.0))).unwrap_or(usize::MAX);
            if traces.len() > keep {
                traces.drain(..traces.len() - keep);
            }
        }
        traces
    }
}

/// `attempts`: any number Node takes; negative and absurd ones are clamped, and half an
/// attempt is one.
mod count {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::Value;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        let n = Option::<Value>::deserialize(deserializer)?.as_ref().and_then(crate::lenient::number);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to u32")]
        Ok(n.unwrap_or(0.0).ceil().clamp(0.0, f64::from(u32::MAX)) as u32)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(n: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(*n)
    }
}

/// `backoff`: a number, or an object. Anything else names no strategy, and one that
/// nobody knows fails the job, as in BullMQ.
fn any_backoff<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Backoff>, D::Error> {
    let value = Option::<Value>::deserialize(deserializer)?;
    Ok(match value {
        Some(mut object @ Value::Object(_)) => {
            if object.get("type").is_none_or(|kind| !kind.is_string()) {
                object["type"] = Value::from("undefined");
            }
            serde_json::from_value(object).ok()
        }
        Some(Value::Number(delay)) => {
            Some(Backoff { kind: BackoffKind::Fixed, delay: delay.as_f64(), jitter: None })
        }
        Some(Value::String(text)) if !text.is_empty() => {
            Some(Backoff { kind: BackoffKind::Custom("undefined".to_owned()), delay: None, jitter: None })
        }
        _ => None,
    })
}

/// `removeOnComplete`, `removeOnFail`: a bool, a number, or an object.
fn keep_jobs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<KeepJobs>, D::Error> {
    let value = Option::<Value>::deserialize(deserializer)?;
    Ok(match value {
        Some(Value::Bool(b)) => Some(KeepJobs::Remove(b)),
        Some(object @ Value::Object(_)) => serde_json::from_value(object).ok().map(KeepJobs::Policy),
        Some(other) => lenient::number(&other).map(|n| KeepJobs::Count(whole(n))),
        None => None,
    })
}

fn opt_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Option::<Value>::deserialize(deserializer)? {
        None | Some(Value::Null) => None,
        Some(Value::String(s)) => Some(s),
        Some(other) => Some(other.to_string()),
    })
}

/// `tm`: Node producers that omit the context write `false`.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(opt_text(deserializer)?.filter(|text| text != "false"))
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(opt_text(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mpanels_options_are_read() {
        let o = JobOptions::from_json(
            r#"{"removeOnFail":{"age":604800},"jobId":"backup-151-1","removeOnComplete":{"age":86400,"count":1000},"backoff":{"delay":5000,"type":"exponential"},"attempts":3}"#,
        )
        .unwrap();
        assert_eq!(o.max_attempts(), 3);
        assert_eq!(o.backoff, Some(Backoff::exponential(5000)));
        assert_eq!(
            o.remove_on_fail.unwrap().retention(),
            Retention { age_s: Some(604_800.0), ..Retention::default() }
        );
        assert_eq!(o.remove_on_complete.unwrap().retention().count, Some(1000));
    }

    #[test]
    fn loose_typing_is_taken() {
        let o = JobOptions::from_json(r#"{"attempts":"3","backoff":1000,"removeOnComplete":"5","removeOnFail":true,"priority":2.0,"lifo":1,"x":[1]}"#).unwrap();
        assert_eq!((o.attempts, o.priority, o.lifo), (3, Some(2.0), Some(true)));
        assert_eq!(o.backoff, Some(Backoff::fixed(1000)));
        assert_eq!(o.remove_on_complete, Some(KeepJobs::Count(5)));
        assert_eq!(o.remove_on_fail.unwrap().retention().count, Some(0));
        assert!(o.other.contains_key("x"));
        let absurd =
            JobOptions::from_json(r#"{"attempts":-1,"backoff":{"delay":3},"removeOnFail":null}"#).unwrap();
        assert_eq!((absurd.max_attempts(), absurd.remove_on_fail), (1, None));
        // What names no strategy is a strategy nobody knows.
        let kind = |text: &str| JobOptions::from_json(text).unwrap().backoff.map(|b| b.kind);
        assert_eq!(absurd.backoff.map(|b| b.kind), kind(r#"{"backoff":"100"}"#));
        assert_eq!(kind(r#"{"backoff":"x"}"#), Some(BackoffKind::Custom("undefined".to_owned())));
        assert_eq!(kind(r#"{"backoff":true}"#), None);
    }

    #[test]
    fn written_options_use_compact_names() {
        let o = JobOptions { keep_logs: Some(3.0), stack_trace_limit: Some(2.0), ..JobOptions::default() };
        assert_eq!(serde_json::to_string(&o).unwrap(), r#"{"attempts":0,"stackTraceLimit":2,"kl":3}"#);
    }

    #[test]
    fn what_was_given_is_stored_as_given() {
        let given = |value: Value| JobOptions::as_given(value.as_object().cloned().unwrap()).unwrap();
        let odd = serde_json::json!({"attempts": "3", "backoff": {"type": "fixed", "delay": 7, "x": [1, null]},
            "lifo": 1, "delay": null, "priority": 2, "mine": []});
        let options = given(odd);
        assert_eq!((options.attempts, options.lifo), (3, Some(true)));
        let stored: Value = serde_json::from_str(&options.to_stored().unwrap()).unwrap();
        let expected = serde_json::json!({"attempts": "3", "backoff": {"type": "fixed", "delay": 7, "x": [1]},
            "lifo": 1, "priority": 2, "mine": {}});
        assert_eq!(stored, expected);
        let changed = JobOptions { attempts: 5, ..options };
        let stored: Value = serde_json::from_str(&changed.to_stored().unwrap()).unwrap();
        assert_eq!((&stored["attempts"], &stored["lifo"]), (&Value::from(5), &Value::from(1)));
        assert_eq!(given(serde_json::json!({"attempts": 2.5})).attempts, 3);
        let stored = given(serde_json::json!({"attempts": null, "priority": 1.0})).to_stored().unwrap();
        assert_eq!(stored, r#"{"priority":1}"#);
    }

    #[test]
    fn telemetry_is_one_option() {
        let o = JobOptions::from_json(r#"{"tm":"{\"traceparent\":\"x\"}","omc":true}"#).unwrap();
        assert_eq!((o.telemetry.as_deref(), o.omit_context), (Some(r#"{"traceparent":"x"}"#), Some(true)));
        let o = JobOptions::from_json(r#"{"tm":false,"omc":true}"#).unwrap();
        assert_eq!((o.telemetry.as_deref(), o.omit_context), (None, Some(true)));
        let defaults = JobOptions { telemetry: Some("queue's".into()), ..JobOptions::default() };
        let merged = o.with_defaults(&defaults);
        assert_eq!((merged.telemetry, merged.omit_context), (None, Some(true)));
        let merged = JobOptions::default().with_defaults(&defaults);
        assert_eq!((merged.telemetry.as_deref(), merged.omit_context), (Some("queue's"), None));
    }

    #[test]
    fn what_nodes_parser_takes_is_taken() {
        let read = |text: &str| JobOptions::from_json(text).unwrap();
        let twice = read(r#"{"attempts":1,"attempts":3,"de":"x","lifo":true}"#);
        assert_eq!((twice.attempts, twice.lifo, twice.deduplication), (3, Some(true), None));
        let lone = read(r#"{"attempts":2,"mine":"a\ud800b\\ud800","kl":5}"#);
        assert_eq!((lone.attempts, lone.keep_logs), (2, Some(5.0)));
        assert_eq!(lone.other["mine"], "a\u{FFFD}b\\ud800");
        for text in ["[]", "7", "{", "null", r#"{"a":}"#] {
            assert!(JobOptions::from_json(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_newest_stack_traces_stay() {
        let o = JobOptions { stack_trace_limit: Some(1.0), ..JobOptions::default() };
        assert_eq!(o.limit_stacktrace(vec!["a".into(), "b".into()]), ["b"]);
        let none = JobOptions { stack_trace_limit: Some(0.0), ..JobOptions::default() };
        assert!(none.limit_stacktrace(vec!["a".into()]).is_empty());
    }
}
