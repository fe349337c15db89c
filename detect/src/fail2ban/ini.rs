//! One configuration file, as Python's `configparser` reads it.

use std::{collections::BTreeMap, path::Path};

use super::error::FilterError;

/// Options by name, lower case; values as they stand there.
pub(super) type Section = BTreeMap<String, String>;

/// One file, or several put together.
#[derive(Debug, Clone, Default)]
pub(super) struct Ini {
    pub(super) defaults: Section,
    pub(super) sections: BTreeMap<String, Section>,
}

/// Values larger than that are no filter's, bytes.
const MAX_VALUE: usize = 1 << 20;

/// The option that lines further in belong to.
struct Open {
    section: String,
    option: String,
    indent: usize,
}

/// Parses a file.
pub(super) fn parse(text: &str, path: &Path) -> Result<Ini, FilterError> {
    let mut ini = Ini::default();
    let mut section: Option<String> = None;
    let mut open: Option<Open> = None;
    let fail =
        |line: usize, what: &str| FilterError::Syntax { path: path.to_owned(), line, what: what.to_owned() };
    for (number, raw) in text.lines().enumerate() {
        let (line, commented) = without_comment(raw);
        let content = line.trim();
        if content.is_empty() {
            if !commented && let Some(open) = &open {
                append(&mut ini, open, "").ok_or_else(|| fail(number + 1, "the value is too long"))?;
            }
            continue;
        }
        let indent = raw.len() - raw.trim_start().len();
        if let Some(open) = &open
            && indent > open.indent
        {
            append(&mut ini, open, content).ok_or_else(|| fail(number + 1, "the value is too long"))?;
            continue;
        }
        open = None;
        if let Some(name) = content.strip_prefix('[').and_then(|rest| rest.split(']').next())
            && content.contains(']')
        {
            section = Some(name.to_owned());
            if name != "DEFAULT" {
                ini.sections.entry(name.to_owned()).or_default();
            }
            continue;
        }
        let Some(section) = &section else {
            return Err(fail(number + 1, "an option before the first [section]"));
        };
        let Some(at) = content.find(['=', ':']) else {
            return Err(fail(number + 1, "neither a [section] nor `option = value`"));
        };
        let option = content[..at].trim_end().to_lowercase();
        if option.is_empty() {
            return Err(fail(number + 1, "an option without a name"));
        }
        let value = content[at + 1..].trim().to_owned();
        ini.section_mut(section).insert(option.clone(), value);
        open = Some(Open { section: section.clone(), option, indent });
    }
    let trim = |section: &mut Section| {
        section.values_mut().for_each(|value| value.truncate(value.trim_end().len()));
    };
    trim(&mut ini.defaults);
    ini.sections.values_mut().for_each(trim);
    Ok(ini)
}

fn append(ini: &mut Ini, open: &Open, line: &str) -> Option<()> {
    let value = ini.section_mut(&open.section).get_mut(&open.option)?;
    if value.len() + line.len() >= MAX_VALUE {
        return None;
    }
    value.push('\n');
    value.push_str(line);
    Some(())
}

/// The line up to a comment, and whether there was one.
fn without_comment(line: &str) -> (&str, bool) {
    if line.trim_start().starts_with(['#', ';']) {
        return ("", true);
    }
    let inline = line.match_indices(';').find(|(at, _)| line[..*at].ends_with(char::is_whitespace));
    match inline {
        Some((at, _)) => (&line[..at], true),
        None => (line, false),
    }
}

impl Ini {
    fn section_mut(&mut self, name: &str) -> &mut Section {
        if name == "DEFAULT" { &mut self.defaults } else { self.sections.entry(name.to_owned()).or_default() }
    }

    /// Puts a file that was read later on top of this one. What an option held before stays reachable as
    /// `known/option`.
    pub(super) fn merge(&mut self, later: Ini) {
        self.defaults.extend(later.defaults);
        for (name, options) in later.sections {
            let (name, options) = unconditional(name, options);
            let known: Section = match self.sections.get(&name) {
                None => Section::new(),
                Some(before) => before
                    .iter()
                    .filter(|(option, _)| options.contains_key(*option))
                    .map(|(option, value)| (option.clone(), value.clone()))
                    .collect(),
            };
            if self.sections.contains_key(&name) {
                self.sections.entry(format!("KNOWN/{name}")).or_default().extend(known);
            }
            self.sections.entry(name).or_default().extend(options);
        }
    }
}

/// A section `[Name?condition]` is the section `Name` with options `option?condition`.
fn unconditional(name: String, options: Section) -> (String, Section) {
    let Some(at) = name.find('?').filter(|at| *at > 0) else { return (name, options) };
    let (name, condition) = name.split_at(at);
    let options = options.into_iter().map(|(option, value)| (format!("{option}{condition}"), value));
    (name.to_owned(), options.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_on_where_lines_are_further_in() {
        let text = "[DEFAULT]\na = 1 ; one\n[X]\nB: b;c\n  # comment\n  d\n\n  e = f\nc =\n";
        let ini = parse(text, Path::new("x")).unwrap();
        assert_eq!(ini.defaults["a"], "1");
        assert_eq!(ini.sections["X"]["b"], "b;c\nd\n\ne = f");
        assert_eq!(ini.sections["X"]["c"], "");
    }

    #[test]
    fn a_later_file_goes_on_top_and_leaves_what_was_known() {
        let mut ini = parse("[X]\na = 1\nb = 2\n", Path::new("x")).unwrap();
        ini.merge(parse("[X]\na = 3\n[X?f=6]\nc = 4\n", Path::new("y")).unwrap());
        assert_eq!((&*ini.sections["X"]["a"], &*ini.sections["X"]["b"]), ("3", "2"));
        assert_eq!(ini.sections["KNOWN/X"]["a"], "1");
        assert_eq!(ini.sections["X"]["c?f=6"], "4");
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        for text in ["a = 1", "[X]\nnonsense", "[X]\n= 1"] {
            let error = parse(text, Path::new("/r/x.conf")).unwrap_err().to_string();
            assert!(error.starts_with("/r/x.conf, line "), "{error}");
        }
    }
}
