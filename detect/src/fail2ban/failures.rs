//! What lines of one connection say together: a user in one, the address in
//! another, and a success that takes a failure back.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Connections that are remembered; the oldest is forgotten first. fail2ban's figure.
const MAX_CONNECTIONS: usize = 100;

/// What the groups of an expression held, and what is known of the connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure {
    pub(super) groups: BTreeMap<String, Option<String>>,
    users: BTreeSet<String>,
    pending: bool,
}

impl Failure {
    /// What a group held, if anything.
    pub(super) fn get(&self, group: &str) -> Option<&str> {
        self.groups.get(group)?.as_deref()
    }

    fn truthy(&self, group: &str) -> bool {
        self.get(group).is_some_and(|text| !text.is_empty())
    }

    fn take(&mut self, group: &str) -> bool {
        self.groups.remove(group).flatten().is_some_and(|text| !text.is_empty())
    }
}

/// Connections by what the filter calls `<F-MLFID>`.
#[derive(Debug, Default)]
pub(super) struct Connections {
    known: HashMap<String, Failure>,
    order: VecDeque<String>,
}

impl Connections {
    /// The failure with what is known of its connection, and whether the connection stays known.
    pub(super) fn merge(&mut self, id: &str, mut failure: Failure) -> (Failure, bool) {
        let gained = failure.truthy("mlfgained");
        if gained && !failure.truthy("nofail") {
            let value = failure.groups.get("mlfgained").cloned().flatten();
            failure.groups.insert("nofail".to_owned(), value);
        }
        let forget = failure.take("mlfforget");
        let user = failure.get("user").filter(|user| !user.is_empty()).map(str::to_owned);
        let mut merged;
        let kept;
        if let Some(known) = self.known.get(id) {
            merged = known.clone();
            merged.users.extend(user);
            merged.take("nofail");
            merged.take("mlfgained");
            if gained {
                merged.pending = false;
            }
            merged.groups.extend(failure.groups.into_iter().filter(|(_, value)| value.is_some()));
            kept = !forget;
            if forget {
                self.known.remove(id);
                self.order.retain(|known| known != id);
            }
        } else {
            merged = failure;
            kept = !forget;
            if kept {
                merged.users.extend(user);
                self.make_room();
                self.order.push_back(id.to_owned());
            }
        }
        if std::mem::take(&mut merged.pending) || merged.users.len() > 1 {
            merged.groups.remove("nofail");
            merged.groups.remove("mlfgained");
        }
        if kept {
            self.known.insert(id.to_owned(), merged.clone());
        }
        (merged, kept)
    }

    /// The connection has failed, and the address is still to come.
    pub(super) fn pending(&mut self, id: &str) {
        if let Some(known) = self.known.get_mut(id) {
            known.pending = true;
        }
    }

    fn make_room(&mut self) {
        while self.known.len() >= MAX_CONNECTIONS {
            let Some(oldest) = self.order.pop_front() else { return };
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(groups: &[(&str, &str)]) -> Failure {
        let groups = groups.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())));
        Failure { groups: groups.collect(), ..Failure::default() }
    }

    #[test]
    fn an_address_of_an_earlier_line_is_known_later() {
        let mut connections = Connections::default();
        connections.merge("a", failure(&[("ip4", "1.2.3.4"), ("nofail", "Connection from")]));
        let (merged, _) = connections.merge("a", failure(&[("user", "root")]));
        assert_eq!((merged.get("ip4"), merged.get("user")), (Some("1.2.3.4"), Some("root")));
        assert!(!merged.truthy("nofail"));
        let (merged, _) = connections.merge("b", failure(&[("user", "root")]));
        assert_eq!(merged.get("ip4"), None);
    }

    #[test]
    fn connections_are_forgotten_in_the_end() {
        let mut connections = Connections::default();
        for id in 0..1000 {
            connections.merge(&id.to_string(), failure(&[("user", "x")]));
        }
        assert!(connections.known.len() <= MAX_CONNECTIONS && connections.order.len() <= MAX_CONNECTIONS);
    }
}
