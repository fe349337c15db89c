//! What happened to jobs, told by all parties, and whether it can be right.
//!
//! Producers and handlers, ours and Node's, append to one [`Journal`]; at the end [`check`] holds it against a
//! [`Snapshot`] of Redis. The checks are pure and look at each job by itself:
//!
//! | | |
//! |---|---|
//! | H0 | no job that nobody enqueued, and none whose enqueue was refused |
//! | H1 | every acknowledged job is in exactly one of completed and failed |
//! | H2 | every job that ended was started |
//! | H3 | completed: one effect; failed: at most one |
//! | H4 | no job in two structures |
//! | H5 | nothing waits, runs or is locked any more |
//! | H6 | one terminal event a job, the one of the structure it is in |
//! | H7 | fences, where starts have them, strictly rise for each job |
//! | H8 | events in order: added, then in line, then active, …, then terminal; only `retries-exhausted` follows `failed` |
//! | H9 | a job whose enqueue had an unknown outcome is there at most once |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use redis::aio::ConnectionLike;
use serde::{Deserialize, Serialize};

use crate::TestkitError;
use crate::child::GuardedDir;

/// What one party did or learnt, in the order in which it was written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Redis acknowledged the job.
    EnqueueAck {
        /// The job.
        id: String,
    },
    /// The job was surely not stored.
    EnqueueRefused {
        /// The job.
        id: String,
    },
    /// The connection broke: the job may have been stored.
    EnqueueUnknown {
        /// The job.
        id: String,
    },
    /// A handler began.
    Start {
        /// The job.
        id: String,
        /// Who runs it.
        by: String,
        /// Rises with each start of the job, where the party has such a number.
        #[serde(default)]
        fence: Option<u64>,
    },
    /// The effect of the job was committed.
    Effect {
        /// The job.
        id: String,
        /// By whom.
        by: String,
    },
}

/// Where all parties write, and the effects, of which each can be committed once.
#[derive(Debug)]
pub struct Journal {
    log: PathBuf,
    effects: PathBuf,
    _dir: GuardedDir,
}

impl Journal {
    /// An empty journal in a directory of its own.
    ///
    /// # Errors
    /// [`TestkitError::File`].
    pub fn new() -> Result<Self, TestkitError> {
        let dir = GuardedDir::create("fleet-history-")?;
        let (log, effects) = (dir.path().join("history.jsonl"), dir.path().join("effects"));
        std::fs::create_dir(&effects).map_err(TestkitError::file("create", &effects))?;
        std::fs::write(&log, "").map_err(TestkitError::file("write", &log))?;
        Ok(Self { log, effects, _dir: dir })
    }

    /// The directory, for parties in other processes: `history.jsonl` is appended to, a line a write; an effect is
    /// the file `effects/ID`, made only where there is none.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.log.parent().unwrap_or(&self.log)
    }

    /// Appends one event.
    ///
    /// # Errors
    /// [`TestkitError::File`].
    pub fn record(&self, event: &Event) -> Result<(), TestkitError> {
        let mut line = serde_json::to_string(event)
            .map_err(|source| TestkitError::Answer { op: "journal".into(), source })?;
        line.push('\n');
        let append = || std::fs::File::options().append(true).open(&self.log)?.write_all(line.as_bytes());
        append().map_err(TestkitError::file("append to", &self.log))
    }

    /// A handler of `by` began to run the job.
    ///
    /// # Errors
    /// [`TestkitError::File`].
    pub fn start(&self, id: &str, by: &str) -> Result<(), TestkitError> {
        self.record(&Event::Start { id: id.to_owned(), by: by.to_owned(), fence: None })
    }

    /// Commits the effect of a job, if it was not before.
    ///
    /// # Errors
    /// [`TestkitError::File`].
    pub fn effect(&self, id: &str, by: &str) -> Result<(), TestkitError> {
        let path = self.effects.join(id);
        match std::fs::File::create_new(&path) {
            Ok(_) => self.record(&Event::Effect { id: id.to_owned(), by: by.to_owned() }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(TestkitError::file("create", path)(error)),
        }
    }

    /// Everything so far.
    ///
    /// # Errors
    /// [`TestkitError::File`]; [`TestkitError::Answer`] when a line has another form.
    pub fn events(&self) -> Result<Vec<Event>, TestkitError> {
        let text = std::fs::read_to_string(&self.log).map_err(TestkitError::file("read", &self.log))?;
        text.lines()
            .map(|line| {
                serde_json::from_str(line)
                    .map_err(|source| TestkitError::Answer { op: format!("journal line {line}"), source })
            })
            .collect()
    }
}

