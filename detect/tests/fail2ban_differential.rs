//! Every filter of Debian's fail2ban package, in every mode, on every log of
//! its own tests and every shared one, beside the package's `fail2ban-regex`:
//! the same lines, hosts, users and times. Filters and logs are read where
//! `make setup` has unpacked the package; none of them is in this repository.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod package;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use mpanel_detect::{
    fail2ban::{Filter, FilterRequest, Matcher},
    time::Clock,
};

use crate::package::{Answer, Job, Row};

/// 2005-08-14T10:00:00Z, when fail2ban's own tests play.
const NOW: i64 = 1_124_013_600;
const NOW_TEXT: &str = "2005-08-14T10:00:00Z";

/// Filters whose answers differ, and why. Only what needs Python code or an external command may stand here.
const EXCEPTIONS: &[(&str, &str)] = &[];

fn own_options(filter: &str) -> Vec<BTreeMap<String, String>> {
    let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let mut all = vec![BTreeMap::new()];
    let modes = Filter::modes(&package::rules(), filter).unwrap();
    all.extend(modes.iter().map(|mode| one("mode", mode)));
    match filter {
        "guacamole" => all.extend(["catalina", "webapp"].map(|value| one("logging", value))),
        "sshd" | "asterisk" => all.extend(["journal", "short", "rfc5424"].map(|value| one("logtype", value))),
        _ => {}
    }
    all
}

fn filters() -> BTreeSet<String> {
    let names = fs::read_dir(package::rules().join("filter.d")).unwrap();
    let names = names.filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        Some(name.strip_suffix(".conf")?.to_owned())
    });
    // What others include is no filter by itself.
    names.filter(|name| !name.ends_with("common")).collect()
}

fn ours(job: &Job) -> Result<Vec<Vec<Row>>, String> {
    let mut options = job.options.clone();
    let mode = options.remove("mode").or_else(|| default_mode(&job.filter));
    let request = FilterRequest { name: job.filter.clone(), mode, options };
    let filter = Filter::load(&package::rules(), &request).map_err(|error| error.to_string())?;
    let clock = Clock::parse(Some(NOW_TEXT), Some("Europe/Zurich")).unwrap();
    Ok(job
        .files
        .iter()
        .map(|path| {
            let mut matcher = Matcher::new(&filter, clock);
            let bytes = fs::read(path).unwrap();
            let mut rows = Vec::new();
            for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
                let line = String::from_utf8_lossy(line);
                if let Some(found) = matcher.line(&line) {
                    let time = found.time.map(|time| time.timestamp());
                    rows.push(Row { line: number + 1, host: found.host, user: found.user, time });
                }
            }
            assert_eq!(matcher.budget_exceeded(), 0, "{} {:?}", job.filter, path);
            rows
        })
        .collect())
}

/// Without a mode the oracle takes the filter's own; ours would take `aggressive`.
fn default_mode(filter: &str) -> Option<String> {
    let text = fs::read_to_string(package::rules().join("filter.d").join(format!("{filter}.conf"))).unwrap();
    let mode = text.lines().find_map(|line| line.strip_prefix("mode = "))?;
    Some(mode.trim().to_owned())
}

#[test]
fn every_filter_answers_as_fail2ban_does() {
    // All logs one after the other, and those that are meant for the filter by themselves.
    let logs = package::logs();
    let dir = tempfile::tempdir().unwrap();
    let all = dir.path().join("all.log");
    let bytes = logs.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>().join(&b'\n');
    fs::write(&all, bytes).unwrap();
    let meant = |filter: &str| {
        let own = logs.iter().filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(filter));
        own.chain([&all]).cloned().collect::<Vec<PathBuf>>()
    };
    let jobs: Vec<Job> = filters()
        .iter()
        .flat_map(|filter| {
            own_options(filter).into_iter().map(|options| Job {
                rules: package::rules(),
                filter: filter.clone(),
                options,
                now: NOW,
                files: meant(filter),
            })
        })
        .collect();
    let answers = package::ask(&jobs);
    let (mut lines, mut matches, mut wrong) = (0, 0, Vec::new());
    for (job, answer) in jobs.iter().zip(answers) {
        if let Some((_, why)) = EXCEPTIONS.iter().find(|(filter, _)| *filter == job.filter) {
            println!("excepted: {} {:?}: {why}", job.filter, job.options);
            continue;
        }
        let ours = ours(job);
        match (answer, ours) {
            (Answer::Error(theirs), Err(_)) => {
                println!("both refuse: {} {:?}: {theirs}", job.filter, job.options)
            }
            (Answer::Error(theirs), Ok(_)) => {
                println!("only fail2ban refuses: {} {:?}: {theirs}", job.filter, job.options);
            }
            (Answer::Found(_), Err(error)) => {
                wrong.push(format!("{} {:?}: {error}", job.filter, job.options))
            }
            (Answer::Found(theirs), Ok(ours)) => {
                for ((path, theirs), ours) in job.files.iter().zip(theirs).zip(ours) {
                    lines += fs::read(path).unwrap().split(|byte| *byte == b'\n').count();
                    matches += theirs.len();
                    compare(job, path, &theirs, &ours, &mut wrong);
                }
            }
        }
    }
    println!("{} filters and modes, {lines} lines, {matches} matches", jobs.len());
    assert!(matches > 1000, "the oracle finds {matches} only");
    assert!(
        wrong.is_empty(),
        "{} differences, the first ones:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(60)].join("\n")
    );
}

fn compare(job: &Job, path: &std::path::Path, theirs: &[Row], ours: &[Row], wrong: &mut Vec<String>) {
    let by_line = |rows: &[Row]| rows.iter().map(|row| (row.line, row.clone())).collect::<BTreeMap<_, _>>();
    let (theirs, ours) = (by_line(theirs), by_line(ours));
    let lines: BTreeSet<usize> = theirs.keys().chain(ours.keys()).copied().collect();
    for line in lines {
        let (theirs, ours) = (theirs.get(&line), ours.get(&line));
        // It looks for dates in every line and learns from all of them; once it has learned that a zone's name
        // comes first, `Wed` is one, and the line has no time. We look only where a line may match.
        let time_only =
            |theirs: &Row, ours: &Row| theirs.time.is_none() && Row { time: None, ..ours.clone() } == *theirs;
        if theirs != ours && !theirs.zip(ours).is_some_and(|(theirs, ours)| time_only(theirs, ours)) {
            let name = path.file_name().unwrap().to_string_lossy();
            wrong.push(format!(
                "{} {:?} {name}:{line}: fail2ban {theirs:?}, we {ours:?}",
                job.filter, job.options
            ));
        }
    }
}
