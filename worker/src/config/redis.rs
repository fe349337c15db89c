//! Which Redis: by URL, by host and port, or by Sentinels; and the refusal when
//! two of them name different servers. Pure; connecting is another crate's work.

use mpanel_connect::{ConnectError, RedisUrl};
use reqwest::Url;
use secrecy::SecretString;

use super::resolve::Layers;

/// The Redis to work on.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// The URL, whichever way it was given.
    pub url: SecretString,
    /// What to show of it: no password.
    pub shown: String,
    /// Which servers it leads to, for `check-config`: no password.
    pub topology: String,
    /// What all keys of a queue begin with.
    pub prefix: String,
    /// Which BullMQ line works beside us.
    pub peer: PeerLine,
}

/// Which BullMQ line the other writers of a queue are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerLine {
    /// 5.x, mPanel's.
    V5,
    /// 6.x.
    V6,
}

/// Reads the Redis settings; problems go into `layers`.
pub(super) fn redis(layers: &mut Layers) -> Option<RedisConfig> {
    let prefix = layers.text("redis.prefix").unwrap_or("bull").to_owned();
    if prefix.is_empty() || prefix.contains(char::is_whitespace) {
        layers.problem("redis.prefix", "must not be empty or hold blanks");
    }
    let peer = layers.parsed("redis.peer", |text| match text {
        "v5" => Ok(PeerLine::V5),
        "v6" => Ok(PeerLine::V6),
        other => Err(format!("must be v5 or v6, is `{other}`")),
    })?;
    let port = match layers.get("redis.port") {
        Some(_) => u16::try_from(layers.number("redis.port", 1, 65_535)?).ok()?,
        None => 6379,
    };
    let host = layers.text("redis.host").map(str::to_owned);
    let password = layers.text("redis.password").map(str::to_owned);
    let url = match (
        layers.text("redis.url").map(str::to_owned),
        layers.text("redis.sentinels").map(str::to_owned),
    ) {
        (Some(url), _) => with_password(&url, password.as_deref(), layers)?,
        (None, Some(sentinels)) => {
            let Some(master) = layers.text("redis.sentinel_master") else {
                layers.problem("redis.sentinel_master", "is needed beside FLEET_REDIS_SENTINELS");
                return None;
            };
            let url = format!("redis+sentinel://{sentinels}/{master}");
            with_password(&url, password.as_deref(), layers)?
        }
        (None, None) => {
            let host = host.as_deref().unwrap_or("127.0.0.1");
            let host = if host.contains(':') && !host.starts_with('[') {
                format!("[{host}]")
            } else {
                host.to_owned()
            };
            with_password(&format!("redis://{host}:{port}"), password.as_deref(), layers)?
        }
    };
    if let (Some(host), Some(_)) = (&host, layers.text("redis.url")) {
        let named = format!("{}:{port}", normal_host(host));
        let servers = servers(&url);
        if !servers.contains(&named) {
            layers.problem(
                "redis.url",
                format!("names {}, but REDIS_HOST and REDIS_PORT name {named}: unset one", servers.join(",")),
            );
            return None;
        }
    }
    if let (Some(sentinels), Some(_)) = (layers.text("redis.sentinels"), layers.text("redis.url")) {
        let named = servers(&format!("redis+sentinel://{sentinels}"));
        let by_url = servers(&url);
        if !url.contains("+sentinel://") || !named.iter().all(|server| by_url.contains(server)) {
            let (named, by_url) = (named.join(","), by_url.join(","));
            layers.problem(
                "redis.url",
                format!("names {by_url}, but FLEET_REDIS_SENTINELS names {named}: unset one"),
            );
            return None;
        }
    }
    let parsed: RedisUrl = match url.parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            let by = ["redis.url", "redis.sentinels", "redis.host"];
            let key = by.into_iter().find(|key| layers.text(key).is_some()).unwrap_or("redis.url");
            let why = match error {
                ConnectError::Url { why, .. } => why,
                other => other.to_string(),
            };
            layers.problem(key, format!("cannot be used: {why}"));
            return None;
        }
    };
    if parsed.is_cluster() && !prefix.contains('{') {
        let tagged = format!("{{{prefix}}}");
        layers.problem(
            "redis.prefix",
            format!(
                "needs a hash tag in a Redis Cluster: `{tagged}`, here and in mPanel (such as `{{bull}}`)"
            ),
        );
        return None;
    }
    let (shown, topology) = (redacted(&url), parsed.endpoint().to_owned());
    Some(RedisConfig { url: url.into(), shown, topology, prefix, peer })
}

/// Puts the password of REDIS_PASSWORD into a URL that has none.
fn with_password(url: &str, password: Option<&str>, layers: &mut Layers) -> Option<String> {
    const SCHEMES: &[&str] =
        &["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"];
    let Some((scheme, rest)) = url.split_once("://") else {
        layers.problem("redis.url", "is not a URL");
        return None;
    };
    if !SCHEMES.contains(&scheme) {
        layers.problem("redis.url", format!("begins with `{scheme}://`; known are {}", SCHEMES.join(", ")));
        return None;
    }
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    if rest[..authority_end].rsplit('@').next().is_none_or(str::is_empty) {
        layers.problem("redis.url", "names no host");
        return None;
    }
    match password {
        Some(password) if !rest[..authority_end].contains('@') => {
            Some(format!("{scheme}://:{}@{rest}", percent_encoded(password)))
        }
        _ => Some(url.to_owned()),
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// `host:port` of every server that the URL names.
fn servers(url: &str) -> Vec<String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
    let default_port = if url.contains("+sentinel://") { 26379 } else { 6379 };
    hosts
        .split(',')
        .map(|host| match Url::parse(&format!("redis://{host}")) {
            Ok(parsed) => {
                let name = parsed.host_str().unwrap_or(host).to_owned();
                format!("{}:{}", normal_host(&name), parsed.port().unwrap_or(default_port))
            }
            Err(_) => host.to_owned(),
        })
        .collect()
}

fn normal_host(host: &str) -> String {
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    if host == "localhost" { "127.0.0.1".to_owned() } else { host }
}

/// The URL without what stands before the `@` and without its parameters.
fn redacted(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("redis", url));
    let rest = rest.split('?').next().unwrap_or(rest);
    match rest.rsplit_once('@') {
        Some((_, hosts)) => format!("{scheme}://***@{hosts}"),
        None => format!("{scheme}://{rest}"),
    }
}
