//! Writes an expression down for the `regex` crate or for `fancy-regex`.
//!
//! The text that is searched always ends in a line feed, as fail2ban's does.

use std::fmt::Write as _;

use super::ast::{Greed, Item, Node, Reference};

/// What `^` and `$` mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// The text is one line.
    One,
    /// Several, `^` and `$` look at the whole text.
    WholeText,
    /// Several, `^` and `$` look at each.
    Each,
}

/// How exactly the expression is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is, for `regex`.
    Linear,
    /// As it is, for `fancy-regex`.
    Backtracking,
    /// For `regex`, so that it matches wherever the exact one does, and maybe elsewhere.
    Superset,
}

/// The expression as text.
pub(crate) fn emit(node: &Node, form: Form, lines: Lines) -> String {
    let mut writer = Writer { out: String::new(), form, lines };
    writer.node(node);
    writer.out
}

struct Writer {
    out: String,
    form: Form,
    lines: Lines,
}

impl Writer {
    fn push(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn literal(&mut self, c: char) {
        match c {
            '\n' => self.push(r"\n"),
            c if c.is_alphanumeric() || "_ \"'<>/,;:=@%!`".contains(c) => self.out.push(c),
            c if c.is_ascii_punctuation() => {
                self.out.push('\\');
                self.out.push(c);
            }
            c => {
                let _ = write!(self.out, r"\x{{{:x}}}", u32::from(c));
            }
        }
    }

    fn class(&mut self, negated: bool, items: &[Item]) {
        self.push(if negated { "[^" } else { "[" });
        for item in items {
            match item {
                Item::Perl(c) => {
                    self.out.push('\\');
                    self.out.push(*c);
                }
                Item::Range(low, high) if low == high => self.class_char(*low),
                Item::Range(low, high) => {
                    self.class_char(*low);
                    self.push("-");
                    self.class_char(*high);
                }
            }
        }
        self.push("]");
    }

    fn class_char(&mut self, c: char) {
        if c.is_ascii_alphanumeric() {
            self.out.push(c);
        } else {
            let _ = write!(self.out, r"\x{{{:x}}}", u32::from(c));
        }
    }

    fn node(&mut self, node: &Node) {
        match node {
            Node::Empty => {}
            Node::Literal(c) => self.literal(*c),
            Node::Any => self.push("."),
            Node::Class { negated, items } => self.class(*negated, items),
            Node::Perl(c) => {
                self.out.push('\\');
                self.out.push(*c);
            }
            Node::Start => self.push(if self.lines == Lines::Each { "(?m:^)" } else { r"\A" }),
            Node::End => self.push(if self.lines == Lines::WholeText { r"(?:\n?\z)" } else { "(?m:$)" }),
            Node::TextStart => self.push(r"\A"),
            Node::TextEnd => self.push(r"\z"),
            Node::Boundary => self.push(r"\b"),
            Node::NoBoundary => self.push(r"\B"),
            Node::WordEdge if self.form == Form::Backtracking => self.push(r"(?:\b|(?!\w))"),
            Node::WordEdge => self.push(r"(?:\b{start-half}|\b{end-half})"),
            Node::Capture { name, node } => self.capture(name.as_deref(), node),
            Node::Flags { on, off, node } => {
                // Here `m` is settled by `lines` alone.
                let (on, off) = (on.replace('m', ""), off.replace('m', ""));
                let minus = if off.is_empty() { "" } else { "-" };
                let _ = write!(self.out, "(?{on}{minus}{off}:");
                self.node(node);
                self.push(")");
            }
            Node::Concat(nodes) => {
                for node in nodes {
                    self.operand(node, false);
                }
            }
            Node::Alternate(nodes) => {
                for (i, node) in nodes.iter().enumerate() {
                    if i > 0 {
                        self.push("|");
                    }
                    self.node(node);
                }
            }
            Node::Repeat { node, min, max, greed } => self.repeat(node, *min, *max, *greed),
            Node::Look { .. } if self.form == Form::Superset => {}
            Node::Look { ahead, negative, node } => {
                self.push(match (ahead, negative) {
                    (true, false) => "(?=",
                    (true, true) => "(?!",
                    (false, false) => "(?<=",
                    (false, true) => "(?<!",
                });
                self.node(node);
                self.push(")");
            }
            Node::Backreference(_) if self.form == Form::Superset => self.push(r"[\s\S]*"),
            Node::Backreference(Reference::Name(name)) => {
                let _ = write!(self.out, "(?P={name})");
            }
            Node::Backreference(Reference::Number(number)) => {
                let _ = write!(self.out, r"(?:\{number})");
            }
            Node::Conditional { group, yes, no } => self.conditional(group, yes, no),
        }
    }

    fn capture(&mut self, name: Option<&str>, node: &Node) {
        match name {
            _ if self.form == Form::Superset => self.push("(?:"),
            Some(name) => {
                let _ = write!(self.out, "(?P<{name}>");
            }
            None => self.push("("),
        }
        self.node(node);
        self.push(")");
    }

    fn conditional(&mut self, group: &Reference, yes: &Node, no: &Node) {
        match group {
            _ if self.form == Form::Superset => self.push("(?:"),
            Reference::Name(name) => {
                let _ = write!(self.out, "(?(<{name}>)");
            }
            Reference::Number(number) => {
                let _ = write!(self.out, "(?({number})");
            }
        }
        self.operand(yes, false);
        self.push("|");
        self.operand(no, false);
        self.push(")");
    }

    /// Brackets where something binds closer than what is inside.
    fn operand(&mut self, node: &Node, repeated: bool) {
        let brackets = match node {
            Node::Alternate(_) => true,
            Node::Concat(_) | Node::Repeat { .. } | Node::Empty => repeated,
            Node::Look { .. } => repeated,
            _ => false,
        };
        if brackets {
            self.push("(?:");
        }
        self.node(node);
        if brackets {
            self.push(")");
        }
    }

    fn repeat(&mut self, node: &Node, min: u32, max: Option<u32>, greed: Greed) {
        self.operand(node, true);
        match (min, max) {
            (0, None) => self.push("*"),
            (1, None) => self.push("+"),
            (0, Some(1)) => self.push("?"),
            (min, None) => {
                let _ = write!(self.out, "{{{min},}}");
            }
            (min, Some(max)) => {
                let _ = write!(self.out, "{{{min},{max}}}");
            }
        }
        match greed {
            Greed::Lazy => self.push("?"),
            Greed::Possessive if self.form == Form::Backtracking => self.push("+"),
            Greed::Possessive | Greed::Greedy => {}
        }
    }
}
