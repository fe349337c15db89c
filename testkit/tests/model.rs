//! The state machine of a queue against a model of it: random steps of several
//! workers on a real Redis with a virtual clock, everything compared after each step,
//! and the invariants of `reliability.md` checked. What fails is made small.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use mpanel_protocol::{
    calls::{
        add::{Added, NewJob, add_jobs},
        fetch::{FetchSpec, fetch_jobs},
        finish::{Failure, Finish, Transition, finish_jobs},
        locks::{Sweep, extend_locks, rescue_stalled},
        manage::{self, FinalState, Removal, Reprocess},
    },
    ids::{JobId, LockToken, Prefix, QueueName},
    keys::QueueKeys,
    options::{Deduplication, JobOptions, Retention},
    outcome::Refusal,
    peer::Peer,
    time::TimestampMs,
};
use mpanel_testkit::RedisServer;
use proptest::{prelude::*, test_runner::Config};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use redis::aio::MultiplexedConnection;

const PEER: Peer = Peer::V5;
const START: i64 = 1_700_000_000_000;
const ATTEMPTS: u32 = 3;
const MOST_EVENTS: usize = 200;

/// One step. Jobs are named by a number that is taken modulo how many there are.
#[derive(Debug, Clone)]
enum Step {
    Add {
        delay: i64,
        priority: u32,
        lifo: bool,
        dedup: Option<u8>,
    },
    /// A worker takes a marker, as they do when they wake, and fetches.
    Fetch {
        worker: u8,
        slots: u32,
    },
    Complete {
        job: usize,
        wrong_token: bool,
    },
    Fail {
        job: usize,
        delay: i64,
        for_good: bool,
    },
    Snooze {
        job: usize,
        delay: i64,
    },
    Release {
        job: usize,
    },
    Renew {
        job: usize,
    },
    Advance {
        ms: i64,
    },
    LoseLock {
        job: usize,
    },
    Sweep,
    Pause,
    Resume,
    Promote {
        job: usize,
    },
    ChangeDelay {
        job: usize,
        delay: i64,
    },
    ChangePriority {
        job: usize,
        priority: u32,
        lifo: bool,
    },
    Remove {
        job: usize,
    },
    Reprocess {
        job: usize,
    },
}

/// Steps need no state to be chosen by: each makes sense in every state.
struct Steps;

impl ReferenceStateMachine for Steps {
    type State = ();
    type Transition = Step;

    fn init_state() -> BoxedStrategy<()> {
        Just(()).boxed()
    }

    fn transitions((): &()) -> BoxedStrategy<Step> {
        let job = 0_usize..8;
        let delay = prop_oneof![Just(0_i64), Just(1), Just(500), Just(60_000)];
        let some = prop_oneof![Just(1_i64), Just(500), Just(60_000)];
        let priority = prop_oneof![3 => Just(0_u32), 2 => 1_u32..4, 1 => Just(2_097_151)];
        prop_oneof![
            8 => (delay.clone(), priority.clone(), any::<bool>(), prop::option::weighted(0.2, 0_u8..2))
                .prop_map(|(delay, priority, lifo, dedup)| Step::Add { delay, priority, lifo, dedup }),
            8 => (0_u8..3, 1_u32..4).prop_map(|(worker, slots)| Step::Fetch { worker, slots }),
            4 => (job.clone(), prop::bool::weighted(0.1))
                .prop_map(|(job, wrong_token)| Step::Complete { job, wrong_token }),
            4 => (job.clone(), delay.clone(), prop::bool::weighted(0.2))
                .prop_map(|(job, delay, for_good)| Step::Fail { job, delay, for_good }),
            1 => (job.clone(), some.clone()).prop_map(|(job, delay)| Step::Snooze { job, delay }),
            1 => job.clone().prop_map(|job| Step::Release { job }),
            1 => job.clone().prop_map(|job| Step::Renew { job }),
            3 => prop_oneof![Just(1_i64), Just(600), Just(61_000)].prop_map(|ms| Step::Advance { ms }),
            2 => job.clone().prop_map(|job| Step::LoseLock { job }),
            2 => Just(Step::Sweep),
            1 => Just(Step::Pause),
            2 => Just(Step::Resume),
            1 => job.clone().prop_map(|job| Step::Promote { job }),
            1 => (job.clone(), delay).prop_map(|(job, delay)| Step::ChangeDelay { job, delay }),
            1 => (job.clone(), priority, any::<bool>())
                .prop_map(|(job, priority, lifo)| Step::ChangePriority { job, priority, lifo }),
            1 => job.clone().prop_map(|job| Step::Remove { job }),
            1 => job.prop_map(|job| Step::Reprocess { job }),
        ]
        .boxed()
    }

