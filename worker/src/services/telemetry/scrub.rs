//! A statement's text without anything that could be a secret. Pure.
//!
//! pg_stat_statements is no redaction: it replaces literals of plannable
//! statements only, and keeps comments and the password of an ALTER ROLE as they
//! were typed. So every literal and comment goes here, whatever Postgres did, and
//! of statements that are not plainly about data only the first two words stay.

use sha2::{Digest as _, Sha256};

use super::lexer::lexed;

/// Longest text that is stored, bytes.
const TEXT_MAX: usize = 2000;
/// Statements whose shape may be shown.
const SHOWN: &[&str] = &[
    "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "CALL", "VALUES", "REFRESH", "VACUUM", "ANALYZE",
];

/// The text as it may be stored: one line, comments gone, literals `?`, lists of
/// them `(…)`.
#[must_use]
pub fn scrub(sql: &str) -> String {
    let words = lexed(sql);
    let first = words.first().map(|word| word.to_ascii_uppercase()).unwrap_or_default();
    let text = if SHOWN.contains(&first.as_str()) || words.is_empty() {
        joined(&lists_shortened(words))
    } else {
        // A word that is quoted or a literal may hold anything.
        let plain = |word: &&String| word.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
        let kept: Vec<String> = words.iter().take(2).take_while(plain).cloned().collect();
        format!("{} …", kept.join(" "))
    };
    cut(text.trim().to_owned())
}

