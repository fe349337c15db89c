//! The heart of a worker: each call to Redis finishes what has ended and fetches
//! for the slots that are free.
//!
//! While a call is under way the outcomes of running jobs gather, so batches grow
//! with the load and an idle worker adds no wait. Under full load a second call
//! goes out meanwhile, with another part of the slots, so that Redis and handlers
//! work at the same time. Nothing is fetched beyond the free slots. A call is never
//! dropped half way.

use std::{
    borrow::Borrow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use mpanel_protocol::{
    calls::{
        fetch::{Fetched, SLOTS_PER_CALL},
        finish::{FINISHES_PER_CALL, Finish, Finished, Transition},
    },
    ids::LockToken,
    outcome::Refusal,
    script::ScriptError,
    time::TimestampMs,
};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    attempts::Attempts,
    exchange::{end_wait, exchange, is_transient, limit_left_ms, restore_marker},
    executor::Done,
    giveback::give_back,
    marker::{BLOCK_MAX, Waiter, Wake},
    permissions,
    slots::Seat,
    trouble::{Trouble, kind},
    worker::{Control, Shared, WorkerStats},
};

/// Pauses after a call that failed, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Longest wait for a rate limit before it is looked at again.
const LIMIT_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a worker stays away from a queue whose keys it cannot use.
const CORRUPT_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait at the end of a stop for jobs that are being given back.
const GIVE_BACK_GRACE: Duration = Duration::from_secs(2);

/// Calls under way at once, at most.
const CALLS_AT_ONCE: usize = 2;
/// With fewer slots than this a second call would only make both small.
const SLOTS_TO_SHARE: usize = 16;

/// When the next fetch makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fetch {
    /// Now: there may be work.
    Now,
    /// When the call that is under way has come back.
    Asked,
    /// When the marker says so, or a delayed job is due.
    OnMarker { due: Option<TimestampMs> },
    /// Not before this time: a limit, or a failure.
    NotBefore(Instant),
}

/// An outcome on its way to Redis.
#[derive(Debug)]
struct Outgoing {
    finish: Finish,
    /// A call with it broke off: it may have been written already.
    uncertain: bool,
}

impl Borrow<Finish> for Outgoing {
    fn borrow(&self) -> &Finish {
        &self.finish
    }
}

/// A call that has come back.
struct Answered {
    batch: Vec<Outgoing>,
    slots: u32,
    token: LockToken,
    asked_at: Instant,
    outcome: Result<Finished, ScriptError>,
}

/// The loop and its state.
pub(crate) struct Pump {
    shared: Arc<Shared>,
    waiter: Waiter,
    stats: watch::Sender<WorkerStats>,
    counters: WorkerStats,
    attempts: Attempts,
    given_back: JoinSet<()>,
    outgoing: Vec<Outgoing>,
    calls: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Outcomes on their way with these calls, and slots they may fill.
    under_way: usize,
    reserved: usize,
    /// Slots that these calls keep busy until they have come back.
    engaged: usize,
    /// The last fetch that came back filled all its slots.
    more: bool,
    /// A marker was taken on our behalf while a fetch was under way, which may have
    /// looked before what the marker tells of was there.
    look_again: bool,
    fetch: Fetch,
    /// A handler found that the queue is to start nothing until then.
    limited_until: Option<Instant>,
    control: watch::Receiver<Control>,
    waiting: bool,
    pause: Duration,
    /// Redis does not take our calls.
    trouble: Trouble,
    last_fetch_empty: bool,
}

/// Distinguishes the tokens of one process; the first half is random.
static CALLS: AtomicU64 = AtomicU64::new(0);

impl Pump {
    pub(crate) fn new(shared: Arc<Shared>, waiter: Waiter, stats: watch::Sender<WorkerStats>) -> Self {
        let control = shared.control.subscribe();
        let attempts = Attempts::new(shared.clone());
        Self {
            shared,
            waiter,
            stats,
            counters: WorkerStats::default(),
            attempts,
            given_back: JoinSet::new(),
            outgoing: Vec::new(),
            calls: FuturesUnordered::new(),
            under_way: 0,
            reserved: 0,
            engaged: 0,
            more: false,
            look_again: false,
            fetch: Fetch::Now,
            limited_until: None,
            control,
            waiting: false,
            pause: PAUSE_MIN,
            trouble: Trouble::default(),
            last_fetch_empty: false,
        }
    }