    fn apply((): (), _: &Step) {}
}

#[derive(Debug, Clone, Default)]
struct Job {
    priority: u32,
    lifo: bool,
    made: u32,
    started: u32,
    stalls: u32,
    doomed: bool,
    again: bool,
    token: Option<u8>,
    locked: bool,
}

/// What should be in Redis.
#[derive(Debug, Default)]
struct Model {
    now: i64,
    jobs: BTreeMap<String, Job>,
    /// The line, in `wait` or `paused`; the last is next.
    line: VecDeque<String>,
    /// (priority, place) and id.
    prioritized: BTreeMap<(u32, u64, String), ()>,
    counter: u64,
    /// (due, place among those due then) and id.
    delayed: BTreeMap<(i64, i64), String>,
    active: Vec<String>,
    completed: BTreeSet<String>,
    failed: BTreeSet<String>,
    stalled: BTreeSet<String>,
    paused: bool,
    dedup: BTreeMap<u8, String>,
}

impl Model {
    fn push(&mut self, id: &str, priority: u32, next: bool) {
        if priority > 0 {
            self.counter += 1;
            self.prioritized.insert((priority, self.counter, id.to_owned()), ());
        } else if next {
            self.line.push_back(id.to_owned());
        } else {
            self.line.push_front(id.to_owned());
        }
    }

    fn delay(&mut self, id: &str, due: i64) {
        let place = self.delayed.range((due, 0)..=(due, 4095)).next_back().map_or(0, |((_, n), _)| n + 1);
        self.delayed.insert((due, place), id.to_owned());
    }

    fn undelay(&mut self, id: &str) -> bool {
        let before = self.delayed.len();
        self.delayed.retain(|_, other| other != id);
        self.delayed.len() < before
    }

    fn promote_due(&mut self) {
        let due: Vec<(i64, i64)> = self.delayed.range(..=(self.now, i64::MAX)).map(|(k, _)| *k).collect();
        for key in due {
            let id = self.delayed.remove(&key).unwrap();
            let priority = self.jobs[&id].priority;
            self.push(&id, priority, false);
        }
    }

    fn take(&mut self, worker: u8, slots: u32) -> Vec<String> {
        self.promote_due();
        if self.paused {
            return Vec::new();
        }
        let mut ids = Vec::new();
        while ids.len() < slots as usize {
            if let Some(id) = self.line.pop_back() {
                ids.push(id);
            } else if let Some(((_, _, id), ())) = self.prioritized.pop_first() {
                ids.push(id);
            } else {
                self.counter = 0;
                break;
            }
        }
        for id in &ids {
            let job = self.jobs.get_mut(id).unwrap();
            job.started += 1;
            job.token = Some(worker);
            job.locked = true;
            self.active.push(id.clone());
        }
        ids
    }

    /// An attempt ends: the job leaves `active`, or why it may not.
    fn end(&mut self, id: &str, token: u8) -> Result<(), Refusal> {
        let job = self.jobs.get_mut(id).unwrap();
        if !job.locked {
            return Err(Refusal::MissingLock);
        }
        if job.token != Some(token) {
            return Err(Refusal::LockMismatch);
        }
        job.locked = false;
        self.active.retain(|other| other != id);
        self.stalled.remove(id);
        Ok(())
    }

    fn free_dedup(&mut self, id: &str) {
        self.dedup.retain(|_, holder| holder != id);
    }

    /// In how many places a job is.
    fn places(&self, id: &str) -> usize {
        let at = |list: &mut dyn Iterator<Item = &String>| list.filter(|other| *other == id).count();
        at(&mut self.line.iter())
            + at(&mut self.active.iter())
            + at(&mut self.delayed.values())
            + at(&mut self.completed.iter())
            + at(&mut self.failed.iter())
            + at(&mut self.prioritized.keys().map(|(_, _, id)| id))
    }
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    server: RedisServer,
}

static BENCH: std::sync::LazyLock<Bench> = std::sync::LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(RedisServer::builder().appendonly(false).start()).unwrap();
    Bench { runtime, server }
});

