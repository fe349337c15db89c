//! What telemetry looks at, how often, and how long it remembers. Pure parsing.
//!
//! Targets come from here only, never from jobs or rows, so they are trusted
//! and may be private addresses. mPanel's five names are kept exactly.

use std::{collections::BTreeSet, fmt, path::PathBuf, time::Duration};

use reqwest::Url;
use sqlx::postgres::PgConnectOptions;

use super::{database, resolve::Layers};

/// mPanel's variables and the names under which its panel knows the machines.
const NODES: &[(&str, &str)] = &[
    ("telemetry.mpanel_core_url", "mpanel-core"),
    ("telemetry.srv1_web_url", "srv1-web"),
    ("telemetry.mail_core_url", "mail-core"),
    ("telemetry.dns_core_url", "dns-core"),
    ("telemetry.db_core_host", "db-core"),
];
/// Names that the collectors write themselves.
const RESERVED: &[&str] = &["postgres-core", "redis-core"];
/// Where a bare host of the database node is knocked at.
const POSTGRES_PORT: u16 = 5432;

/// What is asked of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetKind {
    /// A page is fetched.
    Http {
        /// Its address.
        url: Url,
        /// What its body must contain.
        body: Option<String>,
    },
    /// A connection is opened.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// One thing whose health is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name in `monitoring_service_status`.
    pub name: String,
    /// What is asked of it.
    pub kind: TargetKind,
    /// An answer that takes longer is slow.
    pub slow: Duration,
}

/// Telemetry's settings.
#[derive(Clone)]
pub struct TelemetryConfig {
    /// Between two looks.
    pub interval: Duration,
    /// What is looked at.
    pub targets: Vec<Target>,
    /// Longest look at one target.
    pub timeout: Duration,
    /// A certificate that ends sooner is a warning, days.
    pub certificate_days: i64,
    /// A CA certificate to believe beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The Postgres that is looked into.
    pub postgres: PgConnectOptions,
    /// A statement is slow from this mean duration on.
    pub slow_query: Duration,
    /// Over how long calls and durations of a slow statement are counted.
    pub query_window: Duration,
    /// Most slow statements noted in one look.
    pub query_top: usize,
    /// Queues to look at; empty: those that Redis has.
    pub queues: Vec<String>,
    /// From this age of the oldest waiting job on a queue is degraded; zero: never.
    pub queue_age: Duration,
    /// Between two rows of a service whose state does not change; zero: one a look.
    pub row_every: Duration,
    /// How long status rows and slow queries are kept.
    pub keep: Duration,
}

impl fmt::Debug for TelemetryConfig {
    /// Redacted: URLs and Postgres's options may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.targets.iter().map(|target| target.name.as_str()).collect();
        f.debug_struct("TelemetryConfig")
            .field("interval", &self.interval)
            .field("targets", &names)
            .finish_non_exhaustive()
    }
}