/// Whether every job has ended that was acknowledged; how many have not.
#[must_use]
pub fn open_jobs(events: &[Event], snapshot: &Snapshot) -> usize {
    let ended: BTreeSet<&String> = snapshot.of("completed").chain(snapshot.of("failed")).collect();
    let acknowledged = events.iter().filter_map(|event| match event {
        Event::EnqueueAck { id } => Some(id),
        _ => None,
    });
    acknowledged.filter(|id| !ended.contains(id)).count()
}

/// A queue as Redis has it.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The ids in each structure.
    pub states: BTreeMap<String, Vec<String>>,
    /// Jobs that are locked.
    pub locked: Vec<String>,
    /// The event stream: name and job.
    pub events: Vec<(String, String)>,
}

impl Snapshot {
    /// Reads the queue whose keys begin with `base`, such as `{bull}:mail`.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] with Redis's words.
    pub async fn read(conn: &mut impl ConnectionLike, base: &str) -> Result<Self, TestkitError> {
        let failed = |error: redis::RedisError| TestkitError::failed("look at the queue", error.to_string());
        let mut snapshot = Self::default();
        // At one moment: a job on its way must not be seen twice.
        let mut pipe = redis::pipe();
        pipe.atomic();
        for state in STATES {
            let command = if LISTS.contains(&state) { "LRANGE" } else { "ZRANGE" };
            pipe.cmd(command).arg(format!("{base}:{state}")).arg(0).arg(-1);
        }
        let ids: Vec<Vec<String>> = pipe.query_async(conn).await.map_err(failed)?;
        snapshot.states.extend(STATES.iter().map(|state| (*state).to_owned()).zip(ids));
        let ids: BTreeSet<&String> = snapshot.states.values().flatten().collect();
        let ids: Vec<&String> = ids.into_iter().collect();
        for chunk in ids.chunks(500) {
            let mut pipe = redis::pipe();
            for id in chunk {
                pipe.exists(format!("{base}:{id}:lock"));
            }
            let locked: Vec<bool> = pipe.query_async(conn).await.map_err(failed)?;
            let locked = chunk.iter().zip(locked).filter(|(_, locked)| *locked);
            snapshot.locked.extend(locked.map(|(id, _)| (*id).clone()));
        }
        let mut range = redis::cmd("XRANGE");
        range.arg(format!("{base}:events")).arg("-").arg("+");
        let entries: Vec<(String, BTreeMap<String, String>)> =
            range.query_async(conn).await.map_err(failed)?;
        snapshot.events = entries
            .into_iter()
            .filter_map(|(_, mut fields)| Some((fields.remove("event")?, fields.remove("jobId")?)))
            .collect();
        Ok(snapshot)
    }

    /// How many jobs have not ended.
    #[must_use]
    pub fn open(&self) -> usize {
        let open = self.states.iter().filter(|(state, _)| !TERMINAL.contains(&state.as_str()));
        open.map(|(_, ids)| ids.len()).sum()
    }

    fn of(&self, state: &str) -> impl Iterator<Item = &String> {
        self.states.get(state).into_iter().flatten()
    }
}

/// Something that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// `H0` to `H9`.
    pub rule: &'static str,
    /// Which job.
    pub id: String,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} job {}: {}", self.rule, self.id, self.seen)
    }
}

/// What is known of one job.
#[derive(Debug, Default)]
struct Job<'a> {
    acknowledged: usize,
    unknown: usize,
    refused: usize,
    starts: usize,
    fences: Vec<u64>,
    effects: usize,
    states: Vec<&'a str>,
    events: Vec<&'a str>,
}

