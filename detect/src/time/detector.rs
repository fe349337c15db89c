//! Learns from the lines of a log which form its dates have.
//!
//! Forms that were found are tried first; a date that stands elsewhere than
//! the last one, maybe in the message, is taken only when nothing better is
//! there. This is fail2ban's way, so that both cut the same text out of a line.

use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};

use super::{
    clock::Clock,
    forms,
    template::{Hit, Template, TemplateError},
};

/// How much more a form at the beginning of the line weighs.
const WEIGHT_AT_BEGINNING: f64 = 100.0;

/// The forms that a filter allows.
#[derive(Debug, Clone)]
pub struct Templates(Vec<(Arc<Template>, f64)>);

impl Templates {
    /// All that are known.
    ///
    /// # Errors
    /// None in practice: they are tested.
    pub fn defaults() -> Result<Self, TemplateError> {
        let mut all = Self(Vec::new());
        all.add_defaults(&|_| true)?;
        Ok(all)
    }

    /// Those of a `datepattern`, one a line.
    ///
    /// # Errors
    /// When a line is malformed.
    pub fn parse(patterns: &str) -> Result<Self, TemplateError> {
        let mut all = Self(Vec::new());
        for pattern in patterns.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let key = if pattern.contains('%') { pattern.to_owned() } else { pattern.to_uppercase() };
            if key == "{^LN-BEG}" {
                all.add_defaults(&|template| template.at_line_begin)?;
            } else if key == "{DEFAULT}" {
                all.add_defaults(&|_| true)?;
            } else if key.contains("{DATE}") {
                all.add_around_defaults(pattern)?;
            } else if key == "{NONE}" {
                all.push(Arc::new(Template::new("{UNB}^")?), 1.0);
            } else {
                all.push(Arc::new(Template::new(pattern)?), 1.0);
            }
        }
        if all.0.is_empty() { Self::defaults() } else { Ok(all) }
    }

    fn push(&mut self, template: Arc<Template>, weight: f64) {
        if self.0.iter().all(|(known, _)| known.name != template.name) {
            self.0.push((template, weight));
        }
    }

    fn add_defaults(&mut self, wanted: &dyn Fn(&Template) -> bool) -> Result<(), TemplateError> {
        for (template, weight) in defaults()?.iter().filter(|(template, _)| wanted(template)) {
            self.push(Arc::clone(template), *weight);
        }
        Ok(())
    }

    /// Each known form where the pattern says `{DATE}`.
    fn add_around_defaults(&mut self, pattern: &str) -> Result<(), TemplateError> {
        let upper = pattern.to_ascii_uppercase();
        let Some(at) = upper.find("{DATE}") else { return Ok(()) };
        let (before, after) = (&pattern[..at], &pattern[at + "{DATE}".len()..]);
        // Forms without directives are not among them for fail2ban either.
        for form in forms::DEFAULT.iter().filter(|form| form.contains('%')) {
            let form = form.strip_prefix("{^LN-BEG}").unwrap_or(form);
            self.push(Arc::new(Template::new(&format!("{before}{form}{after}"))?), 1.0);
        }
        Ok(())
    }
}

/// The known forms, compiled once: first each where it stands at the beginning of the line, then all as they are.
fn defaults() -> Result<&'static [(Arc<Template>, f64)], TemplateError> {
    static DEFAULTS: OnceLock<Vec<(Arc<Template>, f64)>> = OnceLock::new();
    if let Some(known) = DEFAULTS.get() {
        return Ok(known);
    }
    let mut all = Vec::new();
    for form in forms::DEFAULT.iter().filter(|form| !form.starts_with(['{', '^'])) {
        all.push((Arc::new(Template::new(&format!("{{^LN-BEG}}{form}"))?), WEIGHT_AT_BEGINNING));
    }
    for form in forms::DEFAULT {
        all.push((Arc::new(Template::new(form)?), 1.0));
    }
    Ok(DEFAULTS.get_or_init(|| all))
}

/// A date in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Where it is, in bytes; empty where a form says that there is none.
    pub date: (usize, usize),
    /// When; `None` when there is no such day or hour.
    pub time: Option<DateTime<Utc>>,
}