/// Reads the settings; problems go into `layers`.
pub(super) fn telemetry(layers: &mut Layers) -> Option<TelemetryConfig> {
    let interval = layers.number("telemetry.interval_seconds", 1, 3600);
    let timeout = layers.number("telemetry.timeout_ms", 100, 60_000);
    let slow = layers.number("telemetry.slow_ms", 1, 60_000).map(Duration::from_millis);
    let tcp_slow = layers.number("telemetry.tcp_slow_ms", 1, 60_000).map(Duration::from_millis);
    let targets = targets(layers, slow?, tcp_slow?);
    let days = layers.number("telemetry.certificate_days", 0, 3650);
    let postgres = match layers.text("telemetry.pg_url") {
        None | Some("") => layers.text("database.url").and_then(|url| database::connect_options(url).ok()),
        Some(_) => layers.parsed("telemetry.pg_url", database::connect_options),
    };
    let slow_query = layers.number("telemetry.slow_query_ms", 1, 3_600_000);
    let window = layers.number("telemetry.query_window_seconds", 1, 86_400);
    let top = layers.number("telemetry.query_top", 1, 1000);
    let queue_age = layers.number("telemetry.queue_age_seconds", 0, 86_400);
    let row = layers.number("telemetry.row_seconds", 0, 3600);
    let keep = layers.number("telemetry.keep_days", 1, 3650);
    let queues = list(layers.text("telemetry.queues").unwrap_or_default());
    if let Some(bad) = queues.iter().find(|queue| queue.contains(':')) {
        layers.problem("telemetry.queues", format!("names `{bad}`; a queue's name holds no colon"));
    }
    Some(TelemetryConfig {
        interval: Duration::from_secs(interval?),
        targets,
        timeout: Duration::from_millis(timeout?),
        certificate_days: i64::try_from(days?).ok()?,
        ca_file: layers.text("telemetry.ca_file").filter(|file| !file.is_empty()).map(PathBuf::from),
        postgres: postgres?,
        slow_query: Duration::from_millis(slow_query?),
        query_window: Duration::from_secs(window?),
        query_top: usize::try_from(top?).ok()?,
        queues,
        queue_age: Duration::from_secs(queue_age?),
        row_every: Duration::from_secs(row?),
        keep: Duration::from_secs(keep? * 86_400),
    })
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn targets(layers: &mut Layers, slow: Duration, tcp_slow: Duration) -> Vec<Target> {
    let mut targets = Vec::new();
    for (key, name) in NODES {
        let port = (*name == "db-core").then_some(POSTGRES_PORT);
        let parsed = layers.parsed(key, |text| kind(text, port));
        targets.extend(parsed.map(|kind| target(name, kind, slow, tcp_slow)));
    }
    let own = list(layers.text("telemetry.targets").unwrap_or_default());
    for text in own {
        match own_target(&text, slow, tcp_slow) {
            Ok(target) => targets.push(target),
            Err(problem) => layers.problem("telemetry.targets", format!("has `{text}`, {problem}")),
        }
    }
    let mut names = BTreeSet::new();
    for target in &targets {
        if !names.insert(target.name.as_str()) || RESERVED.contains(&target.name.as_str()) {
            layers.problem("telemetry.targets", format!("uses the name {} that is taken", target.name));
        }
    }
    targets
}

fn target(name: &str, kind: TargetKind, slow: Duration, tcp_slow: Duration) -> Target {
    let slow = match &kind {
        TargetKind::Http { .. } => slow,
        TargetKind::Tcp { .. } => tcp_slow,
    };
    Target { name: name.to_owned(), kind, slow }
}

/// `name=ADDRESS[|body=TEXT][|slow=MS]`.
fn own_target(text: &str, slow: Duration, tcp_slow: Duration) -> Result<Target, String> {
    let (name, rest) = text.split_once('=').ok_or("which is not of the form name=address")?;
    let name = name.trim();
    let fits = !name.is_empty()
        && name.len() <= 100
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !fits {
        return Err("whose name is not of letters, digits, `-`, `_`, `.`".to_owned());
    }
    let mut parts = rest.split('|').map(str::trim);
    let address = parts.next().unwrap_or_default();
    let mut target = target(name, kind(address, None)?, slow, tcp_slow);
    for option in parts {
        match (option.split_once('='), &mut target.kind) {
            (Some(("slow", ms)), _) => {
                let ms = ms.parse().map_err(|_| "whose slow= is not a number of milliseconds")?;
                target.slow = Duration::from_millis(ms);
            }
            (Some(("body", wanted)), TargetKind::Http { body, .. }) if !wanted.is_empty() => {
                *body = Some(wanted.to_owned());
            }
            _ => return Err(format!("whose `{option}` is not body=TEXT (of a page) or slow=MS")),
        }
    }
    Ok(target)
}

/// An address: a URL of a page, `tcp://host:port`, `host:port`, or a bare host
/// where a port is known.
fn kind(text: &str, port: Option<u16>) -> Result<TargetKind, String> {
    let text = text.trim();
    let has_scheme = text.contains("://");
    let url = if has_scheme { Url::parse(text) } else { Url::parse(&format!("tcp://{text}")) };
    let wrong = || "which is not http://…, https://… or host:port".to_owned();
    let url = url.map_err(|_| wrong())?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
    match url.scheme() {
        "http" | "https" => Ok(TargetKind::Http { url, body: None }),
        "tcp" | "postgres" | "postgresql" => {
            let known = if has_scheme && url.scheme() != "tcp" { Some(POSTGRES_PORT) } else { port };
            let port = url.port().or(known).ok_or("which names no port; host:port is needed")?;
            let host = host.trim_matches(['[', ']']).to_owned();
            Ok(TargetKind::Tcp { host, port })
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_secs(1);
    const TCP_SLOW: Duration = Duration::from_millis(250);

    #[test]
    fn addresses_are_pages_or_ports() {
        let tcp = |host: &str, port| Ok(TargetKind::Tcp { host: host.to_owned(), port });
        assert_eq!(kind("10.1.10.13", Some(5432)), tcp("10.1.10.13", 5432));
        assert_eq!(kind("db.example:6432", Some(5432)), tcp("db.example", 6432));
        assert_eq!(kind("tcp://[::1]:25", None), tcp("::1", 25));
        assert_eq!(kind("postgres://db.example/x", None), tcp("db.example", 5432));
        assert!(matches!(kind("https://panel.example/health", None), Ok(TargetKind::Http { .. })));
        for bad in ["", "host", "ftp://h/", "http://", "file:///etc/passwd"] {
            assert!(kind(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn own_targets_have_a_name_and_options() {
        let target = own_target("api=https://a.example/h?x=1|body=ok|slow=300", SLOW, TCP_SLOW).unwrap();
        assert_eq!((target.name.as_str(), target.slow), ("api", Duration::from_millis(300)));
        assert!(matches!(target.kind, TargetKind::Http { body: Some(body), .. } if body == "ok"));
        assert_eq!(own_target("smtp=mail.example:25", SLOW, TCP_SLOW).unwrap().slow, TCP_SLOW);
        for bad in ["api", "=http://a", "a b=http://a", "a=b:1|body=x", "a=b:1|slow=x", "a=b:1|what=1"] {
            assert!(own_target(bad, SLOW, TCP_SLOW).is_err(), "{bad}");
        }
    }
}
