//! Labels that others wrote: fail2ban's own, from the package that `make
//! setup` unpacks, and a newer set where `../shared` is. Recall and precision
//! of imported filters with the options that each label names, and of our own
//! rules on the services they cover.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod package;

use std::{collections::BTreeMap, fs, path::Path};

use mpanel_detect::{
    fail2ban::{Filter, FilterRequest, Matcher},
    own::{OwnMatcher, OwnRules},
    time::Clock,
};
use serde_json::Value;

/// Logs of services that our own rules cover, in the package and in the shared set.
const OWN: &[(&str, &str)] = &[
    ("postfix", "postfix"),
    ("sshd", "sshd"),
    ("dovecot", "dovecot"),
    ("exim", "exim"),
    ("exim-spam", "exim"),
    ("nginx-bad-request", "nginx"),
    ("nginx-botsearch", "nginx"),
    ("nginx-forbidden", "nginx"),
    ("nginx-http-auth", "nginx"),
    ("nginx-limit-req", "nginx"),
    ("apache-auth", "apache"),
    ("apache-modsecurity", "apache"),
    ("apache-noscript", "apache"),
];

type Options = BTreeMap<String, String>;

/// A line with what must be found in it.
#[derive(Debug)]
struct Label {
    matches: bool,
    host: Option<String>,
    /// The options under which that holds; none means the filter's own.
    options: Vec<Options>,
}

/// A log without comments, and the labels of its lines, several for a line where options differ.
#[derive(Debug, Default)]
struct Labelled {
    lines: Vec<String>,
    labels: Vec<(usize, Label)>,
}

fn options(value: &Value) -> Vec<Options> {
    let one = |value: &Value| {
        let pairs = value.as_object().unwrap().iter();
        pairs.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    };
    match value {
        Value::Array(all) => all.iter().map(one).collect(),
        value => vec![one(value)],
    }
}

/// A log of the package, whose labels are comments before the lines.
fn of_package(name: &str) -> Option<Labelled> {
    let path = package::root().join("usr/lib/python3/dist-packages/fail2ban/tests/files/logs").join(name);
    let text = String::from_utf8_lossy(&fs::read(path).ok()?).into_owned();
    let mut labelled = Labelled::default();
    let mut current = vec![Options::new()];
    let mut label: Option<Value> = None;
    for line in text.lines().map(|line| line.trim_end_matches('\r')) {
        if let Some(comment) = line.strip_prefix('#') {
            let comment = comment.trim_start_matches('#').trim_start();
            if let Some(json) = comment.strip_prefix("filterOptions:") {
                current = options(&serde_json::from_str(json).unwrap());
            } else if let Some(json) = comment.strip_prefix("failJSON:") {
                label = serde_json::from_str(json).ok();
            }
            continue;
        }
        if line.trim().is_empty() {
            continue;
        }
        labelled.lines.push(line.to_owned());
        let Some(label) = label.take() else { continue };
        let conditional = current.iter().any(|options| options.keys().any(|key| key.starts_with("test.")));
        if label.get("constraint").is_some() || conditional {
            continue;
        }
        let label = Label {
            matches: label["match"].as_bool().unwrap_or(false),
            host: label["host"].as_str().map(str::to_owned),
            options: current.clone(),
        };
        labelled.labels.push((labelled.lines.len() - 1, label));
    }
    Some(labelled)
}

/// A log of the shared set with its truth beside it.
fn of_shared(name: &str) -> Option<Labelled> {
    let log = fs::read(package::shared().join("logs").join(format!("{name}.log"))).ok()?;
    let truth = fs::read_to_string(package::shared().join("truth").join(format!("{name}.jsonl"))).unwrap();
    let lines = String::from_utf8_lossy(&log).lines().map(str::to_owned).collect();
    let labels = truth.lines().filter_map(|line| {
        let label: Value = serde_json::from_str(line).unwrap();
        if !label["constraint"].is_null() || label["labelled"] == Value::Bool(false) {
            return None;
        }
        let mut options = options(&label["filter_options"]);
        if options.is_empty() {
            options.push(Options::new());
        }
        if options.iter().any(|options| options.keys().any(|key| key.starts_with("test."))) {
            return None;
        }
        let number = usize::try_from(label["line"].as_u64()?).ok()? - 1;
        let host = label["ip"].as_str().map(str::to_owned);
        Some((number, Label { matches: label["match"].as_bool()?, host, options }))
    });
    Some(Labelled { lines, labels: labels.collect() })
}

/// Matches that should be, those that are, and those that are and should.
#[derive(Debug, Default, Clone, Copy)]
struct Score {
    wanted: usize,
    found: usize,
    right: usize,
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
impl Score {
    fn recall(self) -> f64 {
        self.right as f64 / self.wanted.max(1) as f64
    }

