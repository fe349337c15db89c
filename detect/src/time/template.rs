//! One form of a date: from its text to an expression, and from what it
//! matched to a point in time.

use chrono::{DateTime, Utc};

use super::{
    clock::{Clock, Fields},
    forms,
};
use crate::pattern::{Captured, CompileError, Pattern, Search};

const BEGINNING: &str = "{^LN-BEG}";
const EPOCH: &str = r"[0-9]{10,11}\b(?:\.[0-9]{3,6})?";
const LONG_EPOCH: &str = r"[0-9]{10,11}(?:[0-9]{3}(?:\.[0-9]{1,6}|[0-9]{3})?)?";

/// Why a `datepattern` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A directive that does not exist.
    #[error("datepattern `{pattern}`: `%{directive}` is not known; a percent sign itself is written `%%`")]
    Directive {
        /// The pattern.
        pattern: String,
        /// What follows the percent sign.
        directive: String,
    },
    /// It is no expression.
    #[error("datepattern: {0}")]
    Regex(#[from] CompileError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fields,
    Epoch,
    LongEpoch,
    Tai64n,
}

/// A form, ready to be searched for.
#[derive(Debug)]
pub(super) struct Template {
    /// What identifies it: the same form twice is kept once.
    pub(super) name: String,
    /// It is bound to the beginning or the end of the line.
    pub(super) anchored: bool,
    pub(super) at_line_begin: bool,
    kind: Kind,
    pattern: Pattern,
    /// The group that is cut out of the line.
    group: Option<String>,
}

/// A date in a line.
#[derive(Debug)]
pub(super) struct Hit {
    pub(super) captured: Captured,
    /// Where the match begins and ends.
    pub(super) span: (usize, usize),
    /// What is cut out.
    pub(super) date: (usize, usize),
}

impl Template {
    /// A form as a `datepattern` line or a default one writes it.
    pub(super) fn new(text: &str) -> Result<Self, TemplateError> {
        let upper = text.to_uppercase();
        let (bare, begin) = match upper.strip_prefix(BEGINNING).or_else(|| upper.strip_prefix('^')) {
            Some(bare) => (bare, true),
            None => (upper.as_str(), false),
        };
        match bare {
            "EPOCH" => return Self::epoch(EPOCH, Kind::Epoch, begin),
            "LEPOCH" => return Self::epoch(LONG_EPOCH, Kind::LongEpoch, begin),
            "TAI64N" => {
                return Self::build(
                    "TAI64N",
                    "@[0-9a-f]{24}",
                    if begin { Bound::Line } else { Bound::None },
                    true,
                    Kind::Tai64n,
                );
            }
            _ => {}
        }
        if let Some((at, long)) = find_epoch(text) {
            let (kind, epoch, tag) =
                if long { (Kind::LongEpoch, LONG_EPOCH, 8) } else { (Kind::Epoch, EPOCH, 7) };
            let regex = format!("({}(?P<epoch>{epoch}){})", &text[..at], &text[at + tag..]);
            return Self::build(text, &regex, Bound::Word, true, kind);
        }
        Self::fields(text)
    }

    fn epoch(epoch: &str, kind: Kind, begin: bool) -> Result<Self, TemplateError> {
        if begin {
            return Self::build("Epoch", &format!("({epoch})"), Bound::Line, true, kind);
        }
        // At the beginning, in square brackets there, or in an audit record.
        Self::build("Epoch", &format!(r"(?:^\[?|\baudit\()({epoch})"), Bound::None, true, kind)
    }

    fn fields(text: &str) -> Result<Self, TemplateError> {
        let (pattern, unbound) = match text.strip_prefix("{UNB}") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (pattern, bound) = match pattern.strip_prefix(BEGINNING) {
            _ if unbound => (pattern, Bound::None),
            Some(rest) => (rest, Bound::Line),
            None => (pattern, Bound::Word),
        };
        let (regex, ignore_case) = with_directives(pattern)?;
        let regex = if ignore_case { format!("(?iu){regex}") } else { regex };
        Self::build(text, &regex, bound, !unbound, Kind::Fields)
    }

    fn build(
        name: &str,
        regex: &str,
        begin: Bound,
        word_end: bool,
        kind: Kind,
    ) -> Result<Self, TemplateError> {
        let (flags, mut regex) = cut_flags(regex.trim());
        let bound_begin = begin != Bound::None && !starts_bound(&regex);
        let bound_end = word_end && !ends_bound(&regex);
        if !has_group(&regex) {
            let (caret, rest) = regex.strip_prefix('^').map_or(("", &*regex), |rest| ("^", rest));
            let (rest, dollar) = rest.strip_suffix('$').map_or((rest, ""), |rest| (rest, "$"));
            regex = format!("{caret}({rest}){dollar}");
        }
        let mut name = name.to_owned();
        let mut word_begin = false;
        let mut at_line_begin =
            regex.starts_with('^') || regex.starts_with("(^") || regex.starts_with("(?:^");
        if regex.starts_with("(^|") || regex.starts_with("(?:^|") || regex.starts_with(r"(?:^\[?|") {
            at_line_begin = false;
        }
        if bound_begin && begin == Bound::Line {
            regex = format!(r"^(?:\W{{0,2}})?{regex}");
            at_line_begin = true;
            if !name.starts_with(BEGINNING) {
                name = format!("{BEGINNING}{name}");
            }
        } else if bound_begin {
            word_begin = true;
        }
        let at_line_end = !bound_end && regex.ends_with('$') && !regex.ends_with(r"\$");
        let regex = regex.replace("**", "");
        let regex = format!("{flags}{regex}");
        let (pattern, group) = Pattern::in_words(&regex, word_begin, bound_end, "date")?;
        Ok(Self { name, anchored: at_line_begin || at_line_end, at_line_begin, kind, pattern, group })
    }

