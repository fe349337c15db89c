//! What a test expects of a job, and how a difference is told.

use std::fmt::Write as _;

use serde_json::Value;

use super::SeenJob;
use crate::options::EnqueueOptions;

/// A job that a test expects: queue and name, and as much more as it says.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    queue: String,
    name: String,
    id: Option<String>,
    data: Option<Value>,
    fields: Vec<(String, Value)>,
    delay_ms: Option<i64>,
    run_at_ms: Option<i64>,
    options: Option<EnqueueOptions>,
    parent: Option<Option<String>>,
}

impl Expected {
    /// A job of this name in this queue, whatever else it has.
    pub fn new(queue: impl Into<String>, name: impl Into<String>) -> Self {
        Self { queue: queue.into(), name: name.into(), ..Self::default() }
    }

    /// With this id.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// With exactly this payload.
    #[must_use]
    pub fn data(mut self, data: impl Into<Value>) -> Self {
        self.data = Some(data.into());
        self
    }

    /// With this value in its payload, by JSON pointer; whatever else is there.
    #[must_use]
    pub fn field(mut self, pointer: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.push((pointer.into(), value.into()));
        self
    }

    /// With this delay before its first attempt, ms; 0 for none.
    #[must_use]
    pub fn delay_ms(mut self, ms: i64) -> Self {
        self.delay_ms = Some(ms);
        self
    }

    /// Due at this time, epoch ms.
    #[must_use]
    pub fn run_at_ms(mut self, at: i64) -> Self {
        self.run_at_ms = Some(at);
        self
    }

    /// With exactly the options that these give (attempts, backoff, priority,
    /// retention, …); its id and delay count only where [`Expected::id`] and
    /// [`Expected::delay_ms`] name them.
    #[must_use]
    pub fn options(mut self, options: EnqueueOptions) -> Self {
        self.options = Some(options);
        self
    }

    /// As a child of the job with this full key, `bull:queue:id`; `None` for no parent.
    #[must_use]
    pub fn parent(mut self, key: Option<&str>) -> Self {
        self.parent = Some(key.map(str::to_owned));
        self
    }

    /// How `job` differs, one line a difference.
    fn differences(&self, job: &SeenJob) -> Vec<String> {
        let mut lines = Vec::new();
        let mut differ = |what: &str, expected: String, got: String| {
            if expected != got {
                lines.push(format!("{what}: expected {expected}, got {got}"));
            }
        };
        differ("queue", self.queue.clone(), job.queue.clone());
        differ("name", self.name.clone(), job.name.clone());
        if let Some(id) = &self.id {
            differ("id", id.clone(), job.id.clone());
        }
        if let Some(data) = &self.data
            && *data != job.data
        {
            differ("data", data.to_string(), job.data.to_string());
        }
        for (pointer, value) in &self.fields {
            let got = job.data.pointer(pointer).map_or_else(|| "nothing".to_owned(), Value::to_string);
            differ(&format!("data{pointer}"), value.to_string(), got);
        }
        if let Some(ms) = self.delay_ms {
            differ("delay", format!("{ms} ms"), format!("{} ms", job.delay_ms));
        }
        if let Some(at) = self.run_at_ms {
            differ("run at", at.to_string(), (job.timestamp_ms + job.delay_ms).to_string());
        }
        if let Some(parent) = &self.parent {
            differ("parent", format!("{parent:?}"), format!("{:?}", job.parent));
        }
        if let Some(options) = &self.options {
            let plain = |options: &mpanel_protocol::options::JobOptions| {
                let mut value = serde_json::to_value(options).unwrap_or_default();
                for free in ["jobId", "delay", "timestamp", "parent"] {
                    if let Some(object) = value.as_object_mut() {
                        object.remove(free);
                    }
                }
                value
            };
            let (expected, got) = (plain(&options.inner), plain(&job.options));
            if expected != got {
                differ("options", expected.to_string(), got.to_string());
            }
        }
        lines
    }
}

/// Panics with a list of differences unless `jobs` are exactly the expected ones,
/// in any order.
///
/// # Panics
/// When they are not.
#[track_caller]
pub fn assert_enqueued(jobs: &[SeenJob], expected: &[Expected]) {
    if let Some(report) = report(jobs, expected) {
        panic!("{report}");
    }
}

