//! Lock renewal for every active job of the process, on a thread of its own with a
//! connection to each server that has locks of ours: a handler that hogs the runtime
//! does not lose its lock, and a Cluster node that hangs delays no other's. For the same reason
//! time limits are watched here: a runtime that has a thread left is woken.
//!
//! A job whose lock is lost, or could not be renewed until it surely expired, is
//! cancelled at once.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mpanel_connect::{Conn, Place, Redis};
use mpanel_protocol::{
    calls::locks::{LOCKS_PER_CALL, extend_locks},
    ids::{JobId, LockToken},
    keys::QueueKeys,
};
use tokio::sync::Notify;

use crate::{
    cancellation::{CancelCause, Cancellation},
    trouble::Trouble,
};

/// How long a renewal may take before its connection counts as broken.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a renewal that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// A lock that lives shorter than this many of them is retried that much sooner.
const RETRIES_IN_A_LOCK: u32 = 10;

/// One lock we hold.
#[derive(Debug)]
struct Held {
    token: LockToken,
    since: Instant,
    proven: Instant,
    attempt: Cancellation,
    /// When its time is over, and how much it had.
    limit: Option<(Instant, Duration)>,
    /// The attempt is over; its outcome is on its way, and ends the lock.
    ended: bool,
}

/// The locks of one worker.
#[derive(Debug)]
struct Ring {
    keys: QueueKeys,
    lock: Duration,
    due: Instant,
    held: HashMap<JobId, Held>,
    /// Renewals fail.
    trouble: Trouble,
}

/// The locks of one worker that are to be renewed now.
struct DueRing {
    ring: u64,
    keys: QueueKeys,
    lock: Duration,
    held: Vec<(JobId, LockToken)>,
}

/// Renews the locks of all workers of a process.
#[derive(Debug)]
pub(crate) struct LockKeeper {
    rings: Mutex<HashMap<u64, Ring>>,
    changed: Notify,
    next_ring: AtomicU64,
}

/// A worker's way to the keeper.
#[derive(Debug, Clone)]
pub(crate) struct LockRing {
    keeper: Arc<LockKeeper>,
    id: u64,
}

