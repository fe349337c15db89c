//! Options of a job as a caller gives them. What they mean for the stored job is
//! worked out in [`crate::rules`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mpanel_protocol::{
    backoff::Backoff,
    ids::{JobId, Prefix, QueueName},
    options::{Deduplication, JobOptions, KeepJobs, KeepPolicy},
    time::{TimestampMs, millis},
    trace::TraceContext,
    unique::Period,
};
use serde_json::json;

/// Options of one job. Defaults are Node's: one attempt, everything is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EnqueueOptions {
    pub(crate) inner: JobOptions,
    pub(crate) run_at: Option<TimestampMs>,
    pub(crate) unique: Option<Unique>,
    pub(crate) sealed: Vec<String>,
    pub(crate) parent: Option<Parent>,
}

/// What a job is unique by, and for how long.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Unique {
    pub(crate) fields: Vec<String>,
    pub(crate) period: Period,
}

/// A parent that exists already.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parent {
    pub(crate) prefix: Option<Prefix>,
    pub(crate) queue: QueueName,
    pub(crate) id: JobId,
}

/// What a parent does when a child fails for good. Without one it waits for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildFailure {
    /// The parent fails too.
    FailParent,
    /// The parent runs at once, other children or not.
    ContinueParent,
    /// The parent runs when the others are done; the failure is in its results.
    Ignore,
    /// The parent runs when the others are done.
    Forget,
}