struct Queue {
    conn: MultiplexedConnection,
    keys: QueueKeys,
    model: Model,
}

fn token(worker: u8) -> LockToken {
    LockToken::new(format!("w{worker}"))
}

fn failure() -> Failure {
    Failure { reason: "no".to_owned(), stacktrace: None, trace: None }
}

impl Queue {
    async fn ask<T: redis::FromRedisValue>(&self, command: &str, key: &str, rest: &[&str]) -> T {
        let key = format!("{}{key}", self.keys.base());
        redis::cmd(command).arg(key).arg(rest).query_async(&mut self.conn.clone()).await.unwrap()
    }

    fn now(&self) -> TimestampMs {
        TimestampMs(self.model.now)
    }

    fn nth<'a>(mut ids: impl ExactSizeIterator<Item = &'a String>, n: usize) -> Option<String> {
        let count = ids.len();
        ids.nth(n % count.max(1)).cloned()
    }

    /// Ends an attempt of the n-th active job, if there is one, as the model says.
    async fn finish(&mut self, n: usize, wrong: bool, transition: impl FnOnce(&Job) -> Transition) {
        let Some(id) = Self::nth(self.model.active.iter(), n) else { return };
        let job = self.model.jobs[&id].clone();
        let holder = job.token.unwrap() + if wrong { 10 } else { 0 };
        let transition = transition(&job);
        let finish = Finish { id: JobId::stored(&id), token: token(holder), transition: transition.clone() };
        let now = self.now();
        let finished =
            finish_jobs(&mut self.conn, &self.keys, PEER, now, &[finish], None, None).await.unwrap();
        let got = finished.results.into_iter().next().unwrap().map(drop);
        let m = &mut self.model;
        if matches!(transition, Transition::RetryNow { .. }) {
            m.promote_due();
        }
        let expected = m.end(&id, holder);
        assert_eq!(got, expected, "end of {id}");
        if expected.is_err() {
            return;
        }
        let priority = job.priority;
        match transition {
            Transition::Complete { .. } => {
                m.completed.insert(id.clone());
                m.free_dedup(&id);
            }
            Transition::Fail { .. } => {
                m.failed.insert(id.clone());
                m.free_dedup(&id);
                m.jobs.get_mut(&id).unwrap().doomed = false;
            }
            Transition::RetryNow { lifo, .. } => m.push(&id, priority, lifo),
            Transition::RetryLater { delay_ms, .. } | Transition::Snooze { delay_ms } => {
                m.delay(&id, m.now + delay_ms as i64);
            }
            Transition::Release if priority > 0 => {
                m.prioritized.insert((priority, 0, id.clone()), ());
            }
            Transition::Release => m.push(&id, 0, true),
            Transition::Limit { .. } | Transition::AwaitChildren { .. } => unreachable!(),
        }
        if !matches!(transition, Transition::Snooze { .. } | Transition::Release) {
            m.jobs.get_mut(&id).unwrap().made += 1;
        }
    }

    async fn step(&mut self, step: Step) {
        let now = self.now();
        let keys = self.keys.clone();
        match step {
            Step::Add { delay, priority, lifo, dedup } => {
                let options = JobOptions {
                    delay: Some(delay as f64),
                    priority: Some(f64::from(priority)),
                    attempts: ATTEMPTS,
                    deduplication: dedup
                        .map(|d| Deduplication { id: format!("d{d}"), ..Deduplication::default() }),
                    lifo: Some(lifo),
                    ..JobOptions::default()
                };
                let job = NewJob {
                    id: None,
                    name: "n".to_owned(),
                    data: "{}".to_owned(),
                    options,
                    timestamp: now,
                    parent: None,
                    waits_for_children: false,
                    scheduler: None,
                };
                let added = add_jobs(&mut self.conn, &keys, PEER, now, &[job], None).await.unwrap();
                let m = &mut self.model;
                match (&added[0], dedup.and_then(|d| m.dedup.get(&d))) {
                    (Added::Deduplicated(id), Some(holder)) => assert_eq!(id.as_str(), holder),
                    (Added::Stored(id), None) => {
                        let id = id.as_str().to_owned();
                        let job = Job { priority, lifo, ..Job::default() };
                        assert!(m.jobs.insert(id.clone(), job).is_none(), "{id} is given twice");
                        if let Some(d) = dedup {
                            m.dedup.insert(d, id.clone());
                        }
                        if delay > 0 { m.delay(&id, m.now + delay) } else { m.push(&id, priority, lifo) }
                    }
                    other => panic!("{other:?}"),
                }
            }
            Step::Fetch { worker, slots } => {
                self.ask::<redis::Value>("ZPOPMIN", "marker", &[]).await;
                let token = token(worker);
                let lock = Duration::from_secs(3600);
                let spec = FetchSpec { slots, token: &token, lock, limiter: None, worker_name: None };
                let fetched = fetch_jobs(&mut self.conn, &keys, PEER, now, &spec).await.unwrap();
                let expected = self.model.take(worker, slots);
                let got: Vec<&str> = fetched.jobs.iter().map(|j| j.id.as_str()).collect();
                assert_eq!(got, expected);
                for job in &fetched.jobs {
                    let known = &self.model.jobs[job.id.as_str()];
                    assert_eq!((job.attempts_made, job.attempts_started), (known.made, known.started));
                    assert_eq!(job.deferred_failure.is_some(), known.doomed);
                }
                if (expected.len() as u32) < slots && !self.model.paused {
                    let due = self.model.delayed.keys().next().map(|(due, _)| *due);
                    assert_eq!(fetched.next_due.map(|t| t.0), due, "when to look again");
                }
            }
            Step::Complete { job, wrong_token } => {
                self.finish(job, wrong_token, |_| Transition::Complete {
                    value: "null".to_owned(),
                    keep: Retention::default(),
                })
                .await;
            }
            Step::Fail { job, delay, for_good } => {
                self.finish(job, false, |job| {
                    if for_good || job.doomed || job.made + 1 >= ATTEMPTS {
                        let keep = Retention::default();
                        Transition::Fail { failure: failure(), keep, attempts_allowed: ATTEMPTS }
                    } else if delay == 0 {
                        Transition::RetryNow { failure: failure(), lifo: job.lifo }
                    } else {
                        Transition::RetryLater { failure: failure(), delay_ms: delay as f64 }
                    }
                })
                .await;
            }
            Step::Snooze { job, delay } => {
                self.finish(job, false, |_| Transition::Snooze { delay_ms: delay as f64 }).await;
            }
            Step::Release { job } => self.finish(job, false, |_| Transition::Release).await,
            Step::Renew { job } => {
                let Some(id) = Self::nth(self.model.active.iter(), job) else { return };
                let known = &self.model.jobs[&id];
                let held = [(JobId::stored(&id), token(known.token.unwrap()))];
                let lost =
                    extend_locks(&mut self.conn, &keys, Duration::from_secs(3600), &held).await.unwrap();
                assert_eq!(lost.is_empty(), known.locked);
                if known.locked {
                    self.model.stalled.remove(&id);
                }
            }
            Step::Advance { ms } => self.model.now += ms,
            Step::LoseLock { job } => {
                let Some(id) = Self::nth(self.model.active.iter(), job) else { return };
                self.ask::<()>("DEL", &format!("{id}:lock"), &[]).await;
                self.model.jobs.get_mut(&id).unwrap().locked = false;
            }
            Step::Sweep => {
                self.ask::<()>("DEL", "stalled-check", &[]).await;
                let interval = Duration::from_secs(3600);
                let sweep = rescue_stalled(&mut self.conn, &keys, PEER, now, interval, 1).await.unwrap();
                let Sweep::Rescued(ids) = sweep else { panic!("{sweep:?}") };
                let m = &mut self.model;
                let lost: BTreeSet<String> = m
                    .stalled
                    .iter()
                    .filter(|id| m.active.contains(id) && !m.jobs[*id].locked)
                    .cloned()
                    .collect();
                assert_eq!(ids.iter().map(|id| id.as_str().to_owned()).collect::<BTreeSet<_>>(), lost);
                // In which order those of one sweep come is Redis's choice.
                for id in ids {
                    let id = id.as_str().to_owned();
                    m.active.retain(|other| *other != id);
                    let job = m.jobs.get_mut(&id).unwrap();
                    job.stalls += 1;
                    job.doomed |= job.stalls > 1;
                    m.line.push_back(id);
                }
                m.stalled = m.active.iter().cloned().collect();
            }
            Step::Pause => {
                manage::pause_queue(&mut self.conn, &keys, PEER).await.unwrap();
                self.model.paused = true;
            }
            Step::Resume => {
                manage::resume_queue(&mut self.conn, &keys, PEER).await.unwrap();
                self.model.paused = false;
            }
            Step::Promote { job } => {
                let Some(id) = Self::nth(self.model.delayed.values(), job) else { return };
                manage::promote_job(&mut self.conn, &keys, PEER, &JobId::stored(&id)).await.unwrap();
                self.model.undelay(&id);
                let priority = self.model.jobs[&id].priority;
                self.model.push(&id, priority, false);
            }
            Step::ChangeDelay { job, delay } => {
                let Some(id) = Self::nth(self.model.delayed.values(), job) else { return };
                manage::change_delay(&mut self.conn, &keys, now, &JobId::stored(&id), delay as f64)
                    .await
                    .unwrap();
                // Its own old place counts when the new one is found.
                let due = self.model.now + delay;
                let place = self.model.delayed.range((due, 0)..=(due, 4095)).next_back();
                let place = place.map_or(0, |((_, n), _)| n + 1);
                self.model.undelay(&id);
                self.model.delayed.insert((due, place), id);
            }
            Step::ChangePriority { job, priority, lifo } => {
                let Some(id) = Self::nth(self.model.jobs.keys(), job) else { return };
                manage::change_priority(
                    &mut self.conn,
                    &keys,
                    PEER,
                    &JobId::stored(&id),
                    f64::from(priority),
                    lifo,
                )
                .await
                .unwrap();
                let m = &mut self.model;
                let before = m.line.len() + m.prioritized.len();
                m.line.retain(|other| *other != id);
                m.prioritized.retain(|(_, _, other), ()| *other != id);
                if m.line.len() + m.prioritized.len() < before {
                    if priority > 0 && lifo {
                        m.prioritized.insert((priority, 0, id.clone()), ());
                    } else {
                        m.push(&id, priority, lifo);
                    }
                }
                m.jobs.get_mut(&id).unwrap().priority = priority;
            }
            Step::Remove { job } => {
                let Some(id) = Self::nth(self.model.jobs.keys(), job) else { return };
                let removal = manage::remove_job(&mut self.conn, &keys, PEER, now, &JobId::stored(&id), true)
                    .await
                    .unwrap();
                let m = &mut self.model;
                if m.jobs[&id].locked {
                    assert_eq!(removal, Removal::Locked);
                    return;
                }
                assert_eq!(removal, Removal::Removed);
                m.line.retain(|other| *other != id);
                m.active.retain(|other| *other != id);
                m.prioritized.retain(|(_, _, other), ()| *other != id);
                m.undelay(&id);
                m.completed.remove(&id);
                m.failed.remove(&id);
                m.free_dedup(&id);
                m.jobs.remove(&id);
            }
            Step::Reprocess { job } => {
                let finished: Vec<String> = self.model.failed.union(&self.model.completed).cloned().collect();
                let Some(id) = Self::nth(finished.iter(), job) else { return };
                let from =
                    if self.model.failed.contains(&id) { FinalState::Failed } else { FinalState::Completed };
                let how = Reprocess::default();
                manage::reprocess_job(&mut self.conn, &keys, PEER, &JobId::stored(&id), from, how)
                    .await
                    .unwrap();
                let m = &mut self.model;
                m.failed.remove(&id);
                m.completed.remove(&id);
                m.line.push_front(id.clone());
                m.jobs.get_mut(&id).unwrap().again = true;
            }
        }
    }

    /// Redis holds what the model says, and the invariants hold.
    async fn check(&self) {
        let m = &self.model;
        let all = ["0", "-1"];
        let scored = ["0", "-1", "WITHSCORES"];
        let wait: Vec<String> = self.ask("LRANGE", "wait", &all).await;
        let paused: Vec<String> = self.ask("LRANGE", "paused", &all).await;
        let (line, none) = if m.paused { (paused, wait) } else { (wait, paused) };
        assert_eq!(line, Vec::from(m.line.clone()), "line");
        assert!(none.is_empty(), "the other list holds {none:?}");
        let mut active: Vec<String> = self.ask("LRANGE", "active", &all).await;
        active.reverse();
        assert_eq!(active, m.active, "active");
        let prioritized: Vec<String> = self.ask("ZRANGE", "prioritized", &all).await;
        let expected: Vec<&String> = m.prioritized.keys().map(|(_, _, id)| id).collect();
        assert_eq!(prioritized.iter().collect::<Vec<_>>(), expected, "prioritized");
        // I4: due time and place are one score.
        let delayed: Vec<(String, f64)> = self.ask("ZRANGE", "delayed", &scored).await;
        let expected: Vec<(String, f64)> =
            m.delayed.iter().map(|((due, n), id)| (id.clone(), (due * 4096 + n) as f64)).collect();
        assert_eq!(delayed, expected, "delayed");
        let completed: BTreeSet<String> = self.ask("ZRANGE", "completed", &all).await;
        let failed: BTreeSet<String> = self.ask("ZRANGE", "failed", &all).await;
        assert_eq!((&completed, &failed), (&m.completed, &m.failed), "finished");
        let stalled: BTreeSet<String> = self.ask("SMEMBERS", "stalled", &[]).await;
        // A job that was removed, or ended without its lock, may leave its mark: harmless.
        let marks = |marks: &BTreeSet<String>| -> BTreeSet<String> {
            marks.iter().filter(|id| m.active.contains(id)).cloned().collect()
        };
        assert_eq!(marks(&stalled), marks(&m.stalled), "stalled");

        for (id, job) in &m.jobs {
            // I1 and I3: in one place, with a hash.
            assert_eq!(m.places(id), 1, "{id}");
            let fields: Vec<Option<String>> =
                self.ask("HMGET", id, &["name", "atm", "ats", "stc", "defa", "priority"]).await;
            let number = |i: usize| fields[i].as_deref().map_or(0, |n| n.parse::<u32>().unwrap());
            assert!(fields[0].is_some(), "{id} has no hash");
            assert_eq!((number(1), number(2), number(3)), (job.made, job.started, job.stalls), "{id}");
            assert_eq!(fields[4].is_some(), job.doomed, "{id}");
            assert_eq!(number(5), job.priority, "{id}");
            // I2: an active job has a lock, or a sweep will find it.
            let lock: Option<String> = self.ask("GET", &format!("{id}:lock"), &[]).await;
            let expected = job.locked.then(|| format!("w{}", job.token.unwrap()));
            assert_eq!(lock, expected, "{id}");
            // I6: no more attempts than allowed, unless an operator ran it again.
            assert!(job.again || job.made <= ATTEMPTS, "{id}");
        }
        // I5: what is in line wakes a worker.
        let in_line = m.line.len() + m.prioritized.len();
        if !m.paused && in_line > 0 {
            let woken: Option<f64> = self.ask("ZSCORE", "marker", &["0"]).await;
            assert_eq!(woken, Some(0.0), "marker");
        }
        // I7: a deduplication key names a job that is still to end.
        for d in 0..2 {
            let holder: Option<String> = self.ask("GET", &format!("de:d{d}"), &[]).await;
            assert_eq!(holder.as_ref(), m.dedup.get(&d), "dedup");
        }
        // I8: the stream is trimmed, by whole nodes of a hundred.
        let events: usize = self.ask("XLEN", "events", &[]).await;
        assert!(events <= MOST_EVENTS + 110, "{events} events");
    }
}

