//! What is found in a line, as programs read it.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize, Serializer};

/// What kind of thing a line shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// A login that was refused.
    AuthFailure,
    /// A login that was let in.
    AuthSuccess,
    /// Mail that was refused.
    SmtpReject,
    /// Mail that was seen as spam.
    Spam,
    /// A client that does not keep to the protocol.
    ProtocolAbuse,
    /// An attempt to exploit.
    WebAttack,
    /// A search for what might be exploited.
    WebProbe,
    /// A request for what is forbidden.
    WebForbidden,
    /// A request that a web application firewall stopped.
    WafBlock,
    /// A client that names itself as one of the unwanted.
    BadBot,
    /// A client that was slowed down.
    RateLimit,
    /// An attempt to exhaust the server.
    Dos,
    /// A name server that was asked for what it does not serve.
    DnsRefused,
}

/// One line that shows something.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event<'a> {
    /// The file as it was named.
    pub file: &'a str,
    /// The line, from 1.
    pub line: u64,
    /// What kind of thing.
    pub category: Category,
    /// The address or host name it came from, as it stands there; none when the line has none.
    pub ip: Option<&'a str>,
    /// When, UTC; none when the line has no date.
    #[serde(serialize_with = "rfc3339")]
    pub time: Option<DateTime<Utc>>,
    /// The rule that saw it.
    pub rule: &'a str,
    /// The user it is about, if any.
    pub user: Option<&'a str>,
    /// How sure that is, 0 to 100.
    pub confidence: u8,
}

fn rfc3339<S: Serializer>(time: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
        None => serializer.serialize_none(),
    }
}