    /// Runs until the worker is stopped and nothing runs; gives back how many jobs
    /// did not finish.
    pub(crate) async fn run(mut self) -> usize {
        let worker_id = uuid::Uuid::new_v4();
        permissions::until_granted(&self.shared).await;
        loop {
            self.gather();
            let stopping = self.shared.stop.is_cancelled();
            if stopping && self.waiting {
                // At once: what runs may take longer than we are given.
                self.end_wait().await;
            }
            self.note_seat(stopping);
            if self.is_call_due(stopping) {
                if !self.attempts.is_empty() {
                    // Handlers that need no more than a moment end before the call and share it.
                    tokio::task::yield_now().await;
                    self.gather();
                }
                let token = LockToken::new(format!("{worker_id}:{}", CALLS.fetch_add(1, Ordering::Relaxed)));
                self.call_out(stopping, token);
                continue;
            }
            if stopping && self.attempts.is_empty() && self.outgoing.is_empty() && self.calls.is_empty() {
                break;
            }
            self.publish();
            self.rest(stopping).await;
        }
        self.end_wait().await;
        // Given back or not, their locks expire and the jobs are rescued.
        let _ = tokio::time::timeout(GIVE_BACK_GRACE, async {
            while self.given_back.join_next().await.is_some() {}
        })
        .await;
        self.shared.locks.close();
        self.attempts.len()
    }

    /// Nothing may be taken from the marker on our behalf any more, and what was
    /// taken, with no fetch after it, is put back for the others.
    async fn end_wait(&mut self) {
        if self.waiting {
            end_wait(&self.shared, &mut self.waiter).await;
            self.waiting = false;
        } else if self.fetch == Fetch::Now || self.look_again {
            restore_marker(&self.shared).await;
        }
    }

    fn retrying(&self) -> bool {
        self.pause > PAUSE_MIN
    }

    fn free_slots(&self) -> usize {
        let control = *self.control.borrow();
        if self.is_closed() {
            return 0;
        }
        match &self.shared.seat {
            None => control.concurrency.saturating_sub(self.attempts.len() + self.reserved),
            Some(_) if self.retrying() => 0,
            Some(seat) => seat.grant(self.holds_beside(self.outgoing.len().min(self.share()))),
        }
    }

    fn is_closed(&self) -> bool {
        self.control.borrow().paused || self.limited_until.is_some()
    }

    /// Shared slots that are held beside `batch` outcomes which are about to be written.
    fn holds_beside(&self, batch: usize) -> usize {
        self.attempts.len() + self.engaged + self.outgoing.len() - batch
    }

    /// Tells the others at the same slots what we hold, and whether we know of work.
    fn note_seat(&self, stopping: bool) {
        let Some(seat) = &self.shared.seat else { return };
        // What cannot be written now does not keep them from their work.
        let held = if self.retrying() { self.attempts.len() } else { self.holds_beside(0) };
        let knows = self.fetch == Fetch::Now || (self.fetch == Fetch::Asked && self.more);
        seat.note(held, knows && !stopping && !self.is_closed() && !self.retrying());
    }

    /// Whether a call without slots is to show that Redis takes calls again: one that
    /// hangs must not hold slots that others could use.
    fn is_probing(&self) -> bool {
        self.shared.seat.is_some() && self.retrying() && !self.is_closed()
    }

    /// How many jobs one call may concern.
    fn share(&self) -> usize {
        let slots = self.control.borrow().concurrency;
        let share = if slots < SLOTS_TO_SHARE { slots } else { slots.div_ceil(CALLS_AT_ONCE) };
        share.clamp(1, FINISHES_PER_CALL)
    }

    fn is_call_due(&self, stopping: bool) -> bool {
        let now = Instant::now();
        if matches!(self.fetch, Fetch::NotBefore(at) if self.retrying() && at > now) {
            return false;
        }
        let slots = if stopping { 0 } else { self.free_slots() };
        match self.calls.len() {
            0 => {
                let probing = self.is_probing() && !stopping;
                !self.outgoing.is_empty() || (self.fetch == Fetch::Now && (slots > 0 || probing))
            }
            calls if calls < CALLS_AT_ONCE => {
                let fetchable = if self.more { slots } else { 0 };
                self.outgoing.len().max(fetchable) * 2 > self.share()
            }
            _ => false,
        }
    }

