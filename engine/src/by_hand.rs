//! Jobs taken and ended by hand, for programs with a loop of their own (BullMQ's
//! `getNextJob`, `moveToCompleted`, `moveToFailed`).
//!
//! What a worker does besides is done here too: locks are renewed while a job is in
//! hand, stalled jobs rescued, schedules carried on, requests to cancel noticed.

use std::{sync::Arc, time::Duration};

use mpanel_protocol::{
    calls::finish::{Finish, Transition},
    ids::{JobId, LockToken},
    job::FetchedJob,
    options::JobOptions,
    outcome::Refusal,
    script::ScriptError,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Mutex, OwnedMutexGuard, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    cancellation::Cancellation,
    cancels::watch_for_ever,
    context::JobContext,
    engine::EngineError,
    exchange::{end_wait, exchange, is_transient},
    executor::{Ended, context_of, refused, yielded},
    handler::{ErrorKind, JobError},
    marker::{BLOCK_MAX, Waiter, client_name},
    middleware::ReturnValue,
    outcome::{AttemptFailure, after_failure, after_success},
    permissions,
    rescuer::rescue_for_ever,
    schedules,
    sealed::Payload,
    trace::AttemptTrace,
    trouble::{Trouble, kind},
    worker::Shared,
};

/// Pauses between tries while Redis cannot be reached, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A job could not be taken, or its end not be written.
#[derive(Debug, thiserror::Error)]
pub enum ByHandError {
    /// Redis did not take the call.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The Redis user may not do what is needed, or could not be asked. No job was
    /// taken.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The job is not ours any more, or cannot end like this.
    #[error("job {id} cannot be ended: {refusal}")]
    Refused {
        /// The job.
        id: JobId,
        /// Why.
        refusal: Refusal,
    },
    /// The lock was lost before the end could be written: another worker has the job.
    #[error("job {id} is not ours any more: its lock was lost")]
    LockLost {
        /// The job.
        id: JobId,
    },
    /// The value is not JSON; the job was failed for good.
    #[error("job {id}: {source}")]
    Value {
        /// The job.
        id: JobId,
        /// The cause.
        #[source]
        source: JobError,
    },
}

/// Takes jobs of one queue; made by [`crate::WorkerBuilder::by_hand`].
///
/// ```no_run
/// # use std::time::Duration;
/// # use mpanel_engine::{Engine, JobError};
/// # async fn run(engine: Engine) -> Result<(), Box<dyn std::error::Error>> {
/// let taker = engine.worker("mails")?.by_hand()?;
/// while let Some(job) = taker.wait(Duration::from_secs(60)).await? {
///     match job.data::<String>() {
///         Ok(to) => job.complete(&format!("sent to {to}")).await?,
///         Err(error) => job.fail(error).await?,
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct JobTaker {
    hands: Arc<Hands>,
    waiting: Arc<Mutex<Waiting>>,
    /// They end with the taker.
    _duties: [AbortOnDropHandle<()>; 2],
}

/// What takes a job.
#[derive(Debug)]
struct Hands {
    shared: Arc<Shared>,
    id: uuid::Uuid,
}

/// The one wait at a time that the connection for it allows.
#[derive(Debug)]
struct Waiting {
    waiter: Waiter,
    /// A wait has been asked for, and has not been answered.
    asked: bool,
}

/// A call's turn to wait. When the call ends before its wait, the wait is ended too,
/// and what it may have taken from the marker is put back for others.
struct Turn {
    shared: Arc<Shared>,
    waiting: Option<OwnedMutexGuard<Waiting>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(mut waiting) = self.waiting.take().filter(|waiting| waiting.asked) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let shared = self.shared.clone();
        runtime.spawn(async move {
            end_wait(&shared, &mut waiting.waiter).await;
            waiting.asked = false;
        });
    }
}

