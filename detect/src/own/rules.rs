//! From the rule files to expressions.

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::Deserialize;

use crate::event::Category;

/// The rule files, by the service they are for.
const FILES: &[(&str, &str)] = &[
    ("apache", include_str!("../../rules/apache.toml")),
    ("dovecot", include_str!("../../rules/dovecot.toml")),
    ("exim", include_str!("../../rules/exim.toml")),
    ("nginx", include_str!("../../rules/nginx.toml")),
    ("postfix", include_str!("../../rules/postfix.toml")),
    ("sshd", include_str!("../../rules/sshd.toml")),
    ("wordpress", include_str!("../../rules/wordpress.toml")),
];

/// Other names under which operators, mPanel and fail2ban know these services.
const ALIASES: &[(&str, &str)] = &[
    ("ssh", "sshd"),
    ("apache2", "apache"),
    ("httpd", "apache"),
    ("apache-auth", "apache"),
    ("apache-modsecurity", "apache"),
    ("apache-noscript", "apache"),
    ("modsecurity", "apache"),
    ("exim4", "exim"),
    ("exim-spam", "exim"),
    ("nginx-bad-request", "nginx"),
    ("nginx-botsearch", "nginx"),
    ("nginx-forbidden", "nginx"),
    ("nginx-http-auth", "nginx"),
    ("nginx-limit-req", "nginx"),
    ("wp-login", "wordpress"),
];

/// An address as daemons write it.
const IP: &str =
    r"(?:::ffff:)?(?P<ip>[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})";
/// An address, or a name where a daemon was told to look it up.
const HOST: &str = r"(?:::ffff:)?(?P<ip>[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}|[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?)";

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// We have none for it.
    #[error("no rules of our own for service `{0}`; there are some for: {known}. Others: --rules DIR reads fail2ban's", known = services().join(", "))]
    Unknown(String),
    /// A rule file is malformed: a defect of this program.
    #[error("rule file {file}: {what}")]
    Malformed {
        /// The file.
        file: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// How a log writes its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Layout {
    /// syslog: rules see what the program says.
    Syslog,
    /// Rules see the whole line.
    Line,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rule: Vec<Text>,
    /// What a program's name begins with, for syslog.
    #[serde(default)]
    programs: Vec<String>,
}

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    id: String,
    layout: Layout,
    /// Absent: the line only tells the address of a connection.
    category: Option<Category>,
    #[serde(default)]
    confidence: u8,
    pattern: String,
    /// Lines in which it must find this address, for the test.
    #[serde(default)]
    #[cfg_attr(not(test), expect(dead_code, reason = "the test reads them"))]
    hits: Vec<(String, Option<String>)>,
    /// Lines in which it must find nothing, for the test.
    #[serde(default)]
    #[cfg_attr(not(test), expect(dead_code, reason = "the test reads them"))]
    misses: Vec<String>,
}

/// A rule, ready.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) id: String,
    pub(super) category: Option<Category>,
    pub(super) confidence: u8,
    pub(super) regex: Regex,
    pub(super) has_ip: bool,
}

/// Rules that see the same part of a line.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) layout: Layout,
    pub(super) programs: Vec<Vec<u8>>,
    pub(super) set: RegexSet,
    pub(super) rules: Vec<Rule>,
}

/// The rules of one service, or of all.
#[derive(Debug)]
pub struct OwnRules {
    pub(super) groups: Vec<Group>,
}

/// The services that there are rules for.
#[must_use]
pub fn services() -> Vec<&'static str> {
    FILES.iter().map(|(name, _)| *name).collect()
}

impl OwnRules {
    /// The rules of a service; of all for `auto`.
    ///
    /// # Errors
    /// When there are none.
    pub fn for_service(service: &str) -> Result<Self, RulesError> {
        let wanted = ALIASES.iter().find(|(alias, _)| *alias == service).map_or(service, |(_, name)| name);
        let mut groups = Vec::new();
        for (name, text) in FILES.iter().filter(|(name, _)| wanted == "auto" || wanted == *name) {
            groups.extend(groups_of(name, text)?);
        }
        if groups.is_empty() { Err(RulesError::Unknown(service.to_owned())) } else { Ok(Self { groups }) }
    }
}

fn groups_of(file: &'static str, text: &str) -> Result<Vec<Group>, RulesError> {
    let malformed = |what: String| RulesError::Malformed { file, what };
    let parsed: File = toml::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let mut groups = Vec::new();
    for layout in [Layout::Syslog, Layout::Line] {
        let texts: Vec<&Text> = parsed.rule.iter().filter(|rule| rule.layout == layout).collect();
        if texts.is_empty() {
            continue;
        }
        let patterns: Vec<String> = texts.iter().map(|rule| expand(&rule.pattern)).collect();
        let mut rules = Vec::new();
        for (rule, pattern) in texts.iter().zip(&patterns) {
            let regex = RegexBuilder::new(pattern).unicode(false).build();
            let regex = regex.map_err(|error| malformed(format!("{}: {error}", rule.id)))?;
            rules.push(Rule {
                id: rule.id.clone(),
                category: rule.category,
                confidence: rule.confidence,
                has_ip: regex.capture_names().flatten().any(|name| name == "ip"),
                regex,
            });
        }
        let set = RegexSetBuilder::new(&patterns).unicode(false).dfa_size_limit(16 << 20).build();
        groups.push(Group {
            layout,
            programs: parsed.programs.iter().map(|program| program.clone().into_bytes()).collect(),
            set: set.map_err(|error| malformed(error.to_string()))?,
            rules,
        });
    }
    Ok(groups)
}

fn expand(pattern: &str) -> String {
    pattern.trim().replace("{ip}", IP).replace("{host}", HOST)
}

#[cfg(test)]
mod tests {
    use super::{super::matching::OwnMatcher, *};
    use crate::time::Clock;

    #[test]
    fn every_rule_finds_what_it_says_and_nothing_else() {
        let clock = Clock::parse(Some("2026-01-01T00:00:00Z"), None).unwrap();
        for (service, text) in FILES {
            let file: File = toml::from_str(text).unwrap_or_else(|error| panic!("{service}: {error}"));
            let rules = OwnRules::for_service(service).unwrap();
            for rule in file.rule {
                assert!(!rule.hits.is_empty(), "{service}: {} has no line that it finds", rule.id);
                for (line, ip) in &rule.hits {
                    let mut matcher = OwnMatcher::new(&rules, clock).unwrap();
                    let found = line.lines().map(|line| matcher.line(line.as_bytes())).last().flatten();
                    if rule.category.is_none() {
                        assert!(found.is_none(), "{service}: {line}");
                        continue;
                    }
                    let found =
                        found.unwrap_or_else(|| panic!("{service}: {} does not find {line}", rule.id));
                    assert_eq!((found.rule, &found.ip), (rule.id.as_str(), ip), "{line}");
                }
                for line in &rule.misses {
                    let mut matcher = OwnMatcher::new(&rules, clock).unwrap();
                    let found = matcher.line(line.as_bytes());
                    assert!(found.as_ref().is_none_or(|found| found.rule != rule.id), "{line}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn an_unknown_service_is_answered_with_those_that_are_known() {
        let error = OwnRules::for_service("gopher").unwrap_err().to_string();
        assert!(error.contains("postfix") && error.contains("--rules"), "{error}");
        assert!(OwnRules::for_service("auto").unwrap().groups.len() > FILES.len() / 2);
    }
}
