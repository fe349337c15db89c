//! The URL forms: a single server, Sentinel, Cluster; TLS and login. Pure: names of
//! files are taken over, not read.
//!
//! ```text
//! redis://[user:pw@]host[:6379][/DB]                 rediss:// with TLS
//! redis+sentinel://[user:pw@]h[:26379][,h…]/MASTER[/DB][?sentinel_username=…&sentinel_password=…]
//! redis+cluster://[user:pw@]h[:6379][,h…]
//! redis+unix:///path[?db=…&user=…&pass=…]
//! everywhere but unix: ?tls=1&ca=FILE&cert=FILE&key=FILE&protocol=resp3
//! ```

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use redis::{ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};

use crate::{ConnectError, node::NodeAddr};

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;

/// Which servers there are.
#[derive(Debug, Clone)]
pub(crate) enum Topology {
    /// One server.
    Single(NodeAddr),
    /// One server behind a socket file.
    Unix(Box<ConnectionInfo>),
    /// A primary that Sentinels name.
    Sentinel { sentinels: Vec<NodeAddr>, master: String, login: RedisConnectionInfo },
    /// A Cluster, known by some of its nodes.
    Cluster { seeds: Vec<NodeAddr> },
}

/// The files of a TLS connection; without a CA the system's roots hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Option<PathBuf>,
    /// The client's certificate and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// A parsed Redis URL. Its text form never shows a password.
#[derive(Clone)]
pub struct RedisUrl {
    pub(crate) topology: Topology,
    pub(crate) login: RedisConnectionInfo,
    pub(crate) tls: Option<TlsFiles>,
    endpoint: String,
}

impl RedisUrl {
    /// What it leads to, for messages: host and port, or the topology with its
    /// servers.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether it names a Cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        matches!(self.topology, Topology::Cluster { .. })
    }
}

/// The URL without user, password and parameters.
fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // Not a URL: it may be anything, even a password.
        return "(not shown)".to_owned();
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    match place.rsplit_once('@') {
        Some((_, hosts)) => format!("{scheme}://***@{hosts}"),
        // The password may have a `?` in it.
        None if query.contains('@') => format!("{scheme}://***"),
        None => format!("{scheme}://{place}"),
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        // The text itself may be a password: it is not repeated.
        bytes.push(byte.ok_or("it has a `%` that two hex digits do not follow; write `%` as `%25`")?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| "what its `%` codes stand for is not UTF-8".to_owned())
}

/// The parameters behind the `?`; each is taken out when it is understood.
struct Parameters(BTreeMap<String, String>);

impl Parameters {
    fn parse(query: &str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if all.insert(name.to_owned(), decoded(value)?).is_some() {
                return Err(format!("parameter `{name}` is given twice"));
            }
        }
        Ok(Self(all))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    /// What nobody took is a mistake.
    fn end(self, known: &str) -> Result<(), String> {
        match self.0.keys().next() {
            Some(name) => Err(format!("parameter `{name}` is not known here; known are {known}")),
            None => Ok(()),
        }
    }
}

fn login(user: Option<String>, password: Option<String>, db: i64) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default().set_db(db);
    if let Some(user) = user {
        login = login.set_username(user);
    }
    if let Some(password) = password {
        login = login.set_password(password);
    }
    login
}

fn db_of(text: &str) -> Result<i64, String> {
    match text.parse() {
        _ if text.is_empty() => Ok(0),
        Ok(db @ 0..) => Ok(db),
        _ => Err(format!("`{text}` is not the number of a database")),
    }
}

fn tls_files(parameters: &mut Parameters, by_scheme: bool) -> Result<Option<TlsFiles>, String> {
    let asked = match parameters.take("tls").as_deref() {
        None => by_scheme,
        Some("1" | "true") => true,
        Some("0" | "false") if by_scheme => return Err("it begins with rediss, but says tls=0".to_owned()),
        Some("0" | "false") => false,
        Some(other) => return Err(format!("parameter `tls` must be 1 or 0, is `{other}`")),
    };
    let path = |parameters: &mut Parameters, name| parameters.take(name).map(PathBuf::from);
    let ca = path(parameters, "ca");
    let client = match (path(parameters, "cert"), path(parameters, "key")) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => return Err("parameter `cert` needs `key`, the file with its key".to_owned()),
        (None, Some(_)) => {
            return Err("parameter `key` needs `cert`, the certificate it belongs to".to_owned());
        }
    };
    if !asked && (ca.is_some() || client.is_some()) {
        return Err("`ca`, `cert` and `key` are for TLS: begin with rediss, or add tls=1".to_owned());
    }
    Ok(asked.then_some(TlsFiles { ca, client }))
}

