//! The parts of a regular expression.

/// One expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    /// Matches nothing in particular, everywhere.
    Empty,
    Literal(char),
    /// `.`: any character but a line feed.
    Any,
    Class {
        negated: bool,
        items: Vec<Item>,
    },
    /// `\d`, `\W` and the like: the letter.
    Perl(char),
    /// `^`
    Start,
    /// `$`
    End,
    /// `\A`
    TextStart,
    /// `\Z`
    TextEnd,
    /// `\b`
    Boundary,
    /// `\B`
    NoBoundary,
    /// A place that is not inside a word: at least one neighbour is no word character. fail2ban writes it as
    /// a look-ahead before and after each date.
    WordEdge,
    Capture {
        name: Option<String>,
        node: Box<Node>,
    },
    Flags {
        on: String,
        off: String,
        node: Box<Node>,
    },
    Concat(Vec<Node>),
    Alternate(Vec<Node>),
    Repeat {
        node: Box<Node>,
        min: u32,
        max: Option<u32>,
        greed: Greed,
    },
    Look {
        ahead: bool,
        negative: bool,
        node: Box<Node>,
    },
    Backreference(Reference),
    Conditional {
        group: Reference,
        yes: Box<Node>,
        no: Box<Node>,
    },
}

/// How much a repetition takes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Greed {
    Greedy,
    Lazy,
    Possessive,
}

/// What is in a class.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    Range(char, char),
    Perl(char),
}

/// A group that is meant elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reference {
    Number(u32),
    Name(String),
}

impl Node {
    /// The nodes right below this one.
    pub(crate) fn children(&self) -> Vec<&Node> {
        match self {
            Self::Capture { node, .. }
            | Self::Flags { node, .. }
            | Self::Repeat { node, .. }
            | Self::Look { node, .. } => vec![node],
            Self::Concat(nodes) | Self::Alternate(nodes) => nodes.iter().collect(),
            Self::Conditional { yes, no, .. } => vec![yes, no],
            _ => Vec::new(),
        }
    }

    /// Whether this or a node below it is such a one.
    pub(crate) fn any(&self, test: &dyn Fn(&Node) -> bool) -> bool {
        test(self) || self.children().into_iter().any(|child| child.any(test))
    }

    /// The expression with every node below, then the node itself, replaced by what `change` makes of it.
    pub(crate) fn map(self, change: &mut dyn FnMut(Node) -> Node) -> Node {
        let boxed = |node: Box<Node>, change: &mut dyn FnMut(Node) -> Node| Box::new(node.map(change));
        let node = match self {
            Self::Capture { name, node } => Self::Capture { name, node: boxed(node, change) },
            Self::Flags { on, off, node } => Self::Flags { on, off, node: boxed(node, change) },
            Self::Repeat { node, min, max, greed } => {
                Self::Repeat { node: boxed(node, change), min, max, greed }
            }
            Self::Look { ahead, negative, node } => Self::Look { ahead, negative, node: boxed(node, change) },
            Self::Concat(nodes) => Self::Concat(nodes.into_iter().map(|node| node.map(change)).collect()),
            Self::Alternate(nodes) => {
                Self::Alternate(nodes.into_iter().map(|node| node.map(change)).collect())
            }
            Self::Conditional { group, yes, no } => {
                Self::Conditional { group, yes: boxed(yes, change), no: boxed(no, change) }
            }
            leaf => leaf,
        };
        change(node)
    }

    /// Whether the `regex` crate cannot express it.
    pub(crate) fn needs_backtracking(&self) -> bool {
        self.any(&|node| {
            matches!(
                node,
                Self::Look { .. }
                    | Self::Backreference(_)
                    | Self::Conditional { .. }
                    | Self::Repeat { greed: Greed::Possessive, .. }
            )
        })
    }
}
