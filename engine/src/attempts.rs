//! The attempts of one worker: begun, awaited, and ended with it.
//!
//! Knows nothing of calls to Redis: the pump hands jobs in and takes out what came
//! of them.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use mpanel_protocol::{
    ids::{JobId, LockToken},
    job::FetchedJob,
};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use crate::{
    cancellation::Cancellation,
    executor::{Done, run_attempt},
    router::panic_text,
    worker::Shared,
};

/// The attempts that run.
pub(crate) struct Attempts {
    shared: Arc<Shared>,
    tasks: JoinSet<Done>,
    running: HashMap<Id, (JobId, LockToken, AbortHandle)>,
}

impl Attempts {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, tasks: JoinSet::new(), running: HashMap::new() }
    }

    /// How many run.
    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Begins one. With `in_place` its first step is taken here and now: with nothing
    /// else to do meanwhile, handing it to a task and its end back would be most of
    /// the time between two calls. Answers what came of it if it is over by then.
    pub(crate) fn start(
        &mut self,
        job: FetchedJob,
        token: &LockToken,
        asked_at: Instant,
        in_place: bool,
    ) -> Option<Done> {
        let id = job.id.clone();
        let cancellation = Cancellation::under(&self.shared.abort);
        self.shared.locks.hold(id.clone(), token.clone(), asked_at, cancellation.clone());
        let attempt = run_attempt(self.shared.clone(), job, token.clone(), cancellation);
        let handle = if in_place {
            let mut attempt = Box::pin(attempt);
            if let Some(done) = first_step(attempt.as_mut(), &id, token) {
                return Some(done);
            }
            self.tasks.spawn(attempt)
        } else {
            self.tasks.spawn(attempt)
        };
        self.running.insert(handle.id(), (id, token.clone(), handle));
        None
    }

    /// What came of one that is over, if one is.
    pub(crate) fn try_next(&mut self) -> Option<Done> {
        loop {
            let ended = self.tasks.try_join_next_with_id()?;
            if let Some(done) = self.took_out(ended) {
                return Some(done);
            }
        }
    }

    /// What came of the next one that is over; `None` when none runs.
    ///
    /// # Cancel safety
    /// It only waits.
    pub(crate) async fn next(&mut self) -> Option<Done> {
        loop {
            let ended = self.tasks.join_next_with_id().await?;
            if let Some(done) = self.took_out(ended) {
                return Some(done);
            }
        }
    }

    fn took_out(&mut self, ended: Result<(Id, Done), JoinError>) -> Option<Done> {
        match ended {
            Ok((task, done)) => {
                self.running.remove(&task);
                Some(done)
            }
            // Only a stop aborts attempts; a panic inside one is an outcome already.
            Err(error) => {
                let (id, token, _) = self.running.remove(&error.id())?;
                Some(broke_off(&id, &token, &error))
            }
        }
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        for (_, _, handle) in self.running.values() {
            handle.abort();
        }
    }
}

/// An attempt until it waits for the first time.
fn first_step(attempt: Pin<&mut impl Future<Output = Done>>, id: &JobId, token: &LockToken) -> Option<Done> {
    // Its task polls it again, and is woken from then on.
    let mut context = Context::from_waker(Waker::noop());
    match std::panic::catch_unwind(AssertUnwindSafe(|| attempt.poll(&mut context))) {
        Ok(Poll::Pending) => None,
        Ok(Poll::Ready(done)) => Some(done),
        Err(panic) => Some(broke_off(id, token, &panic_text(panic.as_ref()))),
    }
}

fn broke_off(id: &JobId, token: &LockToken, error: &dyn std::fmt::Display) -> Done {
    tracing::error!(job.id = %id, %error, "an attempt broke off; the job will be rescued");
    Done::BrokeOff(id.clone(), token.clone())
}
