//! From sections to the options that count: `%(name)s` and `%(section/name)s`,
//! then `<name>` within each other, with what the caller sets on top.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    error::FilterError,
    ini::{Ini, Section},
};

/// Interpolations within interpolations, as Python bounds them.
const MAX_DEPTH: usize = 10;
/// Replacements of one tag within one value, as fail2ban bounds them.
const MAX_REPLACEMENTS: usize = 25;
/// A value that grows beyond that is an attack, bytes.
const MAX_VALUE: usize = 1 << 20;
/// The options that a filter consists of.
const OPTIONS: [&str; 7] =
    ["usedns", "prefregex", "ignoreregex", "failregex", "maxlines", "datepattern", "journalmatch"];

/// What a filter says once everything is filled in.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    pub(super) values: BTreeMap<String, String>,
}

/// The sections of a filter with what the caller sets.
pub(super) struct Resolver<'i> {
    ini: &'i Ini,
    set: BTreeMap<String, String>,
}

fn wrong(option: &str, what: impl Into<String>) -> FilterError {
    FilterError::Interpolation { option: option.to_owned(), what: what.into() }
}

impl<'i> Resolver<'i> {
    pub(super) fn new(ini: &'i Ini, set: &BTreeMap<String, String>) -> Self {
        let mut set = set.clone();
        let own = |option: &str| ini.sections.get("Definition").is_some_and(|s| s.contains_key(option));
        if !set.contains_key("logtype") && !own("logtype") {
            set.insert("logtype".to_owned(), "file".to_owned());
        }
        Self { ini, set }
    }

    /// The value of an option as it stands there.
    fn raw(&self, section: &str, option: &str, with_set: bool) -> Option<&str> {
        let set = if with_set { self.set.get(option) } else { None };
        set.or_else(|| self.ini.sections.get(section)?.get(option))
            .or_else(|| self.ini.defaults.get(option))
            .map(String::as_str)
    }

    /// What `%(section/option)s` holds.
    fn foreign(&self, section: &str, path: &str) -> Option<&str> {
        let (from, option) = path.split_once('/')?;
        let lower = from.to_lowercase();
        let options: Option<&Section> = match lower.as_str() {
            "default" => None,
            "known" => self.ini.sections.get(&format!("KNOWN/{section}")),
            _ => Some(self.ini.sections.get(from)?),
        };
        options
            .and_then(|options| options.get(option))
            .or_else(|| self.ini.defaults.get(option))
            .map(String::as_str)
    }

    fn interpolate(&self, section: &str, option: &str, raw: &str, set: bool) -> Result<String, FilterError> {
        let mut out = String::new();
        self.fill(section, option, raw, set, 1, &mut out)?;
        Ok(out)
    }

