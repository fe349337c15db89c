//! What a failed Proxmox call means: a table from texts to classes, and whether
//! the call can have had an effect.
//!
//! Proxmox answers almost every failure with 500 and the text in the reason
//! phrase, so the status alone says little. Pure; the client fills it in.

use std::fmt;

/// What a failure means for whoever made the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The guest is locked by another operation: wait.
    Locked,
    /// A lock file was not had in time: nothing was done, try again.
    LockTimeout,
    /// The cluster has no quorum: nothing was done.
    NoQuorum,
    /// The VMID is taken: find out by whom.
    Exists,
    /// Guest, task or node is not there.
    NotFound,
    /// The configuration changed meanwhile: read again.
    DigestMismatch,
    /// The guest is protected: only an operator can help.
    Protected,
    /// The guest runs (already, or still).
    Running,
    /// The guest does not run.
    NotRunning,
    /// Disks cannot shrink.
    NoShrink,
    /// The disk has that size already.
    NoOpResize,
    /// High availability holds the guest.
    HaManaged,
    /// A snapshot of that name is there already.
    SnapshotExists,
    /// The guest has no snapshot of that name.
    SnapshotMissing,
    /// The storage of the guest's disks cannot take snapshots.
    NoSnapshots,
    /// There is no such storage on the node, or it does not take such content.
    StorageMissing,
    /// The guest agent does not answer (yet).
    AgentAway,
    /// The storage is full.
    StorageFull,
    /// The API, or the node behind it, could not be reached: nothing was done.
    NodeUnreachable,
    /// The certificate is not the one we trust: nothing was sent.
    TlsRefused,
    /// The token is wrong (401).
    BadCredentials,
    /// The token may not do this (403).
    Forbidden,
    /// A parameter is refused (400).
    BadParameter,
    /// The API has no such call (501).
    NotImplemented,
    /// The outcome is unknown: look before doing anything else.
    Ambiguous,
    /// The answer is not what the API promises.
    BadAnswer,
    /// Anything else that the API said.
    Other,
}

/// What is to be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// The same call may succeed later (after a look, when its outcome is unknown).
    Retry,
    /// The same call will not succeed without somebody's help.
    Never,
    /// Something else is there, or has changed: read it, then decide anew.
    Conflict,
}