impl LockKeeper {
    /// Starts the thread; it ends when the keeper is dropped.
    pub(crate) fn start(redis: Redis) -> std::io::Result<Arc<Self>> {
        let keeper = Arc::new(Self {
            rings: Mutex::new(HashMap::new()),
            changed: Notify::new(),
            next_ring: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&keeper);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("lock-renewal".to_owned())
            .spawn(move || runtime.block_on(renew_for_ever(weak, redis)))?;
        Ok(keeper)
    }

    fn rings(&self) -> MutexGuard<'_, HashMap<u64, Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ring for a worker whose locks live for `lock`.
    pub(crate) fn ring(self: &Arc<Self>, keys: QueueKeys, lock: Duration) -> LockRing {
        let id = self.next_ring.fetch_add(1, Ordering::Relaxed);
        let ring = Ring {
            keys,
            lock,
            due: Instant::now() + lock / 2,
            held: HashMap::new(),
            trouble: Trouble::default(),
        };
        self.rings().insert(id, ring);
        LockRing { keeper: self.clone(), id }
    }

    /// When the next renewal is due, or the next time limit; `None` while nothing is held.
    fn next_due(&self) -> Option<Instant> {
        let rings = self.rings();
        let renewals = rings.values().filter(|r| !r.held.is_empty()).map(|r| r.due);
        let limits = rings.values().flat_map(|r| r.held.values()).filter_map(|h| Some(h.limit?.0));
        renewals.chain(limits).min()
    }

    /// Cancels the attempts whose time is over.
    fn end_overdue(&self, now: Instant) {
        for ring in self.rings().values_mut() {
            for (id, held) in &mut ring.held {
                let Some((_, limit)) = held.limit.take_if(|(at, _)| *at <= now) else { continue };
                if !held.ended {
                    tracing::warn!(queue = %ring.keys.queue(), job.id = %id, ?limit, "time limit exceeded; the attempt is cancelled");
                    held.attempt.cancel(CancelCause::TimeLimit(limit));
                }
            }
        }
    }

    /// The rings whose renewal is due, as lists to renew.
    fn take_due(&self, now: Instant) -> Vec<DueRing> {
        let mut rings = self.rings();
        let due = rings.iter_mut().filter(|(_, r)| !r.held.is_empty() && r.due <= now);
        due.map(|(id, ring)| {
            ring.due = now + ring.lock / 2;
            let held = ring.held.iter().map(|(id, h)| (id.clone(), h.token.clone())).collect();
            DueRing { ring: *id, keys: ring.keys.clone(), lock: ring.lock, held }
        })
        .collect()
    }

    fn renewed(&self, ring: u64, asked: &[(JobId, LockToken)], lost: &[JobId], at: Instant) {
        let mut rings = self.rings();
        let Some(ring) = rings.get_mut(&ring) else { return };
        if ring.trouble.over(Instant::now()).is_some() {
            tracing::info!(queue = %ring.keys.queue(), "locks are renewed again");
        }
        for (id, token) in asked {
            let Some(held) = ring.held.get_mut(id).filter(|h| h.token == *token) else { continue };
            if lost.contains(id) {
                // Of an attempt that is over it says only that its outcome arrived first.
                if !held.ended {
                    tracing::warn!(queue = %ring.keys.queue(), job.id = %id, "lock lost; the attempt is cancelled");
                }
                held.attempt.lose_lock();
                ring.held.remove(id);
            } else {
                held.proven = at;
            }
        }
    }

    /// A renewal failed: try again soon, and give up what surely expired.
    fn not_renewed(&self, ring: u64, now: Instant, error: &str) {
        let mut rings = self.rings();
        let Some(ring) = rings.get_mut(&ring) else { return };
        let lock = ring.lock;
        ring.due = now + RETRY_PAUSE.min(lock / RETRIES_IN_A_LOCK);
        let queue = ring.keys.queue().clone();
        if ring.trouble.is_news("", now) {
            tracing::warn!(%queue, error, "locks could not be renewed; trying on until they expire");
        }
        ring.held.retain(|id, held| {
            let expired = now.duration_since(held.proven) > lock;
            if expired {
                tracing::warn!(%queue, job.id = %id, "lock not renewed until it expired; the attempt is cancelled");
                held.attempt.lose_lock();
            }
            !expired
        });
    }
}

impl LockRing {
    /// From now on the job's lock is renewed. `asked_at` is when the call that set
    /// the lock was made.
    pub(crate) fn hold(&self, id: JobId, token: LockToken, asked_at: Instant, attempt: Cancellation) {
        let mut rings = self.keeper.rings();
        let Some(ring) = rings.get_mut(&self.id) else { return };
        let was_empty = ring.held.is_empty();
        let held = Held { token, since: asked_at, proven: asked_at, attempt, limit: None, ended: false };
        if let Some(former) = ring.held.insert(id, held) {
            // The job was started anew, so the lock of the attempt before is gone.
            former.attempt.lose_lock();
        }
        let due = asked_at + ring.lock / 2;
        if was_empty || due < ring.due {
            ring.due = due;
            drop(rings);
            self.keeper.changed.notify_one();
        }
    }

    /// From now on the attempt has so much time.
    pub(crate) fn limit(&self, id: &JobId, token: &LockToken, limit: Duration) {
        if let Some(ring) = self.keeper.rings().get_mut(&self.id)
            && let Some(held) = ring.held.get_mut(id).filter(|h| h.token == *token)
        {
            held.limit = Some((Instant::now() + limit, limit));
        }
        self.keeper.changed.notify_one();
    }

    /// The attempt is over; its lock is renewed until its outcome is written.
    pub(crate) fn ended(&self, id: &JobId, token: &LockToken) {
        if let Some(ring) = self.keeper.rings().get_mut(&self.id)
            && let Some(held) = ring.held.get_mut(id).filter(|h| h.token == *token)
        {
            held.ended = true;
        }
    }

