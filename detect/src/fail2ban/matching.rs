//! A filter run over the lines of one log: the date is cut out, the line
//! matched, and what several lines say put together.

use std::net::{IpAddr, Ipv6Addr};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    failures::{Connections, Failure},
    filter::{FailRegex, Filter},
};
use crate::{
    pattern::{Captured, Search},
    time::{Clock, Detector},
};

/// A line without a date has the last one's if that is no older than this.
const LAST_DATE_HOLDS: TimeDelta = TimeDelta::seconds(60);

/// A failure that a line shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The address or host name as it stands there; IPv6 in its short form.
    pub host: String,
    /// The user, if the filter names one.
    pub user: Option<String>,
    /// When, if the line has a date.
    pub time: Option<DateTime<Utc>>,
    /// Which `failregex`, from 0.
    pub index: usize,
}

/// A line with the date cut out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cut {
    before: String,
    after: String,
}

impl Cut {
    fn text(&self) -> String {
        format!("{}{}", self.before, self.after)
    }
}

/// A filter at work on one log.
#[derive(Debug)]
pub struct Matcher<'f> {
    filter: &'f Filter,
    clock: Clock,
    detector: Detector,
    last_time: Option<DateTime<Utc>>,
    /// The last lines, where a filter looks at several.
    buffer: Vec<Cut>,
    connections: Connections,
    text: String,
    budget_exceeded: u64,
}

impl<'f> Matcher<'f> {
    /// For a new log.
    #[must_use]
    pub fn new(filter: &'f Filter, clock: Clock) -> Self {
        Self {
            filter,
            clock,
            detector: Detector::new(&filter.templates, clock),
            last_time: None,
            buffer: Vec::new(),
            connections: Connections::default(),
            text: String::new(),
            budget_exceeded: 0,
        }
    }

    /// Lines on which an expression took too many steps and was given up.
    #[must_use]
    pub fn budget_exceeded(&self) -> u64 {
        self.budget_exceeded
    }

    /// The `failregex` of a match, as the filter writes it.
    #[must_use]
    pub fn source(&self, index: usize) -> &str {
        self.filter.fail.get(index).map_or("", |fail| &fail.source)
    }

    /// Looks at the next line. Comments and empty lines are none.
    pub fn line(&mut self, line: &str) -> Option<Match> {
        let line = line.trim_end_matches(['\r', '\n']);
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        if let Some(prefilter) = &self.filter.prefilter
            && !prefilter.is_match(line)
        {
            return None;
        }
        let found = self.detector.find(line);
        let (start, end) = found.map_or((0, 0), |found| found.date);
        let time = match found {
            Some(found) if found.time.is_some() && start < end => {
                self.last_time = found.time;
                found.time
            }
            // The form says that there is none.
            Some(_) if start == end => Some(self.recent().unwrap_or(self.clock.now())),
            _ => self.recent(),
        };
        // Without a date nothing is cut.
        let (before, after) = (&line[..start], &line[end..]);
        if self.filter.max_lines > 1 {
            self.several(before, after, time)
        } else {
            self.one(before, after, time)
        }
    }

    fn recent(&self) -> Option<DateTime<Utc>> {
        self.last_time.filter(|time| *time > self.clock.now() - LAST_DATE_HOLDS)
    }

    fn search(&mut self, found: Search) -> Option<Captured> {
        match found {
            Search::Found(found) => Some(found),
            Search::No => None,
            Search::BudgetExceeded => {
                self.budget_exceeded += 1;
                None
            }
        }
    }

    /// Whether an `ignoreregex` matches.
    fn ignored(&mut self, text: &str) -> bool {
        let filter = self.filter;
        filter.ignore.iter().any(|ignore| {
            let found = ignore.search(text);
            self.search(found).is_some()
        })
    }

    /// Ignoring first is cheaper where there are few such expressions.
    fn ignore_first(&self) -> bool {
        !self.filter.ignore.is_empty() && self.filter.ignore.len() + 2 < self.filter.fail.len()
    }

    /// The groups and the content of `prefregex`; `None` when it does not match.
    fn prefix(&mut self, text: &str) -> Option<(Failure, Option<String>)> {
        let Some(prefix) = &self.filter.prefix else { return Some((Failure::default(), None)) };
        let found = prefix.search(text);
        let found = self.search(found)?;
        let mut groups = Failure::default();
        for name in prefix.group_names() {
            let value = prefix.group(&found, name, text).map(str::to_owned);
            groups.groups.insert(name.to_owned(), value);
        }
        let content = groups.groups.remove("content").flatten().filter(|content| !content.is_empty());
        Some((groups, content))
    }

    fn one(&mut self, before: &str, after: &str, time: Option<DateTime<Utc>>) -> Option<Match> {
        let filter = self.filter;
        if let Some(prefix) = &filter.prefix
            && before.is_empty()
        {
            // The cheap test first; most lines end here.
            self.text.clear();
            self.text.push_str(after);
            self.text.push('\n');
            if !prefix.may_match(&self.text) {
                return None;
            }
        }
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        text.push_str(before);
        text.push_str(after);
        text.push('\n');
        let found = self.one_text(&mut text, time);
        self.text = text;
        found
    }

    fn one_text(&mut self, text: &mut String, time: Option<DateTime<Utc>>) -> Option<Match> {
        let filter = self.filter;
        if self.ignore_first() && self.ignored(text) {
            return None;
        }
        let (groups, content) = self.prefix(text)?;
        if let Some(content) = content {
            text.clear();
            text.push_str(&content);
            text.push('\n');
        }
        let candidates: Vec<usize> = match &filter.set {
            Some(set) => set.matches(text).iter().collect(),
            None => (0..filter.fail.len()).collect(),
        };
        for index in candidates {
            let fail = &filter.fail[index];
            let found = fail.pattern.search(text);
            let Some(found) = self.search(found) else { continue };
            if self.ignored(text) {
                return None;
            }
            return self.failure(index, fail, &found, text, &groups, time);
        }
        None
    }