fn parse(url: &str) -> Result<RedisUrl, String> {
    let (scheme, rest) = url.split_once("://").ok_or("it has no `://`")?;
    if matches!(scheme, "unix" | "redis+unix" | "valkey+unix") {
        return unix(url);
    }
    let (form, by_scheme) = match scheme {
        "redis" | "valkey" => ("", false),
        "rediss" | "valkeys" => ("", true),
        "redis+sentinel" => ("sentinel", false),
        "rediss+sentinel" => ("sentinel", true),
        "redis+cluster" => ("cluster", false),
        "rediss+cluster" => ("cluster", true),
        other => {
            return Err(format!(
                "`{other}://` is not known; known are redis://, rediss://, redis+sentinel://, redis+cluster:// and redis+unix://"
            ));
        }
    };
    if rest.contains('#') {
        return Err("it has a `#`: certificates are always checked, and a `#` in a password is written %23"
            .to_owned());
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    if query.contains('@') {
        return Err("it has an `@` behind a `?`; in a password they are written %40 and %3F".to_owned());
    }
    // An `@` or `/` in a password has to be encoded, but many are not: the last `@` counts.
    let (user, place) = match place.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, place),
    };
    let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
    let (user, password) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
        Some((user, password)) => (decoded(user)?, decoded(password)?),
        None => (String::new(), String::new()),
    };
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let (user, password) = (given(user), given(password));
    if user.is_some() && password.is_none() {
        return Err("it names a user without a password; a password alone is written `:password@`".to_owned());
    }
    let mut parameters = Parameters::parse(query)?;
    let tls = tls_files(&mut parameters, by_scheme)?;
    let protocol = match parameters.take("protocol").as_deref() {
        None | Some("2" | "resp2") => ProtocolVersion::RESP2,
        Some("3" | "resp3") => ProtocolVersion::RESP3,
        Some(other) => return Err(format!("parameter `protocol` must be resp2 or resp3, is `{other}`")),
    };
    let port = if form == "sentinel" { SENTINEL_PORT } else { PORT };
    let nodes = hosts.split(',').map(|host| NodeAddr::parse(host, port)).collect::<Result<Vec<_>, _>>()?;
    let shown = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let common = "tls, ca, cert, key, protocol";
    let (topology, db, endpoint) = match form {
        "sentinel" => {
            let (master, db) = path.split_once('/').unwrap_or((path, ""));
            let master = decoded(master)?;
            if master.is_empty() {
                return Err(
                    "it lacks the name under which the Sentinels know the primary: …/mymaster".to_owned()
                );
            }
            let (user, password) =
                (parameters.take("sentinel_username"), parameters.take("sentinel_password"));
            if user.is_some() && password.is_none() {
                return Err("`sentinel_username` needs `sentinel_password`".to_owned());
            }
            parameters.end(&format!("{common}, sentinel_username, sentinel_password"))?;
            let endpoint = format!("Sentinels {shown}, primary `{master}`");
            (Topology::Sentinel { sentinels: nodes, master, login: login(user, password, 0) }, db, endpoint)
        }
        "cluster" => {
            parameters.end(common)?;
            if db_of(path)? != 0 {
                return Err(format!("a Cluster has database 0 only, not {path}"));
            }
            (Topology::Cluster { seeds: nodes }, "", format!("Cluster {shown}"))
        }
        _ => {
            parameters.end(common)?;
            let [node] = <[NodeAddr; 1]>::try_from(nodes).map_err(|_| {
                "it names several servers; begin with redis+sentinel:// or redis+cluster://".to_owned()
            })?;
            (Topology::Single(node), path, shown)
        }
    };
    let login = login(user, password, db_of(db)?).set_protocol(protocol);
    Ok(RedisUrl { topology, login, tls, endpoint })
}

fn unix(url: &str) -> Result<RedisUrl, String> {
    let info = url.into_connection_info().map_err(|e| e.to_string())?;
    let (endpoint, login) = (info.addr().to_string(), info.redis_settings().clone());
    Ok(RedisUrl { topology: Topology::Unix(Box::new(info)), login, tls: None, endpoint })
}

