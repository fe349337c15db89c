//! Named text formats and property strings (`key=value,…`) of the API.
//!
//! Pure checks on text. A format whose name is not listed here is accepted as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::param::ParamSpec;

/// What the extract's `format` asks for.
#[derive(Debug)]
pub(crate) enum Shape {
    Free,
    Named(String),
    Properties(PropertySpec),
}

/// The keys of a property string.
#[derive(Debug)]
pub(crate) struct PropertySpec {
    keys: BTreeMap<String, ParamSpec>,
    aliases: BTreeMap<String, Alias>,
    default_key: Option<String>,
}

/// Another name of a key; `virtio=MAC` sets `macaddr` and stands for `model=virtio` too.
#[derive(Debug)]
struct Alias {
    target: String,
    stands_for: Option<String>,
}

impl Shape {
    pub(crate) fn parse(format: &Value) -> Self {
        match format {
            Value::String(name) => Self::Named(name.clone()),
            Value::Object(keys) => Self::Properties(PropertySpec {
                default_key: keys
                    .iter()
                    .find(|(_, spec)| spec["default_key"].as_i64() == Some(1))
                    .map(|(key, _)| key.clone()),
                aliases: keys
                    .iter()
                    .filter_map(|(key, spec)| {
                        let target = spec["alias"].as_str()?.to_owned();
                        let stands_for = spec["keyAlias"].as_str().map(str::to_owned);
                        Some((key.clone(), Alias { target, stands_for }))
                    })
                    .collect(),
                keys: keys
                    .iter()
                    .filter(|(_, spec)| spec.get("alias").is_none())
                    .map(|(key, spec)| (key.clone(), ParamSpec::parse(spec)))
                    .collect(),
            }),
            _ => Self::Free,
        }
    }

    pub(crate) fn is_list(&self) -> bool {
        matches!(self, Self::Named(name) if name.ends_with("-list"))
    }
}

/// Checks a value against a shape; the error is the text after `invalid format - `.
pub(crate) fn check(shape: &Shape, text: &str) -> Result<(), String> {
    match shape {
        Shape::Free => Ok(()),
        Shape::Named(name) => match name.strip_suffix("-list") {
            Some(one) => split_list(text).try_for_each(|item| check_named(one, item)),
            None => check_named(name, text),
        },
        Shape::Properties(spec) => spec.check(text),
    }
}

/// Splits a list at commas, semicolons and white space.
pub(crate) fn split_list(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ';', ' ', '\t', '\n', '\0']).filter(|item| !item.is_empty())
}

/// Splits a property string into its pairs; a bare value belongs to `default_key`.
pub(crate) fn properties<'a>(text: &'a str, default_key: &'a str) -> Vec<(&'a str, &'a str)> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap_or((default_key, part)))
        .collect()
}

