//! fail2ban's tags in expressions (`<HOST>`, `<F-USER>…</F-USER>`), written out.

use std::collections::BTreeSet;

const V4: &str = r"(?:::f{4,6}:)?(?P<ip4>(?:\d{1,3}\.){3}\d{1,3})";
/// What ends in `::` needs no look behind: the part before always ends in a colon.
const V6: &str = r"(?P<ip6>(?:[0-9a-fA-F]{1,4}::?|::){1,7}(?:[0-9a-fA-F]{1,4}|:))";
const DNS: &str = r"(?P<dns>[\w\-.^_]*\w)";
const CIDR: &str = r"(?P<cidr>\d+)";

/// The expression without tags.
pub(super) fn expand(text: &str, resolve_names: bool) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut open = BTreeSet::new();
    let mut skips = 0;
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let Some(length) = tag_length(rest) else {
            out.push('<');
            rest = &rest[1..];
            continue;
        };
        let (tag, after) = rest.split_at(length);
        rest = after;
        let name = &tag[1..length - 1];
        match name {
            "HOST" if resolve_names => out.push_str(&format!("(?:{}|{DNS})", address())),
            "HOST" | "ADDR" | "F-ADDR/" => out.push_str(&address()),
            "SKIPLINES" => {
                out.push_str(&format!(r"\n(?P<skiplines{skips}>(?:(?:.*\n)*?))"));
                skips += 1;
            }
            "IP4" | "F-IP4/" => out.push_str(V4),
            "IP6" | "F-IP6/" => out.push_str(V6),
            "DNS" | "F-DNS/" => out.push_str(DNS),
            "CIDR" | "F-CIDR/" => out.push_str(CIDR),
            "SUBNET" | "F-SUBNET/" => out.push_str(&format!(r"\[?(?:{V4}|{V6})(?:/{CIDR})?\]?")),
            "F-ID/" => out.push_str(r"(?P<fid>\S+)"),
            "F-PORT/" => out.push_str(r"(?P<fport>\w+)"),
            _ => match custom(name) {
                Some((true, name)) if open.contains(&name) => out.push(')'),
                Some((false, name)) => {
                    out.push_str(&format!("(?P<{}>", group(&name)));
                    open.insert(name);
                }
                _ => out.push_str(tag),
            },
        }
    }
    out.push_str(rest);
    out
}

fn address() -> String {
    format!(r"\[?(?:{V4}|{V6})\]?")
}

/// The length of a tag that the text begins with: a name, with slashes before or after.
fn tag_length(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('<')?;
    let inner = inner.strip_prefix('/').unwrap_or(inner);
    let name = inner.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'))?;
    let after = &inner[name..];
    let after = after.strip_prefix('/').unwrap_or(after);
    (name > 0 && after.starts_with('>')).then(|| text.len() - after.len() + 1)
}

/// `F-NAME` or `/F-NAME`: whether it closes, and the name.
fn custom(tag: &str) -> Option<(bool, String)> {
    let (closes, tag) = tag.strip_prefix('/').map_or((false, tag), |tag| (true, tag));
    let name = tag.strip_prefix("F-")?;
    let fits = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_' || c == '-';
    (!name.is_empty() && name.chars().all(fits)).then(|| (closes, name.to_owned()))
}

/// The group that a custom tag is kept in.
fn group(name: &str) -> String {
    mapped(&name.to_lowercase()).to_owned()
}

/// Names that fail2ban keeps under another one.
pub(super) fn mapped(name: &str) -> &str {
    match name {
        "id" => "fid",
        "port" => "fport",
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_tags_become_groups_and_others_stay() {
        assert_eq!(expand("<F-USER>a</F-USER> <F-ID>b</F-ID> <x> </F-Y>", true), {
            "(?P<user>a) (?P<fid>b) <x> </F-Y>"
        });
        assert_eq!(expand("a<SKIPLINES>b<SKIPLINES>", true).matches("skiplines").count(), 2);
        assert!(expand("<HOST>", true).contains("dns") && !expand("<HOST>", false).contains("dns"));
    }
}
