//! Our own rules over the lines of one log.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, Utc};

use super::{
    header::{Header, syslog},
    rules::{Group, Layout, OwnRules, Rule},
};
use crate::{
    event::Category,
    time::{Clock, Detector, TemplateError, Templates},
};

/// Connections whose address is remembered; the oldest is forgotten first.
const MAX_CONNECTIONS: usize = 4096;

/// What a line shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnMatch<'r> {
    /// The rule.
    pub rule: &'r str,
    /// What kind of thing.
    pub category: Category,
    /// How sure, 0 to 100.
    pub confidence: u8,
    /// The address or host name.
    pub ip: Option<String>,
    /// The user.
    pub user: Option<String>,
    /// When.
    pub time: Option<DateTime<Utc>>,
}

/// Our own rules at work on one log.
#[derive(Debug)]
pub struct OwnMatcher<'r> {
    rules: &'r OwnRules,
    clock: Clock,
    detector: Detector,
    connections: Connections<'r>,
}

/// What is known of connections, by program and process.
#[derive(Debug, Default)]
struct Connections<'r> {
    known: HashMap<Vec<u8>, Connection<'r>>,
    order: VecDeque<Vec<u8>>,
}

/// A connection: who it is, or a failure of one whose address is still to come.
#[derive(Debug, Default)]
struct Connection<'r> {
    ip: Option<String>,
    pending: Option<(&'r Rule, Option<String>)>,
}

impl<'r> Connections<'r> {
    fn of(&mut self, header: &Header<'_>) -> Option<&mut Connection<'r>> {
        if header.pid.is_empty() {
            return None;
        }
        let key = [header.program, b"[", header.pid].concat();
        if !self.known.contains_key(&key) {
            self.order.push_back(key.clone());
            if self.order.len() > MAX_CONNECTIONS
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
        Some(self.known.entry(key).or_default())
    }
}

impl<'r> OwnMatcher<'r> {
    /// For a new log.
    ///
    /// # Errors
    /// None in practice: the forms of dates are compiled in.
    pub fn new(rules: &'r OwnRules, clock: Clock) -> Result<Self, TemplateError> {
        let detector = Detector::new(&Templates::defaults()?, clock);
        Ok(Self { rules, clock, detector, connections: Connections::default() })
    }

    /// Looks at the next line.
    pub fn line(&mut self, line: &[u8]) -> Option<OwnMatch<'r>> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut header = None;
        for group in &self.rules.groups {
            let text = match group.layout {
                Layout::Line => line,
                Layout::Syslog => {
                    let header = header.get_or_insert_with(|| syslog(line)).as_ref();
                    match header.filter(|header| group.speaks(header.program)) {
                        Some(header) => header.message,
                        None => continue,
                    }
                }
            };
            let Some(first) = group.set.matches(text).iter().next() else { continue };
            let head = header.flatten().filter(|_| group.layout == Layout::Syslog);
            return self.found(&group.rules[first], text, line, head.as_ref());
        }
        None
    }

    fn found(
        &mut self,
        rule: &'r Rule,
        text: &[u8],
        line: &[u8],
        header: Option<&Header<'_>>,
    ) -> Option<OwnMatch<'r>> {
        let captures = rule.regex.captures(text)?;
        let group = |name: &str| {
            let group = captures.name(name)?;
            Some(String::from_utf8_lossy(group.as_bytes()).into_owned()).filter(|text| !text.is_empty())
        };
        let mut ip = group("ip");
        let mut user = group("user");
        let mut rule = rule;
        // Only rules that leave something out, or that tell what others left out, concern the connection.
        let partial = rule.category.is_none() || !rule.has_ip;
        if let Some(connection) = header.filter(|_| partial).and_then(|header| self.connections.of(header)) {
            match (&ip, rule.category) {
                (Some(found), _) => {
                    connection.ip = Some(found.clone());
                    if let Some((waiting, whose)) = connection.pending.take() {
                        (rule, user) = (waiting, whose);
                    }
                }
                (None, Some(_)) => {
                    ip = connection.ip.clone();
                    if ip.is_none() {
                        connection.pending = Some((rule, user.clone()));
                    }
                }
                (None, None) => {}
            }
        }
        let category = rule.category?;
        // Nobody can be held for it.
        let ip = Some(ip?);
        let time = match header {
            Some(header) => {
                let text = std::str::from_utf8(header.time).ok();
                text.and_then(|text| self.clock.syslog(text).or_else(|| self.detector.find(text)?.time))
            }
            None => self.detector.find(&String::from_utf8_lossy(line)).and_then(|found| found.time),
        };
        Some(OwnMatch { rule: &rule.id, category, confidence: rule.confidence, ip, user, time })
    }
}

impl Group {
    fn speaks(&self, program: &[u8]) -> bool {
        // `/usr/sbin/sshd`, `(sshd)` and `dovecot` all name it.
        let name = program.strip_prefix(b"(").unwrap_or(program);
        let base = |name: &[u8]| self.programs.iter().any(|known| name.starts_with(known));
        base(name)
            || (name.first() == Some(&b'/') && name.rsplit(|byte| *byte == b'/').next().is_some_and(base))
    }
}