impl FromStr for RedisUrl {
    type Err = ConnectError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        parse(url).map_err(|why| ConnectError::Url { url: redacted(url), why })
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisUrl").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(url: &str) -> RedisUrl {
        url.parse().unwrap()
    }

    #[test]
    fn every_form_leads_to_its_servers() {
        for (url, endpoint) in [
            ("redis://localhost", "localhost:6379"),
            ("redis://localhost:6380/3", "localhost:6380"),
            ("rediss://10.0.0.5", "10.0.0.5:6379"),
            ("redis://[::1]:6380", "[::1]:6380"),
            ("redis://[fe80::1]/2", "[fe80::1]:6379"),
            ("redis+unix:///run/redis.sock?db=2", "/run/redis.sock"),
            ("redis+sentinel://a,b:1/m", "Sentinels a:26379,b:1, primary `m`"),
            ("redis+sentinel://:pw@[::1],[::2]:7/my%20m/4", "Sentinels [::1]:26379,[::2]:7, primary `my m`"),
            ("redis+cluster://u:p@a,b:7001", "Cluster a:6379,b:7001"),
            ("rediss+cluster://a/0", "Cluster a:6379"),
        ] {
            assert_eq!(ok(url).endpoint(), endpoint, "{url}");
        }
    }

    #[test]
    fn login_database_and_tls_are_read() {
        let url = ok("redis://us%40er:p%2Fw%3A%25@h/3?tls=1&ca=/etc/ca%20x.pem&cert=c&key=k&protocol=resp3");
        assert_eq!((url.login.username(), url.login.password()), (Some("us@er"), Some("p/w:%")));
        assert_eq!((url.login.db(), url.login.protocol()), (3, ProtocolVersion::RESP3));
        let tls = url.tls.unwrap();
        assert_eq!(tls.ca.unwrap(), PathBuf::from("/etc/ca x.pem"));
        assert_eq!(tls.client.unwrap(), (PathBuf::from("c"), PathBuf::from("k")));
        let url = ok("redis+sentinel://u:p@h/m/5?sentinel_username=su&sentinel_password=s%26p");
        assert_eq!((url.login.username(), url.login.password(), url.login.db()), (Some("u"), Some("p"), 5));
        let Topology::Sentinel { login, .. } = url.topology else { panic!("not Sentinel") };
        assert_eq!((login.username(), login.password(), login.db()), (Some("su"), Some("s&p"), 0));
        assert!(url.tls.is_none() && ok("rediss+sentinel://h/m").tls.is_some());
        // A password alone; one with an `@` that nobody encoded.
        assert_eq!(ok("redis://:p@ss@h").login.password(), Some("p@ss"));
        assert_eq!(ok("redis://:p@h").login.username(), None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_reason() {
        for (url, why) in [
            ("localhost:6379", "no `://`"),
            ("http://x", "`http://` is not known; known are redis://"),
            ("redis://", "names no host"),
            ("redis://h:0", "`0` is not a port"),
            ("redis://h:65536", "not a port"),
            ("redis://[::1", "lacks a `]`"),
            ("redis://h/x", "`x` is not the number of a database"),
            ("redis://h/-1", "not the number"),
            ("redis://a,b", "several servers"),
            ("redis://user@h", "user without a password"),
            ("redis://:%zz@h", "two hex digits"),
            ("redis://h?timeout=5", "parameter `timeout` is not known here; known are tls"),
            ("redis://h?tls=1&tls=1", "given twice"),
            ("redis://h?tls=yes", "must be 1 or 0"),
            ("rediss://h?tls=0", "says tls=0"),
            ("rediss://h#insecure", "certificates are always checked"),
            ("redis://h?ca=f", "are for TLS"),
            ("rediss://h?cert=f", "`cert` needs `key`"),
            ("rediss://h?key=f", "`key` needs `cert`"),
            ("redis://h?protocol=4", "must be resp2 or resp3"),
            ("redis://h?sentinel_password=x", "`sentinel_password` is not known here"),
            ("redis+sentinel://h", "lacks the name"),
            ("redis+sentinel://h/m/x", "not the number"),
            ("redis+sentinel://h/m?sentinel_username=x", "needs `sentinel_password`"),
            ("redis+cluster://h/1", "database 0 only, not 1"),
            ("redis+cluster://h,/0", "names no host"),
        ] {
            let error = url.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        for url in ["redis://:hunter2@localhost:6380/3", "redis+sentinel://h/m?sentinel_password=hunter2"] {
            let url = ok(url);
            assert!(!format!("{url:?} {url} {}", url.endpoint()).contains("hunter2"));
        }
        for url in [
            "redis+clutter://user:hunter2@h:1",
            "redis://:hunter2@h:x",
            "redis://h?sentinel_password=hunter2",
            "redis+sentinel://h?sentinel_password=hunter2",
            "redis://:hunter2%@h",
            "redis://user:hun#hunter2@h",
            "hunter2",
            "redis://:hunter2/x@h/1?a=1",
            "redis://:hunter2?x@h",
        ] {
            let error = url.parse::<RedisUrl>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}
