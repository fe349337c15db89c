//! From the text of a Python expression to its parts.

use super::ast::{Greed, Item, Node, Reference};

/// Groups within groups within groups; deeper is refused, so that no rule file exhausts the stack.
const MAX_DEPTH: usize = 120;

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at character {at}")]
pub struct ParseError {
    /// What is wrong.
    pub what: String,
    /// Where, in characters from the beginning.
    pub at: usize,
}

/// Parses an expression.
///
/// # Errors
/// What Python would refuse too, and inline verbose mode (`(?x)`).
pub(crate) fn parse(text: &str) -> Result<Node, ParseError> {
    let mut parser = Parser { chars: text.chars().collect(), at: 0, depth: 0 };
    let node = parser.alternation()?;
    if parser.peek().is_some() {
        return Err(parser.error("a closing bracket without an opening one"));
    }
    Ok(node)
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    fn eat(&mut self, text: &str) -> bool {
        let wanted = text.chars();
        let fits = wanted.clone().enumerate().all(|(i, c)| self.chars.get(self.at + i) == Some(&c));
        if fits {
            self.at += wanted.count();
        }
        fits
    }

    fn error(&self, what: impl Into<String>) -> ParseError {
        ParseError { what: what.into(), at: self.at }
    }

    fn until(&mut self, end: char) -> Result<String, ParseError> {
        let mut text = String::new();
        loop {
            match self.next() {
                Some(c) if c == end => return Ok(text),
                Some(c) => text.push(c),
                None => return Err(self.error(format!("`{end}` is missing"))),
            }
        }
    }

    fn alternation(&mut self) -> Result<Node, ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("groups are nested too deep"));
        }
        let mut branches = vec![self.sequence()?];
        while self.eat("|") {
            branches.push(self.sequence()?);
        }
        self.depth -= 1;
        Ok(if branches.len() == 1 { branches.remove(0) } else { Node::Alternate(branches) })
    }

    fn sequence(&mut self) -> Result<Node, ParseError> {
        let mut nodes = Vec::new();
        while let Some(c) = self.peek() {
            if c == '|' || c == ')' {
                break;
            }
            if let Some(flags) = self.bare_flags()? {
                // From here to the end of the group, alternatives included.
                let rest = self.alternation()?;
                nodes.push(Node::Flags { on: flags, off: String::new(), node: Box::new(rest) });
                break;
            }
            let atom = self.atom()?;
            let node = self.repeat(atom)?;
            nodes.push(node);
        }
        Ok(match nodes.len() {
            0 => Node::Empty,
            1 => nodes.remove(0),
            _ => Node::Concat(nodes),
        })
    }

    /// `(?i)` without an expression of its own.
    fn bare_flags(&mut self) -> Result<Option<String>, ParseError> {
        let start = self.at;
        if !self.eat("(?") {
            return Ok(None);
        }
        let mut flags = String::new();
        while let Some(c) = self.peek().filter(char::is_ascii_lowercase) {
            flags.push(c);
            self.at += 1;
        }
        if flags.is_empty() || !self.eat(")") {
            self.at = start;
            return Ok(None);
        }
        self.known_flags(&flags).map(Some)
    }

    fn known_flags(&self, flags: &str) -> Result<String, ParseError> {
        if let Some(unknown) = flags.chars().find(|c| !"imsuaL".contains(*c)) {
            return Err(self.error(format!("the flag `{unknown}` is not supported")));
        }
        Ok(flags.chars().filter(|c| "ims".contains(*c)).collect())
    }

    fn atom(&mut self) -> Result<Node, ParseError> {
        match self.next() {
            Some('(') => self.group(),
            Some('[') => self.class(),
            Some('.') => Ok(Node::Any),
            Some('^') => Ok(Node::Start),
            Some('$') => Ok(Node::End),
            Some('\\') => self.escape(),
            Some('*' | '+' | '?') => Err(self.error("nothing to repeat")),
            Some(c) => Ok(Node::Literal(c)),
            None => Err(self.error("the expression ends too early")),
        }
    }

    fn group(&mut self) -> Result<Node, ParseError> {
        let node = if self.eat("?:") {
            self.alternation()?
        } else if self.eat("?=") {
            self.look(true, false)?
        } else if self.eat("?!") {
            self.look(true, true)?
        } else if self.eat("?<=") {
            self.look(false, false)?
        } else if self.eat("?<!") {
            self.look(false, true)?
        } else if self.eat("?#") {
            self.until(')')?;
            return Ok(Node::Empty);
        } else if self.eat("?P=") {
            let name = self.until(')')?;
            return Ok(Node::Backreference(Reference::Name(name)));
        } else if self.eat("?P<") {
            let name = self.until('>')?;
            if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
                return Err(self.error(format!("`{name}` is no name for a group")));
            }
            Node::Capture { name: Some(name), node: Box::new(self.alternation()?) }
        } else if self.eat("?(") {
            self.conditional()?
        } else if self.eat("?>") {
            return Err(self.error("atomic groups are not supported"));
        } else if self.eat("?") {
            self.scoped_flags()?
        } else {
            Node::Capture { name: None, node: Box::new(self.alternation()?) }
        };
        if self.eat(")") { Ok(node) } else { Err(self.error("`)` is missing")) }
    }

    fn look(&mut self, ahead: bool, negative: bool) -> Result<Node, ParseError> {
        Ok(Node::Look { ahead, negative, node: Box::new(self.alternation()?) })
    }

    fn conditional(&mut self) -> Result<Node, ParseError> {
        let name = self.until(')')?;
        let group = name.parse().map_or(Reference::Name(name), Reference::Number);
        let yes = Box::new(self.sequence()?);
        let no = Box::new(if self.eat("|") { self.sequence()? } else { Node::Empty });
        Ok(Node::Conditional { group, yes, no })
    }

    fn scoped_flags(&mut self) -> Result<Node, ParseError> {
        let flags = self.until(':')?;
        let (on, off) = flags.split_once('-').unwrap_or((&flags, ""));
        let (on, off) = (self.known_flags(on)?, self.known_flags(off)?);
        Ok(Node::Flags { on, off, node: Box::new(self.alternation()?) })
    }

    fn repeat(&mut self, mut node: Node) -> Result<Node, ParseError> {
        let mut repeated = false;
        loop {
            let start = self.at;
            let (min, max) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => match self.counts()? {
                    Some(counts) => counts,
                    None => return Ok(node),
                },
                _ => return Ok(node),
            };
            if repeated {
                return Err(self.error("a repetition of a repetition"));
            }
            if self.at == start {
                self.at += 1;
            }
            let greed = match self.peek() {
                Some('?') => Greed::Lazy,
                Some('+') => Greed::Possessive,
                _ => Greed::Greedy,
            };
            self.at += usize::from(greed != Greed::Greedy);
            node = Node::Repeat { node: Box::new(node), min, max, greed };
            repeated = true;
        }
    }

    /// `{2,5}`; a brace that does not look like it stands for itself.
    fn counts(&mut self) -> Result<Option<(u32, Option<u32>)>, ParseError> {
        let rest = &self.chars[self.at + 1..];
        let Some(length) = rest.iter().position(|c| *c == '}') else { return Ok(None) };
        let text: String = rest[..length].iter().collect();
        let (low, high) = match text.split_once(',') {
            Some((low, high)) => (low, Some(high)),
            None => (text.as_str(), None),
        };
        let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
        if text.is_empty() || text == "," || !digits(low) || !high.is_none_or(digits) {
            return Ok(None);
        }
        let number = |text: &str| text.parse::<u32>().map_err(|_| self.error("a count that is too large"));
        let min = if low.is_empty() { 0 } else { number(low)? };
        let max = match high {
            None => Some(min),
            Some("") => None,
            Some(high) => Some(number(high)?),
        };
        if max.is_some_and(|max| max < min) {
            return Err(self.error("the larger count comes first"));
        }
        self.at += length + 2;
        Ok(Some((min, max)))
    }

    fn escape(&mut self) -> Result<Node, ParseError> {
        let Some(c) = self.next() else { return Err(self.error("a backslash at the end")) };
        Ok(match c {
            'A' => Node::TextStart,
            'Z' => Node::TextEnd,
            'b' => Node::Boundary,
            'B' => Node::NoBoundary,
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => Node::Perl(c),
            '1'..='9' => {
                let mut number = c.to_digit(10).unwrap_or_default();
                if let Some(second) = self.peek().and_then(|c| c.to_digit(10)) {
                    number = number * 10 + second;
                    self.at += 1;
                }
                Node::Backreference(Reference::Number(number))
            }
            _ => Node::Literal(self.escaped_char(c)?),
        })
    }

    /// What stands for one character, in a class and outside.
    fn escaped_char(&mut self, c: char) -> Result<char, ParseError> {
        Ok(match c {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'f' => '\x0c',
            'v' => '\x0b',
            'a' => '\x07',
            '0' => {
                let mut value = 0;
                for _ in 0..2 {
                    let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else { break };
                    value = value * 8 + digit;
                    self.at += 1;
                }
                char::from_u32(value).unwrap_or('\0')
            }
            'x' => self.hex(2)?,
            'u' => self.hex(4)?,
            'U' => self.hex(8)?,
            c if c.is_ascii_alphanumeric() => return Err(self.error(format!("`\\{c}` has no meaning"))),
            c => c,
        })
    }

    fn hex(&mut self, digits: usize) -> Result<char, ParseError> {
        let text: String = (0..digits).filter_map(|_| self.next()).collect();
        let value = u32::from_str_radix(&text, 16).ok().filter(|_| text.len() == digits);
        value.and_then(char::from_u32).ok_or_else(|| self.error(format!("`{text}` is no character")))
    }

    fn class(&mut self) -> Result<Node, ParseError> {
        let negated = self.eat("^");
        let mut items = Vec::new();
        let mut first = true;
        loop {
            let Some(c) = self.next() else { return Err(self.error("`]` is missing")) };
            if c == ']' && !first {
                return Ok(Node::Class { negated, items });
            }
            first = false;
            let low = match self.class_char(c)? {
                Item::Range(low, _) => low,
                perl => {
                    items.push(perl);
                    continue;
                }
            };
            let ranged = self.peek() == Some('-') && self.chars.get(self.at + 1).is_some_and(|c| *c != ']');
            if !ranged {
                items.push(Item::Range(low, low));
                continue;
            }
            self.at += 1;
            let Some(end) = self.next() else { return Err(self.error("`]` is missing")) };
            match self.class_char(end)? {
                Item::Range(high, _) if high >= low => items.push(Item::Range(low, high)),
                _ => return Err(self.error("a range that goes backwards")),
            }
        }
    }

    fn class_char(&mut self, c: char) -> Result<Item, ParseError> {
        if c != '\\' {
            return Ok(Item::Range(c, c));
        }
        Ok(match self.next() {
            Some(c @ ('d' | 'D' | 's' | 'S' | 'w' | 'W')) => Item::Perl(c),
            Some('b') => Item::Range('\x08', '\x08'),
            Some(c) => {
                let c = self.escaped_char(c)?;
                Item::Range(c, c)
            }
            None => return Err(self.error("a backslash at the end")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_refuses_is_refused_with_its_place() {
        for text in ["(", ")", "a)", "[a", "*a", "a**", "a{3,2}", r"\", r"\q", "(?P<1 >a)", "[z-a]", "(?x)a"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"(".repeat(100_000)).is_err(), "no stack is exhausted");
    }

    #[test]
    fn a_brace_that_counts_nothing_stands_for_itself() {
        let Ok(Node::Concat(nodes)) = parse("a{x}") else { panic!("a sequence") };
        assert_eq!(nodes.get(1), Some(&Node::Literal('{')));
        let Ok(Node::Repeat { min: 0, max: Some(3), .. }) = parse("a{,3}") else { panic!("a repetition") };
    }

    #[test]
    fn flags_without_an_expression_hold_to_the_end_of_their_group() {
        let Ok(Node::Concat(nodes)) = parse("x((?i)a|b)c") else { panic!("a sequence") };
        let Node::Capture { node, .. } = &nodes[1] else { panic!("a group") };
        assert!(matches!(&**node, Node::Flags { on, node, .. }
            if on == "i" && matches!(&**node, Node::Alternate(branches) if branches.len() == 2)));
    }
}
