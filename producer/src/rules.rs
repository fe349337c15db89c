//! From what a caller gives to the job that is stored: the rules BullMQ's own
//! producer checks (`bullmq-protocol.md` 2.2) and ours, then times, uniqueness,
//! parent and sealed fields worked out. No I/O.

use std::sync::Arc;

use mpanel_protocol::{
    calls::add::{NewJob, ParentRef},
    ids::{JobId, Prefix, QueueName},
    keys::{QueueKeys, slot},
    options::{JobOptions, PRIORITY_MAX},
    seal::Keyring,
    time::{Clock, TimestampMs},
    unique,
};
use ring::rand::SystemRandom;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    error::EnqueueError,
    options::{EnqueueOptions, Parent, Unique},
};

/// Largest payload unless the builder says otherwise, bytes.
pub(crate) const SIZE_LIMIT: usize = 16 * 1024 * 1024;
/// Longest name of a queue or job, and longest id of one's own, bytes.
const NAME_LIMIT: usize = 1024;
/// Longest delay, ms: what a JavaScript number holds exactly.
const DELAY_MAX: f64 = 9_007_199_254_740_991.0;

/// What holds for all jobs of a producer.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) prefix: Prefix,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) size_limit: usize,
    pub(crate) keyring: Option<Arc<Keyring>>,
    /// Only what Node refuses is refused.
    pub(crate) as_node: bool,
    /// `meta` is left alone.
    pub(crate) skip_meta: bool,
    /// What is stored in one step must share a slot.
    pub(crate) cluster: bool,
}

impl Rules {
    /// A queue's name, checked.
    pub(crate) fn queue(&self, name: &str) -> Result<QueueName, EnqueueError> {
        self.short("queue name", name)?;
        Ok(QueueName::new(name)?)
    }

    /// The name of a queue of a flow's job: Node's flows take colons, although no Queue
    /// and no Worker of Node will serve such a queue.
    pub(crate) fn flow_queue(&self, name: &str) -> Result<QueueName, EnqueueError> {
        if self.as_node && name.contains(':') {
            return Ok(QueueName::stored(name));
        }
        self.queue(name)
    }

    pub(crate) fn short(&self, what: &'static str, text: &str) -> Result<(), EnqueueError> {
        if text.len() > NAME_LIMIT && !self.as_node {
            return Err(EnqueueError::NameTooLong { what, bytes: text.len(), limit: NAME_LIMIT });
        }
        Ok(())
    }

    /// Refuses two keys that a Cluster keeps in different slots.
    pub(crate) fn same_slot(&self, first: &str, second: &str) -> Result<(), EnqueueError> {
        if self.cluster && slot(first) != slot(second) {
            let (first, second) = (first.to_owned(), second.to_owned());
            return Err(EnqueueError::AcrossSlots { first, second });
        }
        Ok(())
    }

    /// [`validate`]; as Node, which looks at the upper end of a priority only, and at no
    /// time.
    pub(crate) fn validate(&self, options: &JobOptions) -> Result<Option<JobId>, EnqueueError> {
        if !self.as_node {
            return validate(options);
        }
        let priority = options.priority.filter(|n| *n >= 0.0 || n.fract() != 0.0);
        let job_id = options.job_id.clone().filter(|id| !id.is_empty());
        validate(&JobOptions { priority, job_id, delay: None, timestamp: None, ..options.clone() })
    }

    /// What Node takes although it can only harm.
    fn stricter(&self, options: &JobOptions) -> Result<(), EnqueueError> {
        if options.delay.is_some_and(|delay| delay < 0.0) && !self.as_node {
            return Err(EnqueueError::option("delay", "it must not be negative"));
        }
        if options.other.contains_key("repeat") && !self.as_node {
            let why = "a job alone does not repeat; see `Producer::schedules`";
            return Err(EnqueueError::option("repeat", why));
        }
        self.short("job id", options.job_id.as_deref().unwrap_or_default())
    }