    /// A handler's limit is over, or has lasted a while: somebody may have ended or
    /// prolonged it meanwhile.
    async fn look_at_limit(&mut self, until: Instant) {
        let left_ms = limit_left_ms(&self.shared).await;
        let now = Instant::now();
        self.limited_until = match left_ms {
            Some(ms) => u64::try_from(ms).ok().filter(|ms| *ms > 0).map(|ms| now + Duration::from_millis(ms)),
            // Not to be known: as it was.
            None => (until > now).then_some(until),
        };
        if self.limited_until.is_none() && !matches!(self.fetch, Fetch::NotBefore(_)) {
            self.fetch = Fetch::Now;
        }
    }

    /// The worker was paused, went on, or has another number of slots.
    async fn controlled(&mut self) {
        if self.control.borrow_and_update().paused {
            self.end_wait().await;
        } else if matches!(self.fetch, Fetch::OnMarker { .. }) {
            self.fetch = Fetch::Now;
        }
    }

    /// Takes in what has ended.
    fn gather(&mut self) {
        while let Some(done) = self.attempts.try_next() {
            self.ended(done);
        }
    }

    fn ended(&mut self, done: Done) {
        match done {
            Done::Finish(finish) => {
                self.shared.locks.ended(&finish.id, &finish.token);
                match finish.transition {
                    Transition::Complete { .. } => self.counters.completed += 1,
                    Transition::Fail { .. } | Transition::RetryNow { .. } | Transition::RetryLater { .. } => {
                        self.counters.failed += 1;
                    }
                    Transition::Limit { pause_ms } => {
                        let pause = Duration::from_millis(pause_ms.try_into().unwrap_or(0));
                        self.limited_until = Some(Instant::now() + pause);
                    }
                    Transition::Snooze { .. } | Transition::Release | Transition::AwaitChildren { .. } => {}
                }
                self.outgoing.push(Outgoing { finish, uncertain: false });
            }
            Done::LockLost(id, token) | Done::Moved(id, token) | Done::BrokeOff(id, token) => {
                self.shared.locks.release(&id, &token);
            }
        }
    }

    /// Waits for anything to happen.
    async fn rest(&mut self, stopping: bool) {
        let slots = if stopping { 0 } else { self.free_slots() };
        // Who shares slots has to know of work also while others have them all.
        let waits = slots > 0 || (self.shared.seat.is_some() && !stopping && !self.is_closed());
        if let Fetch::OnMarker { due } = self.fetch
            && waits
            && !self.waiting
        {
            let now = self.shared.engine.now();
            let block = due.map_or(BLOCK_MAX, |due| now.until(due).min(BLOCK_MAX));
            // One request at a time; the waiter has taken the one before.
            self.waiting = self.waiter.requests.try_send(block).is_ok();
        }
        let not_before = match self.fetch {
            Fetch::NotBefore(at) => Some(at),
            Fetch::Now | Fetch::Asked | Fetch::OnMarker { .. } => None,
        };
        let limit_look = self.limited_until.map(|until| until.min(Instant::now() + LIMIT_PAUSE_MAX));
        let stop = self.shared.stop.clone();
        // cancel-safe: every branch only waits; what it yields is handled after it.
        tokio::select! {
            Some(answered) = self.calls.next() => self.answered(answered).await,
            Some(done) = self.attempts.next() => self.ended(done),
            Some(wake) = self.waiter.wakes.recv() => self.woken(wake, slots).await,
            Some(_) = self.given_back.join_next() => {}
            () = until(not_before), if not_before.is_some() => self.fetch = Fetch::Now,
            () = until(limit_look), if limit_look.is_some() => {
                if let Some(until) = self.limited_until {
                    self.look_at_limit(until).await;
                }
            }
            Ok(()) = self.control.changed() => self.controlled().await,
            () = rung(self.shared.seat.as_ref()) => {}
            () = stop.cancelled(), if !stopping => {}
        }
    }

