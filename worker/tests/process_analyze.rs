//! `mpanel-worker guardian analyze` as a program: files of all kinds in, one
//! JSON an event out, exact exit codes, without any service or configuration.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

use std::{
    fs,
    io::Write as _,
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

const FAILED: &str = "Jan  5 01:31:41 h sshd[1]: Invalid user x from 192.0.2.7 port 4";

fn analyze(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mpanel-worker"))
        .env_clear()
        .args(["guardian", "analyze"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn events(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn summary(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find(|line| line.starts_with("{\"summary\"")).unwrap_or_else(|| panic!("{text}"));
    serde_json::from_str::<Value>(line).unwrap()["summary"].clone()
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> String {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_event_has_the_form_that_is_promised() {
    let log = format!("nothing\n{FAILED}\n");
    let now = ["--assume-now", "2005-08-14T12:00:00+02:00", "--tz", "Europe/Zurich"];
    let output = analyze(&[&["--service", "sshd", "--json"], &now[..], &["-"]].concat(), log.as_bytes());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let expected = serde_json::json!({
        "file": "-", "line": 2, "category": "auth_failure", "ip": "192.0.2.7", "time": "2005-01-05T00:31:41Z",
        "rule": "sshd-unknown-user", "user": "x", "confidence": 80,
    });
    assert_eq!(events(&output), [expected]);
    assert_eq!(summary(&output)["lines"], 2);
    let none = analyze(&["--service", "sshd", "--json", "-"], b"");
    assert_eq!((none.status.code(), none.stdout.len()), (Some(0), 0));
}

#[test]
fn a_filter_is_read_as_it_is_published() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("filter.d")).unwrap();
    let filter = "[INCLUDES]\nbefore = head.conf\n[Definition]\nfailregex = ^%(head)s<re-<mode>>$\n\
        re-one = one <HOST>\nre-two = (?!three)\\w+ <HOST> as <F-USER>\\S+</F-USER>\nmode = one\n";
    file(dir.path(), "filter.d/own.conf", filter.as_bytes());
    file(dir.path(), "filter.d/head.conf", b"[DEFAULT]\nhead = \\s*app:\\s\n");
    let log = file(
        dir.path(),
        "log",
        b"2026-01-01 00:00:00 app: one 192.0.2.1\n2026-01-01 00:00:00 app: two 192.0.2.2 as me\n",
    );
    let rules = dir.path().to_str().unwrap();
    let with = |more: &[&str]| {
        analyze(&[&["--service", "own", "--rules", rules, "--json"], more, &[&log]].concat(), b"")
    };
    let lines =
        |output: &Output| events(output).iter().map(|event| event["line"].clone()).collect::<Vec<_>>();
    assert_eq!(lines(&with(&[])), [1]);
    let two = with(&["--mode", "two"]);
    assert_eq!((lines(&two), &events(&two)[0]["user"]), (vec![2.into()], &Value::from("me")));
    let three = with(&["--mode", "three"]);
    assert_eq!(three.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&three.stderr).contains("it has: one, two"), "{three:?}");
    assert_eq!(with(&["--filter-option", "head=nothing"]).stdout.len(), 0);
    file(dir.path(), "filter.d/own.conf", b"[Definition]\nfailregex = ^( <HOST>\n");
    let broken = with(&[]);
    assert_eq!(broken.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&broken.stderr).contains("failregex"), "{broken:?}");
    let missing = analyze(&["--service", "no", "--rules", rules, "--json", &log], b"");
    assert_eq!(missing.status.code(), Some(3));
}

#[test]
fn what_cannot_be_read_is_told_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(dir.path(), "good", format!("{FAILED}\n").as_bytes());
    let mut bad = vec![b'x'; 10 << 20];
    bad.extend(b"\n\0\0\xff");
    bad.extend(format!("{FAILED}\n").into_bytes());
    bad.extend(b"\xff\xfe\0\n");
    bad.extend(format!("{FAILED}\n").into_bytes());
    let bad = file(dir.path(), "bad", &bad);
    let gzip = file(dir.path(), "cut.gz", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3]);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&good, &link).unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let gone = dir.path().join("gone");
    let all = [link, socket, fifo, gone].map(|path| path.to_str().unwrap().to_owned());
    let mut arguments = vec!["--service", "sshd", "--json", &gzip, &bad];
    arguments.extend(all.iter().map(String::as_str));
    arguments.extend([dir.path().to_str().unwrap(), &good]);
    let output = analyze(&arguments, b"");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let found = events(&output)
        .iter()
        .map(|event| (event["file"].clone(), event["line"].clone()))
        .collect::<Vec<_>>();
    assert_eq!(found, [(bad.clone().into(), 4.into()), (good.into(), 1.into())]);
    let summary = summary(&output);
    assert_eq!(summary["truncated_lines"], 1);
    let reasons =
        summary["skipped"].as_array().unwrap().iter().map(|s| s["reason"].as_str().unwrap().to_owned());
    let reasons = reasons.collect::<Vec<_>>().join("\n");
    for reason in ["damaged gzip", "symbolic link", "socket", "FIFO", "is not there", "directory"] {
        assert!(reasons.contains(reason), "{reason}: {reasons}");
    }
}

#[test]
fn a_wrong_command_line_is_answered_with_what_is_right() {
    for (arguments, answer) in [
        (vec!["--service", "gopher", "--json", "-"], "postfix"),
        (vec!["--service", "sshd", "--mode", "x", "--json", "-"], "--rules"),
        (vec!["--service", "sshd", "--filter-option", "x", "--json", "-"], "NAME=VALUE"),
        (vec!["--service", "sshd", "--assume-now", "today", "--json", "-"], "RFC 3339"),
        (vec!["--service", "sshd", "--tz", "Mars", "--json", "-"], "Europe/Zurich"),
        (vec!["--service", "sshd", "--json"], "FILE"),
    ] {
        let output = analyze(&arguments, b"");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(answer), "{arguments:?}: {text}");
    }
}