/// One value of a property string.
pub(crate) fn property<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split(',')
        .filter_map(|part| part.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

impl PropertySpec {
    fn check(&self, text: &str) -> Result<(), String> {
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = match (part.split_once('='), &self.default_key) {
                (Some((key, value)), _) if self.keys.contains_key(key) || self.aliases.contains_key(key) => {
                    (key, value)
                }
                (_, Some(key)) if !seen.contains(key.as_str()) && !is_key(part) => (key.as_str(), part),
                (Some((key, _)), _) => {
                    problems.push(format!(
                        "{key}: property is not defined in schema and the schema does not allow additional properties"
                    ));
                    continue;
                }
                (None, _) => {
                    return Err("value without key, but schema does not define a default key".to_owned());
                }
            };
            let (target, stands_for) = match self.aliases.get(key) {
                Some(alias) => (alias.target.as_str(), alias.stands_for.as_deref()),
                None => (key, None),
            };
            if !seen.insert(target) || stands_for.is_some_and(|other| !seen.insert(other)) {
                problems.push(format!("duplicate key in comma-separated list property: {key}"));
            } else if let Some(spec) = self.keys.get(target)
                && let Err(why) = spec.check(value)
            {
                problems.push(format!("{key}: {why}"));
            }
        }
        for (key, spec) in &self.keys {
            if !spec.is_optional() && !seen.contains(key.as_str()) {
                problems.push(format!("{key}: property is missing and it is not optional"));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(format!("format error\n{}\n", problems.join("\n"))) }
    }
}

/// True for `word=…`, which cannot be meant as the default key's bare value.
fn is_key(part: &str) -> bool {
    part.split_once('=').is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
}

fn check_named(name: &str, text: &str) -> Result<(), String> {
    let good = match name {
        "pve-vmid" => text.parse::<u32>().is_ok_and(|id| (100..=999_999_999).contains(&id)),
        "pve-node" => is_label(text),
        "pve-storage-id" => is_id(text, 2),
        "pve-poolid" => text.split('/').count() <= 3 && text.split('/').all(|part| is_word(part, b"-_.")),
        "pve-configid" => is_config_id(text),
        "pve-tag" => is_tag(text),
        "dns-name" => text.split('.').all(is_label),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "ip" | "address" | "lxc-ip-with-ll-iface" => {
            name == "address" || text.split('%').next().is_some_and(|ip| ip.parse::<IpAddr>().is_ok())
        }
        "CIDR" => is_cidr(text, true, true),
        "CIDRv4" => is_cidr(text, true, false),
        "CIDRv6" => is_cidr(text, false, true),
        "pve-ipv4-config" => matches!(text, "dhcp" | "manual") || is_cidr(text, true, false),
        "pve-ipv6-config" => matches!(text, "auto" | "dhcp" | "manual") || is_cidr(text, false, true),
        "mac-addr" => is_unicast_mac(text),
        "disk-size" => parse_size(text).is_some(),
        "pve-volume-id" => {
            text.split_once(':').is_some_and(|(storage, rest)| is_id(storage, 2) && !rest.is_empty())
        }
        "pve-lxc-mp-string" => !text.is_empty() && !text.contains("/../"),
        "urlencoded" => !text.bytes().any(|b| b.is_ascii_whitespace()),
        _ => true,
    };
    if good { Ok(()) } else { Err(format!("value '{text}' does not look like a valid {name}")) }
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_word(text: &str, extra: &[u8]) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
}

fn is_id(text: &str, least: usize) -> bool {
    text.len() >= least
        && is_word(text, b"-_.")
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn is_config_id(text: &str) -> bool {
    text.len() >= 2 && is_word(text, b"-_") && text.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// True for a tag in any case; storing lower-cases it.
pub(crate) fn is_tag(text: &str) -> bool {
    is_word(text, b"_-+.") && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
}

fn is_cidr(text: &str, v4: bool, v6: bool) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    match (address.parse::<IpAddr>(), bits.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(bits)) => v4 && bits <= 32,
        (Ok(IpAddr::V6(_)), Ok(bits)) => v6 && bits <= 128,
        _ => false,
    }
}

fn is_unicast_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split(':').collect();
    parts.len() == 6
        && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
        && u8::from_str_radix(parts[0], 16).is_ok_and(|first| first & 1 == 0)
}

/// Reads a disk size with an optional unit (`K`, `M`, `G`, `T`); none means bytes.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let unit: f64 = match text.strip_prefix(digits)? {
        "" => 1.0,
        "K" => 1024.0,
        "M" => 1024.0 * 1024.0,
        "G" => 1024.0 * 1024.0 * 1024.0,
        "T" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let bytes = digits.parse::<f64>().ok()? * unit;
    (bytes.is_finite() && bytes < 1e18).then_some(bytes as u64)
}

/// Writes a size the way configurations hold it: the largest unit that loses nothing.
pub(crate) fn format_size(bytes: u64) -> String {
    const KIB: u64 = 1024;
    for (unit, suffix) in [(KIB * KIB * KIB, "G"), (KIB * KIB, "M"), (KIB, "K")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{suffix}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// Lower-cases, sorts and deduplicates a tag list.
pub(crate) fn normal_tags(text: &str) -> String {
    let tags: BTreeSet<String> = split_list(text).map(str::to_ascii_lowercase).collect();
    tags.into_iter().collect::<Vec<_>>().join(";")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_as_written() {
        assert_eq!(parse_size("8G"), Some(8 << 30));
        assert_eq!(format_size(8 << 30), "8G");
        assert_eq!(format_size(parse_size("1.5G").unwrap()), "1536M");
        assert_eq!(parse_size("8X"), None);
    }

    #[test]
    fn tags_become_a_sorted_set() {
        assert_eq!(normal_tags("B;a, b;A"), "a;b");
    }
}
