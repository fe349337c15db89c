//! Many jobs in one handler call: for work that costs about the same for one and
//! for a hundred, such as inserts and bulk requests.
//!
//! Each job stays a job of its own: its lock, its attempts, its time limit and its
//! outcome. Only the call is shared, so a batch never holds more jobs than the
//! worker has slots ([`crate::WorkerBuilder::concurrency`]).

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Notify, oneshot};

use crate::{
    context::JobContext,
    handler::{Handler, JobError},
};

/// One job of a batch.
#[derive(Debug)]
pub struct BatchJob<D> {
    /// Its attempt.
    pub ctx: JobContext,
    /// Its payload.
    pub data: D,
}

/// Makes a handler of a function from many jobs to as many results, in their order.
/// A call is made when `size` jobs have come together, or `linger` after the first
/// of them came; jobs that are cancelled before are left out.
///
/// An error for one job concerns that job alone. A panic, or a list of another
/// length, fails the attempts of all.
///
/// ```no_run
/// # use std::time::Duration;
/// # use mpanel_engine::{BatchJob, Engine, JobError, batch_fn};
/// # fn start(engine: &Engine) -> Result<(), mpanel_engine::EngineError> {
/// let index = batch_fn(100, Duration::from_millis(20), |jobs: Vec<BatchJob<String>>| async move {
///     // One request for all of them …
///     jobs.iter().map(|job| if job.data.is_empty() { Err(JobError::never("empty")) } else { Ok(()) }).collect()
/// });
/// let worker = engine.worker("search")?.concurrency(200).handle("index", index).start()?;
/// # Ok(()) }
/// ```
pub fn batch_fn<F, D, O, Fut>(size: usize, linger: Duration, run: F) -> BatchFn<D, O>
where
    F: Fn(Vec<BatchJob<D>>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<Result<O, JobError>>> + Send + 'static,
    D: DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
{
    let run: Run<D, O> = Arc::new(move |jobs| Box::pin(run(jobs)));
    let gathering =
        Gathering { size: size.max(1), linger, run, seats: Mutex::default(), full: Notify::new() };
    BatchFn { gathering: Arc::new(gathering) }
}

type Run<D, O> = Arc<
    dyn Fn(Vec<BatchJob<D>>) -> crate::router::BoxFuture<'static, Vec<Result<O, JobError>>> + Send + Sync,
>;

/// A handler that is given many jobs at once; see [`batch_fn`].
pub struct BatchFn<D, O> {
    gathering: Arc<Gathering<D, O>>,
}

impl<D, O> fmt::Debug for BatchFn<D, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchFn({} jobs)", self.gathering.size)
    }
}

/// A job that waits for its batch.
struct Seat<D, O> {
    job: BatchJob<D>,
    answer: oneshot::Sender<Result<O, JobError>>,
}

struct Gathering<D, O> {
    size: usize,
    linger: Duration,
    run: Run<D, O>,
    /// The batch that is being filled.
    seats: Mutex<Vec<Seat<D, O>>>,
    /// It holds `size` jobs.
    full: Notify,
}

impl<D: Send + 'static, O: Send + 'static> Gathering<D, O> {
    /// Takes a seat; who takes the first one sees to the batch's being served.
    fn join(self: &Arc<Self>, seat: Seat<D, O>) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.push(seat);
        if seats.len() == 1 {
            tokio::spawn(self.clone().serve());
        }
        if seats.len() >= self.size {
            self.full.notify_one();
        }
    }

    async fn serve(self: Arc<Self>) {
        // cancel-safe: only waiting. A notification left by the batch before makes this
        // one a small one.
        let _ = tokio::time::timeout(self.linger, self.full.notified()).await;
        let mut seats = std::mem::take(&mut *self.seats.lock().unwrap_or_else(PoisonError::into_inner));
        // Who was cancelled meanwhile has left.
        seats.retain(|seat| !seat.answer.is_closed());
        let mut calls = Vec::new();
        while !seats.is_empty() {
            let later = seats.split_off(seats.len().min(self.size));
            calls.push(self.call(std::mem::replace(&mut seats, later)));
        }
        futures_util::future::join_all(calls).await;
    }

    async fn call(&self, seats: Vec<Seat<D, O>>) {
        let (jobs, answers): (Vec<_>, Vec<_>) = seats.into_iter().map(|seat| (seat.job, seat.answer)).unzip();
        let asked = jobs.len();
        let results = (self.run)(jobs).await;
        if results.len() != asked {
            tracing::error!(
                jobs = asked,
                results = results.len(),
                "a batch handler must answer for each job, in order"
            );
            return;
        }
        for (answer, result) in answers.into_iter().zip(results) {
            // A job that was cancelled in the middle listens no more.
            let _ = answer.send(result);
        }
    }
}

impl<D, O> Handler for BatchFn<D, O>
where
    D: DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
{
    type Data = D;
    type Output = O;

    async fn run(&self, ctx: &JobContext, data: D) -> Result<O, JobError> {
        let (answer, answered) = oneshot::channel();
        self.gathering.join(Seat { job: BatchJob { ctx: ctx.clone(), data }, answer });
        // Dropped unanswered: the call panicked, or answered for another number of jobs.
        answered
            .await
            .unwrap_or_else(|_| Err(JobError::retry("the batch handler gave no answer for this job")))
    }
}