    fn precision(self) -> f64 {
        self.right as f64 / self.found.max(1) as f64
    }

    fn add(&mut self, label: &Label, found: Option<&str>) -> bool {
        let right =
            label.matches && found.is_some() && (label.host.is_none() || label.host.as_deref() == found);
        self.wanted += usize::from(label.matches);
        self.found += usize::from(found.is_some());
        self.right += usize::from(right);
        right || (!label.matches && found.is_none())
    }
}

fn clock() -> Clock {
    Clock::parse(Some("2005-08-14T12:00:00+02:00"), Some("Europe/Zurich")).unwrap()
}

#[test]
fn imported_filters_find_what_their_authors_say() {
    let mut score = Score::default();
    let mut wrong = Vec::new();
    let own = package::root().join("usr/lib/python3/dist-packages/fail2ban/tests/files/logs");
    let mut names: Vec<String> =
        fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in names {
        if !package::rules().join("filter.d").join(format!("{name}.conf")).is_file() {
            continue;
        }
        let Some(labelled) = of_package(&name) else { continue };
        let mut found: BTreeMap<Options, Vec<Option<String>>> = BTreeMap::new();
        for (number, label) in &labelled.labels {
            for options in &label.options {
                let found = found.entry(options.clone()).or_insert_with(|| run(&name, options, &labelled));
                if !score.add(label, found[*number].as_deref()) {
                    wrong.push(format!("{name}:{number} {options:?}: {label:?}, found {:?}", found[*number]));
                }
            }
        }
    }
    println!("{score:?} recall {:.4} precision {:.4}", score.recall(), score.precision());
    wrong.iter().for_each(|line| println!("{line}"));
    assert!(score.wanted > 500, "{score:?}");
    assert!(score.recall() >= 0.99 && score.precision() >= 0.99, "{score:?}\n{}", wrong.join("\n"));
}

fn run(name: &str, options: &Options, labelled: &Labelled) -> Vec<Option<String>> {
    let mut options = options.clone();
    let mode = options.remove("mode").or_else(|| own_mode(&package::rules(), name));
    let request = FilterRequest { name: name.to_owned(), mode, options };
    let filter = Filter::load(&package::rules(), &request).unwrap();
    let mut matcher = Matcher::new(&filter, clock());
    labelled.lines.iter().map(|line| matcher.line(line).map(|found| found.host)).collect()
}

/// The mode that the filter itself says: labels without options mean that one.
fn own_mode(rules: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(rules.join("filter.d").join(format!("{name}.conf"))).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mode = ")).map(|mode| mode.trim().to_owned())
}

#[test]
fn our_own_rules_find_what_fail2bans_authors_say() {
    let mut score = Score::default();
    let mut wrong = Vec::new();
    for (set, load) in [("package", of_package as fn(&str) -> Option<Labelled>), ("shared", of_shared)] {
        for (log, service) in OWN {
            let Some(labelled) = load(log) else { continue };
            let rules = OwnRules::for_service(service).unwrap();
            let mut matcher = OwnMatcher::new(&rules, clock()).unwrap();
            let found: Vec<Option<String>> = labelled
                .lines
                .iter()
                .map(|line| matcher.line(line.as_bytes()).and_then(|found| found.ip))
                .collect();
            let mut here = Score::default();
            for (number, label) in merged(&labelled) {
                let (before, right) = (here, here.add(&label, found[number].as_deref()));
                if !right {
                    wrong.push(format!(
                        "{set} {log}: {label:?}, found {:?}: {}",
                        found[number], labelled.lines[number]
                    ));
                }
                score.wanted += here.wanted - before.wanted;
                score.found += here.found - before.found;
                score.right += here.right - before.right;
            }
            println!("{set} {log}: {here:?}");
        }
    }
    println!("{score:?} recall {:.4} precision {:.4}", score.recall(), score.precision());
    wrong.iter().for_each(|line| println!("{line}"));
    assert!(score.recall() >= 0.95 && score.precision() >= 0.99, "{score:?}\n{}", wrong.join("\n"));
}

/// One label a text: what any mode finds is to be found, since our rules have no modes. The log repeats lines
/// for each mode.
fn merged(labelled: &Labelled) -> Vec<(usize, Label)> {
    let message = |line: &str| line.split_once(": ").map_or(line, |(_, message)| message).to_owned();
    let any = |text: &str| {
        labelled
            .labels
            .iter()
            .any(|(number, label)| label.matches && message(&labelled.lines[*number]) == message(text))
    };
    labelled
        .labels
        .iter()
        .filter(|(number, label)| label.matches || !any(&labelled.lines[*number]))
        .map(|(number, label)| {
            let label = Label { matches: label.matches, host: label.host.clone(), options: Vec::new() };
            (*number, label)
        })
        .collect()
}
