//! One job as stored, whatever state its hash is in.

use std::{collections::BTreeMap, time::Duration};

use mpanel_protocol::{calls::manage, ids::JobId, job::FetchedJob, state::JobState};
use serde_json::Value;

use super::{AdminError, DependencyCounts, QueueAdmin, script};

/// Something about a stored job that Node or a handler would stumble over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobProblem {
    /// The job's key is no hash.
    #[error("the job's key holds a {found}, not a hash")]
    WrongType {
        /// What it holds.
        found: String,
    },
    /// A field that every job has is missing.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A field that holds JSON does not.
    #[error("field `{field}` is not JSON: {why}")]
    NotJson {
        /// The field.
        field: &'static str,
        /// What the parser says.
        why: String,
    },
    /// A field is JSON of another kind than expected.
    #[error("field `{field}` is not {expected}")]
    Unexpected {
        /// The field.
        field: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// A field that holds a number does not.
    #[error("field `{field}` is not a number: `{text}`")]
    NotANumber {
        /// The field.
        field: &'static str,
        /// Its first characters.
        text: String,
    },
}

/// A job as stored. Fields that are missing or broken have their default, and
/// `problems` says so.
#[derive(Debug, Clone, PartialEq)]
pub struct JobDetail {
    /// What a fetch reads.
    pub job: FetchedJob,
    /// JSON text of the result.
    pub return_value: Option<String>,
    /// Why it failed.
    pub failed_reason: Option<String>,
    /// JSON text of the progress.
    pub progress: Option<String>,
    /// How often it stalled (`stc`).
    pub stalls: u32,
    /// Its priority; 0 is none.
    pub priority: u32,
    /// Its deduplication id.
    pub dedup_id: Option<String>,
    /// The delay it has now; 0 once it was due.
    pub delay_ms: i64,
    /// When the last attempt began, epoch ms.
    pub processed_on_ms: Option<i64>,
    /// When it finished, epoch ms.
    pub finished_on_ms: Option<i64>,
    /// The name of the worker that took it last.
    pub processed_by: Option<String>,
    /// JSON text of `parent`: id, queue and policy flags.
    pub parent: Option<String>,
    /// The trace it belongs to, as its last failure left it.
    pub telemetry: Option<String>,
    /// The iteration of a schedule that follows this one (5.x).
    pub next_iteration: Option<String>,
    /// Fields BullMQ does not know.
    pub foreign: BTreeMap<String, String>,
    /// What is wrong with it.
    pub problems: Vec<JobProblem>,
}

/// Fields of a hash, taken out one by one; what is wrong is noted.
struct Fields {
    map: BTreeMap<String, String>,
    problems: Vec<JobProblem>,
}

impl Fields {
    fn text(&mut self, name: &str) -> Option<String> {
        self.map.remove(name)
    }

    fn number(&mut self, name: &'static str) -> Option<i64> {
        let text = self.map.remove(name)?;
        let number = text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
        if number.is_none() {
            let text = text.chars().take(40).collect();
            self.problems.push(JobProblem::NotANumber { field: name, text });
        }
        #[expect(clippy::cast_possible_truncation, reason = "saturates; a time or count")]
        number.map(|n| n as i64)
    }

    fn count(&mut self, name: &'static str) -> Option<u32> {
        let number = self.number(name)?;
        Some(u32::try_from(number.max(0)).unwrap_or(u32::MAX))
    }

    /// JSON text, checked; `fits` and `expected` say which kind belongs there.
    fn json(
        &mut self,
        field: &'static str,
        fits: fn(&Value) -> bool,
        expected: &'static str,
    ) -> Option<String> {
        let text = self.map.remove(field)?;
        match serde_json::from_str::<Value>(&text) {
            Err(e) => self.problems.push(JobProblem::NotJson { field, why: e.to_string() }),
            Ok(value) if !fits(&value) => self.problems.push(JobProblem::Unexpected { field, expected }),
            Ok(_) => {}
        }
        Some(text)
    }

    fn need(&mut self, field: &'static str) {
        if !self.map.contains_key(field) {
            self.problems.push(JobProblem::Missing(field));
        }
    }
}