/// How a pattern is compared with the text.
enum Pattern {
    /// The text begins with it.
    Starts(&'static str),
    /// The text begins with the first and holds the second.
    StartsHolds(&'static str, &'static str),
    /// The text holds it.
    Holds(&'static str),
}

/// From text to class; the first match counts. Case-sensitive, as Proxmox writes.
const TABLE: &[(Pattern, Class)] = &[
    (Pattern::Starts("CT is locked"), Class::Locked),
    (Pattern::Starts("VM is locked"), Class::Locked),
    (Pattern::StartsHolds("can't lock file '", "got timeout"), Class::LockTimeout),
    (Pattern::Starts("cluster not ready - no quorum?"), Class::NoQuorum),
    (Pattern::StartsHolds("CT ", "already exists"), Class::Exists),
    (Pattern::StartsHolds("VM ", "already exists"), Class::Exists),
    (Pattern::StartsHolds("unable to create CT ", "already exists"), Class::Exists),
    (Pattern::StartsHolds("unable to create VM ", "already exists"), Class::Exists),
    (Pattern::StartsHolds("Configuration file '", "does not exist"), Class::NotFound),
    (Pattern::Starts("no such task"), Class::NotFound),
    (Pattern::Starts("no such cluster node '"), Class::NotFound),
    (Pattern::Starts("detected modified configuration"), Class::DigestMismatch),
    (Pattern::Holds("protection mode enabled"), Class::Protected),
    (Pattern::StartsHolds("unable to destroy CT ", "container is running"), Class::Running),
    (Pattern::StartsHolds("unable to destroy VM ", "is running"), Class::Running),
    (Pattern::StartsHolds("CT ", "already running"), Class::Running),
    (Pattern::StartsHolds("VM ", "already running"), Class::Running),
    (Pattern::StartsHolds("CT ", "not running"), Class::NotRunning),
    (Pattern::StartsHolds("VM ", "not running"), Class::NotRunning),
    (Pattern::Starts("unable to shrink disk size"), Class::NoShrink),
    (Pattern::Starts("shrinking disks is not supported"), Class::NoShrink),
    (Pattern::Starts("disk is already at specified size"), Class::NoOpResize),
    (Pattern::StartsHolds("unable to remove CT ", "used in HA resources"), Class::HaManaged),
    (Pattern::StartsHolds("unable to remove VM ", "used in HA resources"), Class::HaManaged),
    (Pattern::StartsHolds("snapshot name '", "already used"), Class::SnapshotExists),
    (Pattern::StartsHolds("snapshot '", "does not exist"), Class::SnapshotMissing),
    (Pattern::Holds("snapshot feature is not available"), Class::NoSnapshots),
    (Pattern::StartsHolds("storage '", "does not exist"), Class::StorageMissing),
    (Pattern::StartsHolds("storage '", "is not available on node"), Class::StorageMissing),
    (Pattern::StartsHolds("could not get storage information for '", "storage '"), Class::StorageMissing),
    (Pattern::Starts("QEMU guest agent is not running"), Class::AgentAway),
    (Pattern::Starts("No QEMU guest agent configured"), Class::AgentAway),
    (Pattern::Holds("no space left"), Class::StorageFull),
    (Pattern::Holds("not enough free space"), Class::StorageFull),
    (Pattern::Holds("out of space"), Class::StorageFull),
];

/// The class of a text, from a response or from a task's exit status.
#[must_use]
pub fn classify_text(text: &str) -> Class {
    let text = text.trim();
    TABLE
        .iter()
        .find(|(pattern, _)| match pattern {
            Pattern::Starts(start) => text.starts_with(start),
            Pattern::StartsHolds(start, part) => text.starts_with(start) && text.contains(part),
            Pattern::Holds(part) => text.contains(part),
        })
        .map_or(Class::Other, |(_, class)| *class)
}

/// The class of a response: its number first where that alone decides, else its
/// text, else the parameter errors.
#[must_use]
pub fn classify(status: u16, text: &str, errors: &[(String, String)]) -> Class {
    match status {
        401 => return Class::BadCredentials,
        403 => return Class::Forbidden,
        501 => return Class::NotImplemented,
        595 => return Class::NodeUnreachable,
        // 596-599 have no registered meaning: Proxmox's relay did not see the
        // end. A reverse proxy's 502-504 say the same.
        596..=599 | 502..=504 => return Class::Ambiguous,
        _ => {}
    }
    let by_text = classify_text(text);
    if by_text != Class::Other {
        return by_text;
    }
    let by_errors = errors.iter().map(|(_, error)| classify_text(error)).find(|class| *class != Class::Other);
    match (by_errors, status) {
        (Some(class), _) => class,
        (None, 400) => Class::BadParameter,
        (None, 404) => Class::NotFound,
        (None, _) => Class::Other,
    }
}

impl Class {
    /// Whether the same call may succeed later without anybody's help.
    #[must_use]
    pub fn is_transient(self) -> bool {
        match self {
            Self::Locked
            | Self::LockTimeout
            | Self::NoQuorum
            | Self::DigestMismatch
            | Self::StorageFull
            | Self::NodeUnreachable
            | Self::Ambiguous
            | Self::BadAnswer
            | Self::AgentAway
            | Self::Other => true,
            Self::Exists
            | Self::NotFound
            | Self::Protected
            | Self::Running
            | Self::NotRunning
            | Self::NoShrink
            | Self::NoOpResize
            | Self::HaManaged
            | Self::SnapshotExists
            | Self::SnapshotMissing
            | Self::NoSnapshots
            | Self::StorageMissing
            | Self::TlsRefused
            | Self::BadCredentials
            | Self::Forbidden
            | Self::BadParameter
            | Self::NotImplemented => false,
        }
    }

    /// What a caller is to do about it, in one word.
    #[must_use]
    pub fn advice(self) -> Advice {
        match self {
            Self::Exists | Self::DigestMismatch | Self::SnapshotExists => Advice::Conflict,
            class if class.is_transient() => Advice::Retry,
            _ => Advice::Never,
        }
    }

    /// Whether nobody but an operator, at the configuration, can help.
    #[must_use]
    pub fn is_configuration(self) -> bool {
        matches!(self, Self::BadCredentials | Self::Forbidden | Self::TlsRefused)
    }

    /// Whether the call can have had, or may still have, an effect.
    #[must_use]
    pub fn outcome_unknown(self) -> bool {
        matches!(self, Self::Ambiguous | Self::BadAnswer)
    }
}

/// A Proxmox call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PveError {
    /// What it means.
    pub class: Class,
    /// The status, if there was a response.
    pub status: Option<u16>,
    /// What Proxmox or the network said.
    pub text: String,
    /// The call, such as `POST /nodes/pve1/lxc`.
    pub call: String,
    /// The API it went to.
    pub api: String,
}

impl fmt::Display for PveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { class, status, text, call, api } = self;
        match class {
            Class::BadCredentials => write!(
                f,
                "Proxmox at {api} refuses our login (401 on {call}): check PROXMOX_TOKEN_ID and \
                 PROXMOX_TOKEN_SECRET, or proxmox.username and proxmox.password"
            ),
            Class::Forbidden => write!(
                f,
                "Proxmox at {api} does not let the API token do {call} ({text}): give the user and token of \
                 PROXMOX_TOKEN_ID the missing privilege"
            ),
            Class::TlsRefused => write!(
                f,
                "the certificate of Proxmox at {api} is not trusted ({text}): check PROXMOX_TLS_FINGERPRINT or \
                 PROXMOX_CA_FILE"
            ),
            Class::NodeUnreachable => write!(f, "Proxmox at {api} cannot be reached for {call}: {text}"),
            Class::Ambiguous => write!(f, "Proxmox at {api}: the outcome of {call} is unknown: {text}"),
            _ => match status {
                Some(status) => write!(f, "Proxmox refused {call}: {text} ({status})"),
                None => write!(f, "Proxmox at {api}, {call}: {text}"),
            },
        }
    }
}