struct Machine;

impl StateMachineTest for Machine {
    type SystemUnderTest = Queue;
    type Reference = Steps;

    fn init_test((): &()) -> Queue {
        let bench = &*BENCH;
        bench.runtime.block_on(async {
            let client = redis::Client::open(bench.server.url()).unwrap();
            let mut conn = client.get_multiplexed_async_connection().await.unwrap();
            redis::cmd("FLUSHALL").query_async::<()>(&mut conn).await.unwrap();
            let keys = QueueKeys::new(&Prefix::default(), &QueueName::new("q").unwrap());
            let meta = [("opts.maxLenEvents", MOST_EVENTS)];
            redis::cmd("HSET").arg(keys.meta()).arg(&meta).query_async::<()>(&mut conn).await.unwrap();
            Queue { conn, keys, model: Model { now: START, ..Model::default() } }
        })
    }

    fn apply(mut queue: Queue, (): &(), step: Step) -> Queue {
        BENCH.runtime.block_on(async {
            queue.step(step).await;
            queue.check().await;
        });
        queue
    }
}

fn config() -> Config {
    let full = std::env::var("FLEET_TEST_TIER").is_ok_and(|tier| tier == "full");
    Config { cases: if full { 3000 } else { 80 }, failure_persistence: None, ..Config::default() }
}

proptest_state_machine::prop_state_machine! {
    #![proptest_config(config())]

    #[test]
    fn a_queue_behaves_as_its_model(sequential 1..120 => Machine);
}
