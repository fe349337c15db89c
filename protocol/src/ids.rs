//! Validated names: queue, job, prefix, lock token, worker.
//!
//! One place decides what may become part of a Redis key. Knows no key layout
//! (that is [`crate::keys`]) and performs no I/O.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a name was refused. The text is for the operator: it says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty.
    #[error("{what} must not be empty")]
    Empty {
        /// Which kind of name.
        what: &'static str,
    },
    /// BullMQ refuses a colon in a queue name (all versions from 5.28).
    #[error("queue name `{0}` contains `:`, which BullMQ refuses; use `-`")]
    QueueColon(String),
    /// The partitions of a queue put its name into a hash tag.
    #[error(
        "the name `{0}` of a partitioned queue contains `{{` or `}}`, which would cut the hash tag of its partitions"
    )]
    QueueBrace(String),
    /// BullMQ keeps `0` and `0:…` for its old markers.
    #[error("job id `{0}` is reserved by BullMQ (`0` and ids that begin with `0:`); choose another")]
    ReservedId(String),
    /// All-digit ids would collide with the queue's own counter.
    #[error(
        "job id `{0}` is an integer; integers are given by the queue itself: add a prefix such as `job-{0}`"
    )]
    IntegerId(String),
    /// Colons are kept for scheduler iterations `repeat:<scheduler>:<ms>`.
    #[error("job id `{0}` contains `:`; BullMQ allows that only in exactly three segments; use `-`")]
    ColonId(String),
    /// The id is the name of one of the queue's own keys and would overwrite it.
    #[error("job id `{0}` is the name of a key of the queue itself and would corrupt it; choose another")]
    StructuralId(String),
}

macro_rules! name_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name as owned text.
            #[must_use]
            pub fn into_string(self) -> String {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name_newtype! {
    /// The name of a queue: not empty, no colon.
    QueueName
}
name_newtype! {
    /// The id of a job, unique in its queue.
    JobId
}
name_newtype! {
    /// What every key of a queue begins with, `bull` by default. In Redis
    /// Cluster it must hold a hash tag, such as `{bull}`.
    Prefix
}
name_newtype! {
    /// Proof that a worker owns a job for one attempt; compared byte by byte by
    /// every script that renews, moves or finishes the job.
    LockToken
}

impl fmt::Debug for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
impl fmt::Debug for LockToken {
    /// Redacted: who knows the token can finish the job.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockToken(…)")
    }
}

impl QueueName {
    /// Checks and takes a queue name.
    ///
    /// # Errors
    /// [`NameError::Empty`] or [`NameError::QueueColon`].
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        if name.is_empty() {
            return Err(NameError::Empty { what: "queue name" });
        }
        if name.contains(':') {
            return Err(NameError::QueueColon(name));
        }
        Ok(Self(name))
    }

    /// Takes a name that was read from Redis; nothing is checked.
    pub fn stored(name: impl Into<String>) -> Self {
        Self(name.into())
    }
}

impl Prefix {
    /// Checks and takes a key prefix.
    ///
    /// # Errors
    /// [`NameError::Empty`].
    pub fn new(prefix: impl Into<String>) -> Result<Self, NameError> {
        let prefix = prefix.into();
        if prefix.is_empty() {
            return Err(NameError::Empty { what: "prefix" });
        }
        Ok(Self(prefix))
    }

    /// Takes a prefix that was made from checked parts; nothing is checked.
    pub(crate) fn stored(prefix: String) -> Self {
        Self(prefix)
    }

    /// Whether all keys of a queue under this prefix land in one Cluster slot.
    #[must_use]
    pub fn has_hash_tag(&self) -> bool {
        self.0.find('{').is_some_and(|open| self.0[open + 1..].find('}').is_some_and(|len| len > 0))
    }
}

impl Default for Prefix {
    /// `bull`, the default of BullMQ and of mPanel.
    fn default() -> Self {
        Self("bull".to_owned())
    }
}

impl LockToken {
    /// Takes any text as a token, as Node workers do.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }
}

/// Names of a queue's own keys: a job with such an id would overwrite them.
const STRUCTURAL: [&str; 21] = [
    "id",
    "wait",
    "paused",
    "active",
    "prioritized",
    "pc",
    "delayed",
    "completed",
    "failed",
    "waiting-children",
    "meta",
    "events",
    "stalled",
    "stalled-check",
    "marker",
    "limiter",
    "repeat",
    "metrics",
    "de",
    "dn",
    "groups",
];

/// First segments of keys of the queue itself that have several: `de:<id>`,
/// `metrics:completed:data`. (`repeat:<scheduler>:<ms>` is a job.)
const FAMILIES: [&str; 4] = ["metrics", "de", "dn", "groups"];

/// Whether JavaScript reads the id as an integer and writes that as the id again:
/// `-5`, not `05`, and nothing that a double does not hold.
fn is_integer(id: &str) -> bool {
    let digits = id.strip_prefix('-').unwrap_or(id);
    let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    whole && id.parse::<f64>().is_ok_and(|n| n != 0.0 && n.abs() < 1e21 && n.to_string() == id)
}

impl JobId {
    /// Takes an id that was read from Redis; nothing is checked.
    pub fn stored(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// Checks an id chosen by a producer (BullMQ's rules, and ours against
    /// structural names; `bullmq-protocol.md` 2.2).
    ///
    /// # Errors
    /// The rule that refused it.
    pub fn custom(id: impl Into<String>) -> Result<Self, NameError> {
        let id = id.into();
        if id.is_empty() {
            return Err(NameError::Empty { what: "job id" });
        }
        if id == "0" || id.starts_with("0:") {
            return Err(NameError::ReservedId(id));
        }
        if is_integer(&id) {
            return Err(NameError::IntegerId(id));
        }
        if id.contains(':') && id.split(':').count() != 3 {
            return Err(NameError::ColonId(id));
        }
        let family = id.split_once(':').map(|(family, _)| family);
        if STRUCTURAL.contains(&id.as_str()) || family.is_some_and(|f| FAMILIES.contains(&f)) {
            return Err(NameError::StructuralId(id));
        }
        Ok(Self(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_names_follow_bullmq() {
        assert!(QueueName::new("cloudpods-create").is_ok());
        assert_eq!(QueueName::new("a:b"), Err(NameError::QueueColon("a:b".into())));
        assert!(QueueName::new("").is_err());
    }

    #[test]
    fn custom_job_ids_follow_bullmq() {
        for good in [
            "order-1",
            "a:b:c",
            "create-121-1764800000000",
            "00x",
            "05",
            "9007199254740993",
            "-",
            "-a",
            "repeat:s:1",
        ] {
            assert!(JobId::custom(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "0",
            "0:x",
            "123",
            "a:b",
            "a:b:c:d",
            "wait",
            "meta",
            "stalled-check",
            "-5",
            "de:a:b",
            "metrics:completed:data",
        ] {
            assert!(JobId::custom(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hash_tag_needs_content() {
        assert!(Prefix::new("{bull}").is_ok_and(|p| p.has_hash_tag()));
        assert!(Prefix::new("a{b}c").is_ok_and(|p| p.has_hash_tag()));
        assert!(!Prefix::default().has_hash_tag());
        assert!(!Prefix::new("{}").is_ok_and(|p| p.has_hash_tag()));
    }

    #[test]
    fn a_token_is_not_printed() {
        assert_eq!(format!("{:?}", LockToken::new("secret")), "LockToken(…)");
    }
}