/// Names a statement over upgrades, users and lengths of lists.
#[must_use]
pub fn query_hash(database: &str, scrubbed: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(database.as_bytes());
    hash.update([0]);
    hash.update(scrubbed.as_bytes());
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX - '…'.len_utf8()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

fn is_value(token: &str) -> bool {
    token == "?" || (token.len() > 1 && token.starts_with('$'))
}

/// `( ? , ? , ? )` becomes `(…)`, and a row of such lists one of them.
fn lists_shortened(tokens: Vec<String>) -> Vec<String> {
    let mut short: Vec<String> = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        match list_end(&tokens, at) {
            Some(end) => {
                // VALUES (…), (…): how many rows there were names no other statement.
                if short.ends_with(&["(…)".to_owned(), ",".to_owned()]) {
                    short.pop();
                } else {
                    short.push("(…)".to_owned());
                }
                at = end;
            }
            None => {
                short.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    short
}

fn list_end(tokens: &[String], start: usize) -> Option<usize> {
    if tokens.get(start)? != "(" {
        return None;
    }
    let mut at = start + 1;
    loop {
        if !is_value(tokens.get(at)?) {
            return None;
        }
        match tokens.get(at + 1)?.as_str() {
            ")" => return Some(at + 2),
            "," => at += 2,
            _ => return None,
        }
    }
}

/// Tokens as one line, with the blanks that make it readable.
fn joined(tokens: &[String]) -> String {
    let mut text = String::new();
    let mut before = "";
    for token in tokens {
        let tight_before = matches!(token.as_str(), "," | ")" | ";" | "." | "]" | ":" | "(" | "[" | "(…)");
        let tight_after = matches!(before, "" | "(" | "." | "[" | ":");
        let operators = !before.is_empty() && is_operator(before) && is_operator(token);
        let opens = matches!(token.as_str(), "(" | "(…)") && is_keyword(before);
        if !(tight_after || operators || (tight_before && !opens)) {
            text.push(' ');
        }
        text.push_str(token);
        before = token;
    }
    text
}

fn is_operator(token: &str) -> bool {
    token.chars().all(|c| "+-*/<>=~!@#%^&|`?".contains(c)) && token != "?"
}

/// Words after which a parenthesis is no call.
fn is_keyword(word: &str) -> bool {
    const WORDS: &[&str] =
        &["SELECT", "IN", "VALUES", "AND", "OR", "NOT", "AS", "FROM", "WHERE", "ON", "EXISTS", "BY"];
    WORDS.iter().any(|keyword| keyword.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_keep_their_shape_and_lose_their_values() {
        for (sql, scrubbed) in [
            ("SELECT  *\nFROM t WHERE a = $1 -- token=abc", "SELECT * FROM t WHERE a = $1"),
            ("select 1, 'x''y', 1.5e-3, .5, 0x1F, 1_000 from t", "select ?, ?, ?, ?, ?, ? from t"),
            ("SELECT /* a /* nested */ secret */ x", "SELECT x"),
            ("SELECT a FROM t WHERE b IN ($1,$2, $3)", "SELECT a FROM t WHERE b IN (…)"),
            ("INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4)", "INSERT INTO t(a, b) VALUES (…)"),
            (r"SELECT E'a\'b', U&'\0041', B'01', X'ff', N'n' , e''", "SELECT ?, ?, ?, ?, ?, ?"),
            ("SELECT $$geheim$$, $tag$ge$$heim$tag$, a$b", "SELECT ?, ?, a$b"),
            (
                r#"SELECT "Quoted ""x""", t.c1::text FROM "s"."t""#,
                r#"SELECT "Quoted ""x""", t.c1::text FROM "s"."t""#,
            ),
            ("SELECT a->>'k' FROM t WHERE b<=5 AND c<>'x'", "SELECT a ->> ? FROM t WHERE b <= ? AND c <> ?"),
            ("SELECT count(*) FROM t", "SELECT count(*) FROM t"),
            ("SELECT 'never ends", "SELECT ?"),
            ("SELECT $x$never ends $y$", "SELECT ?"),
            ("SELECT a, /* never ends", "SELECT a,"),
            (r"SELECT 'a\', secret, 'b'", "SELECT ? ?"),
            ("", ""),
        ] {
            assert_eq!(scrub(sql), scrubbed, "{sql}");
        }
    }

    #[test]
    fn of_other_statements_only_two_words_stay() {
        for (sql, scrubbed) in [
            ("alter role app password 'hunter2'", "alter role …"),
            ("copy (select email from users where email='z@ex.com') to stdout", "copy …"),
            ("do $$ begin x('insidedo@ex.com'); end $$", "do …"),
            ("set application_name='x'", "set application_name …"),
            ("CREATE USER \"o'neil\" PASSWORD 'p'", "CREATE USER …"),
            ("EXPLAIN SELECT 1", "EXPLAIN SELECT …"),
            ("'x' SELECT", "…"),
        ] {
            assert_eq!(scrub(sql), scrubbed, "{sql}");
        }
    }

    #[test]
    fn no_literal_planted_anywhere_survives() {
        const SECRET: &str = "hunter2";
        let wraps: [fn(&str) -> String; 8] = [
            |s| format!("'{s}'"),
            |s| format!("E'x\\'{s}'"),
            |s| format!("$${s}$$"),
            |s| format!("$a${s}$a$"),
            |s| format!("/* {s} */"),
            |s| format!("-- {s}\n"),
            |s| format!("'it''s {s}'"),
            |s| format!("U&'{s}'"),
        ];
        let frames = [
            "SELECT a, @ FROM t WHERE b = @",
            "UPDATE t SET a=@ WHERE b IN (@, @)",
            "WITH x AS (SELECT @) INSERT INTO t VALUES (@,@)",
            "ALTER ROLE x PASSWORD @",
            "@ SELECT @ @",
        ];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let frame = frames[random.usize(..frames.len())];
            let sql: String = frame
                .chars()
                .map(|c| if c == '@' { wraps[random.usize(..wraps.len())](SECRET) } else { c.to_string() })
                .collect();
            let found = scrub(&sql);
            assert!(!found.contains(SECRET), "{sql}\n{found}");
            // Cut anywhere, as pg_stat_statements and track_activity_query_size may.
            let end = random.usize(..sql.len());
            let part = String::from_utf8_lossy(&sql.as_bytes()[..end]);
            assert!(!scrub(&part).contains(SECRET), "{part}");
        }
    }

    #[test]
    fn long_texts_are_cut_and_nul_is_gone() {
        let found = scrub(&format!("SELECT {}", "ä, ".repeat(400_000)));
        assert!(found.len() <= TEXT_MAX && found.ends_with('…'));
        assert!(!scrub("SELECT a\0b").contains('\0'));
    }

    #[test]
    fn variants_of_a_statement_have_one_hash() {
        let hash = |sql: &str| query_hash("mpanel", &scrub(sql));
        assert_eq!(hash("SELECT a FROM t WHERE b IN ($1,$2)"), hash("SELECT a FROM t WHERE b IN ($1,$2,$3)"));
        assert_ne!(hash("SELECT a FROM t"), query_hash("other", "SELECT a FROM t"));
        assert_eq!(hash("SELECT 1").len(), 32);
    }
}