#[derive(Debug)]
struct Slot {
    template: Arc<Template>,
    weight: f64,
    /// Lines that it won.
    hits: u64,
    /// Lines in which it was found, whether or not it won.
    seen: u64,
    distance: usize,
}

impl Slot {
    #[expect(clippy::cast_precision_loss, reason = "a rough order is all that is needed")]
    fn weight(&self) -> f64 {
        self.hits as f64 * self.weight / self.distance.max(1) as f64
    }

    fn search(&mut self, line: &str, from: usize) -> Option<Hit> {
        let hit = self.template.search(line, from);
        self.seen += u64::from(hit.is_some());
        hit
    }
}

/// Where the last date was and what stood around it.
#[derive(Debug)]
struct Last {
    slot: usize,
    start: usize,
    end: usize,
    before: Option<u8>,
    first: Option<u8>,
    last: Option<u8>,
    after: Option<u8>,
}

/// Finds the dates of one log.
#[derive(Debug)]
pub struct Detector {
    slots: Vec<Slot>,
    clock: Clock,
    last: Option<Last>,
    first_unused: usize,
}

impl Detector {
    /// For a new log.
    #[must_use]
    pub fn new(templates: &Templates, clock: Clock) -> Self {
        let slot = |(template, weight): &(Arc<Template>, f64)| Slot {
            template: Arc::clone(template),
            weight: *weight,
            hits: 0,
            seen: 0,
            distance: usize::MAX,
        };
        Self { slots: templates.0.iter().map(slot).collect(), clock, last: None, first_unused: 0 }
    }

    /// The date of a line.
    pub fn find(&mut self, line: &str) -> Option<Found> {
        let (index, hit) = self.pick(line)?;
        let found = Found { date: hit.date, time: self.slots[index].template.time(line, &hit, &self.clock) };
        self.learn(line, index, hit.span);
        Some(found)
    }

    fn pick(&mut self, line: &str) -> Option<(usize, Hit)> {
        let mut reserve: Option<(usize, Hit)> = None;
        let mut tried = None;
        let last_start = self.last.as_ref().map_or(1, |last| last.start);
        if let Some(last) = &self.last {
            let (index, start, end) = (last.slot, last.start, last.end);
            let anchored = self.slots[index].template.anchored;
            let same_place = !anchored && line.is_char_boundary(start) && last.fits(line);
            if !same_place {
                tried = Some(index);
            }
            let hit = if same_place {
                line.get(..end).and_then(|line| self.slots[index].search(line, start))
            } else {
                self.slots[index].search(line, 0)
            };
            if let Some(hit) = hit {
                if self.slots.len() == 1 || anchored || hit.span == (start, end) {
                    return Some((index, hit));
                }
                reserve = Some((index, hit));
            }
        }
        let count = self.slots.len();
        for index in (0..count).filter(|index| Some(*index) != tried) {
            let Some(hit) = self.slots[index].search(line, 0) else { continue };
            let distance = hit.span.0;
            let next_unseen = self.slots.get(index + 1).is_none_or(|next| next.seen == 0);
            let slot = &self.slots[index];
            let at_home = index + 1 == count
                || slot.template.anchored
                || (distance == 0 && slot.hits > 0 && next_unseen)
                || (distance <= slot.distance && distance <= last_start);
            if at_home {
                return Some((index, hit));
            }
            // Maybe a date in the message: the one that stands first is kept.
            if reserve.as_ref().is_none_or(|(_, kept)| distance < kept.span.0) {
                reserve = Some((index, hit));
            }
        }
        reserve
    }

    fn learn(&mut self, line: &str, index: usize, (start, end): (usize, usize)) {
        let slot = &mut self.slots[index];
        slot.hits += 1;
        slot.distance = start;
        self.first_unused += usize::from(self.first_unused == index);
        let bytes = line.as_bytes();
        let known = self.last.as_ref().is_some_and(|last| last.slot == index);
        let slot = if index > 0 && !known { self.move_up(index) } else { index };
        let byte = |at: Option<usize>| at.and_then(|at| bytes.get(at)).copied();
        self.last = Some(Last {
            slot,
            start,
            end,
            before: byte(start.checked_sub(1)),
            first: byte(Some(start)),
            last: byte(end.checked_sub(1)),
            after: byte(Some(end)),
        });
    }