    async fn woken(&mut self, wake: Wake, slots: usize) {
        self.waiting = false;
        let now = self.shared.engine.now();
        match wake {
            // The marker was taken on our behalf while the last slots filled up.
            Wake::Marker(at) if slots == 0 && (self.shared.seat.is_none() || at <= now) => {
                restore_marker(&self.shared).await;
                if self.shared.seat.is_some() && matches!(self.fetch, Fetch::OnMarker { .. }) {
                    self.fetch = Fetch::Now;
                }
            }
            // A limit or a failure is waited out; the fetch after it sees all there is.
            _ if matches!(self.fetch, Fetch::NotBefore(_)) => {}
            _ if self.reserved > 0 => self.look_again |= wake != Wake::TimedOut,
            Wake::Marker(at) if at > now => self.fetch = Fetch::OnMarker { due: Some(at) },
            Wake::Marker(_) | Wake::TimedOut | Wake::Broken => self.fetch = Fetch::Now,
        }
    }

    /// Sends a call on its way: outcomes, and a fetch for free slots.
    fn call_out(&mut self, stopping: bool, token: LockToken) {
        let asked_at = Instant::now();
        let share = self.share();
        let limited = matches!(self.fetch, Fetch::NotBefore(at) if at > asked_at);
        let want = if limited || stopping { 0 } else { self.free_slots().min(share) };
        let want = want.min(SLOTS_PER_CALL as usize);
        let batch = self.outgoing.len().min(share);
        let slots = match &self.shared.seat {
            Some(seat) => seat.take(self.holds_beside(batch), want, batch),
            None => want,
        };
        if slots == 0 && batch == 0 && !self.is_probing() {
            return; // Others were faster.
        }
        let batch: Vec<Outgoing> = self.outgoing.drain(..batch).collect();
        self.under_way += batch.len();
        self.reserved += slots;
        self.engaged += slots.max(batch.len());
        let slots = u32::try_from(slots).unwrap_or(SLOTS_PER_CALL);
        if slots > 0 {
            self.fetch = Fetch::Asked;
            self.look_again = false;
        }
        let shared = self.shared.clone();
        self.calls.push(
            async move {
                let outcome = exchange(&shared, &batch, slots, &token).await;
                Answered { batch, slots, token, asked_at, outcome }
            }
            .boxed(),
        );
    }

    async fn answered(&mut self, answered: Answered) {
        let Answered { batch, slots, token, asked_at, outcome } = answered;
        self.under_way -= batch.len();
        self.reserved -= slots as usize;
        self.engaged -= (slots as usize).max(batch.len());
        match outcome {
            Ok(finished) => {
                self.pause = PAUSE_MIN;
                if let Some(lasted) = self.trouble.over(Instant::now()) {
                    tracing::info!(queue = %self.shared.keys.queue(), ?lasted, "Redis takes calls again");
                }
                for (outgoing, result) in batch.iter().zip(finished.results) {
                    self.written(outgoing, result.err());
                }
                match finished.fetched {
                    Some(fetched) => self.fetched(fetched, slots, &token, asked_at),
                    // Every outcome was refused, and nothing was looked for.
                    None if slots > 0 && self.fetch == Fetch::Asked => self.fetch = Fetch::Now,
                    None => {}
                }
            }
            Err(error) => self.call_failed(error, batch, (slots > 0).then_some(token)).await,
        }
    }

    fn written(&self, outgoing: &Outgoing, refusal: Option<Refusal>) {
        let id = &outgoing.finish.id;
        self.shared.locks.release(id, &outgoing.finish.token);
        let Some(refusal) = refusal else { return };
        let gone = matches!(refusal, Refusal::MissingLock | Refusal::MissingJob | Refusal::NotInState);
        if outgoing.uncertain && gone {
            tracing::info!(job.id = %id, "the outcome had been written before the connection broke");
        } else {
            tracing::warn!(queue = %self.shared.keys.queue(), job.id = %id, %refusal, "the outcome was refused");
        }
    }

