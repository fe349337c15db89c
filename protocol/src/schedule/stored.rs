//! Schedules as they are stored, for display. What is missing or broken is absent.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

use crate::time::TimestampMs;

/// A job scheduler as stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scheduler {
    /// Its id.
    pub key: String,
    /// The name of its jobs.
    pub name: String,
    /// Its next run, or the one under way, epoch ms.
    pub next: Option<TimestampMs>,
    /// How many runs it has made, the next one counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iteration_count: Option<i64>,
    /// At most so many runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// No run before, epoch ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_date: Option<i64>,
    /// No run after, epoch ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_date: Option<i64>,
    /// The zone of its pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// Its cron pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Its interval, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<i64>,
    /// The offset of its slots, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
    /// What its jobs carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_data: Option<Value>,
    /// With which options, under their stored names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_options: Option<Value>,
}

impl Scheduler {
    /// From the member of the sorted set and the hash beside it.
    pub(crate) fn from_fields(key: String, next: Option<f64>, mut fields: HashMap<String, String>) -> Self {
        if fields.is_empty() {
            let old = Repeatable::from_key(&key, next);
            return Self {
                name: old.name,
                tz: old.tz,
                pattern: old.pattern,
                end_date: old.end_date,
                ..Self::bare(key, next)
            };
        }
        let whole = |fields: &HashMap<String, String>, name: &str| fields.get(name).and_then(|n| number(n));
        let json = |text: Option<String>| text.and_then(|t| serde_json::from_str(&t).ok());
        Self {
            iteration_count: whole(&fields, "ic"),
            limit: whole(&fields, "limit"),
            start_date: whole(&fields, "startDate"),
            end_date: whole(&fields, "endDate"),
            every: whole(&fields, "every"),
            offset: whole(&fields, "offset"),
            name: fields.remove("name").unwrap_or_default(),
            tz: fields.remove("tz"),
            pattern: fields.remove("pattern"),
            template_data: json(fields.remove("data")),
            template_options: json(fields.remove("opts")),
            ..Self::bare(key, next)
        }
    }

    fn bare(key: String, next: Option<f64>) -> Self {
        Self {
            key,
            name: String::new(),
            next: next.map(time),
            iteration_count: None,
            limit: None,
            start_date: None,
            end_date: None,
            tz: None,
            pattern: None,
            every: None,
            offset: None,
            template_data: None,
            template_options: None,
        }
    }
}

/// A repeatable as 5.x's `getRepeatableJobs` lists it; schedulers are among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repeatable {
    /// Its key, by which it can be removed.
    pub key: String,
    /// The name of its jobs.
    pub name: String,
    /// No run after, epoch ms.
    pub end_date: Option<i64>,
    /// The zone of its pattern.
    pub tz: Option<String>,
    /// Its cron pattern.
    pub pattern: Option<String>,
    /// Its interval, ms.
    pub every: Option<i64>,
    /// Its next run, epoch ms.
    pub next: Option<TimestampMs>,
}

impl Repeatable {
    pub(crate) fn from_fields(key: String, next: Option<f64>, mut fields: HashMap<String, String>) -> Self {
        if fields.is_empty() {
            return Self::from_key(&key, next);
        }
        Self {
            key,
            end_date: fields.get("endDate").and_then(|n| number(n)),
            every: fields.get("every").and_then(|n| number(n)),
            name: fields.remove("name").unwrap_or_default(),
            tz: fields.remove("tz"),
            pattern: fields.remove("pattern"),
            next: next.map(time),
        }
    }

    /// BullMQ 3 and older kept all of it in the key: `name:id:end:zone:rhythm`.
    fn from_key(key: &str, next: Option<f64>) -> Self {
        let parts: Vec<&str> = key.splitn(5, ':').collect();
        let part = |i: usize| parts.get(i).filter(|p| !p.is_empty()).map(|p| (*p).to_owned());
        let rhythm = part(4);
        let every = rhythm.as_deref().and_then(number);
        Self {
            key: key.to_owned(),
            name: part(0).unwrap_or_default(),
            end_date: part(2).and_then(|n| number(&n)),
            tz: part(3),
            pattern: if every.is_none() { rhythm } else { None },
            every,
            next: next.map(time),
        }
    }
}

fn number(text: &str) -> Option<i64> {
    text.trim().parse().ok()
}

#[expect(clippy::cast_possible_truncation, reason = "epoch ms; saturates")]
fn time(score: f64) -> TimestampMs {
    TimestampMs(score as i64)
}