    /// Moves a form that was found towards the front; where it is then.
    fn move_up(&mut self, from: usize) -> usize {
        let weight = self.slots[from].weight();
        let may_pass = |slot: &Slot| slot.hits == 0 || weight > slot.weight();
        let mut to = if self.first_unused < from { self.first_unused } else { from / 2 };
        if !may_pass(&self.slots[to]) {
            if to + 1 == from || !may_pass(&self.slots[from - 1]) {
                return from;
            }
            to = from - 1;
        }
        let slot = self.slots.remove(from);
        self.slots.insert(to, slot);
        while self.slots.get(self.first_unused).is_some_and(|slot| slot.hits > 0) {
            self.first_unused += 1;
        }
        to
    }
}

impl Last {
    /// Whether the line looks the same around the place.
    fn fits(&self, line: &str) -> bool {
        let bytes = line.as_bytes();
        let at = |at: Option<usize>| at.and_then(|at| bytes.get(at)).copied();
        let mark =
            |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii() && !byte.is_ascii_alphanumeric());
        let left = at(self.start.checked_sub(1)) == self.before
            || (at(Some(self.start)) == self.first && mark(self.first));
        let right =
            at(Some(self.end)) == self.after || (at(self.end.checked_sub(1)) == self.last && mark(self.last));
        left && right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detector(patterns: &str) -> Detector {
        let clock = Clock::parse(Some("2005-08-14T10:00:00Z"), Some("UTC")).unwrap();
        Detector::new(&Templates::parse(patterns).unwrap(), clock)
    }

    #[test]
    fn every_known_form_is_found() {
        for (line, date, time) in [
            ("2005-01-23T21:59:59.981+01:00 x", "2005-01-23T21:59:59.981+01:00", "2005-01-23T20:59:59"),
            ("Jan 23 21:59:59 host x", "Jan 23 21:59:59", "2005-01-23T21:59:59"),
            ("[Sun Jan 23 21:59:59.011 2005] x", "Sun Jan 23 21:59:59.011 2005", "2005-01-23T21:59:59"),
            (
                "1.2.3.4 - - [23/Jan/2005:21:59:59 +0200] \"GET",
                "23/Jan/2005:21:59:59 +0200",
                "2005-01-23T19:59:59",
            ),
            ("type=X msg=audit(1106517599.123:1): y", "1106517599.123", "2005-01-23T21:59:59"),
            ("@4000000041f41e5f00000000 x", "@4000000041f41e5f00000000", "2005-01-23T21:59:59"),
            ("Apr-27-13 02:33:06 x", "Apr-27-13 02:33:06", "2013-04-27T02:33:06"),
            ("21:59:59 x", "21:59:59", "2005-08-13T21:59:59"),
        ] {
            let found = detector("").find(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(&line[found.date.0..found.date.1], date);
            assert_eq!(found.time.map(|time| time.naive_utc().format("%FT%T").to_string()).unwrap(), time);
        }
    }

    #[test]
    fn a_date_in_the_message_does_not_take_over() {
        let mut detector = detector("");
        for line in ["Jan 23 21:59:59 host a", "Jan 23 21:59:59 host at 2005-01-01 10:00:00"] {
            assert_eq!(detector.find(line).unwrap().date, (0, 15));
        }
    }

    #[test]
    fn a_pattern_of_the_filter_counts_alone() {
        let mut own = detector(r"^[^\[]*\[({DATE})");
        let line = "x 2005-01-01 10:00:00 [23/Jan/2005:21:59:59 +0000] y";
        let found = own.find(line).unwrap();
        assert_eq!(&line[found.date.0..found.date.1], "23/Jan/2005:21:59:59 +0000");
        assert!(detector("%Y!%m").find(line).is_none());
        assert!(Templates::parse("%Q").is_err());
    }
}
