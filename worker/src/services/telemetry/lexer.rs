//! Postgres's SQL as tokens, for [`super::scrub`]: as much of its lexical rules as
//! decides where literals and comments begin and end. Pure.

/// The statement's tokens, comments left out and literals replaced by `?`. What
/// follows an unterminated literal is cut off: it may be part of one.
pub(super) fn lexed(sql: &str) -> Vec<String> {
    let chars: Vec<char> = sql.chars().filter(|c| *c != '\0').collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(c) = chars.get(at).copied() {
        let next = chars.get(at + 1).copied();
        at = match c {
            _ if c.is_whitespace() => at + 1,
            '-' if next == Some('-') => line_end(&chars, at),
            '/' if next == Some('*') => match comment_end(&chars, at) {
                Some(end) => end,
                None => return tokens,
            },
            '\'' => match literal(&chars, at, false, &mut tokens) {
                Some(end) => end,
                None => return tokens,
            },
            '"' => match quoted_end(&chars, at, '"', false) {
                Some(end) => {
                    tokens.push(chars[at..end].iter().collect());
                    end
                }
                None => return tokens,
            },
            '$' => match dollar(&chars, at, &mut tokens) {
                Some(end) => end,
                None => return tokens,
            },
            _ if c.is_ascii_digit() || (c == '.' && next.is_some_and(|n| n.is_ascii_digit())) => {
                tokens.push("?".to_owned());
                number_end(&chars, at)
            }
            _ if is_word(c) => {
                let end = (at..chars.len())
                    .find(|i| !is_word(chars[*i]) && chars[*i] != '$')
                    .unwrap_or(chars.len());
                let word: String = chars[at..end].iter().collect();
                match prefix_of_literal(&word, &chars, end) {
                    Some((quote, escapes)) => match literal(&chars, quote, escapes, &mut tokens) {
                        Some(end) => end,
                        None => return tokens,
                    },
                    None => {
                        tokens.push(word);
                        end
                    }
                }
            }
            _ => {
                tokens.push(c.to_string());
                at + 1
            }
        };
    }
    tokens
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric() || !c.is_ascii()
}

/// `E'…'`, `B'…'`, `X'…'`, `N'…'`, `U&'…'`: where the quote is, and whether
/// backslashes escape.
fn prefix_of_literal(word: &str, chars: &[char], end: usize) -> Option<(usize, bool)> {
    let at = |offset: usize| chars.get(end + offset).copied();
    match (word, at(0), at(1)) {
        ("E" | "e", Some('\''), _) => Some((end, true)),
        ("B" | "b" | "X" | "x" | "N" | "n", Some('\''), _) => Some((end, false)),
        ("U" | "u", Some('&'), Some('\'')) => Some((end + 1, false)),
        _ => None,
    }
}

/// Takes a literal for `?`; one that follows another directly is its continuation.
fn literal(chars: &[char], quote: usize, escapes: bool, tokens: &mut Vec<String>) -> Option<usize> {
    tokens.push("?".to_owned());
    // Where backslashes may escape although they should not (an old setting), the
    // longer reading is the safe one.
    let plain = quoted_end(chars, quote, '\'', escapes)?;
    if escapes || !chars[quote..plain].contains(&'\\') {
        return Some(plain);
    }
    quoted_end(chars, quote, '\'', true).map(|escaped| escaped.max(plain))
}

/// Behind the closing quote; a doubled one is part of the text.
fn quoted_end(chars: &[char], start: usize, quote: char, escapes: bool) -> Option<usize> {
    let mut at = start + 1;
    while let Some(c) = chars.get(at) {
        if escapes && *c == '\\' {
            at += 2;
        } else if *c == quote {
            if chars.get(at + 1) != Some(&quote) {
                return Some(at + 1);
            }
            at += 2;
        } else {
            at += 1;
        }
    }
    None
}

/// A parameter `$1`, or a literal between dollar quotes.
fn dollar(chars: &[char], start: usize, tokens: &mut Vec<String>) -> Option<usize> {
    let tag_end = (start + 1..chars.len()).find(|i| !is_word(chars[*i])).unwrap_or(chars.len());
    let tag = &chars[start + 1..tag_end];
    if !tag.is_empty() && tag.iter().all(char::is_ascii_digit) {
        tokens.push(chars[start..tag_end].iter().collect());
        return Some(tag_end);
    }
    if chars.get(tag_end) != Some(&'$') || tag.first().is_some_and(char::is_ascii_digit) {
        tokens.push("$".to_owned());
        return Some(start + 1);
    }
    tokens.push("?".to_owned());
    let delimiter = &chars[start..=tag_end];
    let body = tag_end + 1;
    let close = chars.get(body..)?.windows(delimiter.len()).position(|window| window == delimiter)?;
    Some(body + close + delimiter.len())
}

fn number_end(chars: &[char], start: usize) -> usize {
    let mut at = start;
    while let Some(c) = chars.get(at) {
        let sign = matches!(c, '+' | '-') && matches!(chars[at - 1], 'e' | 'E') && at > start;
        if !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_') || sign) {
            break;
        }
        at += 1;
    }
    at
}

fn line_end(chars: &[char], start: usize) -> usize {
    (start..chars.len()).find(|i| matches!(chars[*i], '\n' | '\r')).unwrap_or(chars.len())
}

/// Comments nest in Postgres.
fn comment_end(chars: &[char], start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = start;
    loop {
        match (chars.get(at)?, chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => at += 1,
        }
    }
}
