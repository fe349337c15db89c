//! An expression that is ready to be searched for, with a bound on the work.

use std::collections::BTreeMap;

use super::{
    ast::Node,
    emit::{Form, Lines, emit},
    literals::{Literals, required},
    parse::{ParseError, parse},
    rewrite::{by_original, expand_references, name_first_group},
};

/// Steps of backtracking for one search; what needs more is given up and counted.
const BACKTRACK_LIMIT: usize = 200_000;
/// Memory for one compiled expression, bytes.
const SIZE_LIMIT: usize = 32 << 20;

/// Why an expression cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Python would refuse it too, or it uses what we do not have.
    #[error("`{text}`: {source}")]
    Parse {
        /// The expression.
        text: String,
        /// What is wrong.
        source: ParseError,
    },
    /// The engine refuses it.
    #[error("`{text}`: {reason}")]
    Engine {
        /// The expression.
        text: String,
        /// The engine's words.
        reason: String,
    },
}

/// What a search found.
#[derive(Debug)]
pub enum Search {
    /// No match.
    No,
    /// A match.
    Found(Captured),
    /// It took too many steps; whether there is a match is not known.
    BudgetExceeded,
}

/// A match: where it is and where its groups are, in bytes.
#[derive(Debug, Clone)]
pub struct Captured {
    groups: Vec<Option<(usize, usize)>>,
}

impl Captured {
    /// Where the match is.
    #[must_use]
    pub fn span(&self) -> (usize, usize) {
        self.groups.first().copied().flatten().unwrap_or((0, 0))
    }
}

enum Engine {
    Linear(regex::Regex),
    Backtracking { guard: regex::Regex, exact: Box<fancy_regex::Regex> },
}

/// An expression, ready.
pub struct Pattern {
    engine: Engine,
    /// For a set with others: matches wherever this one does.
    superset: String,
    groups: BTreeMap<String, Vec<usize>>,
    literals: Option<Literals>,
}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pattern").field(&self.superset).finish()
    }
}

fn linear(text: &str, shown: &str) -> Result<regex::Regex, CompileError> {
    regex::RegexBuilder::new(text)
        .size_limit(SIZE_LIMIT)
        .dfa_size_limit(SIZE_LIMIT)
        .build()
        .map_err(|error| CompileError::Engine { text: shown.to_owned(), reason: error.to_string() })
}

impl Pattern {
    /// Compiles an expression of Python's.
    ///
    /// # Errors
    /// When it is malformed, too large, or uses what we do not have.
    pub fn new(text: &str, lines: Lines) -> Result<Self, CompileError> {
        let node = parse(text).map_err(|source| CompileError::Parse { text: text.to_owned(), source })?;
        Self::from_node(node, lines, text)
    }

    /// As [`Self::new`], to be found only where it does not start (`before`) or end (`after`) inside a word.
    /// Its first group is called `wanted` unless it has a name; the name is returned.
    ///
    /// # Errors
    /// As there.
    pub fn in_words(
        text: &str,
        before: bool,
        after: bool,
        wanted: &str,
    ) -> Result<(Self, Option<String>), CompileError> {
        let node = parse(text).map_err(|source| CompileError::Parse { text: text.to_owned(), source })?;
        let (node, name) = name_first_group(node, wanted);
        let edge = |wanted| if wanted { Node::WordEdge } else { Node::Empty };
        let node = Node::Concat(vec![edge(before), node, edge(after)]);
        Ok((Self::from_node(node, Lines::One, text)?, name))
    }

    fn from_node(node: Node, lines: Lines, shown: &str) -> Result<Self, CompileError> {
        let node = expand_references(node);
        let literals = required(&node);
        if !node.needs_backtracking() {
            let text = emit(&node, Form::Linear, lines);
            let regex = linear(&text, shown)?;
            let groups = by_original(named(regex.capture_names()));
            return Ok(Self { engine: Engine::Linear(regex), superset: text, groups, literals });
        }
        let superset = emit(&node, Form::Superset, lines);
        let guard = linear(&superset, shown)?;
        let exact = fancy_regex::RegexBuilder::new(&emit(&node, Form::Backtracking, lines))
            .backtrack_limit(BACKTRACK_LIMIT)
            .delegate_size_limit(SIZE_LIMIT)
            .build()
            .map_err(|error| CompileError::Engine { text: shown.to_owned(), reason: error.to_string() })?;
        let groups = by_original(named(exact.capture_names()));
        Ok(Self {
            engine: Engine::Backtracking { guard, exact: Box::new(exact) },
            superset,
            groups,
            literals,
        })
    }

    /// An expression for a [`regex::RegexSet`] that matches wherever this one does.
    #[must_use]
    pub fn superset(&self) -> &str {
        &self.superset
    }

    /// Texts of which one must be there.
    #[must_use]
    pub fn literals(&self) -> Option<&Literals> {
        self.literals.as_ref()
    }