    fn several(&mut self, before: &str, after: &str, time: Option<DateTime<Utc>>) -> Option<Match> {
        let filter = self.filter;
        self.buffer.push(Cut { before: before.to_owned(), after: after.to_owned() });
        let surplus = self.buffer.len().saturating_sub(filter.max_lines);
        self.buffer.drain(..surplus);
        let original = self.buffer.clone();
        let mut text = joined(&original);
        if self.ignore_first() && self.ignored(&text) {
            return None;
        }
        let (groups, content) = self.prefix(&text)?;
        if let Some(content) = content {
            text = format!("{content}\n");
            self.buffer = vec![Cut { before: String::new(), after: content }];
        }
        for (index, fail) in filter.fail.iter().enumerate() {
            let found = fail.pattern.search(&text);
            let Some(found) = self.search(found) else { continue };
            let (matched, unmatched) = split(&text, fail, &found, &original);
            self.buffer = unmatched;
            if self.ignored(&joined(&matched)) {
                return None;
            }
            return self.failure(index, fail, &found, &text, &groups, time);
        }
        None
    }

    fn failure(
        &mut self,
        index: usize,
        fail: &FailRegex,
        found: &Captured,
        text: &str,
        groups: &Failure,
        time: Option<DateTime<Utc>>,
    ) -> Option<Match> {
        let mut failure = groups.clone();
        let own: Vec<(&str, Option<&str>)> =
            fail.pattern.group_names().map(|name| (name, fail.pattern.group(found, name, text))).collect();
        for (name, value) in own {
            failure.groups.insert(name.to_owned(), value.map(str::to_owned));
        }
        let filled = |failure: &Failure, name: &str| failure.get(name).is_some_and(|text| !text.is_empty());
        for (from, to) in &fail.alternates {
            if filled(&failure, from) && !filled(&failure, to) {
                let value = failure.groups.get(from).cloned().flatten();
                failure.groups.insert(to.clone(), value);
            }
        }
        for (from, to) in &fail.tuples {
            let parts = [failure.get(to), failure.get(from)].into_iter().flatten();
            let value = parts.collect::<Vec<_>>().join(" ");
            failure.groups.insert(to.clone(), Some(value));
        }
        let connection = failure.get("mlfid").map(str::to_owned);
        if let Some(id) = &connection {
            failure = self.connections.merge(id, failure).0;
            if filled(&failure, "nofail") {
                return None;
            }
        }
        let address = failure.get("ip4").or_else(|| failure.get("ip6")).map(normalized);
        let host = address.or_else(|| failure.get("dns").map(str::to_owned));
        let Some(host) = host.or_else(|| failure.get("fid").map(str::to_owned)) else {
            if let Some(id) = &connection {
                self.connections.pending(id);
            }
            return None;
        };
        // Only a connection takes a failure back.
        if filled(&failure, "nofail") {
            return None;
        }
        let user = failure.get("user").filter(|user| !user.is_empty()).map(str::to_owned);
        Some(Match { host, user, time, index })
    }
}

/// IPv6 in its short form, IPv4 within IPv6 as IPv4; what is no address stays as it is.
fn normalized(text: &str) -> String {
    match text.parse::<Ipv6Addr>() {
        Ok(address) => match address.to_ipv4_mapped() {
            Some(address) => IpAddr::V4(address).to_string(),
            None => address.to_string(),
        },
        Err(_) => text.to_owned(),
    }
}

fn joined(lines: &[Cut]) -> String {
    let mut text = lines.iter().map(Cut::text).collect::<Vec<_>>().join("\n");
    text.push('\n');
    text
}

/// The lines that the match is made of, and the others, which stay for the next one.
fn split(text: &str, fail: &FailRegex, found: &Captured, lines: &[Cut]) -> (Vec<Cut>, Vec<Cut>) {
    if lines.len() <= 1 {
        return (lines.to_vec(), Vec::new());
    }
    let bytes = text.as_bytes();
    let feeds = |upto: usize| bytes[..upto].iter().filter(|byte| **byte == b'\n').count();
    let (start, end) = found.span();
    let first = bytes[..(start + 1).min(bytes.len())].iter().rposition(|byte| *byte == b'\n');
    let first = first.map_or(0, |at| at + 1);
    let from = end.saturating_sub(1);
    let last = bytes[from..].iter().position(|byte| *byte == b'\n');
    let last = last.map_or(bytes.len(), |at| from + at + 1);
    let (first, last) = (feeds(first).min(lines.len()), feeds(last).min(lines.len()));
    let mut matched = lines[first..last.max(first)].to_vec();
    let mut unmatched = lines[..first].to_vec();
    let skipped: String = (0..)
        .map_while(|number| {
            let name = format!("skiplines{number}");
            let known = fail.pattern.group_names().any(|group| group == name);
            known.then(|| fail.pattern.group(found, &name, text).unwrap_or("").to_owned())
        })
        .collect();
    let mut at = 0;
    for line in skipped.lines() {
        if let Some(offset) = matched[at.min(matched.len())..].iter().position(|cut| cut.text() == line) {
            unmatched.push(matched.remove(at + offset));
            at += offset;
        }
    }
    unmatched.extend_from_slice(&lines[last..]);
    (matched, unmatched)
}