/// How a call that changes something ended. `Unknown` must be followed by a
/// look at Proxmox, never by the same call again.
#[derive(Debug)]
#[must_use]
pub enum Outcome<T> {
    /// Proxmox did it, or took it on as a task.
    Done(T),
    /// Proxmox did not do it.
    NotDone(PveError),
    /// Nobody knows.
    Unknown(PveError),
}

impl<T> From<Result<T, PveError>> for Outcome<T> {
    fn from(result: Result<T, PveError>) -> Self {
        match result {
            Ok(value) => Self::Done(value),
            Err(error) if error.class.outcome_unknown() => Self::Unknown(error),
            Err(error) => Self::NotDone(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_proxmox_find_their_class() {
        let cases = [
            ("CT is locked (backup)", Class::Locked),
            ("VM is locked (snapshot)", Class::Locked),
            ("can't lock file '/run/lock/lxc/pve-config-100.lock' - got timeout", Class::LockTimeout),
            ("cluster not ready - no quorum?", Class::NoQuorum),
            ("CT 100 already exists on node 'pve1'", Class::Exists),
            ("unable to create CT 100 - CT 100 already exists on node 'pve2'", Class::Exists),
            ("VM 100 already exists", Class::Exists),
            ("Configuration file 'nodes/pve1/lxc/100.conf' does not exist", Class::NotFound),
            ("no such cluster node 'pve9'", Class::NotFound),
            (
                "detected modified configuration - file changed by other user? Try again.",
                Class::DigestMismatch,
            ),
            ("can't remove CT 100 - protection mode enabled", Class::Protected),
            ("unable to destroy CT 100 - container is running", Class::Running),
            ("CT 100 already running", Class::Running),
            ("CT 100 not running", Class::NotRunning),
            ("unable to shrink disk size", Class::NoShrink),
            ("disk is already at specified size", Class::NoOpResize),
            ("unable to remove CT 100 - used in HA resources and purge parameter not set.", Class::HaManaged),
            ("lvcreate error: no space left on device", Class::StorageFull),
            ("snapshot name 'a' already used", Class::SnapshotExists),
            ("snapshot 'a' does not exist", Class::SnapshotMissing),
            ("snapshot feature is not available", Class::NoSnapshots),
            ("storage 'backups' does not exist", Class::StorageMissing),
            ("QEMU guest agent is not running", Class::AgentAway),
            ("something new", Class::Other),
            ("ct 100 ALREADY EXISTS", Class::Other),
        ];
        for (text, class) in cases {
            assert_eq!(classify_text(text), class, "{text}");
            assert_eq!(classify(500, text, &[]), class, "{text}");
        }
    }

    #[test]
    fn numbers_decide_where_texts_cannot() {
        assert_eq!(classify(401, "", &[]), Class::BadCredentials);
        assert_eq!(classify(403, "Permission check failed (/vms/100, VM.Allocate)", &[]), Class::Forbidden);
        assert_eq!(classify(595, "Connection refused", &[]), Class::NodeUnreachable);
        for status in [596, 597, 598, 599, 502, 504] {
            assert_eq!(classify(status, "Connection timed out", &[]), Class::Ambiguous);
        }
        let errors = vec![("vmid".to_owned(), "VM 100 already exists".to_owned())];
        assert_eq!(classify(400, "Parameter verification failed.", &errors), Class::Exists);
        let errors = vec![("upid".to_owned(), "no such task".to_owned())];
        assert_eq!(classify(400, "Parameter verification failed.", &errors), Class::NotFound);
        let errors = vec![("cores".to_owned(), "value must have a minimum value of 1".to_owned())];
        assert_eq!(classify(400, "Parameter verification failed.", &errors), Class::BadParameter);
    }

    #[test]
    fn every_failure_has_an_advice() {
        for (class, advice) in [
            (Class::Locked, Advice::Retry),
            (Class::NodeUnreachable, Advice::Retry),
            (Class::Ambiguous, Advice::Retry),
            (Class::NoQuorum, Advice::Retry),
            (Class::BadParameter, Advice::Never),
            (Class::Forbidden, Advice::Never),
            (Class::NoShrink, Advice::Never),
            (Class::StorageMissing, Advice::Never),
            (Class::Exists, Advice::Conflict),
            (Class::DigestMismatch, Advice::Conflict),
        ] {
            assert_eq!(class.advice(), advice, "{class:?}");
        }
    }

    #[test]
    fn only_an_unknown_outcome_forbids_the_same_call_again() {
        let error = |class| PveError {
            class,
            status: None,
            text: "t".to_owned(),
            call: "POST /x".to_owned(),
            api: "https://h:8006".to_owned(),
        };
        assert!(matches!(Outcome::<()>::from(Err(error(Class::Ambiguous))), Outcome::Unknown(_)));
        assert!(matches!(Outcome::<()>::from(Err(error(Class::NodeUnreachable))), Outcome::NotDone(_)));
        let text = error(Class::BadCredentials).to_string();
        assert!(text.contains("PROXMOX_TOKEN_ID") && text.contains("PROXMOX_TOKEN_SECRET"));
    }
}
