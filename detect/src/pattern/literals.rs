//! Which texts a line must hold for an expression to match at all. Searching
//! for them first, all at once, is what makes most lines cheap.

use super::ast::Node;

/// Shorter ones are found in nearly every line and tell nothing.
const SHORTEST: usize = 3;
/// More alternatives are not worth their search.
const MOST: usize = 64;

/// At least one of these is in every text that matches. Upper and lower case count as equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Literals(Vec<String>);

impl Literals {
    /// The texts.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        &self.0
    }

    /// The length of the shortest one: the longer, the fewer lines hold it by chance.
    fn weight(&self) -> usize {
        self.0.iter().map(String::len).min().unwrap_or(0)
    }

    fn better(self, other: Self) -> Self {
        let (a, b) = ((self.weight(), other.0.len()), (other.weight(), self.0.len()));
        if b > a { other } else { self }
    }

    fn or(mut self, other: Self) -> Option<Self> {
        self.0.extend(other.0);
        self.0.sort();
        self.0.dedup();
        (self.0.len() <= MOST).then_some(self)
    }

    /// What must be there when one of several expressions matches.
    #[must_use]
    pub fn union(all: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        let mut all = all.into_iter();
        let first = all.next()??;
        all.try_fold(first, |union, next| union.or(next?))
    }

    /// The more telling of the two, where both must be there.
    #[must_use]
    pub fn pick(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(one.better(other)),
            (one, other) => one.or(other),
        }
    }
}

/// The literals of an expression, `None` when there are no telling ones.
///
/// They are made of word characters only: fail2ban cuts the date out of the line, and what meets at the cut is
/// never two of those.
pub(crate) fn required(node: &Node) -> Option<Literals> {
    let mut best = None;
    let mut run = String::new();
    collect(node, &mut run, &mut best);
    flush(&mut run, &mut best);
    best
}

fn offer(best: &mut Option<Literals>, literals: Literals) {
    *best = Literals::pick(best.take(), Some(literals));
}

fn flush(run: &mut String, best: &mut Option<Literals>) {
    let text = std::mem::take(run);
    if text.len() >= SHORTEST {
        offer(best, Literals(vec![text]));
    }
}

fn collect(node: &Node, run: &mut String, best: &mut Option<Literals>) {
    match node {
        // Zero width: what is before and after stay neighbours.
        Node::Empty
        | Node::Start
        | Node::End
        | Node::TextStart
        | Node::TextEnd
        | Node::Boundary
        | Node::NoBoundary
        | Node::WordEdge
        | Node::Look { .. } => {}
        Node::Literal(c) if c.is_ascii_alphanumeric() || *c == '_' => run.push(c.to_ascii_lowercase()),
        Node::Concat(nodes) => nodes.iter().for_each(|node| collect(node, run, best)),
        Node::Capture { node, .. } => collect(node, run, best),
        Node::Flags { on, node, .. } => {
            flush(run, best);
            // Under `i` two letters have relatives outside ASCII.
            if !on.contains('i') {
                collect(node, run, best);
                flush(run, best);
            } else if let Some(literals) = required(node)
                && !literals.0.iter().any(|text| text.contains(['k', 's']))
            {
                offer(best, literals);
            }
        }
        Node::Alternate(branches) => {
            flush(run, best);
            if let Some(literals) = Literals::union(branches.iter().map(required)) {
                offer(best, literals);
            }
        }
        Node::Repeat { node, min, .. } => {
            flush(run, best);
            if *min > 0
                && let Some(literals) = required(node)
            {
                offer(best, literals);
            }
        }
        _ => flush(run, best),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::parse::parse, *};

    fn of(text: &str) -> Option<Vec<String>> {
        required(&parse(text).unwrap()).map(|literals| literals.0)
    }

    #[test]
    fn the_longest_text_that_must_be_there_is_taken() {
        assert_eq!(of(r"^Failed \w+ for x"), Some(vec!["failed".to_owned()]));
        assert_eq!(of("(?:abc|defg)x?"), Some(vec!["abc".to_owned(), "defg".to_owned()]));
        assert_eq!(of("(?:abc|.*)"), None);
        assert_eq!(of("(?:abc)?"), None);
        assert_eq!(of("(?i:ask)"), None);
        assert_eq!(of("ab.cd"), None);
    }
}
