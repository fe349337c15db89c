//! What can be asked of, and done to, a guest that exists: containers and
//! virtual machines by the same functions, since the API differs by one word.

use std::fmt;

use reqwest::Method;
use serde_json::Value;

use super::{
    client::PveClient,
    error::{Class, Outcome, PveError},
    types::{AgentAnswer, GuestConfig, GuestStatus, Interface, Pending, RrdRow, Snapshot},
    upid::Upid,
};

/// What a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestKind {
    /// A container.
    Lxc,
    /// A virtual machine.
    Vm,
}

impl GuestKind {
    /// The API's word for it.
    #[must_use]
    pub fn segment(self) -> &'static str {
        match self {
            Self::Lxc => "lxc",
            Self::Vm => "qemu",
        }
    }

    /// From the API's word.
    #[must_use]
    pub fn of_segment(word: &str) -> Option<Self> {
        [Self::Lxc, Self::Vm].into_iter().find(|kind| kind.segment() == word)
    }

    /// The type of a task on such a guest, by its verb: `start` is `vzstart` or `qmstart`.
    #[must_use]
    pub fn task(self, verb: &str) -> String {
        match self {
            Self::Lxc => format!("vz{verb}"),
            Self::Vm => format!("qm{verb}"),
        }
    }
}

/// A guest, where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAt {
    /// Its node.
    pub node: String,
    /// What it is.
    pub kind: GuestKind,
    /// Its id.
    pub vmid: u32,
}

impl fmt::Display for GuestAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on {}", self.kind.segment(), self.vmid, self.node)
    }
}

/// A change of a guest's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Turns it on.
    Start,
    /// Turns it off at once.
    Stop,
    /// Asks it to end; after so many seconds it is turned off.
    Shutdown {
        /// Seconds.
        patience_s: u32,
    },
    /// Ends it and starts it again; after so many seconds it is forced.
    Reboot {
        /// Seconds.
        patience_s: u32,
    },
    /// Holds it.
    Suspend,
    /// Lets it go on.
    Resume,
}

impl Power {
    /// The API's word, which also ends the task's type.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Shutdown { .. } => "shutdown",
            Self::Reboot { .. } => "reboot",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }

    fn form(self) -> Vec<(&'static str, String)> {
        match self {
            Self::Shutdown { patience_s } => {
                vec![("timeout", patience_s.to_string()), ("forceStop", "1".to_owned())]
            }
            Self::Reboot { patience_s } => vec![("timeout", patience_s.to_string())],
            Self::Start | Self::Stop | Self::Suspend | Self::Resume => Vec::new(),
        }
    }
}

/// Runs `$body` with the path of the guest, and `$tail` after it.
macro_rules! guest_path {
    ($at:expr, $($tail:expr),* $(,)?) => {
        ["nodes", $at.node.as_str(), $at.kind.segment(), $at.vmid.to_string().as_str(), $($tail),*].as_slice()
    };
}

impl PveClient {
    /// A guest's configuration; `None` when this node has no such guest.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn guest_config(&self, at: &GuestAt) -> Result<Option<GuestConfig>, PveError> {
        // A machine's plain answer shows what waits for its next start.
        let query: &[(&str, &str)] = if at.kind == GuestKind::Vm { &[("current", "1")] } else { &[] };
        match self.get(guest_path!(at, "config"), query).await {
            Ok(config) => Ok(Some(config)),
            Err(error) if error.class == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Changes a configuration, if its digest is still this one.
    pub async fn set_guest_config(
        &self,
        at: &GuestAt,
        digest: Option<&str>,
        changes: &[(&str, &str)],
    ) -> Outcome<()> {
        let mut form = changes.to_vec();
        form.extend(digest.map(|digest| ("digest", digest)));
        match self.mutate::<Value>(Method::PUT, guest_path!(at, "config"), &form).await {
            Outcome::Done(_) => Outcome::Done(()),
            Outcome::NotDone(error) => Outcome::NotDone(error),
            Outcome::Unknown(error) => Outcome::Unknown(error),
        }
    }

    /// What of a configuration waits for the guest's next start.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn guest_pending(&self, at: &GuestAt) -> Result<Vec<Pending>, PveError> {
        self.get(guest_path!(at, "pending"), &[]).await
    }

