//! Debian's fail2ban package as `make setup` has unpacked it, and a process of
//! its `fail2ban-regex` that answers what it finds.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part of it")]

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

/// Where the package is unpacked.
pub(crate) fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/fail2ban/root");
    assert!(root.is_dir(), "{} is missing; run: make setup", root.display());
    root.canonicalize().unwrap()
}

/// Its configuration directory.
pub(crate) fn rules() -> PathBuf {
    root().join("etc/fail2ban")
}

/// The logs of its tests, and the shared ones where they are.
pub(crate) fn logs() -> Vec<PathBuf> {
    let own = root().join("usr/lib/python3/dist-packages/fail2ban/tests/files/logs");
    let mut logs = Vec::new();
    for directory in [own, shared().join("logs")] {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        logs.extend(entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
    }
    logs.sort();
    logs
}

/// Labelled logs of a newer fail2ban; not in a clean clone.
pub(crate) fn shared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/guardian/fail2ban")
}

/// What the oracle is asked.
#[derive(Debug, Serialize)]
pub(crate) struct Job {
    pub(crate) rules: PathBuf,
    pub(crate) filter: String,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) now: i64,
    pub(crate) files: Vec<PathBuf>,
}

/// A line that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) line: usize,
    pub(crate) host: String,
    pub(crate) user: Option<String>,
    pub(crate) time: Option<i64>,
}

/// What it answers.
#[derive(Debug)]
pub(crate) enum Answer {
    Found(Vec<Vec<Row>>),
    Error(String),
}

/// Line, host, user, seconds since 1970.
type Found = (usize, String, Option<String>, Option<f64>);

#[derive(Deserialize)]
struct Raw {
    found: Option<Vec<Vec<Found>>>,
    error: Option<String>,
}

/// Asks two processes, each for half of the jobs.
pub(crate) fn ask(jobs: &[Job]) -> Vec<Answer> {
    let (first, second) = jobs.split_at(jobs.len() / 2);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| ask_one(second));
        let mut answers = ask_one(first);
        answers.extend(second.join().unwrap());
        answers
    })
}

fn ask_one(jobs: &[Job]) -> Vec<Answer> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle.py");
    let mut child = Command::new("python3")
        .arg("-B")
        .arg(script)
        .arg(root())
        .env("TZ", "Europe/Zurich")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 is there");
    let mut stdin = child.stdin.take().unwrap();
    let text: String = jobs.iter().map(|job| serde_json::to_string(job).unwrap() + "\n").collect();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let answers: Vec<Answer> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let raw: Raw = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            match raw.found {
                Some(files) => Answer::Found(files.into_iter().map(rows).collect()),
                None => Answer::Error(raw.error.unwrap_or_default()),
            }
        })
        .collect();
    assert_eq!(answers.len(), jobs.len(), "the oracle ended early");
    answers
}

fn rows(rows: Vec<Found>) -> Vec<Row> {
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds are compared")]
    let row = |(line, host, user, time): Found| Row {
        line,
        host,
        user,
        time: time.map(|time| time.floor() as i64),
    };
    rows.into_iter().map(row).collect()
}
