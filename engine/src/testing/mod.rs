//! For tests of programs that work on queues: a handler run once without Redis, and
//! a real queue worked off until it is empty. What was enqueued is compared by
//! `mpanel_producer::testing`.
//!
//! ```
//! use mpanel_engine::{JobContext, JobError, handler_fn, testing::{FakeJob, Outcome, run}};
//! use serde_json::json;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let double = handler_fn(|ctx: JobContext, n: u32| async move {
//!     ctx.progress(&50).await.ok();
//!     if n == 0 { Err(JobError::never("zero")) } else { Ok(n * 2) }
//! });
//! let tried = run(double, FakeJob::new("double", &4)).await;
//! assert_eq!(tried.outcome, Outcome::Completed(json!(8)));
//! assert_eq!(tried.progress, [json!(50)]);
//! # });
//! ```

mod diary;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mpanel_protocol::{
    calls::finish::Transition,
    ids::{JobId, LockToken, QueueName},
    job::FetchedJob,
    options::JobOptions,
};
use serde::Serialize;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::diary::Diary;
use crate::{
    cancellation::{CancelCause, Cancellation},
    context::{Attempt, JobContext, Store},
    engine::EngineError,
    executor::{Verdict, judge, run_handler},
    handler::{FinalCause, Handler, Yield},
    outcome::{OutcomePolicy, after_failure, final_cause},
    router::Router,
    trace::AttemptTrace,
    worker::{WorkerBuilder, WorkerStats},
};

/// How long a handler of a test may take to end after its time limit.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// A job that is in no queue.
#[derive(Debug, Clone)]
#[must_use = "a job does nothing until it is run"]
pub struct FakeJob {
    queue: QueueName,
    id: JobId,
    name: String,
    data: String,
    options: JobOptions,
    attempts_made: u32,
    pending_children: bool,
    children: BTreeMap<String, String>,
}

impl FakeJob {
    /// A job with this name and payload, on its first and only attempt.
    ///
    /// # Panics
    /// When the payload cannot be written as JSON.
    pub fn new<D: Serialize + ?Sized>(name: &str, data: &D) -> Self {
        Self::raw(name, &serde_json::to_string(data).expect("a payload that is JSON"))
    }

    /// A job whose payload is this text, JSON or not.
    pub fn raw(name: &str, data: &str) -> Self {
        Self {
            queue: QueueName::new("test").expect("a valid name"),
            id: JobId::stored("1"),
            name: name.to_owned(),
            data: data.to_owned(),
            options: JobOptions { attempts: 1, ..JobOptions::default() },
            attempts_made: 0,
            pending_children: false,
            children: BTreeMap::new(),
        }
    }

    /// Its queue; default `test`.
    pub fn queue(mut self, queue: QueueName) -> Self {
        self.queue = queue;
        self
    }

    /// Its id; default `1`.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = JobId::stored(id);
        self
    }

    /// Its options: attempts, backoff.
    pub fn options(mut self, options: JobOptions) -> Self {
        self.options = options;
        self
    }

    /// How many attempts are allowed; default 1.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.options.attempts = attempts;
        self
    }

    /// How many attempts have failed already; default none.
    pub fn attempts_made(mut self, attempts: u32) -> Self {
        self.attempts_made = attempts;
        self
    }

    /// A child of it that is done, by its full key, and what it returned.
    ///
    /// # Panics
    /// When the value cannot be written as JSON.
    pub fn child<V: Serialize + ?Sized>(mut self, key: &str, value: &V) -> Self {
        let value = serde_json::to_string(value).expect("a value that is JSON");
        self.children.insert(key.to_owned(), value);
        self
    }

    /// Children of it are pending: [`JobContext::wait_for_children`] ends the attempt.
    pub fn pending_children(mut self) -> Self {
        self.pending_children = true;
        self
    }

    fn fetched(&self) -> FetchedJob {
        FetchedJob {
            id: self.id.clone(),
            name: self.name.clone(),
            data: self.data.clone(),
            opts: "{}".to_owned(),
            timestamp_ms: 0,
            attempts_made: self.attempts_made,
            attempts_started: self.attempts_made + 1,
            parent_key: None,
            scheduler: None,
            deferred_failure: None,
            stacktrace: None,
        }
    }

    fn context(self, diary: Arc<Diary>) -> JobContext {
        let cancellation = Cancellation::detached();
        let options = serde_json::to_string(&self.options).unwrap_or_default();
        JobContext::new(Attempt {
            queue: self.queue,
            id: self.id,
            name: self.name,
            data_json: self.data,
            attempt: self.attempts_made + 1,
            attempts_made: self.attempts_made,
            max_attempts: self.options.max_attempts(),
            enqueued_at_ms: 0,
            keep_logs: None,
            token: LockToken::new("test"),
            trace: AttemptTrace::of(&options),
            cancelled: cancellation.attempt().clone(),
            cancellation,
            store: Store::Diary(diary),
        })
    }

    /// The context alone, for calling parts of a handler.
    #[must_use]
    pub fn into_context(self) -> JobContext {
        let diary = Diary::new(self.pending_children, self.children.clone());
        self.context(Arc::new(diary))
    }
}

