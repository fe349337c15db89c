//! Options of a job as a caller gives them, and the rules BullMQ's own producer
//! checks (`bullmq-protocol.md` 2.2).

use std::time::Duration;

use mpanel_protocol::{
    backoff::Backoff,
    ids::JobId,
    options::{Deduplication, JobOptions, KeepJobs, KeepPolicy, PRIORITY_MAX},
    time::millis,
};

use crate::error::EnqueueError;

/// Options of one job. Defaults are Node's: one attempt, everything is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EnqueueOptions {
    pub(crate) inner: JobOptions,
}

#[expect(clippy::cast_precision_loss, reason = "options travel as JSON numbers")]
impl EnqueueOptions {
    /// Node's defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many attempts are allowed.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.inner.attempts = attempts;
        self
    }

    /// Pause between attempts.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.inner.backoff = Some(backoff);
        self
    }

    /// Run no earlier than after this time.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.inner.delay = Some(millis(delay) as f64);
        self
    }

    /// Priority: 1 is the most urgent, 2,097,151 the least; none goes first.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.inner.priority = Some(f64::from(priority));
        self
    }

    /// Next in line instead of last.
    #[must_use]
    pub fn lifo(mut self, lifo: bool) -> Self {
        self.inner.lifo = Some(lifo);
        self
    }

    /// An id of your own: a second job with it is not stored.
    #[must_use]
    pub fn job_id(mut self, id: impl Into<String>) -> Self {
        self.inner.job_id = Some(id.into());
        self
    }

    /// What stays of the job when it completes.
    #[must_use]
    pub fn remove_on_complete(mut self, keep: KeepJobs) -> Self {
        self.inner.remove_on_complete = Some(keep);
        self
    }

    /// What stays of the job when it fails for good.
    #[must_use]
    pub fn remove_on_fail(mut self, keep: KeepJobs) -> Self {
        self.inner.remove_on_fail = Some(keep);
        self
    }

    /// What mPanel keeps: completed jobs a day and at most 1000, failed ones a week.
    #[must_use]
    pub fn mpanel_retention(self) -> Self {
        self.remove_on_complete(KeepJobs::Policy(KeepPolicy {
            age: Some(86_400.0),
            count: Some(1000.0),
            limit: None,
        }))
        .remove_on_fail(KeepJobs::Policy(KeepPolicy {
            age: Some(604_800.0),
            count: None,
            limit: None,
        }))
    }

    /// How many log lines are kept.
    #[must_use]
    pub fn keep_logs(mut self, lines: u32) -> Self {
        self.inner.keep_logs = Some(f64::from(lines));
        self
    }

    /// How many stack traces are kept.
    #[must_use]
    pub fn stack_trace_limit(mut self, traces: u32) -> Self {
        self.inner.stack_trace_limit = Some(f64::from(traces));
        self
    }

    /// Creation time, epoch ms, instead of now.
    #[must_use]
    pub fn timestamp_ms(mut self, at: i64) -> Self {
        self.inner.timestamp = Some(at as f64);
        self
    }

    /// At most one live job per deduplication id.
    #[must_use]
    pub fn deduplication(mut self, deduplication: Deduplication) -> Self {
        self.inner.deduplication = Some(deduplication);
        self
    }
}

impl From<JobOptions> for EnqueueOptions {
    /// Takes options as they are; [`validate`] still checks them at enqueue.
    fn from(inner: JobOptions) -> Self {
        Self { inner }
    }
}

/// Checks options as BullMQ's producer does; gives back the id of the job's own.
///
/// # Errors
/// [`EnqueueError::Name`] or [`EnqueueError::Option`].
pub fn validate(options: &JobOptions) -> Result<Option<JobId>, EnqueueError> {
    let wrong = |option, why: &str| Err(EnqueueError::Option { option, why: why.to_owned() });
    if let Some(priority) = options.priority {
        if priority.fract() != 0.0 {
            return wrong("priority", "it must be a whole number");
        }
        if !(0.0..=f64::from(PRIORITY_MAX)).contains(&priority) {
            return wrong("priority", &format!("it must be between 0 and {PRIORITY_MAX}"));
        }
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

#[cfg(test)]
mod tests {
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
        let float = JobOptions { priority: Some(1.5), ..JobOptions::default() };
        assert!(matches!(validate(&float), Err(EnqueueError::Option { option: "priority", .. })));
    }

    #[test]
    fn two_failure_policies_are_refused() {
        let both = JobOptions::from_json(r#"{"fpof":true,"idof":true}"#).unwrap();
        assert!(validate(&both).is_err());
    }
}