impl JobTaker {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let name = client_name(&shared.engine.prefix, &shared.keys, shared.name.as_deref());
        let waiter = Waiter::start(shared.engine.redis.clone(), shared.keys.marker(), name);
        let duties = [
            AbortOnDropHandle::new(tokio::spawn(rescue_for_ever(shared.clone()))),
            AbortOnDropHandle::new(tokio::spawn(watch_for_ever(shared.clone()))),
        ];
        let waiting = Arc::new(Mutex::new(Waiting { waiter, asked: false }));
        let hands = Arc::new(Hands { shared, id: uuid::Uuid::new_v4() });
        Self { hands, waiting, _duties: duties }
    }

    /// The next job, if one may start now. What must fail without being looked at (a
    /// deferred failure, unreadable options) fails here, and the one after it is taken.
    ///
    /// # Errors
    /// [`ByHandError::Script`].
    ///
    /// # Cancel safety
    /// Cancel safe: a job that a dropped call has taken goes back in line.
    pub async fn take(&self) -> Result<Option<TakenJob>, ByHandError> {
        Ok(self.look().await?.0)
    }

    /// The next job, waiting for one; `None` when none came in time. One call at a time
    /// waits for what comes; others beside it take its place when it is over. A Redis
    /// that is silent is noticed by a call's deadline, 10 s, however short the wait.
    ///
    /// # Errors
    /// [`ByHandError::Script`].
    ///
    /// # Cancel safety
    /// As [`JobTaker::take`]; a wait that is dropped hides no job from others.
    pub async fn wait(&self, within: Duration) -> Result<Option<TakenJob>, ByHandError> {
        let until = Instant::now() + within;
        // cancel-safe: a lock that is not waited for is not held.
        let Ok(waiting) = timeout_at(until, self.waiting.clone().lock_owned()).await else {
            // The waits beside this one have had all its time; a last look is left.
            return self.take().await;
        };
        let mut turn = Turn { shared: self.hands.shared.clone(), waiting: Some(waiting) };
        loop {
            let (job, next) = self.look().await?;
            let left = until.saturating_duration_since(Instant::now());
            if job.is_some() || left.is_zero() {
                return Ok(job);
            }
            match (next, turn.waiting.as_mut()) {
                (Next::NotBefore(pause), _) => sleep(pause.min(left)).await,
                (Next::OnMarker(most), Some(waiting)) => {
                    // Refused where the wait before has not been answered: its answer will do.
                    let _ = waiting.waiter.requests.try_send(most.min(left));
                    waiting.asked = true;
                    // cancel-safe: a wake that is not taken stays in the channel.
                    if timeout(left, waiting.waiter.wakes.recv()).await.is_ok() {
                        waiting.asked = false;
                    }
                }
                (Next::OnMarker(_), None) => {}
            }
        }
    }

    /// The look goes on when the caller does not: what it takes must not be left behind.
    async fn look(&self) -> Looked {
        let hands = self.hands.clone();
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            let Err(Ok((Some(job), _))) = tell.send(hands.look().await) else { return };
            let id = job.ctx().id().clone();
            if let Err(error) = job.fail(JobError::back_in_line()).await {
                tracing::warn!(job.id = %id, %error, "a job nobody waited for stays until it is rescued");
            }
        });
        // Without an answer the runtime is being shut down.
        told.await.unwrap_or(Ok((None, Next::NotBefore(PAUSE_MAX))))
    }
}

impl Hands {
    async fn look(&self) -> Looked {
        let shared = &self.shared;
        permissions::granted(shared).await?;
        loop {
            let token = LockToken::new(format!("{}:{}", self.id, uuid::Uuid::new_v4()));
            let asked_at = std::time::Instant::now();
            let fetched = exchange(shared, &[] as &[Finish], 1, &token).await?.fetched.unwrap_or_default();
            for id in &fetched.dropped {
                tracing::warn!(queue = %shared.keys.queue(), job.id = %id, "dropped an id without a job");
            }
            let Some(job) = fetched.jobs.into_iter().next() else {
                if !fetched.dropped.is_empty() {
                    continue;
                }
                let due = fetched.next_due.map_or(BLOCK_MAX, |due| shared.engine.now().until(due));
                let next = fetched.limited_for.map_or(Next::OnMarker(due.min(BLOCK_MAX)), Next::NotBefore);
                return Ok((None, next));
            };
            let cancellation = Cancellation::under(&shared.abort);
            shared.locks.hold(job.id.clone(), token.clone(), asked_at, cancellation.clone());
            // With a lost lock the job is another's already.
            if schedules::carry_on(shared, &job, &cancellation).await.is_err() {
                shared.locks.release(&job.id, &token);
                continue;
            }
            if let Some(taken) = TakenJob::new(shared.clone(), job, token, &cancellation).await? {
                return Ok((Some(taken), Next::OnMarker(BLOCK_MAX)));
            }
        }
    }
}

type Looked = Result<(Option<TakenJob>, Next), ByHandError>;

/// When another look makes sense.
enum Next {
    NotBefore(Duration),
    OnMarker(Duration),
}

/// A job in hand: locked, and the lock renewed until it is ended. Dropped, it is
/// rescued by a stalled check once its lock has expired.
#[derive(Debug)]
#[must_use = "a job that is dropped stalls; end it by `complete` or `fail`"]
pub struct TakenJob {
    shared: Arc<Shared>,
    job: FetchedJob,
    options: JobOptions,
    ctx: JobContext,
    trace: AttemptTrace,
}

