//! What to do next about a guest, given what is seen of it and what is on
//! record. Pure: recovery after a crash and the ordinary way are one table.

use std::{collections::BTreeSet, time::Duration};

use crate::adapters::proxmox::{Class, GuestConfig, tag_set};

/// The steps of a creation, in order. The words are in `fleet_job_steps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Capacity, VMID and address are held.
    Reserve,
    /// The guest is being made.
    Create,
    /// Its configuration has come to rest.
    Settle,
    /// What a clone could not be given is set.
    Configure,
    /// It is being started.
    Start,
    /// It runs and has its address.
    Verify,
    /// All rows say so.
    Commit,
}

impl Step {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Create => "create",
            Self::Settle => "settle",
            Self::Configure => "configure",
            Self::Start => "start",
            Self::Verify => "verify",
            Self::Commit => "commit",
        }
    }

    /// How much of the work is done when it begins, per cent.
    #[must_use]
    pub fn percent(self) -> u8 {
        match self {
            Self::Reserve => 0,
            Self::Create => 10,
            Self::Settle => 60,
            Self::Configure => 65,
            Self::Start => 70,
            Self::Verify => 80,
            Self::Commit => 95,
        }
    }
}

/// The tag by which we know a pod's guest.
#[must_use]
pub fn ownership_tag(pod_id: uuid::Uuid) -> String {
    format!("mpanel-pod-{pod_id}")
}

/// What is at the pod's VMID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guest {
    /// Nothing, as far as node and cluster know.
    Absent,
    /// Ours, by its tag.
    Ours {
        /// Whether its creation still holds it.
        in_creation: bool,
    },
    /// Being created by someone, and not yet tagged: Proxmox writes tags late.
    HalfMade,
    /// Someone else's; the text names it.
    Foreign(String),
}

/// Reads a configuration as a [`Guest`].
#[must_use]
pub fn read_guest(config: &GuestConfig, tag: &str, place: &str) -> Guest {
    let tags: BTreeSet<String> = tag_set(config.tags.as_deref());
    let in_creation = matches!(config.lock.as_deref(), Some("create" | "clone"));
    // A clone takes no tags: until it has them its description says whose it is.
    let described = config.description.as_deref().is_some_and(|text| is_described(text, tag));
    if tags.contains(tag) || (tags.is_empty() && described) {
        Guest::Ours { in_creation }
    } else if in_creation && tags.is_empty() {
        Guest::HalfMade
    } else {
        let name = config.any_name().unwrap_or("without a name");
        Guest::Foreign(format!("guest `{name}` on {place}"))
    }
}

/// Whether the line that we write into descriptions names the pod of this tag.
fn is_described(description: &str, tag: &str) -> bool {
    let line: Option<serde_json::Value> = serde_json::from_str(description.trim()).ok();
    line.and_then(|line| Some(ownership_tag(line.get("mpanelPod")?.as_str()?.parse().ok()?))).as_deref()
        == Some(tag)
}

/// Our own creation task on that VMID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// None is known.
    None,
    /// It runs.
    Running,
    /// It is over.
    Ended,
}

/// What to do next about the creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Nothing is there and nothing is on its way: send the request.
    Send,
    /// Our task runs: watch it.
    Watch,
    /// Something may still be on its way: look again.
    Wait,
    /// The guest is there and ours: go on.
    Adopt,
    /// A half-made guest that nobody works on any more: leave it and move.
    Quarantine,
    /// The VMID belongs to someone else.
    Taken(String),
}

/// The table. `sent_ago` is the age of the last request whose outcome is not
/// known to be "not done"; `settle` how long such a request may still take effect.
#[must_use]
pub fn next_create(guest: &Guest, task: Task, sent_ago: Option<Duration>, settle: Duration) -> Move {
    let settled = sent_ago.is_none_or(|age| age >= settle);
    match (guest, task) {
        (_, Task::Running) => Move::Watch,
        (Guest::Ours { in_creation: false }, _) => Move::Adopt,
        (Guest::Foreign(who), _) => Move::Taken(who.clone()),
        // The lock of a creation goes last; shortly after the task it is no wonder.
        (Guest::Ours { in_creation: true }, _) if !settled => Move::Wait,
        (Guest::Ours { in_creation: true }, _) => Move::Quarantine,
        (Guest::HalfMade, _) if sent_ago.is_none() => {
            Move::Taken("a guest that someone else is creating".to_owned())
        }
        (Guest::HalfMade, _) if !settled => Move::Wait,
        (Guest::HalfMade, _) => Move::Quarantine,
        (Guest::Absent, Task::Ended) => Move::Send,
        (Guest::Absent, Task::None) if settled => Move::Send,
        (Guest::Absent, Task::None) => Move::Wait,
    }
}

