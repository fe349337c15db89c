//! A filter, compiled: ready for any number of logs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aho_corasick::AhoCorasick;
use regex::RegexSet;

use super::{
    error::FilterError,
    files,
    ini::Ini,
    options::{Options, Resolver},
    tags,
};
use crate::{
    pattern::{CompileError, Lines, Literals, Pattern},
    time::{TemplateError, Templates},
};

/// Lines that are looked at together at most.
const MAX_LINES: usize = 20;
/// The mode that is meant where none is named, if the filter has it.
const DEFAULT_MODE: &str = "aggressive";
/// Groups that name whom a failure is about.
const IDS: [&str; 5] = ["fid", "ip4", "ip6", "dns", "mlfid"];

/// Which filter, and how it is to be set.
#[derive(Debug, Clone, Default)]
pub struct FilterRequest {
    /// The filter's name, without `.conf`.
    pub name: String,
    /// Its mode; when absent `aggressive` if it has that one, else the filter's own default.
    pub mode: Option<String>,
    /// Options on top of the file's.
    pub options: BTreeMap<String, String>,
}

/// A compiled `failregex`.
#[derive(Debug)]
pub(super) struct FailRegex {
    pub(super) pattern: Pattern,
    /// As the filter writes it.
    pub(super) source: String,
    /// Groups whose value goes to another one where that is empty.
    pub(super) alternates: Vec<(String, String)>,
    /// Groups whose value is appended to another one's.
    pub(super) tuples: Vec<(String, String)>,
}

/// A filter, compiled.
#[derive(Debug)]
pub struct Filter {
    pub(super) name: String,
    pub(super) prefix: Option<Pattern>,
    pub(super) fail: Vec<FailRegex>,
    pub(super) ignore: Vec<Pattern>,
    pub(super) max_lines: usize,
    pub(super) templates: Templates,
    /// Which of `fail` may match, in one pass. Only where they see one line.
    pub(super) set: Option<RegexSet>,
    /// A line without any of these does not match. Only where lines are looked at one by one.
    pub(super) prefilter: Option<AhoCorasick>,
}

impl Filter {
    /// Reads a filter from `directory` or its `filter.d`, and compiles it.
    ///
    /// # Errors
    /// When it is not there, malformed, or has no such mode.
    pub fn load(directory: &Path, request: &FilterRequest) -> Result<Self, FilterError> {
        let ini = files::load(directory, &request.name)?;
        let options = resolve(&ini, request)?;
        compile(&request.name, &options)
    }

    /// The modes that a filter knows, empty when it has none.
    ///
    /// # Errors
    /// When it is not there or malformed.
    pub fn modes(directory: &Path, name: &str) -> Result<BTreeSet<String>, FilterError> {
        Ok(Resolver::new(&files::load(directory, name)?, &BTreeMap::new()).modes())
    }

    /// The filter's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Expressions that need backtracking, and all.
    #[must_use]
    pub fn backtracking(&self) -> (usize, usize) {
        let all = || self.fail.iter().map(|fail| &fail.pattern).chain(&self.ignore).chain(&self.prefix);
        (all().filter(|pattern| !pattern.is_linear()).count(), all().count())
    }
}

fn resolve(ini: &Ini, request: &FilterRequest) -> Result<Options, FilterError> {
    let modes = Resolver::new(ini, &BTreeMap::new()).modes();
    let mut set = request.options.clone();
    match &request.mode {
        Some(mode) if !modes.is_empty() && !modes.contains(mode) => {
            return Err(FilterError::Mode {
                filter: request.name.clone(),
                mode: mode.clone(),
                known: modes.into_iter().collect(),
            });
        }
        Some(mode) => {
            set.insert("mode".to_owned(), mode.clone());
        }
        None if modes.contains(DEFAULT_MODE) && !set.contains_key("mode") => {
            set.insert("mode".to_owned(), DEFAULT_MODE.to_owned());
        }
        None => {}
    }
    Resolver::new(ini, &set).resolve()
}