    fn fill(
        &self,
        section: &str,
        option: &str,
        raw: &str,
        set: bool,
        depth: usize,
        out: &mut String,
    ) -> Result<(), FilterError> {
        if depth > MAX_DEPTH {
            return Err(wrong(option, "interpolation goes deeper than 10"));
        }
        let mut rest = raw;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                out.push('%');
                rest = after;
                continue;
            }
            let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(")s")) else {
                return Err(wrong(option, "`%` must be followed by `%` or `(name)s`"));
            };
            rest = after;
            let lower = name.to_lowercase();
            let value = if lower == "__name__" {
                Some(section)
            } else {
                self.raw(section, &lower, set).or_else(|| self.foreign(section, name))
            };
            let Some(value) = value else { return Err(wrong(option, format!("`%({name})s` is not set"))) };
            self.fill(section, option, value, set, depth + 1, out)?;
            if out.len() > MAX_VALUE {
                return Err(wrong(option, "the value grows beyond 1 MiB"));
            }
        }
        out.push_str(rest);
        Ok(())
    }

    fn get(&self, section: &str, option: &str, set: bool) -> Result<Option<String>, FilterError> {
        match self.raw(section, option, set) {
            Some(raw) => self.interpolate(section, option, raw, set).map(Some),
            None => Ok(None),
        }
    }

    /// What `<name>` or `<section/name>` holds beyond the filter's own options.
    fn tag(&self, name: &str) -> Result<Option<String>, FilterError> {
        if let Some((from, option)) = name.split_once('/')
            && !from.is_empty()
            && !option.is_empty()
        {
            let sections = match from.to_lowercase().as_str() {
                "known" => vec!["KNOWN/Definition".to_owned(), "Definition".to_owned()],
                "default" => vec!["DEFAULT".to_owned()],
                _ => vec![from.to_owned()],
            };
            for section in sections {
                if section == "DEFAULT" || self.ini.sections.contains_key(&section) {
                    let option = option.to_lowercase();
                    if let Some(value) = self.get(&section, &option, false)? {
                        return Ok(Some(value));
                    }
                }
            }
        }
        self.get("Definition", &name.to_lowercase(), true)
    }

    /// All options, filled in.
    pub(super) fn resolve(&self) -> Result<Options, FilterError> {
        let mut values = BTreeMap::new();
        for option in OPTIONS.iter().filter(|option| !self.set.contains_key(**option)) {
            if let Some(value) = self.get("Definition", option, true)? {
                values.insert((*option).to_owned(), value);
            }
        }
        values.extend(self.set.clone());
        for option in self.ini.sections.get("Init").into_iter().flat_map(Section::keys) {
            let Some(value) = self.get("Init", option, false)? else { continue };
            values.insert(format!("known/{option}"), value.clone());
            if !self.set.contains_key(option) {
                values.insert(option.clone(), value);
            }
        }
        self.replace_tags(&mut values)?;
        Ok(Options { values })
    }

    fn replace_tags(&self, values: &mut BTreeMap<String, String>) -> Result<(), FilterError> {
        let names: Vec<String> = values.keys().cloned().collect();
        let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        loop {
            let mut again = false;
            for name in &names {
                let before = values[name].clone();
                let value =
                    self.replace_in(name, before.clone(), values, counts.entry(name.clone()).or_default())?;
                if value != before {
                    again |= next_tag(&value, 0).is_some();
                    values.insert(name.clone(), value);
                }
            }
            if !again {
                return Ok(());
            }
        }
    }

    fn replace_in(
        &self,
        option: &str,
        mut value: String,
        values: &BTreeMap<String, String>,
        counts: &mut BTreeMap<String, usize>,
    ) -> Result<String, FilterError> {
        let mut from = 0;
        while let Some((start, end)) = next_tag(&value, from) {
            let tag = value[start + 1..end - 1].to_owned();
            let count = counts.get(&tag).copied().unwrap_or(0);
            if tag == option || count >= MAX_REPLACEMENTS {
                return Err(wrong(option, format!("`<{tag}>` refers to itself")));
            }
            let replacement = match values.get(&tag) {
                Some(value) => Some(value.clone()),
                None => self.tag(&tag)?,
            };
            let Some(replacement) = replacement else {
                from = end;
                continue;
            };
            value = value.replace(&format!("<{tag}>"), &replacement);
            if value.len() > MAX_VALUE {
                return Err(wrong(option, "the value grows beyond 1 MiB"));
            }
            counts.insert(tag, count + 1);
            from = start;
        }
        Ok(value)
    }

    /// The modes that the filter knows, empty when it has none: what may stand for `<mode>` in the names that
    /// its options are put together from.
    pub(super) fn modes(&self) -> BTreeSet<String> {
        let definition = self.ini.sections.get("Definition");
        let all = || definition.into_iter().flatten().chain(&self.ini.defaults);
        let mut modes = BTreeSet::new();
        for (_, value) in all() {
            for (at, _) in value.match_indices("<mode>") {
                let Some(start) = value[..at].rfind('<') else { continue };
                let (before, after) = (&value[start + 1..at], &value[at + "<mode>".len()..]);
                let Some((after, _)) = after.split_once('>') else { continue };
                if before.contains(['>', ' ']) || after.contains(['<', ' ']) {
                    continue;
                }
                let names = all().map(|(option, _)| option.as_str());
                let middles = names.filter_map(|name| name.strip_prefix(before)?.strip_suffix(after));
                modes.extend(middles.filter(|mode| !mode.is_empty()).map(str::to_owned));
            }
        }
        modes
    }
}

/// The next `<tag>` without brackets or spaces inside.
fn next_tag(value: &str, from: usize) -> Option<(usize, usize)> {
    let mut open = None;
    for (at, c) in value.get(from..)?.char_indices() {
        match c {
            '<' => open = Some(from + at),
            ' ' => open = None,
            '>' => match open {
                Some(start) if from + at > start + 1 => return Some((start, from + at + 1)),
                _ => open = None,
            },
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::ini, *};

    fn resolve(text: &str, set: &[(&str, &str)]) -> Result<Options, FilterError> {
        let ini = ini::parse(text, Path::new("x")).unwrap();
        let set = set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Resolver::new(&ini, &set).resolve()
    }

    #[test]
    fn names_are_filled_in_and_what_the_caller_sets_wins() {
        let text = "[DEFAULT]\np = d%(q)s\nq = 1\n[s]\nx = %(q)s\n[Definition]\nq = 2\nm = a\n\
            re-a = A\nre-b = B\nfailregex = %(p)s <re-<m>> %(s/x)s <HOST> %%\n[Init]\nmaxlines = 3\n";
        let options = resolve(text, &[]).unwrap();
        assert_eq!(options.values["failregex"], "d2 A 2 <HOST> %");
        assert_eq!(options.values["maxlines"], "3");
        let options = resolve(text, &[("m", "b"), ("maxlines", "2")]).unwrap();
        assert_eq!(options.values["failregex"], "d2 B 2 <HOST> %");
        assert_eq!(options.values["maxlines"], "2");
    }

    #[test]
    fn loops_and_gaps_are_refused_by_name() {
        for text in [
            "[Definition]\nfailregex = %(a)s\na = %(failregex)s",
            "[Definition]\nfailregex = %(nothing)s",
            "[Definition]\nfailregex = 5 % x",
            "[Definition]\nfailregex = <a>\na = <b>\nb = <a>",
        ] {
            assert!(matches!(resolve(text, &[]), Err(FilterError::Interpolation { .. })), "{text}");
        }
    }

    #[test]
    fn a_filter_knows_its_modes() {
        let text = "[Definition]\nfailregex = <re-<mode>>\nre-x = 1\nre-y-z = 2\nmode = x\nother = 3";
        let ini = ini::parse(text, Path::new("x")).unwrap();
        let modes = Resolver::new(&ini, &BTreeMap::new()).modes();
        assert_eq!(modes.into_iter().collect::<Vec<_>>(), ["x", "y-z"]);
    }
}