/// Whether a refused or failed call may simply be made again soon, in the same attempt.
#[must_use]
pub fn soon_again(class: Class) -> bool {
    matches!(
        class,
        Class::Locked | Class::LockTimeout | Class::NoQuorum | Class::NodeUnreachable | Class::DigestMismatch
    )
}

/// The wait before the `n`-th repetition (from 0): doubling from half a second
/// to eight, half of it by chance.
#[must_use]
pub fn pause_before(n: u32, random: f64) -> Duration {
    let full = Duration::from_millis(500).saturating_mul(1 << n.min(4));
    full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(35);
    const YOUNG: Option<Duration> = Some(Duration::from_secs(3));
    const OLD: Option<Duration> = Some(Duration::from_secs(40));

    fn config(lock: Option<&str>, tags: Option<&str>) -> GuestConfig {
        GuestConfig {
            lock: lock.map(str::to_owned),
            tags: tags.map(str::to_owned),
            hostname: Some("h".to_owned()),
            ..GuestConfig::default()
        }
    }

    #[test]
    fn a_guest_is_ours_by_its_tag_alone() {
        let tag = "mpanel-pod-1";
        let cases = [
            (config(None, Some("x;mpanel-pod-1")), Guest::Ours { in_creation: false }),
            (config(Some("create"), Some("mpanel-pod-1")), Guest::Ours { in_creation: true }),
            (config(Some("create"), None), Guest::HalfMade),
            (config(None, None), Guest::Foreign("guest `h` on pve1".to_owned())),
            (config(Some("create"), Some("theirs")), Guest::Foreign("guest `h` on pve1".to_owned())),
            (config(None, Some("mpanel-pod-12")), Guest::Foreign("guest `h` on pve1".to_owned())),
        ];
        for (config, guest) in cases {
            assert_eq!(read_guest(&config, tag, "pve1"), guest);
        }
    }

    #[test]
    fn the_table_of_moves() {
        let ours = Guest::Ours { in_creation: false };
        let ours_locked = Guest::Ours { in_creation: true };
        let foreign = Guest::Foreign("x".to_owned());
        let taken = Move::Taken("x".to_owned());
        let half_taken = Move::Taken("a guest that someone else is creating".to_owned());
        let cases = [
            // Nothing there.
            (&Guest::Absent, Task::None, None, Move::Send),
            (&Guest::Absent, Task::None, YOUNG, Move::Wait),
            (&Guest::Absent, Task::None, OLD, Move::Send),
            (&Guest::Absent, Task::Running, YOUNG, Move::Watch),
            (&Guest::Absent, Task::Ended, YOUNG, Move::Send),
            // Half made.
            (&Guest::HalfMade, Task::None, None, half_taken),
            (&Guest::HalfMade, Task::None, YOUNG, Move::Wait),
            (&Guest::HalfMade, Task::None, OLD, Move::Quarantine),
            (&Guest::HalfMade, Task::Running, YOUNG, Move::Watch),
            (&Guest::HalfMade, Task::Ended, OLD, Move::Quarantine),
            // Ours.
            (&ours, Task::None, None, Move::Adopt),
            (&ours, Task::Ended, YOUNG, Move::Adopt),
            (&ours, Task::Running, YOUNG, Move::Watch),
            (&ours_locked, Task::Ended, YOUNG, Move::Wait),
            (&ours_locked, Task::Ended, OLD, Move::Quarantine),
            // Someone else's.
            (&foreign, Task::None, None, taken.clone()),
            (&foreign, Task::Ended, OLD, taken),
        ];
        for (guest, task, sent_ago, expected) in cases {
            assert_eq!(
                next_create(guest, task, sent_ago, SETTLE),
                expected,
                "{guest:?} {task:?} {sent_ago:?}"
            );
        }
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        assert_eq!(pause_before(0, 0.0), Duration::from_millis(250));
        assert_eq!(pause_before(0, 1.0), Duration::from_millis(500));
        assert_eq!(pause_before(60, 1.0), Duration::from_secs(8));
    }
}
