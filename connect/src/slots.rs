//! Which Cluster node serves which slot, as CLUSTER SLOTS tells it. Pure; asking
//! is another file's work.

use redis::{FromRedisValue, Value};

use crate::node::NodeAddr;

const SLOTS: usize = 16_384;
/// Says of a slot that nobody serves it.
const NOBODY: u16 = u16::MAX;

/// The owner of each slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotMap {
    owners: Vec<u16>,
    primaries: Vec<NodeAddr>,
    replicas: Vec<NodeAddr>,
}

impl SlotMap {
    /// Reads the reply that `asked` gave. A node that does not say its own address
    /// is the one that was asked.
    pub(crate) fn read(reply: Value, asked: &NodeAddr) -> Result<Self, String> {
        let bad = || "the reply to CLUSTER SLOTS has an unknown form".to_owned();
        let mut map = Self { owners: vec![NOBODY; SLOTS], primaries: Vec::new(), replicas: Vec::new() };
        let Value::Array(ranges) = reply else { return Err(bad()) };
        for range in ranges {
            let Value::Array(parts) = range else { return Err(bad()) };
            let mut parts = parts.into_iter();
            let mut bound = || {
                let bound = parts.next().and_then(|v| usize::from_redis_value(v).ok());
                bound.filter(|slot| *slot < SLOTS).ok_or_else(bad)
            };
            let (first, last) = (bound()?, bound()?);
            let mut nodes = parts.filter_map(|node| address(node, asked));
            // A range whose primary tells no usable address is as good as not served.
            let Some(primary) = nodes.next() else { continue };
            map.replicas.extend(nodes);
            let owner = map.primary(primary);
            map.owners.get_mut(first..=last).ok_or_else(bad)?.fill(owner);
        }
        if map.primaries.is_empty() {
            return Err("it knows of no slot that is served".to_owned());
        }
        Ok(map)
    }

    fn primary(&mut self, node: NodeAddr) -> u16 {
        let at = self.primaries.iter().position(|known| *known == node).unwrap_or_else(|| {
            self.primaries.push(node);
            self.primaries.len() - 1
        });
        u16::try_from(at).unwrap_or(NOBODY)
    }

    /// Who serves the slot.
    pub(crate) fn owner(&self, slot: u16) -> Option<&NodeAddr> {
        self.primaries.get(usize::from(*self.owners.get(usize::from(slot))?))
    }

    /// The slot has a new owner, which the old one told.
    pub(crate) fn moved(&mut self, slot: u16, to: NodeAddr) {
        let owner = self.primary(to);
        if let Some(entry) = self.owners.get_mut(usize::from(slot)) {
            *entry = owner;
        }
    }

    /// Every node that serves a slot.
    pub(crate) fn primaries(&self) -> &[NodeAddr] {
        &self.primaries
    }

    /// Every node that can be asked, primaries first.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeAddr> {
        self.primaries.iter().chain(&self.replicas)
    }
}

fn address(node: Value, asked: &NodeAddr) -> Option<NodeAddr> {
    let Value::Array(parts) = node else { return None };
    let mut parts = parts.into_iter();
    let host = match parts.next()? {
        Value::Nil => None,
        host => String::from_redis_value(host).ok(),
    };
    let port = parts.next().and_then(|port| u16::from_redis_value(port).ok()).filter(|port| *port != 0)?;
    let host = host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.host.clone());
    Some(NodeAddr { host, port })
}

/// The slot and the node of a MOVED or ASK answer from `from`.
pub(crate) fn redirection(error: &redis::RedisError, from: Option<&NodeAddr>) -> Option<(u16, NodeAddr)> {
    let (target, slot) = error.redirect_node()?;
    // `:7001` is the same host as the one that answers.
    let node = match target.strip_prefix(':') {
        Some(port) => NodeAddr { host: from?.host.clone(), port: port.parse().ok()? },
        None => NodeAddr::parse(target, 0).ok()?,
    };
    let host = if node.host == "?" { from?.host.clone() } else { node.host };
    Some((slot, NodeAddr { host, port: node.port }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".to_vec())])
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
    }

    fn asked() -> NodeAddr {
        NodeAddr { host: "seed".to_owned(), port: 1 }
    }

    #[test]
    fn each_slot_has_the_owner_that_is_told() {
        let reply = Value::Array(vec![
            range(0, 99, vec![node(text("a"), 7001), node(text("r"), 7004)]),
            range(100, 16_383, vec![node(text("b"), 7002)]),
        ]);
        let mut map = SlotMap::read(reply, &asked()).unwrap();
        let owner = |map: &SlotMap, slot| map.owner(slot).map(ToString::to_string);
        assert_eq!(owner(&map, 99).as_deref(), Some("a:7001"));
        assert_eq!(owner(&map, 100).as_deref(), Some("b:7002"));
        assert_eq!(map.nodes().map(ToString::to_string).collect::<Vec<_>>(), ["a:7001", "b:7002", "r:7004"]);
        map.moved(99, NodeAddr { host: "c".to_owned(), port: 7003 });
        assert_eq!(owner(&map, 99).as_deref(), Some("c:7003"));
        assert_eq!((map.primaries().len(), owner(&map, 16_384)), (3, None));
    }

    #[test]
    fn a_node_without_an_address_is_the_one_that_was_asked() {
        for host in [Value::Nil, text(""), text("?")] {
            let map =
                SlotMap::read(Value::Array(vec![range(0, 5, vec![node(host, 7001)])]), &asked()).unwrap();
            assert_eq!(map.owner(5).unwrap().to_string(), "seed:7001");
            assert!(map.owner(6).is_none());
        }
    }

    #[test]
    fn an_answer_of_another_form_is_refused() {
        for reply in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 16_384, vec![node(text("a"), 1)])]),
            Value::Array(vec![range(9, 3, vec![node(text("a"), 1)])]),
            Value::Array(vec![range(0, 1, vec![])]),
        ] {
            assert!(SlotMap::read(reply.clone(), &asked()).is_err(), "{reply:?}");
        }
    }
}
