//! The head of a syslog line: when, which program, and where its message
//! begins. Read from the front byte by byte: what a client sends comes later
//! in the line and cannot pass for it.

/// A line's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header<'l> {
    /// When, as it stands there.
    pub(super) time: &'l [u8],
    /// The program, such as `sshd` or `postfix/smtpd`.
    pub(super) program: &'l [u8],
    /// Its process number, empty when there is none.
    pub(super) pid: &'l [u8],
    /// What it says.
    pub(super) message: &'l [u8],
}

fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr(b' ', text).unwrap_or(text.len());
    (&text[..end], text[end..].trim_ascii_start())
}

/// `Jan  2 03:04:05`: its length.
fn bsd_time(text: &[u8]) -> Option<usize> {
    let month = text.get(..3)?;
    if !month.iter().all(u8::is_ascii_alphabetic) || text.get(3) != Some(&b' ') {
        return None;
    }
    // One or two digits, with or without a space for the missing one.
    let day = &text[4..];
    let spaces = day.iter().take_while(|byte| **byte == b' ').count();
    let digits = day.get(spaces..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let clock = 4 + spaces + digits + 1;
    let hms = text.get(clock..clock + 8)?;
    let fits = hms
        .iter()
        .enumerate()
        .all(|(at, byte)| if at == 2 || at == 5 { *byte == b':' } else { byte.is_ascii_digit() });
    (spaces <= 1 && (1..=2).contains(&digits) && fits).then_some(clock + 8)
}

/// Splits a line of traditional syslog, of ISO times, or of RFC 5424.
pub(super) fn syslog(line: &[u8]) -> Option<Header<'_>> {
    let mut rest = line;
    let mut rfc5424 = false;
    if let Some(after) = line.strip_prefix(b"<") {
        let close = after.iter().take(5).position(|byte| *byte == b'>')?;
        rest = &after[close + 1..];
        if let Some(after) = rest.strip_prefix(b"1 ") {
            (rest, rfc5424) = (after, true);
        }
    }
    let length = match bsd_time(rest) {
        Some(length) => length,
        None if rest.first() == Some(&b'@') => word(rest).0.len(),
        None if rest.first().is_some_and(u8::is_ascii_digit) => {
            // `2026-01-31 12:00:00` has a space inside.
            let date = word(rest).0.len();
            let hours = rest.get(date + 1..).is_some_and(|rest| rest.get(2) == Some(&b':'));
            if date == 10 && hours { date + 1 + word(&rest[date + 1..]).0.len() } else { date }
        }
        None => return None,
    };
    let (time, after) = rest.split_at(length);
    let after = after.trim_ascii_start();
    if rfc5424 {
        return structured(time, after);
    }
    // The host may be missing: then the first word already ends in a colon.
    let (first, following) = word(after);
    if let Some(program) = first.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]")) {
        return Some(Header { time, program, pid: b"", message: following });
    }
    let tag_at = if first.ends_with(b":") { after } else { following };
    let (tag, message) = tag(tag_at)?;
    // Solaris puts a number before each message.
    let message =
        match message.strip_prefix(b"[ID ").and_then(|rest| Some((rest, memchr::memchr(b']', rest)?))) {
            Some((rest, end)) => rest[end + 1..].trim_ascii_start(),
            None => message,
        };
    let (program, pid) = program(tag);
    Some(Header { time, program, pid, message })
}

/// `sshd[12]: message`
fn tag(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr2(b':', b' ', text)?;
    (text[end] == b':')
        .then(|| (&text[..end], text[end + 1..].strip_prefix(b" ").unwrap_or(&text[end + 1..])))
}

fn program(tag: &[u8]) -> (&[u8], &[u8]) {
    if let Some(name) = tag.strip_prefix(b"[") {
        return (name.strip_suffix(b"]").unwrap_or(name), b"");
    }
    match memchr::memchr(b'[', tag) {
        Some(at) => (&tag[..at], tag[at + 1..].strip_suffix(b"]").unwrap_or(&tag[at + 1..])),
        None => (tag, b""),
    }
}

/// `host program pid msgid [data] message`
fn structured<'l>(time: &'l [u8], rest: &'l [u8]) -> Option<Header<'l>> {
    let (_host, rest) = word(rest);
    let (program, rest) = word(rest);
    let (pid, rest) = word(rest);
    let (_id, mut rest) = word(rest);
    if let Some(after) = rest.strip_prefix(b"-") {
        return Some(Header { time, program, pid, message: after.trim_ascii_start() });
    }
    while rest.first() == Some(&b'[') {
        let mut quoted = false;
        let mut escaped = false;
        let end = rest.iter().position(|byte| {
            let ends = *byte == b']' && !quoted;
            quoted ^= *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            ends
        })?;
        rest = &rest[end + 1..];
    }
    Some(Header { time, program, pid, message: rest.trim_ascii_start() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_all_kinds_are_split() {
        for (line, program, pid, message) in [
            ("Jan  2 03:04:05 host sshd[12]: hi: x", "sshd", "12", "hi: x"),
            ("Mar 7 02:09:33 h postfix/smtpd[2]: a", "postfix/smtpd", "2", "a"),
            ("Nov 23 21:50:19 sshd[8148]: b", "sshd", "8148", "b"),
            ("2015-04-16T18:02:50.3+00:00 host dovecot: c", "dovecot", "", "c"),
            ("<38>1 2019-07-08T17:40:16-04:00 h sshd 5 - [a b=\"]\"][c] d", "sshd", "5", "d"),
            ("Mar  3 00:17:22 [sshd]: e", "sshd", "", "e"),
            ("Mar  3 00:17:22 [sshd] f", "sshd", "", "f"),
            ("Mar  3 00:17:22 h sshd[7]: [ID 800047 auth.info] g", "sshd", "7", "g"),
            ("2013-08-11 03:56:40 auth-worker(default): h", "auth-worker(default)", "", "h"),
            ("<38>1 2019-07-08T17:40:16-04:00 h sshd 5 - - d", "sshd", "5", "d"),
        ] {
            let header = syslog(line.as_bytes()).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(header.program, program.as_bytes(), "{line}");
            assert_eq!((header.pid, header.message), (pid.as_bytes(), message.as_bytes()), "{line}");
        }
        for line in
            ["", "x", "Jan", "<38", "Jan  2 03:04:05", "Jan  2 03:04:05 host", "\u{e9}\u{e9}\u{e9} x: y"]
        {
            assert!(syslog(line.as_bytes()).is_none(), "{line}");
        }
    }
}