    /// Whether it runs in time linear in the text.
    #[must_use]
    pub fn is_linear(&self) -> bool {
        matches!(self.engine, Engine::Linear(_))
    }

    /// Names of its groups.
    pub fn group_names(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// What a named group holds.
    #[must_use]
    pub fn group<'t>(&self, found: &Captured, name: &str, text: &'t str) -> Option<&'t str> {
        let (start, end) = self.group_span(found, name)?;
        text.get(start..end)
    }

    /// Where a named group is.
    #[must_use]
    pub fn group_span(&self, found: &Captured, name: &str) -> Option<(usize, usize)> {
        self.groups.get(name)?.iter().find_map(|index| found.groups.get(*index).copied().flatten())
    }

    /// Whether it can match at all; a linear test.
    #[must_use]
    pub fn may_match(&self, text: &str) -> bool {
        match &self.engine {
            Engine::Linear(regex) | Engine::Backtracking { guard: regex, .. } => regex.is_match(text),
        }
    }

    /// Searches, the leftmost match first.
    #[must_use]
    pub fn search(&self, text: &str) -> Search {
        self.search_from(text, 0)
    }

    /// As [`Self::search`], for a match that starts at this byte or later.
    #[must_use]
    pub fn search_from(&self, text: &str, from: usize) -> Search {
        match &self.engine {
            Engine::Linear(regex) => regex.captures_at(text, from).map_or(Search::No, |found| {
                let groups = found.iter().map(|group| group.map(|group| (group.start(), group.end())));
                Search::Found(Captured { groups: groups.collect() })
            }),
            Engine::Backtracking { guard, exact } => {
                if !guard.is_match(text) {
                    return Search::No;
                }
                match exact.captures_from_pos(text, from) {
                    Ok(None) => Search::No,
                    Ok(Some(found)) => {
                        let groups =
                            found.iter().map(|group| group.map(|group| (group.start(), group.end())));
                        Search::Found(Captured { groups: groups.collect() })
                    }
                    Err(_) => Search::BudgetExceeded,
                }
            }
        }
    }
}

fn named<'n>(names: impl Iterator<Item = Option<&'n str>>) -> impl Iterator<Item = (usize, &'n str)> {
    names.enumerate().filter_map(|(index, name)| Some((index, name?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pattern: &str, text: &str, group: &str) -> Option<String> {
        let pattern = Pattern::new(pattern, Lines::One).unwrap();
        match pattern.search(text) {
            Search::Found(found) => pattern.group(&found, group, text).map(str::to_owned),
            _ => None,
        }
    }

    #[test]
    fn what_looks_around_refers_back_or_depends_is_found() {
        assert_eq!(found(r"(?P<a>\w+) (?!no)\w+$", "x no y z\n", "a").as_deref(), Some("y"));
        assert_eq!(found(r"^(?P<a>\w+) (?P=a)$", "ab ab\n", "a").as_deref(), Some("ab"));
        assert_eq!(found(r"^(?P<q>x )?(?P<a>(?(q)\d+|[a-z]+))$", "x 12\n", "a").as_deref(), Some("12"));
        assert_eq!(found(r"^(?P<q>x )?(?P<a>(?(q)\d+|[a-z]+))$", "ab\n", "a").as_deref(), Some("ab"));
        assert_eq!(found(r"^(?P<q>x )?(?P<a>(?(q)\d+|[a-z]+))$", "x ab\n", "a"), None);
    }

    #[test]
    fn a_reference_to_one_of_few_characters_stays_linear() {
        let pattern = Pattern::new(r"(?P<y>\d+)(?P<s>[-/])\d+(?P=s)\d+", Lines::One).unwrap();
        assert!(pattern.is_linear());
        let text = "1-2/3 4/5/6\n";
        let Search::Found(found) = pattern.search(text) else { panic!("a match") };
        assert_eq!((found.span(), pattern.group(&found, "y", text)), ((6, 11), Some("4")));
    }

    #[test]
    fn an_expression_that_explodes_is_given_up() {
        let pattern = Pattern::new(r"^(?:(?=a)a+)+$", Lines::One).unwrap();
        // The guard lets it through: all are `a` but one that it sees as the end of the line.
        let pattern_two = Pattern::new(r"^(?:(?:a|a)(?!c))+(?!\n)$", Lines::One).unwrap();
        let text = format!("{}\n", "a".repeat(64));
        assert!(matches!(pattern.search(&text), Search::Found(_)));
        assert!(matches!(pattern_two.search(&text), Search::BudgetExceeded | Search::No));
    }

    #[test]
    fn the_end_of_a_line_is_before_its_feed() {
        assert_eq!(found(r"(?P<a>b)$", "ab\n", "a").as_deref(), Some("b"));
        assert_eq!(found(r"^(?P<a>b)", "a\nb\n", "a"), None);
        let each = Pattern::new(r"^(?P<a>b)$", Lines::Each).unwrap();
        assert!(matches!(each.search("a\nb\n"), Search::Found(_)));
    }
}