    /// Searches the line from this byte on.
    pub(super) fn search(&self, line: &str, from: usize) -> Option<Hit> {
        let Search::Found(captured) = self.pattern.search_from(line, from) else { return None };
        let span = captured.span();
        let date = self.group.as_deref().and_then(|group| self.pattern.group_span(&captured, group));
        let date = date.unwrap_or(span);
        // What stands before an epoch only says that it is one.
        let span = if self.kind == Kind::Epoch && !self.at_line_begin { (date.0, span.1) } else { span };
        Some(Hit { captured, span, date })
    }

    /// The point in time, `None` when there is no such day or hour.
    pub(super) fn time(&self, line: &str, hit: &Hit, clock: &Clock) -> Option<DateTime<Utc>> {
        match self.kind {
            Kind::Fields => {
                let fields: Fields<'_> = forms::FIELDS
                    .iter()
                    .filter_map(|name| Some((*name, self.pattern.group(&hit.captured, name, line)?)))
                    .collect();
                clock.resolve(&fields)
            }
            Kind::Epoch | Kind::LongEpoch => {
                let text = self
                    .pattern
                    .group(&hit.captured, "epoch", line)
                    .or_else(|| line.get(hit.date.0..hit.date.1))?;
                epoch(text, self.kind == Kind::LongEpoch)
            }
            Kind::Tai64n => {
                let text = line.get(hit.date.0..hit.date.1)?;
                let seconds = i64::from_str_radix(text.get(2..17)?, 16).ok()?;
                DateTime::from_timestamp(seconds, 0)
            }
        }
    }
}

/// Where a date may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    None,
    Word,
    Line,
}

fn epoch(text: &str, long: bool) -> Option<DateTime<Utc>> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut value: i64 = whole.parse().ok()?;
    if long && text.len() >= 13 {
        let micro = text.len() >= 16 && fraction.is_empty();
        value /= if micro { 1_000_000 } else { 1_000 };
    }
    DateTime::from_timestamp(value, 0)
}

/// `{EPOCH}` or `{LEPOCH}` inside a form, and whether it is the long one.
fn find_epoch(text: &str) -> Option<(usize, bool)> {
    let upper = text.to_ascii_uppercase();
    let long = upper.find("{LEPOCH}").map(|at| (at, true));
    long.or_else(|| upper.find("{EPOCH}").map(|at| (at, false)))
        .filter(|(at, _)| !upper[..*at].ends_with('\\'))
}

/// The pattern with its directives written out, and whether it has names of days or months.
fn with_directives(pattern: &str) -> Result<(String, bool), TemplateError> {
    let mut out = String::new();
    let mut names = false;
    let mut rest = pattern;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let length = if rest.starts_with("Ex") { 3 } else { rest.chars().next().map_or(0, char::len_utf8) };
        let name = rest.get(..length).unwrap_or(rest);
        let compound = match name {
            "c" => Some("%a\\s+%b\\s+%d\\s+%H:%M:%S\\s+%Y"),
            "x" => Some("%m/%d/%y"),
            "X" => Some("%H:%M:%S"),
            _ => None,
        };
        if let Some(compound) = compound {
            let (text, named) = with_directives(compound)?;
            out.push_str(&text);
            names |= named;
        } else {
            let expression = forms::directive(name).ok_or_else(|| TemplateError::Directive {
                pattern: pattern.to_owned(),
                directive: name.to_owned(),
            })?;
            out.push_str(expression);
            names |= matches!(name, "a" | "A" | "b" | "B" | "p");
        }
        rest = &rest[name.len()..];
    }
    out.push_str(rest);
    Ok((out, names))
}

/// `(?i)` for the whole expression, wherever it stands.
fn cut_flags(regex: &str) -> (String, String) {
    for (at, _) in regex.match_indices("(?") {
        let letters = regex[at + 2..].find(|c: char| !c.is_ascii_lowercase()).unwrap_or(0);
        let end = at + 2 + letters;
        if letters > 0 && regex[end..].starts_with(')') {
            return (regex[at..=end].to_owned(), format!("{}{}", &regex[..at], &regex[end + 1..]));
        }
    }
    (String::new(), regex.to_owned())
}

/// It says itself where it begins.
fn starts_bound(regex: &str) -> bool {
    let inner = regex.trim_start_matches('(');
    let opened = inner.len() < regex.len();
    inner.starts_with('^') || inner.starts_with("**") || (opened && inner.starts_with("?:^"))
}

/// It says itself where it ends.
fn ends_bound(regex: &str) -> bool {
    let escaped = |text: &str| text.ends_with('\\');
    let one_closed = regex.strip_suffix(')').unwrap_or(regex);
    let closed = regex.trim_end_matches(')');
    [regex, one_closed].iter().any(|text| text.strip_suffix('$').is_some_and(|rest| !escaped(rest)))
        || [r"\b", r"\s"].iter().any(|end| regex.strip_suffix(end).is_some_and(|rest| !escaped(rest)))
        || closed.ends_with("**")
}

/// It has a group that is neither named nor without capture.
fn has_group(regex: &str) -> bool {
    let bytes = regex.as_bytes();
    bytes.iter().enumerate().any(|(at, byte)| {
        *byte == b'('
            && bytes.get(at + 1) != Some(&b'?')
            && (at == 0 || bytes[at - 1] != b'\\')
            && !regex[..at].ends_with("(?")
    })
}
