//! What a node is spared: too many requests at once, and requests while it
//! does not answer anyway.
//!
//! One gate for each API and node. Knows nothing of what is asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Requests at once to one node; more of them wait here, and not in its daemon.
const AT_ONCE: usize = 8;
/// Failures in a row after which a node is left alone for a while.
const FAILURES: u32 = 5;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whether calls to a node make sense. Pure: the caller brings the time.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    pause: Duration,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Lets a call through, or says how long not to ask. When the pause is
    /// over one call goes through as a trial, and the others wait for what it finds.
    fn check(&mut self, now: Instant) -> Result<(), Duration> {
        match self.open_until {
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                self.open_until = Some(now + self.pause);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn answered(&mut self) {
        *self = Self::default();
    }

    fn silent(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            self.open_until = Some(now + self.pause);
        }
    }
}

#[derive(Debug)]
struct Gate {
    slots: Arc<Semaphore>,
    breaker: Mutex<Breaker>,
}

/// The gates of all nodes.
#[derive(Debug, Default)]
pub(super) struct Gates(Mutex<HashMap<(String, String), Arc<Gate>>>);

/// The right to send one request.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Gates {
    /// Waits for a free slot at a node; `node` is empty for calls that name none.
    ///
    /// # Errors
    /// How long the node is to be left alone.
    pub(super) async fn pass(&self, api: &str, node: &str) -> Result<Pass, Duration> {
        let gate = Arc::clone(
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry((api.to_owned(), node.to_owned()))
                .or_insert_with(|| {
                    Arc::new(Gate { slots: Arc::new(Semaphore::new(AT_ONCE)), breaker: Mutex::default() })
                }),
        );
        // The semaphore is never closed.
        let slot = Arc::clone(&gate.slots).acquire_owned().await.ok();
        gate.breaker.lock().unwrap_or_else(PoisonError::into_inner).check(Instant::now())?;
        Ok(Pass { gate, _slot: slot })
    }
}

impl Pass {
    /// Notes how the request went.
    pub(super) fn note(&self, answered: bool) {
        let mut breaker = self.gate.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if answered { breaker.answered() } else { breaker.silent(Instant::now()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_left_alone_and_tried_by_one_call() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        for _ in 1..FAILURES {
            breaker.silent(start);
            assert_eq!(breaker.check(start), Ok(()));
        }
        breaker.silent(start);
        assert_eq!(breaker.check(start), Err(PAUSE_MIN));
        let later = start + PAUSE_MIN;
        assert_eq!(breaker.check(later), Ok(()), "the trial");
        assert_eq!(breaker.check(later), Err(PAUSE_MIN), "the others wait");
        breaker.silent(later);
        assert_eq!(breaker.check(later), Err(PAUSE_MIN * 2));
        breaker.answered();
        assert_eq!(breaker.check(later), Ok(()));
    }

    #[test]
    fn the_pause_has_an_end() {
        let mut breaker = Breaker::default();
        let mut now = Instant::now();
        for _ in 0..40 {
            breaker.silent(now);
            now += breaker.pause;
        }
        assert_eq!(breaker.pause, PAUSE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_so_many_requests_are_at_one_node() {
        let gates = Gates::default();
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(gates.pass("https://h", "pve1").await.unwrap());
        }
        gates.pass("https://h", "pve2").await.unwrap();
        let more = tokio::time::timeout(Duration::from_secs(1), gates.pass("https://h", "pve1")).await;
        assert!(more.is_err());
        held.pop();
        gates.pass("https://h", "pve1").await.unwrap();
    }
}
