//! Which DNS name a pod has, and what must change at the name server so that
//! it leads to the pod. Pure.
//!
//! A name belongs to the pod whose mark its RRsets carry; what carries no mark
//! of ours, or another pod's, is never touched.

use uuid::Uuid;

use crate::adapters::powerdns::{Change, Comment, Record, RrSet};

/// Who made our RRsets, as their remark says.
const ACCOUNT: &str = "mpanel-fleet";

/// The full name (with its final dot) of a host in the zone (with its final
/// dot); `None` when a host name is of another zone.
#[must_use]
pub fn full_name(hostname: &str, zone: &str) -> Option<String> {
    let host = hostname.trim_end_matches('.').to_ascii_lowercase();
    let bare_zone = zone.trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() || bare_zone.is_empty() {
        return None;
    }
    let name = if host.contains('.') {
        // The zone itself is no pod's name.
        host.strip_suffix(&bare_zone).filter(|rest| rest.len() > 1 && rest.ends_with('.'))?;
        host
    } else {
        format!("{host}.{bare_zone}")
    };
    (name.len() <= 253).then(|| format!("{name}."))
}

/// What a pod's name is to lead to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Its IPv4 address.
    pub v4: Option<String>,
    /// Its IPv6 address.
    pub v6: Option<String>,
    /// How long it may be cached, seconds.
    pub ttl: u32,
}

/// The name belongs to someone else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} has {kind} records that are not this pod's; choose another host name, or remove them")]
pub struct Taken {
    /// The name.
    pub name: String,
    /// The type of what is there.
    pub kind: String,
}

fn mark(pod_id: Uuid) -> String {
    format!("mpanel-pod-{pod_id}")
}

fn is_of(set: &RrSet, pod_id: Uuid) -> bool {
    let mark = mark(pod_id);
    set.comments.iter().any(|comment| comment.account == ACCOUNT && comment.content == mark)
}

/// The changes that make the name lead to the pod, given what is there now.
/// Nothing wanted takes away what is the pod's, and nothing else.
///
/// # Errors
/// [`Taken`], when something is wanted and the name is not free.
pub fn changes(there: &[RrSet], name: &str, pod_id: Uuid, wanted: &Wanted) -> Result<Vec<Change>, Taken> {
    let mut changes = Vec::new();
    let nothing_wanted = wanted.v4.is_none() && wanted.v6.is_none();
    let other = there.iter().find(|set| {
        matches!(set.kind.as_str(), "A" | "AAAA" | "CNAME") && !set.records.is_empty() && !is_of(set, pod_id)
    });
    if let (Some(other), false) = (other, nothing_wanted) {
        return Err(Taken { name: name.to_owned(), kind: other.kind.clone() });
    }
    for (kind, address) in [("A", &wanted.v4), ("AAAA", &wanted.v6)] {
        let now = there.iter().find(|set| set.kind == kind && is_of(set, pod_id));
        match address {
            Some(address) => {
                let set = RrSet {
                    name: name.to_owned(),
                    kind: kind.to_owned(),
                    ttl: wanted.ttl,
                    records: vec![Record { content: address.clone(), disabled: false }],
                    comments: vec![Comment { content: mark(pod_id), account: ACCOUNT.to_owned() }],
                };
                let same = now.is_some_and(|now| now.ttl == set.ttl && now.records == set.records);
                if !same {
                    changes.push(Change::Replace(set));
                }
            }
            None if now.is_some() => {
                changes.push(Change::Delete { name: name.to_owned(), kind: kind.to_owned() });
            }
            None => {}
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "shop.pods.example.";

    fn wanted() -> Wanted {
        Wanted { v4: Some("10.0.0.5".to_owned()), v6: Some("fd00::5".to_owned()), ttl: 300 }
    }

    fn applied(changes: &[Change]) -> Vec<RrSet> {
        changes
            .iter()
            .filter_map(|change| match change {
                Change::Replace(set) => Some(set.clone()),
                Change::Delete { .. } => None,
            })
            .collect()
    }

    #[test]
    fn names_are_of_the_zone_or_none() {
        let zone = "pods.example.";
        assert_eq!(full_name("shop", zone).as_deref(), Some(NAME));
        assert_eq!(full_name("Shop.Pods.Example", zone).as_deref(), Some(NAME));
        assert_eq!(full_name("a.shop.pods.example", "pods.example").as_deref(), Some("a.shop.pods.example."));
        for foreign in ["shop.example", "pods.example", "badpods.example", ".pods.example", ""] {
            assert_eq!(full_name(foreign, zone), None, "{foreign}");
        }
    }

    #[test]
    fn what_was_applied_needs_no_further_change() {
        let pod = Uuid::from_u128(1);
        let first = changes(&[], NAME, pod, &wanted()).unwrap();
        assert_eq!(first.len(), 2);
        assert_eq!(changes(&applied(&first), NAME, pod, &wanted()).unwrap(), []);
        let moved = Wanted { v4: Some("10.0.0.6".to_owned()), ..wanted() };
        assert_eq!(changes(&applied(&first), NAME, pod, &moved).unwrap().len(), 1);
        let gone = changes(&applied(&first), NAME, pod, &Wanted::default()).unwrap();
        assert!(gone.iter().all(|change| matches!(change, Change::Delete { .. })) && gone.len() == 2);
    }

    #[test]
    fn what_is_not_the_pods_is_never_touched() {
        let (pod, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let others = applied(&changes(&[], NAME, other, &wanted()).unwrap());
        let mut by_hand = others.clone();
        by_hand.iter_mut().for_each(|set| set.comments.clear());
        let mut alias = by_hand[..1].to_vec();
        alias[0].kind = "CNAME".to_owned();
        for there in [others, by_hand, alias] {
            assert!(changes(&there, NAME, pod, &wanted()).is_err());
            assert_eq!(changes(&there, NAME, pod, &Wanted::default()).unwrap(), []);
        }
    }
}
