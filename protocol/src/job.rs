//! A job as it is stored, read back when it is fetched.

use crate::{ids::JobId, options::JobOptions, wire::MaybeText};

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
    /// How often it stalled (`stc`).
    pub stalls: u32,
    /// Its priority; 0 is none.
    pub priority: u32,
    /// Full key of its parent.
    pub parent_key: Option<String>,
    /// The scheduler that made it.
    pub scheduler: Option<String>,
    /// Its deduplication id.
    pub dedup_id: Option<String>,
    /// It must be failed at once, with this reason (`defa`).
    pub deferred_failure: Option<String>,
    /// Stack traces so far, JSON array of strings.
    pub stacktrace: Option<String>,
}

/// Order of the fields in a script's reply; `includes/take.lua` names them.
const FIELDS: usize = 14;

impl FetchedJob {
    /// Reads one row of a fetch reply.
    pub(crate) fn from_row(row: Vec<MaybeText>) -> Option<Self> {
        let mut row = row;
        if row.len() != FIELDS + 1 {
            return None;
        }
        let mut take = |i: usize| row[i].0.take();
        let number = |text: Option<String>| text.and_then(|t| t.trim().parse::<f64>().ok());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped; a count or a time"
        )]
        let count = |text: Option<String>| number(text).unwrap_or(0.0).clamp(0.0, f64::from(u32::MAX)) as u32;
        #[expect(clippy::cast_possible_truncation, reason = "saturates; a time")]
        let time = |text: Option<String>| number(text).unwrap_or(0.0) as i64;
        let id = take(FIELDS)?;
        let attempts_made_old = take(13);
        Some(Self {
            id: JobId::stored(id),
            name: take(0).unwrap_or_default(),
            data: take(1).unwrap_or_else(|| "{}".to_owned()),
            opts: take(2).unwrap_or_else(|| "{}".to_owned()),
            timestamp_ms: time(take(3)),
            attempts_made: count(take(4).or(attempts_made_old)),
            attempts_started: count(take(5)),
            stalls: count(take(6)),
            priority: count(take(7)),
            parent_key: take(8),
            scheduler: take(9),
            dedup_id: take(10),
            deferred_failure: take(11),
            stacktrace: take(12),
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