    /// The job as it is stored. `id` is what it gets when it has none of its own.
    pub(crate) fn job<D: Serialize + ?Sized>(
        &self,
        queue: &QueueName,
        name: &str,
        data: &D,
        options: EnqueueOptions,
        id: Option<JobId>,
    ) -> Result<NewJob, EnqueueError> {
        self.short("job name", name)?;
        let EnqueueOptions { inner: mut options, run_at, unique, sealed, parent } = options;
        let now = self.clock.now();
        #[expect(clippy::cast_possible_truncation, reason = "epoch ms; saturates")]
        let timestamp = options.timestamp.filter(|t| *t != 0.0).map_or(now, |t| TimestampMs(t as i64));
        if let Some(at) = run_at {
            #[expect(clippy::cast_precision_loss, reason = "options travel as JSON numbers")]
            let delay = at.0.saturating_sub(timestamp.0).max(0) as f64;
            options.delay = Some(delay);
        }
        if let Some(parent) = parent {
            self.set_parent(&mut options, &parent);
        }
        let write = |e: serde_json::Error| EnqueueError::Payload(e.to_string());
        self.stricter(&options)?;
        let mut id = self.validate(&options)?.or(id);
        let data = if unique.is_none() && sealed.is_empty() {
            serde_json::to_string(data).map_err(write)?
        } else {
            let mut value = serde_json::to_value(data).map_err(write)?;
            if let Some(unique) = unique {
                set_unique(&mut options, name, &value, &unique, &sealed, now)?;
            }
            if !sealed.is_empty() {
                let id = id.get_or_insert_with(random_id);
                let Some(keyring) = &self.keyring else {
                    return Err(EnqueueError::option("seal", "the producer has no keyring"));
                };
                keyring.seal(&mut value, &sealed, queue, id, &SystemRandom::new())?;
            }
            value.to_string()
        };
        let own_limit = options.size_limit.filter(|n| *n > 0.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; positive")]
        let limit = own_limit.map_or(self.size_limit, |n| (n as usize).min(self.size_limit));
        if data.len() > limit {
            return Err(EnqueueError::TooLarge { bytes: data.len(), limit });
        }
        let parent = parent_of(&options)?;
        if let Some(parent) = &parent {
            self.same_slot(QueueKeys::new(&self.prefix, queue).qualified_name(), &parent.key)?;
        }
        if let (Some(parent), Some(id)) = (&parent, &id)
            && !self.as_node
            && parent.key == QueueKeys::new(&self.prefix, queue).job(id)
        {
            return Err(EnqueueError::Circular { queue: queue.to_string(), id: id.to_string() });
        }
        Ok(NewJob {
            id,
            name: name.to_owned(),
            data,
            options,
            timestamp,
            parent,
            waits_for_children: false,
            scheduler: None,
        })
    }

    fn set_parent(&self, options: &mut JobOptions, parent: &Parent) {
        let keys = QueueKeys::new(parent.prefix.as_ref().unwrap_or(&self.prefix), &parent.queue);
        let value = json!({ "id": parent.id, "queue": keys.qualified_name() });
        options.other.insert("parent".to_owned(), value);
    }
}

/// An id for a job that must have one.
pub(crate) fn random_id() -> JobId {
    JobId::stored(uuid::Uuid::new_v4().to_string())
}

fn set_unique(
    options: &mut JobOptions,
    name: &str,
    data: &Value,
    unique: &Unique,
    sealed: &[String],
    now: TimestampMs,
) -> Result<(), EnqueueError> {
    if options.deduplication.is_some() {
        return Err(EnqueueError::option("unique_by", "it cannot be used together with deduplication"));
    }
    if options.other.contains_key("parent") {
        return Err(EnqueueError::option("unique_by", "it cannot be used together with a parent"));
    }
    // The id is a plain hash: whoever reads Redis could guess the value behind it.
    let is_sealed = |field: &&String| sealed.iter().any(|s| covers(s, field) || covers(field, s));
    if let Some(field) = unique.fields.iter().find(is_sealed) {
        return Err(EnqueueError::option("unique_by", format!("field `{field}` is sealed")));
    }
    let key = unique::key(name, data, &unique.fields)?;
    options.deduplication = Some(unique::deduplication(key, unique.period, now)?);
    Ok(())
}

/// Whether field `outer` is `inner` or holds it.
fn covers(outer: &str, inner: &str) -> bool {
    let (outer, inner) = (unique::pointer(outer), unique::pointer(inner));
    inner.strip_prefix(&outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Checks options as BullMQ's producer does; gives back the id of the job's own.
///
/// # Errors
/// [`EnqueueError::Name`] or [`EnqueueError::Option`].
pub fn validate(options: &JobOptions) -> Result<Option<JobId>, EnqueueError> {
    let wrong = |option, why: &str| Err(EnqueueError::option(option, why));
    if let Some(priority) = options.priority {
        if priority.fract() != 0.0 {
            return wrong("priority", "it must be a whole number");
        }
        if !(0.0..=f64::from(PRIORITY_MAX)).contains(&priority) {
            return wrong("priority", &format!("it must be between 0 and {PRIORITY_MAX}"));
        }
    }
    if let Some(delay) = options.delay
        && !(-DELAY_MAX..=DELAY_MAX).contains(&delay)
    {
        return wrong("delay", "it is beyond what a JavaScript number holds, in ms");
    }
    if let Some(timestamp) = options.timestamp
        && !(0.0..=DELAY_MAX).contains(&timestamp)
    {
        return wrong("timestamp", "it must be a time after 1970, in ms");
    }
    if let Some(jitter) = options.backoff.as_ref().and_then(|b| b.jitter)
        && !(0.0..=1.0).contains(&jitter)
    {
        return wrong("backoff.jitter", "it must be between 0 and 1");
    }
    if let Some(dedup) = &options.deduplication {
        if dedup.id.is_empty() {
            return wrong("deduplication.id", "it must not be empty");
        }
        if options.other.contains_key("parent") {
            return wrong("deduplication", "it cannot be used together with a parent");
        }
    }
    let policies = ["fpof", "cpof", "idof", "rdof"];
    if policies.iter().filter(|p| options.other.get(**p).is_some_and(|v| v == true)).count() > 1 {
        return wrong(
            "failParentOnFailure, continueParentOnFailure, ignoreDependencyOnFailure, removeDependencyOnFailure",
            "only one of them can be set",
        );
    }
    Ok(options.job_id.clone().map(JobId::custom).transpose()?)
}

/// The parent that the options name: `parent: {id, queue}`, with what is to happen
/// to it when the job fails for good.
pub(crate) fn parent_of(options: &JobOptions) -> Result<Option<ParentRef>, EnqueueError> {
    let Some(parent) = options.other.get("parent").filter(|p| !p.is_null()) else { return Ok(None) };
    let text = |name| parent.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let (Some(_), Some(queue)) = (text("id"), text("queue")) else {
        return Err(EnqueueError::option("parent", "it must have an `id` and a `queue` (`prefix:name`)"));
    };
    if !queue.contains(':') {
        let why = format!("its `queue` must be written with the prefix, as `bull:{queue}`");
        return Err(EnqueueError::option("parent", why));
    }
    Ok(options.parent_ref())
}

#[cfg(test)]
mod tests {
    use mpanel_protocol::{backoff::Backoff, options::Deduplication};

    use super::*;

    #[test]
    fn bullmqs_rules_hold() {
        let ok = |o: EnqueueOptions| validate(&o.inner);
        assert!(ok(EnqueueOptions::new().priority(PRIORITY_MAX)).is_ok());
        assert!(ok(EnqueueOptions::new().priority(PRIORITY_MAX + 1)).is_err());
        assert!(ok(EnqueueOptions::new().job_id("123")).is_err());
        assert_eq!(ok(EnqueueOptions::new().job_id("order-1")).unwrap().unwrap().as_str(), "order-1");
        assert!(ok(EnqueueOptions::new().backoff(Backoff::fixed(1).with_jitter(1.5))).is_err());
        assert!(ok(EnqueueOptions::new().deduplication(Deduplication::default())).is_err());
        for (option, json) in [
            ("priority", r#"{"priority":1.5}"#),
            ("priority", r#"{"priority":-1}"#),
            ("delay", r#"{"delay":1e300}"#),
            ("timestamp", r#"{"timestamp":-1}"#),
        ] {
            let error = validate(&JobOptions::from_json(json).unwrap()).unwrap_err();
            assert!(
                matches!(error, EnqueueError::Option { option: o, .. } if o == option),
                "{json}: {error}"
            );
        }
    }

    #[test]
    fn two_failure_policies_are_refused() {
        let both = JobOptions::from_json(r#"{"fpof":true,"idof":true}"#).unwrap();
        assert!(validate(&both).is_err());
    }

    #[test]
    fn a_field_holds_what_is_below_it() {
        assert!(covers("a", "/a") && covers("/a", "/a/b") && !covers("/a", "/ab") && !covers("/a/b", "a"));
    }
}
