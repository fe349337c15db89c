//! The name of a Proxmox task. Pure.

use std::{fmt, str::FromStr};

/// `UPID:<node>:<pid>:<pstart>:<starttime>:<type>:<id>:<user>:`, with the
/// parts that we use taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upid {
    text: String,
    /// The node that runs the task.
    pub node: String,
    /// When it started, epoch seconds by the node's clock.
    pub started_at_s: i64,
    /// `vzcreate`, `vzstart`, …
    pub kind: String,
    /// What it works on; for guests the VMID. May be empty.
    pub id: String,
    /// Who started it; for tokens `user@realm!name`.
    pub user: String,
}

impl Upid {
    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text is not a task name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a Proxmox task (UPID:node:…)")]
pub struct NotAUpid(String);

impl FromStr for Upid {
    type Err = NotAUpid;

    /// From both ends: the id in the middle may be empty or hold colons, and
    /// pstart may have eight digits or nine.
    fn from_str(text: &str) -> Result<Self, NotAUpid> {
        let wrong = || NotAUpid(text.chars().take(120).collect());
        let rest = text.strip_prefix("UPID:").and_then(|rest| rest.strip_suffix(':')).ok_or_else(wrong)?;
        let (front, user) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let mut parts = front.splitn(6, ':');
        let mut next = || parts.next().ok_or_else(wrong);
        let (node, pid, pstart, started) = (next()?, next()?, next()?, next()?);
        let (kind, id) = (next()?, next()?);
        let hex = |part: &str| i64::from_str_radix(part, 16).map_err(|_| wrong());
        hex(pid)?;
        hex(pstart)?;
        let started_at_s = hex(started)?;
        if node.is_empty() || kind.is_empty() || user.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            text: text.to_owned(),
            node: node.to_owned(),
            started_at_s,
            kind: kind.to_owned(),
            id: id.to_owned(),
            user: user.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_name_is_read_from_both_ends() {
        let upid: Upid =
            "UPID:pve1:000012AB:123456789:6745A1B2:vzcreate:121:mpanel@pve!fleet:".parse().unwrap();
        assert_eq!((upid.node.as_str(), upid.kind.as_str(), upid.id.as_str()), ("pve1", "vzcreate", "121"));
        assert_eq!((upid.user.as_str(), upid.started_at_s), ("mpanel@pve!fleet", 0x6745_A1B2));
        let empty_id: Upid = "UPID:pve1:1:2:3:vzdump::root@pam:".parse().unwrap();
        assert_eq!((empty_id.id.as_str(), empty_id.user.as_str()), ("", "root@pam"));
        let colons: Upid = "UPID:pve1:1:2:3:imgcopy:a:b:root@pam:".parse().unwrap();
        assert_eq!(colons.id, "a:b");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "UPID:", "UPID:pve1:1:2:3:x:", "UPID:pve1:z:2:3:vzcreate:1:u@r:", "OK"] {
            assert!(text.parse::<Upid>().is_err(), "{text}");
        }
    }
}