    /// Whether a guest runs, and what it uses.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn guest_status(&self, at: &GuestAt) -> Result<GuestStatus, PveError> {
        self.get(guest_path!(at, "status", "current"), &[]).await
    }

    /// A running guest's network cards; of a machine only where its agent answers.
    ///
    /// # Errors
    /// [`PveError`]; its class is [`Class::AgentAway`] while a machine's agent does not answer.
    pub async fn guest_interfaces(&self, at: &GuestAt) -> Result<Vec<Interface>, PveError> {
        match at.kind {
            GuestKind::Lxc => self
                .get::<Option<Vec<Interface>>>(guest_path!(at, "interfaces"), &[])
                .await
                .map(Option::unwrap_or_default),
            GuestKind::Vm => self
                .get::<AgentAnswer>(guest_path!(at, "agent", "network-get-interfaces"), &[])
                .await
                .map(|answer| answer.result),
        }
    }

    /// Changes a guest's power.
    pub async fn power(&self, at: &GuestAt, change: Power) -> Outcome<Upid> {
        let form = change.form();
        self.task(Method::POST, guest_path!(at, "status", change.verb()), &borrowed(&form)).await
    }

    /// Grows a disk to this size in all. (A relative size would grow twice when sent twice.)
    pub async fn grow_disk(&self, at: &GuestAt, disk: &str, gib: u32) -> Outcome<Upid> {
        let size = format!("{gib}G");
        self.task(Method::PUT, guest_path!(at, "resize"), &[("disk", disk), ("size", &size)]).await
    }

    /// A guest's snapshots, without the entry `current` that stands for now.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn snapshots(&self, at: &GuestAt) -> Result<Vec<Snapshot>, PveError> {
        let mut rows: Vec<Snapshot> = self.get(guest_path!(at, "snapshot"), &[]).await?;
        rows.retain(|row| row.name != "current");
        Ok(rows)
    }

    /// Takes a snapshot; the description says whose it is.
    pub async fn take_snapshot(&self, at: &GuestAt, name: &str, description: &str) -> Outcome<Upid> {
        let form = [("snapname", name), ("description", description)];
        self.task(Method::POST, guest_path!(at, "snapshot"), &form).await
    }

    /// Goes back to a snapshot.
    pub async fn roll_back(&self, at: &GuestAt, name: &str) -> Outcome<Upid> {
        self.task(Method::POST, guest_path!(at, "snapshot", name, "rollback"), &[]).await
    }

    /// Removes a snapshot.
    pub async fn delete_snapshot(&self, at: &GuestAt, name: &str) -> Outcome<Upid> {
        self.task(Method::DELETE, guest_path!(at, "snapshot", name), &[]).await
    }

    /// Moves a guest to another node, running or not; a container is stopped for it.
    pub async fn migrate(&self, at: &GuestAt, target: &str) -> Outcome<Upid> {
        let how = match at.kind {
            GuestKind::Lxc => "restart",
            GuestKind::Vm => "online",
        };
        self.task(Method::POST, guest_path!(at, "migrate"), &[("target", target), (how, "1")]).await
    }

    /// Destroys a stopped guest, its entries in jobs and pools included.
    /// Volumes that its configuration does not name are left alone.
    pub async fn destroy_guest(&self, at: &GuestAt) -> Outcome<Upid> {
        let parameters = [("purge", "1"), ("destroy-unreferenced-disks", "0")];
        self.task(Method::DELETE, guest_path!(at,), &parameters).await
    }

    /// A guest's figures over the last hour, oldest first.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn guest_history(&self, at: &GuestAt) -> Result<Vec<RrdRow>, PveError> {
        self.get(guest_path!(at, "rrddata"), &[("timeframe", "hour"), ("cf", "AVERAGE")]).await
    }

    /// A guest's firewall rules, by position.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn firewall_rules(&self, at: &GuestAt) -> Result<Vec<Value>, PveError> {
        self.get(guest_path!(at, "firewall", "rules"), &[]).await
    }

    /// Adds a firewall rule at the top.
    pub async fn add_firewall_rule(&self, at: &GuestAt, rule: &[(&str, &str)]) -> Outcome<Value> {
        self.mutate(Method::POST, guest_path!(at, "firewall", "rules"), rule).await
    }

    /// Removes the firewall rule at a position, if the list's digest is still this one.
    pub async fn delete_firewall_rule(&self, at: &GuestAt, position: u32, digest: &str) -> Outcome<Value> {
        let position = position.to_string();
        let parameters = [("digest", digest)];
        self.mutate(Method::DELETE, guest_path!(at, "firewall", "rules", &position), &parameters).await
    }

    /// Turns a guest's firewall on or off.
    pub async fn set_firewall(&self, at: &GuestAt, on: bool) -> Outcome<Value> {
        let enable = if on { "1" } else { "0" };
        self.mutate(Method::PUT, guest_path!(at, "firewall", "options"), &[("enable", enable)]).await
    }
}

/// A form as the client takes it.
pub(super) fn borrowed<'a>(form: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    form.iter().map(|(name, value)| (*name, value.as_str())).collect()
}