fn compile(name: &str, options: &Options) -> Result<Filter, FilterError> {
    let get = |option: &str| options.values.get(option).map_or("", String::as_str);
    let max_lines = match get("maxlines").trim() {
        "" => 1,
        text => text
            .parse()
            .ok()
            .filter(|lines| (1..=MAX_LINES).contains(lines))
            .ok_or_else(|| FilterError::MaxLines(text.to_owned()))?,
    };
    let resolve_names = !get("usedns").trim().eq_ignore_ascii_case("no");
    let (whole, each) =
        if max_lines > 1 { (Lines::WholeText, Lines::Each) } else { (Lines::One, Lines::One) };
    let pattern = |option: &'static str, text: &str, lines: Lines| {
        Pattern::new(&tags::expand(text, resolve_names), lines)
            .map_err(|source| FilterError::Regex { option, source })
    };
    let prefix = match get("prefregex") {
        "" => None,
        text => Some(pattern("prefregex", text, whole)?),
    };
    let mut fail = Vec::new();
    for text in expressions(get("failregex")) {
        let pattern = pattern("failregex", text, each)?;
        let names = |pattern: &Pattern| pattern.group_names().any(|name| IDS.contains(&name));
        if !names(&pattern) && !prefix.as_ref().is_some_and(names) {
            return Err(FilterError::NoFailureId(text.to_owned()));
        }
        fail.push(FailRegex {
            alternates: complex(&pattern, "alt_"),
            tuples: complex(&pattern, "tuple_"),
            source: text.to_owned(),
            pattern,
        });
    }
    if fail.is_empty() {
        return Err(FilterError::NoFailRegex(name.to_owned()));
    }
    let ignore: Vec<Pattern> = expressions(get("ignoreregex"))
        .map(|text| pattern("ignoreregex", text, whole))
        .collect::<Result<_, _>>()?;
    let templates = Templates::parse(get("datepattern")).map_err(|error| FilterError::Regex {
        option: "datepattern",
        source: match error {
            TemplateError::Regex(source) => source,
            error => CompileError::Engine { text: get("datepattern").to_owned(), reason: error.to_string() },
        },
    })?;
    let cuts_words = get("datepattern").contains("**") || get("datepattern").contains("{UNB}");
    let one_by_one = max_lines == 1;
    let prefilter = if one_by_one && !cuts_words { prefilter(prefix.as_ref(), &fail) } else { None };
    let set = if one_by_one && fail.len() > 1 { set(&fail) } else { None };
    Ok(Filter { name: name.to_owned(), prefix, fail, ignore, max_lines, templates, set, prefilter })
}

fn expressions(option: &str) -> impl Iterator<Item = &str> {
    option.split('\n').filter(|line| !line.trim().is_empty())
}

/// Groups `alt_user`, `alt_user_1` go to `user`, in the order of their names.
fn complex(pattern: &Pattern, prefix: &str) -> Vec<(String, String)> {
    let groups = pattern.group_names().filter_map(|name| {
        let target = name.strip_prefix(prefix)?;
        let numbered = target.rsplit_once('_');
        let target = match numbered {
            Some((target, digits)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                target
            }
            _ => target,
        };
        Some((name.to_owned(), tags::mapped(&target.to_lowercase()).to_owned()))
    });
    groups.collect()
}

fn prefilter(prefix: Option<&Pattern>, fail: &[FailRegex]) -> Option<AhoCorasick> {
    let any = Literals::union(fail.iter().map(|fail| fail.pattern.literals().cloned()));
    let literals = Literals::pick(any, prefix.and_then(|prefix| prefix.literals().cloned()))?;
    AhoCorasick::builder().ascii_case_insensitive(true).build(literals.texts()).ok()
}

fn set(fail: &[FailRegex]) -> Option<RegexSet> {
    regex::RegexSetBuilder::new(fail.iter().map(|fail| fail.pattern.superset()))
        .size_limit(64 << 20)
        .dfa_size_limit(16 << 20)
        .build()
        .ok()
}
