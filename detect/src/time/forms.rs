//! The forms of dates that are tried where a filter names none, in this
//! order, and what the directives in a form stand for. Written as fail2ban's
//! `datepattern` is.

/// What a directive matches; groups are called by its letter.
pub(super) fn directive(name: &str) -> Option<&'static str> {
    Some(match name {
        "a" => "(?P<a>mon|tue|wed|thu|fri|sat|sun)",
        "A" => "(?P<A>monday|tuesday|wednesday|thursday|friday|saturday|sunday)",
        "b" => "(?P<b>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)",
        "B" => "(?P<B>january|february|march|april|may|june|july|august|september|october|november|december)",
        "d" => "(?P<d>[1-2][0-9]|[0 ]?[1-9]|3[0-1])",
        "f" => "(?P<f>[0-9]{1,6})",
        "G" => "(?P<G>[0-9]{4})",
        "H" => "(?P<H>[0-1]?[0-9]|2[0-3])",
        "I" => "(?P<I>1[0-2]|0[1-9]|[1-9])",
        "j" => "(?P<j>36[0-6]|3[0-5][0-9]|[1-2][0-9]{2}|0[1-9][0-9]|00[1-9]|[1-9][0-9]|0[1-9]|[1-9])",
        "k" => " ?(?P<H>[0-2]?[0-9])",
        "l" => " ?(?P<I>1?[0-9])",
        "m" => "(?P<m>0?[1-9]|1[0-2])",
        "M" => "(?P<M>[0-5]?[0-9])",
        "p" => "(?P<p>am|pm)",
        "S" => "(?P<S>[0-5]?[0-9]|6[0-1])",
        "u" => "(?P<u>[1-7])",
        "U" => "(?P<U>5[0-3]|[0-4][0-9]|[0-9])",
        "V" => "(?P<V>5[0-3]|0[1-9]|[1-4][0-9]|[0-9])",
        "w" => "(?P<w>[0-6])",
        "W" => "(?P<W>5[0-3]|[0-4][0-9]|[0-9])",
        "y" | "Exy" => "(?P<y>[0-9]{2})",
        "Y" => "(?P<Y>[0-9]{4})",
        "z" => "(?P<z>Z|UTC|GMT|[+-][01][0-9](?::?[0-9]{2})?)",
        "Z" => "(?P<Z>Z|[A-Z]{3,5})",
        "%" => "%",
        "ExY" => "(?P<Y>20[0-9]{2})",
        "Exm" => "(?P<m>0[1-9]|1[0-2])",
        "Exd" => "(?P<d>[1-2][0-9]|0[1-9]|3[0-1])",
        "ExH" => "(?P<H>[0-1][0-9]|2[0-3])",
        "Exk" => " ?(?P<H>[0-1]?[0-9]|2[0-3])",
        "Exl" => " ?(?P<I>1[0-2]|[0-9])",
        "ExM" => "(?P<M>[0-5][0-9])",
        "ExS" => "(?P<S>[0-5][0-9]|6[0-1])",
        "ExZ" => "(?P<Z>[A-Z](?:[A-Z]{2,4})?)",
        "Exz" => "(?P<z>(?:[A-Z](?:[A-Z]{2,4})?)?[+-][01][0-9](?::?[0-9]{2})?|[A-Z](?:[A-Z]{2,4})?)",
        _ => return None,
    })
}

/// The letters that fields of a date are kept under.
pub(super) const FIELDS: [&str; 22] = [
    "a", "A", "b", "B", "d", "G", "H", "I", "j", "m", "M", "p", "S", "u", "U", "V", "w", "W", "y", "Y", "z",
    "Z",
];

/// Forms that are tried everywhere, the exact ones first. One that is not bound to the beginning of the line is
/// first tried there.
pub(super) const DEFAULT: [&str; 17] = [
    // ISO 8601 and what is like it: 2005-01-23T21:59:59.981+01:00, 2005/01/23 21:59:59
    r"%ExY(?P<_sep>[-/.])%m(?P=_sep)%d(?:T|  ?)%H:%M:%S(?:[.,]%f)?(?:\s*%z)?",
    // syslog, asctime, Apache's error log: Sun Jan 23 21:59:59.011 2005
    r"(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?",
    // Sun Jan 23 2005 21:59:59.011
    r"(?:%a )?%b %d %ExY %k:%M:%S(?:\.%f)?",
    // 23/01/2005 21:59:59, 23-01-05 21:59:59
    r"%d(?P<_sep>[-/])%m(?P=_sep)(?:%ExY|%Exy) %k:%M:%S",
    // access logs, named: 31/Oct/2006:09:22:55 -0000, 26-Jul-2007 15:20:52.252
    r"%d(?P<_sep>[-/])%b(?P=_sep)%ExY[ :]?%H:%M:%S(?:\.%f)?(?: %z)?",
    // 05/20/2008:01:57:39
    "%m/%d/%ExY:%H:%M:%S",
    // 01-27-2012 16:22:44.252
    r"%m-%d-%ExY %k:%M:%S(?:\.%f)?",
    "EPOCH",
    // no more than a time of day
    "{^LN-BEG}%H:%M:%S",
    // <09/16/08@05:03:30>
    "^<%m/%d/%Exy@%H:%M:%S>",
    // MySQL: 130322 11:46:11
    "%Exy%Exm%Exd  ?%H:%M:%S",
    // Tomcat: Jan 23, 2005 09:59:59 PM
    "%b %d, %ExY %I:%M:%S %p",
    // ASSP: Apr-27-13 02:33:06
    "^%b-%d-%Exy %k:%M:%S",
    // 20050123T215959
    r"%ExY%Exm%Exd(?:T|  ?)%ExH%ExM%ExS(?:[.,]%f)?(?:\s*%z)?",
    // with a zone's name before: PDT Apr 16 21:05:29
    r"(?:%Z )?(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?",
    // with an offset before: +00:00 Jan 23 21:59:59.011 2005
    r"(?:%z )?(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?",
    "TAI64N",
];