    /// The lock with this token is renewed no more; a later attempt's is.
    pub(crate) fn release(&self, id: &JobId, token: &LockToken) {
        if let Some(ring) = self.keeper.rings().get_mut(&self.id)
            && ring.held.get(id).is_some_and(|h| h.token == *token)
        {
            ring.held.remove(id);
        }
    }

    /// Cancels every attempt that still runs.
    pub(crate) fn cancel_all(&self) {
        if let Some(ring) = self.keeper.rings().get(&self.id) {
            ring.held.values().for_each(|held| held.attempt.cancel(CancelCause::Stopping));
        }
    }

    /// The jobs that have been running for at least `age`.
    pub(crate) fn older_than(&self, age: Duration) -> Vec<(JobId, Cancellation)> {
        let now = Instant::now();
        let rings = self.keeper.rings();
        let held = rings.get(&self.id).into_iter().flat_map(|ring| &ring.held);
        held.filter(|(_, h)| !h.ended && now.duration_since(h.since) >= age)
            .map(|(id, h)| (id.clone(), h.attempt.clone()))
            .collect()
    }

    /// The worker is gone.
    pub(crate) fn close(&self) {
        self.keeper.rings().remove(&self.id);
    }
}

/// The connections of the thread; one is taken out while it is used, so that one
/// whose answer did not come is not used again.
type Conns = Arc<Mutex<HashMap<Place, Arc<tokio::sync::Mutex<Option<Conn>>>>>>;

async fn renew_for_ever(keeper: Weak<LockKeeper>, redis: Redis) {
    let conns = Conns::default();
    loop {
        let (due, changed) = match keeper.upgrade() {
            None => return,
            Some(keeper) => {
                // Registered before the look, so that no change is missed.
                let due = keeper.next_due();
                (due, keeper)
            }
        };
        // A pause bounded in time, so that the thread sees that its keeper is gone.
        let pause = due.map_or(Duration::from_secs(1), |due| due.saturating_duration_since(Instant::now()));
        let pause = pause.min(Duration::from_secs(1));
        // cancel-safe: a notification that is not taken stays for the next turn.
        let _ = tokio::time::timeout(pause, changed.changed.notified()).await;
        let now = Instant::now();
        changed.end_overdue(now);
        for ring in changed.take_due(now) {
            // Each by itself: they end by their patience, before the ring is due again.
            tokio::spawn(renew_ring(keeper.clone(), redis.clone(), conns.clone(), ring));
        }
    }
}

async fn renew_ring(keeper: Weak<LockKeeper>, redis: Redis, conns: Conns, due: DueRing) {
    let DueRing { ring, keys, lock, held } = due;
    for chunk in held.chunks(LOCKS_PER_CALL) {
        // A frozen server is given up before the locks have expired.
        let patience = RENEWAL_TIMEOUT.min(lock / 2);
        let asked_at = Instant::now();
        let renewed = tokio::time::timeout(patience, renew(&redis, &conns, &keys, lock, chunk)).await;
        let Some(keeper) = keeper.upgrade() else { return };
        match renewed.unwrap_or_else(|_| Err(format!("no answer within {patience:?}"))) {
            Ok(lost) => keeper.renewed(ring, chunk, &lost, asked_at),
            Err(error) => {
                keeper.not_renewed(ring, Instant::now(), &error);
            }
        }
    }
}

async fn renew(
    redis: &Redis,
    conns: &Conns,
    keys: &QueueKeys,
    lock: Duration,
    held: &[(JobId, LockToken)],
) -> Result<Vec<JobId>, String> {
    let place = redis.place_of(keys.meta()).await.map_err(|e| e.to_string())?;
    let slot = conns.lock().unwrap_or_else(PoisonError::into_inner).entry(place).or_default().clone();
    let mut slot = slot.lock().await;
    let mut conn = match slot.take() {
        Some(conn) => conn,
        None => {
            let fresh = redis.dedicated(keys.meta(), None, RENEWAL_TIMEOUT).await;
            fresh.map_err(|e| e.to_string())?
        }
    };
    let lost = extend_locks(&mut conn, keys, lock, held).await.map_err(|e| e.to_string())?;
    *slot = Some(conn);
    Ok(lost)
}
