//! Events from whole logs: rules chosen, lines read, what went wrong counted.

use std::{collections::BTreeMap, io, path::PathBuf};

use serde::Serialize;

use crate::{
    categories,
    event::Event,
    fail2ban::{Filter, FilterError, FilterRequest, Matcher},
    own::{OwnMatcher, OwnRules, RulesError},
    read::{LogLines, Skip},
    time::{Clock, TemplateError},
};

/// How sure a match of an operator's own filter is: he trusts it.
const FILTER_CONFIDENCE: u8 = 70;

/// What to look for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The service: a filter's name with `rules`, else one of [`crate::own::services`] or `auto`.
    pub service: String,
    /// Where fail2ban's filters are; without it our own rules are used.
    pub rules: Option<PathBuf>,
    /// The filter's mode.
    pub mode: Option<String>,
    /// The filter's options.
    pub options: BTreeMap<String, String>,
    /// The time and zone that the logs are read at.
    pub clock: Clock,
}

/// Why there is nothing to look for.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The filter cannot be used.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// There are no such rules.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// Options that only filters have.
    #[error("{0} needs --rules DIR: our own rules have neither modes nor options")]
    OnlyForFilters(&'static str),
    /// The forms of dates cannot be compiled: a defect of this program.
    #[error(transparent)]
    Dates(#[from] TemplateError),
}

/// What happened on the way.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Lines that were read.
    pub lines: u64,
    /// Lines that showed something.
    pub events: u64,
    /// Lines longer than 64 KiB, cut there.
    pub truncated_lines: u64,
    /// Lines that are not UTF-8; read all the same.
    pub invalid_utf8_lines: u64,
    /// Lines on which an imported expression took too many steps and was given up.
    pub rule_budget_exceeded: u64,
    /// Sources that were not read, or not to their end.
    pub skipped: Vec<Skipped>,
}

/// A source that was not read to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The file as it was named.
    pub file: String,
    /// Why.
    pub reason: String,
}

impl Summary {
    /// Notes a source that was not read to its end.
    pub fn skip(&mut self, file: &str, reason: &Skip) {
        self.skipped.push(Skipped { file: file.to_owned(), reason: reason.to_string() });
    }
}

#[derive(Debug)]
enum Rules {
    Filter(Box<Filter>),
    Own(OwnRules),
}

/// Rules and a clock, ready for any number of logs.
#[derive(Debug)]
pub struct Analyzer {
    rules: Rules,
    clock: Clock,
}

impl Analyzer {
    /// Reads and compiles the rules.
    ///
    /// # Errors
    /// When there are none, or they are malformed.
    pub fn new(request: &Request) -> Result<Self, RequestError> {
        let rules = match &request.rules {
            Some(directory) => {
                let filter = FilterRequest {
                    name: request.service.clone(),
                    mode: request.mode.clone(),
                    options: request.options.clone(),
                };
                Rules::Filter(Box::new(Filter::load(directory, &filter)?))
            }
            None if request.mode.is_some() => return Err(RequestError::OnlyForFilters("--mode")),
            None if !request.options.is_empty() => {
                return Err(RequestError::OnlyForFilters("--filter-option"));
            }
            None => Rules::Own(OwnRules::for_service(&request.service)?),
        };
        Ok(Self { rules, clock: request.clock })
    }

    /// Looks at a log to its end. Each event goes to `sink`, in the order of lines; what `sink` fails with ends
    /// it. A log that breaks off is noted in the summary.
    ///
    /// # Errors
    /// Those of `sink` only.
    pub fn log(
        &self,
        file: &str,
        lines: &mut LogLines,
        summary: &mut Summary,
        sink: &mut dyn FnMut(&Event<'_>) -> io::Result<()>,
    ) -> Result<(), io::Error> {
        match &self.rules {
            Rules::Filter(filter) => self.with_filter(filter, file, lines, summary, sink)?,
            Rules::Own(rules) => self.with_own(rules, file, lines, summary, sink)?,
        }
        summary.lines += lines.number();
        summary.truncated_lines += lines.truncated();
        Ok(())
    }

    fn with_filter(
        &self,
        filter: &Filter,
        file: &str,
        lines: &mut LogLines,
        summary: &mut Summary,
        sink: &mut dyn FnMut(&Event<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut matcher = Matcher::new(filter, self.clock);
        while let Some(line) = step(lines, file, summary) {
            let text = match std::str::from_utf8(line.bytes) {
                Ok(text) => text.into(),
                Err(_) => {
                    summary.invalid_utf8_lines += 1;
                    String::from_utf8_lossy(line.bytes)
                }
            };
            let Some(found) = matcher.line(&text) else { continue };
            summary.events += 1;
            sink(&Event {
                file,
                line: line.number,
                category: categories::of_filter(filter.name(), matcher.source(found.index)),
                ip: Some(&found.host),
                time: found.time,
                rule: filter.name(),
                user: found.user.as_deref(),
                confidence: FILTER_CONFIDENCE,
            })?;
        }
        summary.rule_budget_exceeded += matcher.budget_exceeded();
        Ok(())
    }

    fn with_own(
        &self,
        rules: &OwnRules,
        file: &str,
        lines: &mut LogLines,
        summary: &mut Summary,
        sink: &mut dyn FnMut(&Event<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut matcher = OwnMatcher::new(rules, self.clock).map_err(io::Error::other)?;
        while let Some(line) = step(lines, file, summary) {
            let Some(found) = matcher.line(line.bytes) else { continue };
            summary.invalid_utf8_lines += u64::from(std::str::from_utf8(line.bytes).is_err());
            summary.events += 1;
            sink(&Event {
                file,
                line: line.number,
                category: found.category,
                ip: found.ip.as_deref(),
                time: found.time,
                rule: found.rule,
                user: found.user.as_deref(),
                confidence: found.confidence,
            })?;
        }
        Ok(())
    }
}

/// The next line; a log that breaks off ends here, with a note.
fn step<'l>(lines: &'l mut LogLines, file: &str, summary: &mut Summary) -> Option<crate::read::Line<'l>> {
    lines.next_line().unwrap_or_else(|skip| {
        summary.skip(file, &skip);
        None
    })
}