impl TakenJob {
    /// None when it had to be failed at once.
    async fn new(
        shared: Arc<Shared>,
        job: FetchedJob,
        token: LockToken,
        cancellation: &Cancellation,
    ) -> Result<Option<Self>, ByHandError> {
        let (options, broken) = match job.options() {
            Ok(options) => (options, None),
            Err(error) => (JobOptions::default(), Some(error)),
        };
        let trace = AttemptTrace::of(&job.opts);
        let payload = Payload::open(&job, shared.keys.queue(), shared.engine.keyring.as_deref());
        let ctx = context_of(&shared, &job, &token, &trace, cancellation, &options, &payload);
        let failure = refused(&shared, &job, broken, &payload, true);
        let taken = Self { shared, job, options, ctx, trace };
        match failure {
            None => Ok(Some(taken)),
            Some(failure) => taken.fail_as(failure).await.map(|()| None),
        }
    }

    /// What is known of the attempt, and what may be done to its job meanwhile.
    #[must_use]
    pub fn ctx(&self) -> &JobContext {
        &self.ctx
    }

    /// The payload.
    ///
    /// # Errors
    /// A [`JobError`] to fail the job with.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, JobError> {
        serde_json::from_str(self.ctx.data_json())
            .map_err(|error| JobError::bad_payload(format!("the payload cannot be decoded: {error}")))
    }

    /// Completes the job. Waits out a Redis that cannot be reached, as long as the
    /// lock may live.
    ///
    /// # Errors
    /// [`ByHandError`]; the job is then another's, or will be rescued.
    pub async fn complete<T: Serialize + ?Sized>(self, value: &T) -> Result<(), ByHandError> {
        let value = match ReturnValue::of(value) {
            Ok(value) => value,
            Err(source) => {
                let id = self.job.id.clone();
                self.fail_as(AttemptFailure::from_error(&source)).await?;
                return Err(ByHandError::Value { id, source });
            }
        };
        let transition = after_success(&self.options, value.into_json(), &self.shared.policy);
        self.end(transition).await
    }

    /// Ends the attempt as the error says: another one, none, or none used up.
    ///
    /// # Errors
    /// As [`TakenJob::complete`].
    pub async fn fail(self, error: JobError) -> Result<(), ByHandError> {
        let ErrorKind::Yield(to) = error.kind() else {
            return self.fail_as(AttemptFailure::from_error(&error)).await;
        };
        match yielded(to) {
            Ended::By(transition) => self.end(transition).await,
            Ended::Elsewhere | Ended::Unlocked => Ok(()),
        }
    }

    async fn fail_as(self, failure: AttemptFailure) -> Result<(), ByHandError> {
        let random = self.shared.engine.random();
        let next = after_failure(&self.job, &self.options, &failure, &self.shared.policy, random);
        let next = self.trace.mark(next);
        self.end(next).await
    }

    async fn end(self, transition: Transition) -> Result<(), ByHandError> {
        let (id, token) = (self.job.id.clone(), self.ctx.fencing_token().clone());
        let finish = Finish { id: id.clone(), token: token.clone(), transition };
        let items = std::slice::from_ref(&finish);
        let (mut pause, mut uncertain) = (PAUSE_MIN, false);
        let mut trouble = Trouble::default();
        let lost = self.ctx.cancellation().hard();
        self.shared.locks.ended(&id, &token);
        let ended = loop {
            match exchange(&self.shared, items, 0, &token).await {
                Ok(mut done) => {
                    let refusal = done.results.pop().and_then(Result::err);
                    let gone = matches!(
                        refusal,
                        Some(Refusal::MissingLock | Refusal::MissingJob | Refusal::NotInState)
                    );
                    break match refusal {
                        // A call before this one had come through, only its answer had not.
                        Some(_) if uncertain && gone => Ok(()),
                        Some(refusal) => Err(ByHandError::Refused { id: id.clone(), refusal }),
                        None => Ok(()),
                    };
                }
                Err(error) if is_transient(&error) => {
                    uncertain |= !error.is_not_done();
                    if trouble.is_news(kind(error.redis()), std::time::Instant::now()) {
                        let queue = self.shared.keys.queue();
                        tracing::warn!(%queue, job.id = %id, %error, "the end of the job is not written yet; trying on");
                    }
                }
                Err(error) => break Err(error.into()),
            }
            // cancel-safe: both only wait.
            tokio::select! {
                () = lost.cancelled() => {
                    break Err(ByHandError::LockLost { id: id.clone() });
                }
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        };
        self.shared.locks.release(&id, &token);
        ended
    }
}

impl Drop for TakenJob {
    fn drop(&mut self) {
        self.shared.locks.release(&self.job.id, self.ctx.fencing_token());
    }
}