    fn fetched(&mut self, fetched: Fetched, slots: u32, token: &LockToken, asked_at: Instant) {
        for id in &fetched.dropped {
            tracing::warn!(queue = %self.shared.keys.queue(), job.id = %id, "dropped an id without a job");
        }
        let count = fetched.jobs.len();
        for job in fetched.jobs {
            // Nothing is awaited before the first step of the only slot's attempt.
            let in_place = self.control.borrow().concurrency == 1 && !self.waiting;
            if in_place {
                self.publish_with(1);
            }
            if let Some(done) = self.attempts.start(job, token, asked_at, in_place) {
                self.ended(done);
            }
        }
        if slots == 0 {
            return;
        }
        let full = u32::try_from(count).unwrap_or(u32::MAX) >= slots;
        self.more = full;
        self.last_fetch_empty = count == 0 && fetched.next_due.is_none() && fetched.limited_for.is_none();
        self.fetch = match fetched.limited_for {
            Some(pause) => Fetch::NotBefore(Instant::now() + pause.min(LIMIT_PAUSE_MAX)),
            None if full || self.look_again || !fetched.dropped.is_empty() => Fetch::Now,
            None => Fetch::OnMarker { due: fetched.next_due },
        };
    }

    /// Nothing is lost: outcomes stay and are written again, fetches come later.
    /// `fetching` is the token of a fetch that was part of the call.
    async fn call_failed(
        &mut self,
        error: ScriptError,
        mut batch: Vec<Outgoing>,
        fetching: Option<LockToken>,
    ) {
        let queue = self.shared.keys.queue().clone();
        if is_transient(&error) {
            if self.trouble.is_news(kind(error.redis()), Instant::now()) {
                let outcomes = batch.len();
                tracing::warn!(%queue, %error, outcomes, "Redis does not take calls; trying on until it does");
            } else {
                tracing::debug!(%queue, %error, "Redis still does not take calls");
            }
            let uncertain = !error.is_not_done();
            if uncertain && let Some(token) = fetching {
                self.given_back.spawn(give_back(self.shared.clone(), token));
            }
            batch.iter_mut().for_each(|o| o.uncertain |= uncertain);
            batch.append(&mut self.outgoing);
            self.outgoing = batch;
            let jitter = 0.5 + self.shared.engine.random() / 2.0;
            self.fetch = Fetch::NotBefore(Instant::now() + self.pause.mul_f64(jitter));
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            return;
        }
        // A key of the queue or of a job has a wrong form. Find whose it is, so that
        // one broken job does not hold up the rest.
        tracing::error!(%queue, %error, "a key of this queue is not as BullMQ leaves it");
        let alone = batch.len() == 1 && fetching.is_none();
        for mut outgoing in batch {
            let id = outgoing.finish.id.clone();
            // The script may have come that far before it met the broken key.
            outgoing.uncertain = true;
            let outcome = if alone {
                Err(ScriptError::Encoding(error.to_string()))
            } else {
                exchange(&self.shared, std::slice::from_ref(&outgoing), 0, &LockToken::new("none")).await
            };
            match outcome {
                Ok(finished) => {
                    self.written(&outgoing, finished.results.into_iter().next().and_then(Result::err))
                }
                Err(error) if is_transient(&error) => self.outgoing.push(outgoing),
                Err(error) => {
                    self.shared.locks.release(&id, &outgoing.finish.token);
                    tracing::error!(%queue, job.id = %id, %error, "the job's outcome cannot be written; its keys need a look");
                }
            }
        }
        self.fetch = Fetch::NotBefore(Instant::now() + CORRUPT_PAUSE);
    }

    fn publish(&mut self) {
        self.publish_with(0);
    }

    /// With so many attempts beside those that have a task.
    fn publish_with(&mut self, in_place: usize) {
        self.counters.active = self.attempts.len() + in_place;
        self.counters.unwritten = self.outgoing.len() + self.under_way;
        self.counters.fetching = self.reserved > 0;
        let at_rest = self.counters.active == 0 && self.outgoing.is_empty() && self.calls.is_empty();
        self.counters.idle = at_rest && self.last_fetch_empty;
        let counters = self.counters;
        // Who waits, waits for one of these: nobody is woken with every job.
        self.stats.send_if_modified(|seen| {
            let changed = (seen.idle, seen.is_quiet()) != (counters.idle, counters.is_quiet());
            *seen = counters;
            changed
        });
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if let Some(seat) = &self.shared.seat {
            seat.note(0, false);
        }
    }
}

async fn rung(seat: Option<&Seat>) {
    match seat {
        Some(seat) => seat.rung().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}