impl ChildFailure {
    fn option(self) -> &'static str {
        match self {
            Self::FailParent => "fpof",
            Self::ContinueParent => "cpof",
            Self::Ignore => "idof",
            Self::Forget => "rdof",
        }
    }
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
        self.run_at = None;
        self
    }

    /// Run no earlier than at this time, to the millisecond; at once when it has
    /// passed.
    #[must_use]
    pub fn run_at(mut self, at: SystemTime) -> Self {
        let at = match at.duration_since(UNIX_EPOCH) {
            Ok(after) => millis(after),
            Err(before) => millis(before.duration()).saturating_neg(),
        };
        self.run_at = Some(TimestampMs(at));
        self.inner.delay = None;
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

    /// At most one job whose name and these payload fields are equal: names of
    /// fields at the top, or JSON pointers. Until the job is done, unless
    /// [`EnqueueOptions::within`], [`EnqueueOptions::until_quiet`] or
    /// [`EnqueueOptions::within_window`] says otherwise.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mpanel_producer::EnqueueOptions;
    ///
    /// let once_an_hour =
    ///     EnqueueOptions::new().unique_by(&["tenantId", "vmid"]).within(Duration::from_secs(3600));
    /// ```
    #[must_use]
    pub fn unique_by<S: AsRef<str>>(mut self, fields: &[S]) -> Self {
        self.unique.get_or_insert_default().fields = fields.iter().map(|f| f.as_ref().to_owned()).collect();
        self
    }

    /// The uniqueness lasts so long, done or not, counted from the job that was stored.
    #[must_use]
    pub fn within(self, period: Duration) -> Self {
        self.for_period(Period::Within(period))
    }

    /// The uniqueness lasts until so long passes without another such job: each
    /// one that is refused starts the time anew.
    #[must_use]
    pub fn until_quiet(self, period: Duration) -> Self {
        self.for_period(Period::UntilQuiet(period))
    }

    /// At most one job a window; windows are counted from the epoch, so that a
    /// window of 24 hours is a calendar day in UTC.
    #[must_use]
    pub fn within_window(self, window: Duration) -> Self {
        self.for_period(Period::Window(window))
    }

    fn for_period(mut self, period: Period) -> Self {
        self.unique.get_or_insert_default().period = period;
        self
    }

    /// Encrypts these payload fields (names at the top, or JSON pointers) with the
    /// producer's keyring; see [`crate::ProducerBuilder::keyring`]. A job without an
    /// id of its own gets a UUID.
    ///
    /// ```no_run
    /// # async fn run(redis: mpanel_connect::Redis, key: String) -> Result<(), mpanel_producer::EnqueueError> {
    /// use std::sync::Arc;
    /// use mpanel_producer::{EnqueueOptions, Keyring, Producer};
    /// use serde_json::json;
    ///
    /// let keyring = Arc::new(Keyring::new("2026-11", &key)?); // openssl rand -base64 32
    /// let pods = Producer::builder(redis).keyring(keyring).connect().await?.queue("pods")?;
    /// let payload = json!({"hostname": "shop", "rootPassword": "s3cret"});
    /// pods.enqueue("create", &payload, EnqueueOptions::new().seal(&["rootPassword"])).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn seal<S: AsRef<str>>(mut self, fields: &[S]) -> Self {
        self.sealed.extend(fields.iter().map(|f| f.as_ref().to_owned()));
        self
    }

    /// Makes the job a child of one that exists and waits for children, or still
    /// will: the parent runs after it. With the producer's prefix.
    #[must_use]
    pub fn parent(mut self, queue: QueueName, id: JobId) -> Self {
        self.parent = Some(Parent { prefix: None, queue, id });
        self
    }

    /// The same with a parent under another prefix.
    #[must_use]
    pub fn parent_under(mut self, prefix: Prefix, queue: QueueName, id: JobId) -> Self {
        self.parent = Some(Parent { prefix: Some(prefix), queue, id });
        self
    }

    /// The trace that the job belongs to: a worker's attempts are children of this
    /// context, in Node with telemetry as well. In a handler, `JobContext::trace`.
    ///
    /// ```
    /// use mpanel_producer::{EnqueueOptions, TraceContext};
    ///
    /// let from_a_request = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// let options = EnqueueOptions::new();
    /// let options = match TraceContext::from_traceparent(from_a_request) {
    ///     Some(context) => options.trace(&context),
    ///     None => options,
    /// };
    /// ```
    #[must_use]
    pub fn trace(self, context: &TraceContext) -> Self {
        self.telemetry(context.to_carrier())
    }

    /// Telemetry metadata as they are, for propagators other than W3C's: Node's
    /// `telemetry: {metadata}`.
    #[must_use]
    pub fn telemetry(mut self, metadata: impl Into<String>) -> Self {
        self.inner.telemetry = Some(metadata.into());
        self
    }

    /// Node's `telemetry: {omitContext}`: the job's failures leave no trace context
    /// in it. Metadata given here are stored all the same.
    #[must_use]
    pub fn omit_context(mut self, omit: bool) -> Self {
        self.inner.omit_context = Some(omit);
        self
    }

    /// What becomes of the parent when this job fails for good.
    #[must_use]
    pub fn on_failure(mut self, policy: ChildFailure) -> Self {
        self.inner.other.insert(policy.option().to_owned(), json!(true));
        self
    }

    /// Whether a job with them may be refused for the sake of another.
    pub(crate) fn is_unique(&self) -> bool {
        self.unique.is_some() || self.inner.deduplication.is_some()
    }

    /// These options, and what they leave open from `defaults`, as Node's
    /// `defaultJobOptions` does it.
    #[must_use]
    pub fn with_defaults(self, defaults: &Self) -> Self {
        let timed = self.run_at.is_some() || self.inner.delay.is_some();
        let mut inner = self.inner.with_defaults(&defaults.inner);
        if self.run_at.is_some() {
            inner.delay = None;
        }
        Self {
            inner,
            run_at: self.run_at.or(defaults.run_at.filter(|_| !timed)),
            unique: self.unique.or_else(|| defaults.unique.clone()),
            sealed: if self.sealed.is_empty() { defaults.sealed.clone() } else { self.sealed },
            parent: self.parent.or_else(|| defaults.parent.clone()),
        }
    }
}

impl From<JobOptions> for EnqueueOptions {
    /// Takes options as they are; they are still checked at enqueue.
    fn from(inner: JobOptions) -> Self {
        Self { inner, ..Self::default() }
    }
}
