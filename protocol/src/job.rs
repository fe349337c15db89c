//! A job as it is stored, read back when it is fetched.

use redis::Value;

use crate::{ids::JobId, options::JobOptions, wire::text};

/// A job that a fetch started, with the fields a worker needs.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchedJob {
    /// Its id.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// The payload, JSON text as stored.
    pub data: String,
    /// The options, JSON text as stored.
    pub opts: String,
    /// When it was created, epoch ms.
    pub timestamp_ms: i64,
    /// Attempts that failed so far (`atm`).
    pub attempts_made: u32,
    /// Attempts started, this one included (`ats`).
    pub attempts_started: u32,
    /// Full key of its parent.
    pub parent_key: Option<String>,
    /// The scheduler that made it.
    pub scheduler: Option<String>,
    /// It must be failed at once, with this reason (`defa`).
    pub deferred_failure: Option<String>,
    /// Stack traces so far, JSON array of strings.
    pub stacktrace: Option<String>,
}

impl FetchedJob {
    /// Reads the next job from the values of a fetch reply, which `includes/take.lua`
    /// describes; `None` where they end.
    pub(crate) fn from_values(values: &mut impl Iterator<Item = Value>) -> Option<Self> {
        let number = |text: Option<String>| text.and_then(|t| t.trim().parse::<f64>().ok()).unwrap_or(0.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped; a count or a time"
        )]
        let count = |text: Option<String>| number(text).clamp(0.0, f64::from(u32::MAX)) as u32;
        let mut next = || values.next().map(text);
        let (id, started) = (next()?, next()?);
        let (name, data, opts, timestamp) = (next()?, next()?, next()?, next()?);
        let mut rest = match values.next()? {
            Value::Array(rest) => rest,
            _ => Vec::new(),
        }
        .into_iter();
        let mut more = || rest.next().and_then(text);
        Some(Self {
            id: JobId::stored(id?),
            name: name.unwrap_or_default(),
            data: data.unwrap_or_else(|| "{}".to_owned()),
            opts: opts.unwrap_or_else(|| "{}".to_owned()),
            #[expect(clippy::cast_possible_truncation, reason = "saturates; a time")]
            timestamp_ms: number(timestamp) as i64,
            attempts_started: count(started),
            attempts_made: count(more()),
            parent_key: more(),
            scheduler: more(),
            deferred_failure: more(),
            stacktrace: more(),
        })
    }

    /// The options, parsed.
    ///
    /// # Errors
    /// When they are no JSON object.
    pub fn options(&self) -> Result<JobOptions, serde_json::Error> {
        JobOptions::from_json(&self.opts)
    }

    /// The stack traces kept so far with `newest` added, as the options limit
    /// them; JSON text for the hash.
    #[must_use]
    pub fn stacktrace_with(&self, newest: &str, options: &JobOptions) -> String {
        let mut traces: Vec<String> =
            self.stacktrace.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        traces.push(newest.to_owned());
        serde_json::Value::from(options.limit_stacktrace(traces)).to_string()
    }
}
