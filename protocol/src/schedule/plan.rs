//! What the next job of a schedule is to be: for an upsert, for a job that was
//! just taken, for a repeatable of 5.x's `add`. Decides, writes nothing.

use md5::{Digest, Md5};
use serde_json::{Map, Value};

use super::{Repeat, Rhythm, ScheduleError, SchedulerId, Zone};
use crate::{
    calls::add::NewJob, ids::JobId, job::FetchedJob, lenient, lua_json, options::JobOptions, peer::Peer,
    time::TimestampMs,
};

/// What the next job of a scheduler carries, apart from what the script finds.
#[derive(Debug, Clone, PartialEq)]
pub struct NextRun {
    /// When, by a pattern; slots of `every` are found by the script.
    pub at: Option<TimestampMs>,
    /// The interval, ms.
    pub every_ms: Option<i64>,
    /// The offset of its slots, ms.
    pub offset_ms: i64,
    /// The job's options as JSON text without its end: the script adds `delay`
    /// and `jobId`.
    pub(crate) opts_head: String,
    pub(crate) priority: i64,
    pub(crate) lifo: bool,
    pub(crate) dedup_id: Option<String>,
}

/// The first run of a scheduler, and what is stored of it.
#[derive(Debug, Clone, PartialEq)]
pub struct FirstRun {
    /// The job.
    pub run: NextRun,
    pub(crate) tz: Option<String>,
    pub(crate) limit: Option<i64>,
    pub(crate) pattern: Option<String>,
    pub(crate) start: Option<TimestampMs>,
    pub(crate) end: Option<TimestampMs>,
}

/// The run after one that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Successor {
    /// The scheduler.
    pub scheduler: SchedulerId,
    /// The job.
    pub run: NextRun,
    /// The key looks like one of BullMQ 3: only what a scheduler left counts.
    pub(crate) looks_old: bool,
}

/// The run after one whose key is no scheduler's.
#[derive(Debug, Clone, PartialEq)]
pub struct LegacySuccessor(pub LegacyRun);

/// What follows a job that was taken.
#[derive(Debug, Clone, PartialEq)]
pub enum Continuation {
    /// It belongs to no schedule.
    NotScheduled,
    /// It was the last run.
    Ended,
    /// The scheduler makes the next one.
    Scheduler(Box<Successor>),
    /// The scheduler, or, when there is none of that name, the repeatable.
    Either(Box<Successor>, Box<LegacySuccessor>),
    /// The repeatable makes the next one.
    Legacy(Box<LegacySuccessor>),
}

