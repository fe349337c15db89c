//! The history checker finds what is wrong, and nothing in a history that is right.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use mpanel_testkit::history::{Event, Journal, Snapshot, check};

fn ack(id: &str) -> Event {
    Event::EnqueueAck { id: id.into() }
}

fn unknown(id: &str) -> Event {
    Event::EnqueueUnknown { id: id.into() }
}

fn refused(id: &str) -> Event {
    Event::EnqueueRefused { id: id.into() }
}

fn start(id: &str, fence: Option<u64>) -> Event {
    Event::Start { id: id.into(), by: "w".into(), fence }
}

fn effect(id: &str) -> Event {
    Event::Effect { id: id.into(), by: "w".into() }
}

/// Completed at once, completed after a stall, failed, of unknown outcome and not there, refused.
fn right() -> (Vec<Event>, Snapshot) {
    let history = vec![
        ack("a"),
        start("a", Some(1)),
        effect("a"),
        ack("b"),
        start("b", Some(1)),
        effect("b"),
        start("b", Some(2)),
        ack("c"),
        start("c", None),
        unknown("d"),
        refused("e"),
    ];
    let mut snapshot = Snapshot::default();
    snapshot.states.insert("completed".into(), vec!["a".into(), "b".into()]);
    snapshot.states.insert("failed".into(), vec!["c".into()]);
    let events = [
        ("added", "a"),
        ("waiting", "a"),
        ("active", "a"),
        ("added", "b"),
        ("delayed", "b"),
        ("completed", "a"),
        ("waiting", "b"),
        ("active", "b"),
        ("stalled", "b"),
        ("waiting", "b"),
        ("active", "b"),
        ("completed", "b"),
        ("added", "c"),
        ("waiting", "c"),
        ("active", "c"),
        ("failed", "c"),
        ("retries-exhausted", "c"),
    ];
    snapshot.events = events.iter().map(|(event, id)| ((*event).into(), (*id).into())).collect();
    (history, snapshot)
}

fn rules(history: &[Event], snapshot: &Snapshot) -> Vec<&'static str> {
    let mut rules: Vec<_> = check(history, snapshot).into_iter().map(|violation| violation.rule).collect();
    rules.dedup();
    rules
}

#[test]
fn a_history_that_is_right_has_no_violations() {
    let (history, snapshot) = right();
    assert_eq!(check(&history, &snapshot), []);
}

type Seed = fn(&mut Vec<Event>, &mut Snapshot);

fn put(snapshot: &mut Snapshot, state: &str, id: &str) {
    snapshot.states.entry(state.into()).or_default().push(id.into());
}

fn remove(snapshot: &mut Snapshot, id: &str) {
    snapshot.states.values_mut().for_each(|ids| ids.retain(|other| other != id));
}

fn without(snapshot: &mut Snapshot, event: &str, id: &str) {
    snapshot.events.retain(|(name, job)| !(name == event && job == id));
}

const SEEDS: &[(&str, &str, Seed)] = &[
    ("a job nobody enqueued", "H0", |_, s| put(s, "completed", "x")),
    ("an event of a job nobody enqueued", "H0", |_, s| s.events.push(("added".into(), "x".into()))),
    ("a refused job that is there", "H0", |_, s| put(s, "completed", "e")),
    ("a refused job that was started", "H0", |h, _| h.push(start("e", None))),
    ("an acknowledged job lost", "H1", |_, s| remove(s, "a")),
    ("an acknowledged job never stored", "H1", |h, _| h.push(ack("x"))),
    ("a job both completed and failed", "H1", |_, s| put(s, "failed", "a")),
    ("an ended job that nobody started", "H2", |h, _| h.retain(|e| *e != start("a", Some(1)))),
    ("a completed job without effect", "H3", |h, _| h.retain(|e| *e != effect("a"))),
    ("a completed job with two effects", "H3", |h, _| h.push(effect("a"))),
    ("a failed job with two effects", "H3", |h, _| h.extend([effect("c"), effect("c")])),
    ("a job completed and in line", "H4", |_, s| put(s, "wait", "a")),
    ("a job in line and delayed", "H4", |_, s| {
        remove(s, "a");
        put(s, "wait", "a");
        put(s, "delayed", "a");
    }),
    ("a job still active", "H5", |_, s| {
        remove(s, "a");
        put(s, "active", "a");
    }),
    ("a job of unknown outcome still in line", "H5", |_, s| put(s, "wait", "d")),
    ("a lock left behind", "H5", |_, s| s.locked.push("a".into())),
    ("a job that ended twice", "H6", |_, s| s.events.push(("completed".into(), "a".into()))),
    ("an end without an event", "H6", |_, s| without(s, "completed", "a")),
    ("an end that is not the event's", "H6", |_, s| {
        remove(s, "a");
        put(s, "failed", "a");
    }),
    ("a fence that repeats", "H7", |h, _| h.push(start("a", Some(1)))),
    ("a fence that falls", "H7", |h, _| h.push(start("b", Some(1)))),
    ("a job active without having been in line", "H8", |_, s| without(s, "waiting", "a")),
    ("a job that ended without being active", "H8", |_, s| without(s, "active", "c")),
    ("an event after the end", "H8", |_, s| s.events.push(("waiting".into(), "a".into()))),
    ("spent attempts of a job that completed", "H8", |_, s| {
        s.events.push(("retries-exhausted".into(), "a".into()));
    }),
    ("spent attempts told twice", "H8", |_, s| s.events.push(("retries-exhausted".into(), "c".into()))),
    ("events before the addition", "H8", |_, s| without(s, "added", "b")),
    ("a job added twice", "H9", |_, s| {
        s.events.insert(1, ("added".into(), "a".into()));
    }),
    ("a job of unknown outcome stored twice", "H9", |h, s| {
        h.push(unknown("a"));
        put(s, "wait", "a");
    }),
];

#[test]
fn every_seeded_violation_is_found() {
    for (what, rule, seed) in SEEDS {
        let (mut history, mut snapshot) = right();
        seed(&mut history, &mut snapshot);
        let found = rules(&history, &snapshot);
        assert!(found.contains(rule), "{what}: {rule} not in {found:?}");
    }
}

#[test]
fn a_journal_gives_back_what_was_written_and_takes_an_effect_once() {
    let journal = Journal::new().unwrap();
    journal.record(&ack("a")).unwrap();
    journal.start("a", "w").unwrap();
    journal.effect("a", "w").unwrap();
    journal.effect("a", "other").unwrap();
    assert_eq!(journal.events().unwrap(), [ack("a"), start("a", None), effect("a")]);
}