/// What follows an attempt.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// It completed with this value.
    Completed(Value),
    /// It failed, and is tried again.
    Retried {
        /// Why.
        reason: String,
        /// After this time.
        after: Duration,
    },
    /// It failed for good; [`Handler::on_failed`] was called.
    Failed {
        /// What made it final.
        cause: FinalCause,
        /// Why.
        reason: String,
        /// What `on_failed` answered, if it could not record the failure.
        trouble: Option<String>,
    },
    /// It did not fail, and runs again some time.
    Yielded(Yield),
}

/// What came of [`run`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Tried {
    /// What follows.
    pub outcome: Outcome,
    /// What the handler told of its progress, in order.
    pub progress: Vec<Value>,
    /// Its log lines.
    pub log: Vec<String>,
    /// The payload that it put in place of its own.
    pub new_data: Option<Value>,
}

/// Runs one attempt of `job` as a worker would, without Redis: payload decoded,
/// panics caught, the handler's own time limit kept, the outcome decided.
pub async fn run<H: Handler>(handler: H, job: FakeJob) -> Tried {
    let mut router = Router::default();
    router.add(None, handler);
    let diary = Arc::new(Diary::new(job.pending_children, job.children.clone()));
    let (fetched, options) = (job.fetched(), job.options.clone());
    let ctx = job.context(diary.clone());
    let policy = OutcomePolicy::default();
    let handler = router.find(ctx.name()).expect("it was just added").clone();
    let limit = handler.time_limit(&ctx);
    let watch = limit.map(|limit| {
        let attempt = ctx.cancellation().clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            attempt.cancel(CancelCause::TimeLimit(limit));
        }))
    });
    let answer = run_handler(&router, &handler, &ctx, limit.is_some(), CANCEL_GRACE).await;
    drop(watch);
    let outcome = match judge(answer, ctx.cancellation()) {
        Verdict::Done(value) => Outcome::Completed(serde_json::from_str(value.json()).unwrap_or(Value::Null)),
        Verdict::Yield(to) => Outcome::Yielded(to),
        Verdict::Failed(failure) => match final_cause(&fetched, &options, &failure, &policy) {
            Some(cause) => {
                let told = handler.on_failed(&ctx.after_handler(), cause, &failure.reason).await;
                let trouble = told.err().map(|error| error.to_string());
                Outcome::Failed { cause, reason: failure.reason, trouble }
            }
            None => match after_failure(&fetched, &options, &failure, &policy, 0.5) {
                Transition::RetryLater { failure, delay_ms } => Outcome::Retried {
                    reason: failure.reason,
                    after: Duration::try_from_secs_f64(delay_ms / 1000.0).unwrap_or_default(),
                },
                // A strategy that is not known here gives up.
                Transition::Fail { failure, .. } => {
                    Outcome::Failed { cause: FinalCause::Exhausted, reason: failure.reason, trouble: None }
                }
                _ => Outcome::Retried { reason: failure.reason, after: Duration::ZERO },
            },
        },
    };
    diary.close(outcome)
}

/// Works a real queue off until nothing is waiting, delayed or running in it, and
/// tells how many attempts completed and failed. Delayed jobs are waited for.
///
/// ```no_run
/// # use mpanel_engine::{Engine, testing::drain};
/// # async fn run(engine: Engine, welcome: impl mpanel_engine::Handler) -> Result<(), mpanel_engine::EngineError> {
/// let done = drain(engine.worker("mails")?.handle("welcome", welcome)).await?;
/// assert_eq!((done.completed, done.failed), (1, 0));
/// # Ok(()) }
/// ```
///
/// # Errors
/// Those of [`WorkerBuilder::start`].
pub async fn drain(worker: WorkerBuilder) -> Result<WorkerStats, EngineError> {
    let worker = worker.start()?;
    worker.until_idle().await;
    let stats = worker.stats();
    worker.stop(Duration::ZERO).await;
    Ok(stats)
}