/// A run of a repeatable.
#[derive(Debug, Clone, PartialEq)]
pub struct LegacyRun {
    /// Its key since BullMQ 3.1.
    pub key: String,
    /// Its key before.
    pub old_key: String,
    /// When.
    pub at: TimestampMs,
    /// Stored beside it.
    pub(crate) fields: Vec<(&'static str, String)>,
    name: String,
    data: String,
    options: JobOptions,
    now: TimestampMs,
}

fn object(value: impl Into<Map<String, Value>>) -> Value {
    Value::Object(value.into())
}

/// The `repeat` options as a job carries them.
fn carried(repeat: &Repeat, count: i64) -> Result<Map<String, Value>, ScheduleError> {
    let mut out = repeat.as_json().clone();
    out.remove("immediately");
    for name in ["startDate", "endDate"] {
        out.remove(name);
        if let Some(at) = repeat.date(name)? {
            out.insert(name.to_owned(), at.0.into());
        }
    }
    out.insert("count".to_owned(), count.into());
    Ok(out)
}

/// Options of a job made by a scheduler.
fn scheduled_options(
    mut options: Map<String, Value>,
    scheduler: &str,
    mut repeat: Map<String, Value>,
    offset_ms: i64,
    at: Option<TimestampMs>,
    now: TimestampMs,
) -> NextRunOptions {
    repeat.remove("offset");
    if offset_ms != 0 {
        repeat.insert("offset".to_owned(), offset_ms.into());
    }
    for name in ["delay", "jobId", "prevMillis"] {
        options.remove(name);
    }
    if let Some(at) = at {
        options.insert("prevMillis".to_owned(), at.0.into());
    }
    options.insert("repeat".to_owned(), object(repeat));
    options.insert("repeatJobKey".to_owned(), scheduler.into());
    options.insert("timestamp".to_owned(), now.0.into());
    #[expect(clippy::cast_possible_truncation, reason = "a small number; saturates")]
    let number = |name: &str| options.get(name).and_then(lenient::number).map_or(0, |n| n as i64);
    let (priority, lifo) =
        (number("priority"), options.get("lifo").and_then(lenient::truth).unwrap_or(false));
    let dedup_id = options.get("de").and_then(|de| de["id"].as_str()).map(ToOwned::to_owned);
    let mut opts_head = Value::Object(lua_json::map_through_tables(&options)).to_string();
    opts_head.pop();
    opts_head.push(',');
    NextRunOptions { opts_head, priority, lifo, dedup_id }
}

struct NextRunOptions {
    opts_head: String,
    priority: i64,
    lifo: bool,
    dedup_id: Option<String>,
}

impl NextRunOptions {
    fn run(self, at: Option<TimestampMs>, every_ms: Option<i64>, offset_ms: i64) -> NextRun {
        let Self { opts_head, priority, lifo, dedup_id } = self;
        NextRun { at, every_ms, offset_ms, opts_head, priority, lifo, dedup_id }
    }
}

/// The first run of a scheduler whose jobs carry `template` (options under the
/// names that are stored). `None`: there is none, by the limit or the pattern.
///
/// # Errors
/// [`ScheduleError`].
pub fn plan_upsert(
    id: &SchedulerId,
    repeat: &Repeat,
    template: &Map<String, Value>,
    now: TimestampMs,
    local: Zone,
    peer: Peer,
) -> Result<Option<FirstRun>, ScheduleError> {
    let end = repeat.date("endDate")?;
    if end.is_some_and(|end| end < now) {
        return Err(ScheduleError::EndPassed);
    }
    let start = repeat.date("startDate")?;
    // `cron` is a word of repeatables only.
    if repeat.text("pattern").is_none() && repeat.whole("every")?.is_none() {
        return Err(ScheduleError::NoRhythm);
    }
    let rhythm = repeat.rhythm()?;
    let immediately = repeat.flag("immediately");
    if immediately && start.is_some() {
        return Err(ScheduleError::TwoStarts);
    }
    let Some(count) = repeat.next_count()? else { return Ok(None) };
    let (at, every, pattern) = match rhythm {
        Rhythm::Every(every) => (None, Some(every), None),
        Rhythm::Pattern(pattern) => {
            // Read in any case, so that a wrong one is refused.
            let next = repeat.next_of_pattern(&pattern, now, local, peer)?;
            let Some(at) = (if immediately { Some(now) } else { next }) else { return Ok(None) };
            (Some(at.max(now)), None, Some(pattern))
        }
    };
    let offset_ms = every.map_or(0, |e| e.offset_ms);
    let options =
        scheduled_options(template.clone(), id.as_str(), carried(repeat, count)?, offset_ms, at, now);
    Ok(Some(FirstRun {
        run: options.run(at, every.map(|e| e.every_ms), offset_ms),
        tz: repeat.text("tz").map(ToOwned::to_owned),
        limit: repeat.whole("limit")?,
        pattern,
        start,
        end,
    }))
}

/// Whether a key has the parts `name:id:end:zone:pattern or interval` by which
/// BullMQ 3 named repeatables.
fn looks_old(key: &str, peer: Peer) -> bool {
    let parts: Vec<&str> = key.splitn(5, ':').collect();
    let [_, _, end, _, rest] = parts[..] else { return false };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    match peer {
        Peer::V5 => true,
        Peer::V6 => digits(end) && !rest.is_empty() && (rest.contains(' ') || digits(rest)),
    }
}

/// Whether a job may belong to a schedule: told from what is at hand, since most
/// jobs do not.
#[must_use]
pub fn may_be_scheduled(job: &FetchedJob, peer: Peer) -> bool {
    let keyed = job.scheduler.as_deref().is_some_and(|key| !key.is_empty());
    keyed || (peer == Peer::V5 && job.opts.contains("\"repeat\""))
}

/// What follows a job that was just taken.
///
/// # Errors
/// [`ScheduleError`]: its options tell no next run; the schedule ends here.
pub fn plan_continuation(
    job: &FetchedJob,
    now: TimestampMs,
    local: Zone,
    peer: Peer,
) -> Result<Continuation, ScheduleError> {
    if !may_be_scheduled(job, peer) {
        return Ok(Continuation::NotScheduled);
    }
    let key = job.scheduler.as_deref().filter(|key| !key.is_empty());
    let mut options: Map<String, Value> = serde_json::from_str(&job.opts).unwrap_or_default();
    let repeat = match options.get("repeat") {
        Some(Value::Object(repeat)) => Repeat::from_json(repeat.clone()),
        _ if key.is_none() => return Ok(Continuation::NotScheduled),
        _ => return Err(ScheduleError::Unknown),
    };
    let rhythm = repeat.rhythm()?;
    let Some(count) = repeat.next_count()? else { return Ok(Continuation::Ended) };
    if repeat.date("endDate")?.is_some_and(|end| now > end) {
        return Ok(Continuation::Ended);
    }
    #[expect(clippy::cast_possible_truncation, reason = "a time in ms; saturates")]
    let before = options.get("prevMillis").and_then(lenient::number).map_or(0, |n| n as i64);
    let from = now.max(TimestampMs(before));
    let at = match &rhythm {
        Rhythm::Every(_) => None,
        Rhythm::Pattern(pattern) => match repeat.next_of_pattern(pattern, from, local, peer)? {
            Some(at) => Some(at.max(from)),
            None => return Ok(Continuation::Ended),
        },
    };
    let legacy = || -> Result<Box<LegacySuccessor>, ScheduleError> {
        let options = job.options().map_err(|_| ScheduleError::Unknown)?;
        let at = at.unwrap_or_else(|| legacy_slot(&rhythm, from, false));
        let run = legacy_run(&job.name, &job.data, options, &repeat, count, at, None, now)?;
        Ok(Box::new(LegacySuccessor(run)))
    };
    let Some(key) = key else { return Ok(Continuation::Legacy(legacy()?)) };

    let looks_old = looks_old(key, peer);
    let (every_ms, offset_ms) = match &rhythm {
        Rhythm::Every(every) => (Some(every.every_ms), every.offset_ms),
        Rhythm::Pattern(_) => (None, 0),
    };
    options.entry("attempts").or_insert_with(|| 0.into());
    match options.get("backoff") {
        Some(delay @ Value::Number(_)) => {
            let backoff = serde_json::json!({ "type": "fixed", "delay": delay });
            options.insert("backoff".to_owned(), backoff);
        }
        Some(Value::Null | Value::Bool(false)) => {
            options.remove("backoff");
        }
        _ => {}
    }
    let carried = carried(&repeat, count)?;
    let run = scheduled_options(options, key, carried, offset_ms, at, now).run(at, every_ms, offset_ms);
    let successor = Box::new(Successor { scheduler: SchedulerId::stored(key), run, looks_old });
    Ok(match (looks_old, peer) {
        (true, Peer::V5) => Continuation::Either(successor, legacy()?),
        _ => Continuation::Scheduler(successor),
    })
}

fn legacy_slot(rhythm: &Rhythm, from: TimestampMs, immediately: bool) -> TimestampMs {
    match rhythm {
        Rhythm::Every(every) => {
            let slot = from.0.div_euclid(every.every_ms) * every.every_ms;
            TimestampMs(if immediately { slot } else { slot + every.every_ms })
        }
        Rhythm::Pattern(_) => from,
    }
}

/// The first run of a repeatable, as 5.x's `add` with `repeat` makes it. `None`:
/// there is none, by the limit or the pattern.
///
/// # Errors
/// [`ScheduleError`].
pub fn plan_legacy(
    name: &str,
    data: &str,
    options: &JobOptions,
    repeat: &Repeat,
    now: TimestampMs,
    local: Zone,
) -> Result<Option<LegacyRun>, ScheduleError> {
    let end = repeat.date("endDate")?;
    if end.is_some_and(|end| end < now) {
        return Err(ScheduleError::EndPassed);
    }
    let rhythm = repeat.rhythm()?;
    let Some(count) = repeat.next_count()? else { return Ok(None) };
    let immediately = repeat.flag("immediately");
    let at = match &rhythm {
        Rhythm::Every(_) => legacy_slot(&rhythm, now, immediately),
        Rhythm::Pattern(pattern) => {
            let next = repeat.next_of_pattern(pattern, now, local, Peer::V5)?;
            match if immediately { Some(now) } else { next } {
                Some(at) => at,
                None => return Ok(None),
            }
        }
    };
    let mut named = repeat.as_json().clone();
    if let Some(id) = options.job_id.as_deref().filter(|id| !id.is_empty()) {
        named.insert("jobId".to_owned(), id.into());
    }
    let first = immediately.then_some(rhythm);
    legacy_run(name, data, options.clone(), &Repeat::from_json(named), count, at, first, now).map(Some)
}

#[expect(clippy::too_many_arguments, reason = "one private function behind two plans")]
fn legacy_run(
    name: &str,
    data: &str,
    mut options: JobOptions,
    repeat: &Repeat,
    count: i64,
    at: TimestampMs,
    immediately: Option<Rhythm>,
    now: TimestampMs,
) -> Result<LegacyRun, ScheduleError> {
    let old_key = old_key(name, repeat)?;
    let key = repeat.text("key").map_or_else(|| md5_hex(&old_key), ToOwned::to_owned);
    if key.split(':').count() == 2 {
        return Err(ScheduleError::Key(key));
    }
    let mut carried = carried(repeat, count)?;
    carried.remove("cron");
    if let Some(pattern) = repeat.text("pattern").or_else(|| repeat.text("cron")) {
        carried.insert("pattern".to_owned(), pattern.into());
    }
    if let Some(Rhythm::Every(_)) = immediately {
        carried.entry("offset").or_insert_with(|| (now.0 - at.0).into());
    }
    #[expect(clippy::cast_possible_truncation, reason = "a span in ms; saturates")]
    let offset = carried.get("offset").and_then(lenient::number).map_or(0, |n| n as i64);
    let delay = if immediately.is_some() { 0 } else { (at.0 + offset - now.0).max(0) };
    let mut fields = vec![("name", name.to_owned())];
    if let Some(tz) = repeat.text("tz") {
        fields.push(("tz", tz.to_owned()));
    }
    if let Some(pattern) = repeat.text("pattern").or_else(|| repeat.text("cron")) {
        fields.push(("pattern", pattern.to_owned()));
    }
    if let Some(end) = repeat.date("endDate")? {
        fields.push(("endDate", end.0.to_string()));
    }
    if let Some(every) = repeat.whole("every")? {
        fields.push(("every", every.to_string()));
    }
    #[expect(clippy::cast_precision_loss, reason = "times travel as JSON numbers")]
    let number = |n: i64| Some(n as f64);
    options.delay = number(delay);
    options.timestamp = number(now.0);
    options.other.remove("repeatJobKey");
    options.other.insert("prevMillis".to_owned(), at.0.into());
    options.other.insert("repeat".to_owned(), object(carried));
    Ok(LegacyRun { key, old_key, at, fields, name: name.to_owned(), data: data.to_owned(), options, now })
}

impl LegacyRun {
    /// The job, under the key that is in use.
    pub(crate) fn job(&self, key: &str) -> NewJob {
        let id = if key.split(':').count() > 2 {
            let data: Value = serde_json::from_str(&self.data).unwrap_or_default();
            let of_data = match &data["id"] {
                Value::String(id) => id.clone(),
                Value::Number(id) if id.as_f64() != Some(0.0) => id.to_string(),
                _ => String::new(),
            };
            format!("repeat:{}:{}", md5_hex(&format!("{}{of_data}{}", self.name, md5_hex(key))), self.at.0)
        } else {
            format!("repeat:{key}:{}", self.at.0)
        };
        let mut options = self.options.clone();
        options.job_id = Some(id.clone());
        NewJob {
            id: Some(JobId::stored(id)),
            name: self.name.clone(),
            data: self.data.clone(),
            options,
            timestamp: self.now,
            parent: self.options.parent_ref(),
            waits_for_children: false,
            scheduler: Some(key.to_owned()),
        }
    }
}

/// The key under which BullMQ 3 kept a repeatable.
fn old_key(name: &str, repeat: &Repeat) -> Result<String, ScheduleError> {
    let end = repeat.date("endDate")?.map(|end| end.0.to_string()).unwrap_or_default();
    let tz = repeat.text("tz").unwrap_or_default();
    let id = repeat.text("jobId").unwrap_or_default();
    let rhythm = match repeat.text("pattern").or_else(|| repeat.text("cron")) {
        Some(pattern) => pattern.to_owned(),
        None => repeat.whole("every")?.map(|every| every.to_string()).unwrap_or_default(),
    };
    Ok(format!("{name}:{id}:{end}:{tz}:{rhythm}"))
}

/// The keys under which a repeatable may be, and the begin of its old job ids:
/// `(key, old key, old ids)`.
///
/// # Errors
/// [`ScheduleError`] when the options are no `repeat` options.
pub fn legacy_removal_keys(
    name: &str,
    repeat: &Repeat,
    job_id: Option<&str>,
) -> Result<(String, String, String), ScheduleError> {
    let mut named = repeat.as_json().clone();
    named.remove("jobId");
    if let Some(id) = job_id {
        named.insert("jobId".to_owned(), id.into());
    }
    let old = old_key(name, &Repeat::from_json(named))?;
    let key = repeat.text("key").map_or_else(|| md5_hex(&old), ToOwned::to_owned);
    let ids = repeat.text("key").map_or_else(
        || {
            let id = job_id.or_else(|| repeat.text("jobId")).unwrap_or_default();
            md5_hex(&format!("{name}{id}{}", md5_hex(&old)))
        },
        ToOwned::to_owned,
    );
    Ok((key, old, format!("repeat:{ids}:")))
}

/// The same for a key as stored.
pub(crate) fn legacy_ids_of_key(key: &str) -> String {
    let mut parts = key.split(':');
    let (name, id) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("repeat:{}:", md5_hex(&format!("{name}{id}{}", md5_hex(key))))
}

fn md5_hex(text: &str) -> String {
    Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_node() {
        let repeat = Repeat::every(std::time::Duration::from_secs(30));
        let options = JobOptions { job_id: Some("health-check".into()), ..JobOptions::default() };
        let now = TimestampMs(1_700_000_000_000);
        let run = plan_legacy("health", "{}", &options, &repeat, now, Zone::utc()).unwrap().unwrap();
        assert_eq!(run.key, "bdecdcd1fc51c448bc72cf6facf1f6f7");
        assert_eq!(run.at.0, 1_700_000_010_000);
        let (key, _, _) = legacy_removal_keys("health", &repeat, Some("health-check")).unwrap();
        assert_eq!(key, run.key);
    }

    #[test]
    fn what_node_refuses_is_refused() {
        let plan = |json: Value| {
            let repeat = Repeat::from_json(json.as_object().unwrap().clone());
            let id = SchedulerId::new("s").unwrap();
            plan_upsert(&id, &repeat, &Map::new(), TimestampMs(1000), Zone::utc(), Peer::V5)
        };
        use serde_json::json;
        assert_eq!(plan(json!({"every": 1, "pattern": "* * * * *"})), Err(ScheduleError::TwoRhythms));
        assert_eq!(plan(json!({})), Err(ScheduleError::NoRhythm));
        assert_eq!(plan(json!({"every": 0})), Err(ScheduleError::NoRhythm));
        assert_eq!(plan(json!({"every": 5, "endDate": 999})), Err(ScheduleError::EndPassed));
        assert_eq!(plan(json!({"every": 5, "endDate": "1970-01-01"})), Err(ScheduleError::EndPassed));
        assert_eq!(plan(json!({"every": 5, "endDate": 0})).unwrap().unwrap().end, None);
        assert_eq!(
            plan(json!({"every": 5, "immediately": true, "startDate": 5})),
            Err(ScheduleError::TwoStarts)
        );
        assert!(matches!(plan(json!({"every": 1.5})), Err(ScheduleError::Option { .. })));
        assert!(matches!(plan(json!({"every": -5})), Err(ScheduleError::Every(_))));
        assert!(matches!(
            plan(json!({"pattern": "* * * * *", "tz": "Moon"})),
            Err(ScheduleError::UnknownZone(_))
        ));
        assert!(matches!(plan(json!({"pattern": "61 * * * *"})), Err(ScheduleError::Pattern { .. })));
        assert_eq!(plan(json!({"every": 5, "limit": 0})), Ok(None));
    }
}