/// What is wrong, or `None`.
fn report(jobs: &[SeenJob], expected: &[Expected]) -> Option<String> {
    let fits: Vec<Vec<bool>> = expected
        .iter()
        .map(|expected| jobs.iter().map(|job| expected.differences(job).is_empty()).collect())
        .collect();
    // Which expectation each job meets: a maximum matching, so that a loose
    // expectation does not take the only job that a strict one fits.
    let mut meets: Vec<Option<usize>> = vec![None; jobs.len()];
    for e in 0..expected.len() {
        assign(e, &fits, &mut meets, &mut vec![false; jobs.len()]);
    }
    let missing: Vec<usize> = (0..expected.len()).filter(|e| !meets.contains(&Some(*e))).collect();
    let mut left: Vec<usize> = (0..jobs.len()).filter(|j| meets[*j].is_none()).collect();
    if missing.is_empty() && left.is_empty() {
        return None;
    }
    let mut text = format!("{} jobs expected, {} enqueued", expected.len(), jobs.len());
    for e in missing {
        let Expected { queue, name, .. } = &expected[e];
        let nearest =
            left.iter().copied().map(|j| (expected[e].differences(&jobs[j]), j)).min_by_key(|(d, _)| d.len());
        // A job of another queue and name is not the one that was meant.
        match nearest.filter(|(_, j)| jobs[*j].queue == *queue && jobs[*j].name == *name) {
            Some((differences, j)) => {
                left.retain(|other| *other != j);
                let _ = write!(text, "\n  differs: `{name}` in `{queue}`, job {}", jobs[j].id);
                for line in differences {
                    let _ = write!(text, "\n    {line}");
                }
            }
            None => {
                let _ = write!(text, "\n  missing: `{name}` in `{queue}`");
                if let Some(data) = &expected[e].data {
                    let _ = write!(text, " with {data}");
                }
            }
        }
    }
    for j in left {
        let SeenJob { queue, id, name, data, .. } = &jobs[j];
        let _ = write!(text, "\n  unexpected: `{name}` in `{queue}`, job {id}, with {data}");
    }
    Some(text)
}

/// Finds a job for expectation `e`, moving others' where they have a choice.
fn assign(e: usize, fits: &[Vec<bool>], meets: &mut [Option<usize>], tried: &mut [bool]) -> bool {
    for j in 0..meets.len() {
        if !fits[e][j] || std::mem::replace(&mut tried[j], true) {
            continue;
        }
        let free = match meets[j] {
            None => true,
            Some(other) => assign(other, fits, meets, tried),
        };
        if free {
            meets[j] = Some(e);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(id: &str, name: &str, data: Value) -> SeenJob {
        SeenJob {
            queue: "q".into(),
            id: id.into(),
            name: name.into(),
            data,
            options: EnqueueOptions::new().attempts(2).inner,
            timestamp_ms: 1000,
            delay_ms: 5,
            priority: 0,
            parent: None,
        }
    }

    #[test]
    fn a_loose_expectation_leaves_the_strict_one_its_job() {
        let jobs = [job("1", "a", json!(1)), job("2", "a", json!(2))];
        assert_eq!(report(&jobs, &[Expected::new("q", "a"), Expected::new("q", "a").data(1)]), None);
        assert_eq!(report(&jobs, &[Expected::new("q", "a").data(2), Expected::new("q", "a")]), None);
    }

    #[test]
    fn differences_are_told_by_field() {
        let jobs = [job("1", "a", json!({"n": 1})), job("2", "b", json!(null))];
        let options = EnqueueOptions::new().attempts(3);
        let expected = [
            Expected::new("q", "a").data(json!({"n": 2})).delay_ms(6).run_at_ms(1005).options(options),
            Expected::new("q", "c"),
        ];
        let text = report(&jobs, &expected).unwrap();
        assert_eq!(
            text,
            "2 jobs expected, 2 enqueued\n  differs: `a` in `q`, job 1\n    data: expected {\"n\":2}, got {\"n\":1}\
             \n    delay: expected 6 ms, got 5 ms\n    options: expected {\"attempts\":3}, got {\"attempts\":2}\
             \n  missing: `c` in `q`\n  unexpected: `b` in `q`, job 2, with null"
        );
    }
}