impl JobDetail {
    /// Reads a hash. `partial` ones lack the large fields by request.
    pub(super) fn from_fields(id: JobId, map: BTreeMap<String, String>, partial: bool) -> Self {
        let mut f = Fields { map, problems: Vec::new() };
        let needed: &[&'static str] =
            if partial { &["name", "timestamp"] } else { &["name", "data", "opts", "timestamp"] };
        for field in needed {
            f.need(field);
        }
        let anything = |_: &Value| true;
        let old_attempts = f.count("attemptsMade");
        let old_stalls = f.count("stalledCounter");
        let mut detail = Self {
            return_value: f.json("returnvalue", anything, "JSON"),
            failed_reason: f.text("failedReason"),
            progress: f.json("progress", anything, "JSON"),
            delay_ms: f.number("delay").unwrap_or(0),
            stalls: f.count("stc").or(old_stalls).unwrap_or(0),
            priority: f.count("priority").unwrap_or(0),
            dedup_id: f.text("deid"),
            processed_on_ms: f.number("processedOn"),
            finished_on_ms: f.number("finishedOn"),
            processed_by: f.text("pb"),
            parent: f.json("parent", Value::is_object, "an object"),
            telemetry: f.text("tm"),
            next_iteration: f.text("nrjid"),
            job: FetchedJob {
                id,
                name: f.text("name").unwrap_or_default(),
                data: f.json("data", anything, "JSON").unwrap_or_else(|| "{}".to_owned()),
                opts: f.json("opts", Value::is_object, "an object").unwrap_or_else(|| "{}".to_owned()),
                timestamp_ms: f.number("timestamp").unwrap_or(0),
                attempts_made: f.count("atm").or(old_attempts).unwrap_or(0),
                attempts_started: f.count("ats").unwrap_or(0),
                parent_key: f.text("parentKey"),
                scheduler: f.text("rjk"),
                deferred_failure: f.text("defa"),
                stacktrace: f.json("stacktrace", Value::is_array, "an array"),
            },
            foreign: BTreeMap::new(),
            problems: Vec::new(),
        };
        f.text("flowAttachmentFailed");
        detail.foreign = f.map;
        detail.problems = f.problems;
        detail
    }

    pub(super) fn wrong_type(id: JobId, found: String) -> Self {
        let mut detail = Self::from_fields(id, BTreeMap::new(), false);
        detail.problems = vec![JobProblem::WrongType { found }];
        detail
    }
}

/// All there is to know of a job, but for its logs and children.
#[derive(Debug, Clone, PartialEq)]
pub struct JobReport {
    /// The job.
    pub detail: JobDetail,
    /// Where it is; none when no list or set names it.
    pub state: Option<JobState>,
    /// For how long a worker holds it yet.
    pub locked_for: Option<Duration>,
    /// How many log lines it has.
    pub log_lines: u64,
    /// Its children, by what became of them.
    pub children: DependencyCounts,
}

impl QueueAdmin {
    /// Where a job is.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn state(&self, id: &JobId) -> Result<Option<JobState>, AdminError> {
        script!(self, |conn| manage::job_state(conn, &self.keys, id))
    }

    /// A job as stored; `None` when its key does not exist.
    ///
    /// # Errors
    /// [`AdminError`]; what is wrong with the job itself is in
    /// [`JobDetail::problems`].
    pub async fn job(&self, id: &JobId) -> Result<Option<JobDetail>, AdminError> {
        let key = self.keys.job(id);
        match self.ask::<Vec<(Vec<u8>, Vec<u8>)>>(redis::cmd("HGETALL").arg(&key)).await {
            Ok(fields) if fields.is_empty() => Ok(None),
            Ok(fields) => Ok(Some(JobDetail::from_fields(id.clone(), lossy(fields), false))),
            Err(error) if is_wrong_type(&error) => {
                let found: String = self.ask(redis::cmd("TYPE").arg(&key)).await?;
                Ok(Some(JobDetail::wrong_type(id.clone(), found)))
            }
            Err(error) => Err(error),
        }
    }

    /// A job with its state, lock, number of log lines and of children.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn report(&self, id: &JobId) -> Result<Option<JobReport>, AdminError> {
        let Some(detail) = self.job(id).await? else { return Ok(None) };
        let mut pipe = redis::pipe();
        pipe.cmd("PTTL").arg(self.keys.lock(id)).llen(self.keys.logs(id)).ignore_errors();
        let replies: Vec<redis::RedisResult<i64>> = self.ask_all(&pipe).await?;
        // A key of another type counts as none here.
        let number =
            |i: usize| replies.get(i).and_then(|r| r.as_ref().ok()).and_then(|n| u64::try_from(*n).ok());
        Ok(Some(JobReport {
            state: self.state(id).await?,
            locked_for: number(0).map(Duration::from_millis),
            log_lines: number(1).unwrap_or(0),
            children: self.dependency_counts(id).await?,
            detail,
        }))
    }
}

pub(super) fn is_wrong_type(error: &AdminError) -> bool {
    // Of a pipeline's failure only the text tells.
    let wrong = |e: &redis::RedisError| e.code() == Some("WRONGTYPE") || e.to_string().contains("WRONGTYPE");
    error.redis().is_some_and(wrong)
}

/// Field names and values as text; bytes that are no UTF-8 are replaced, as Node does.
pub(super) fn lossy(fields: Vec<(Vec<u8>, Vec<u8>)>) -> BTreeMap<String, String> {
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    };
    fields.into_iter().map(|(name, value)| (text(name), text(value))).collect()
}