/// Everything in the history that cannot be, once nothing happens any more.
#[must_use]
pub fn check(history: &[Event], snapshot: &Snapshot) -> Vec<Violation> {
    let mut jobs: BTreeMap<&str, Job<'_>> = BTreeMap::new();
    for event in history {
        match event {
            Event::EnqueueAck { id } => jobs.entry(id).or_default().acknowledged += 1,
            Event::EnqueueUnknown { id } => jobs.entry(id).or_default().unknown += 1,
            Event::EnqueueRefused { id } => jobs.entry(id).or_default().refused += 1,
            Event::Start { id, fence, .. } => {
                let job = jobs.entry(id).or_default();
                job.starts += 1;
                job.fences.extend(fence);
            }
            Event::Effect { id, .. } => jobs.entry(id).or_default().effects += 1,
        }
    }
    for (state, ids) in &snapshot.states {
        for id in ids {
            jobs.entry(id).or_default().states.push(state);
        }
    }
    for (event, id) in &snapshot.events {
        jobs.entry(id).or_default().events.push(event);
    }
    let mut violations: Vec<Violation> = snapshot
        .locked
        .iter()
        .map(|id| Violation { rule: "H5", id: id.clone(), seen: "it is still locked".to_owned() })
        .collect();
    for (id, job) in &jobs {
        job.check(|rule, seen| violations.push(Violation { rule, id: (*id).to_owned(), seen }));
    }
    violations.sort();
    violations
}

const LISTS: [&str; 3] = ["wait", "paused", "active"];
const STATES: [&str; 8] =
    ["wait", "paused", "active", "delayed", "prioritized", "waiting-children", "completed", "failed"];
const TERMINAL: [&str; 2] = ["completed", "failed"];
const IN_LINE: [&str; 4] = ["waiting", "delayed", "prioritized", "waiting-children"];

impl Job<'_> {
    fn check(&self, mut wrong: impl FnMut(&'static str, String)) {
        let ended: Vec<&str> = self.states.iter().copied().filter(|s| TERMINAL.contains(s)).collect();
        let seen = self.starts + self.effects + self.states.len() + self.events.len();
        if self.acknowledged + self.unknown == 0 && seen > 0 {
            let why = if self.refused > 0 { "it was refused" } else { "nobody enqueued it" };
            wrong("H0", format!("{why}; it is in {:?}", self.states));
        }
        if self.acknowledged > 0 && ended.len() != 1 {
            wrong("H1", format!("it was acknowledged and is in {:?}", self.states));
        }
        if !ended.is_empty() && self.starts == 0 {
            wrong("H2", format!("it is in {ended:?}, and nobody started it"));
        }
        let effects_fit = match ended.first() {
            Some(&"completed") => self.effects == 1,
            _ => self.effects <= 1,
        };
        if !effects_fit {
            wrong("H3", format!("{} effects of a job in {:?}", self.effects, self.states));
        }
        if self.states.len() > 1 {
            wrong("H4", format!("it is in {:?}", self.states));
        }
        let open: Vec<&&str> = self.states.iter().filter(|s| !TERMINAL.contains(s)).collect();
        if !open.is_empty() {
            wrong("H5", format!("it is still in {open:?}"));
        }
        let ends: Vec<&str> = self.events.iter().copied().filter(|e| TERMINAL.contains(e)).collect();
        if ends.len() > 1 || ends.first() != ended.first() {
            wrong("H6", format!("events of its end are {ends:?}, it is in {:?}", self.states));
        }
        if self.fences.windows(2).any(|pair| pair[0] >= pair[1]) {
            wrong("H7", format!("fences do not rise: {:?}", self.fences));
        }
        if let Some(why) = self.disorder() {
            wrong("H8", format!("{why}: {:?}", self.events));
        }
        let added = self.events.iter().filter(|e| **e == "added").count();
        if added > 1 || (self.unknown > 0 && self.states.len() > 1) {
            wrong("H9", format!("added {added} times, it is in {:?}", self.states));
        }
    }

    /// What is wrong with the order of its events.
    fn disorder(&self) -> Option<&'static str> {
        let mut events = self.events.iter().copied();
        match events.next() {
            None => return None,
            Some("added") => {}
            Some(_) => return Some("the first event is not its addition"),
        }
        let (mut in_line, mut active) = (false, false);
        let mut ended = None;
        for event in events {
            match (ended, event) {
                (None, _) => {}
                // BullMQ tells of a failure first, and then that no attempt is left.
                (Some("failed"), "retries-exhausted") => {
                    ended = Some(event);
                    continue;
                }
                (Some(_), _) => return Some("something follows its end"),
            }
            match event {
                event if IN_LINE.contains(&event) => (in_line, active) = (true, false),
                "active" if !in_line => return Some("it became active without having been in line"),
                "active" => (in_line, active) = (false, true),
                event if TERMINAL.contains(&event) && !active => {
                    return Some("it ended without being active");
                }
                event if TERMINAL.contains(&event) => ended = Some(event),
                _ => {}
            }
        }
        None
    }
}
