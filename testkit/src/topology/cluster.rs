//! A Cluster of three primaries, with or without a replica each; slots can be moved step by step.

use super::{PATIENCE, ask};
use crate::ports::free_port;
use crate::redis_server::RedisServerBuilder;
use crate::{RedisServer, TestkitError, eventually};

/// Where the three shares of the slots end.
const SHARES: [(u16, u16); 3] = [(0, 5460), (5461, 10_922), (10_923, 16_383)];
/// Keys that travel in one MIGRATE.
const KEYS_PER_MOVE: usize = 50;

/// A running Cluster.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<RedisServer>,
}

impl Cluster {
    /// Three primaries; `replicas` adds one for each, which takes over after two seconds.
    ///
    /// # Errors
    /// As [`RedisServer::start`]; [`TestkitError::Timeout`] when they do not find together.
    pub async fn start(replicas: bool) -> Result<Self, TestkitError> {
        Self::with(replicas, |node| node).await
    }

    /// The same, each node with more settings.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn with(
        replicas: bool,
        settings: impl Fn(RedisServerBuilder) -> RedisServerBuilder,
    ) -> Result<Self, TestkitError> {
        let count = if replicas { 6 } else { 3 };
        let mut nodes = Vec::with_capacity(count);
        for _ in 0..count {
            let node = settings(RedisServer::builder())
                .config("cluster-enabled yes")
                .config("cluster-config-file nodes.conf")
                .config("cluster-node-timeout 2000")
                // The usual bus port, 10,000 above, may not exist.
                .config(&format!("cluster-port {}", free_port()?))
                .config("repl-diskless-sync-delay 0")
                .config("cluster-replica-validity-factor 0");
            nodes.push(node.start().await?);
        }
        let cluster = Self { nodes };
        for (at, node) in cluster.nodes.iter().enumerate() {
            let epoch = (at + 1).to_string();
            ask::<()>(node, &["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await?;
            if let Some((first, last)) = SHARES.get(at) {
                let (first, last) = (first.to_string(), last.to_string());
                ask::<()>(node, &["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await?;
            }
        }
        let first = cluster.nodes[0].port();
        for node in &cluster.nodes[1..] {
            let (port, bus) = (first.to_string(), cluster.bus_port(0).await?);
            ask::<()>(node, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await?;
        }
        if replicas {
            cluster.all_know(count).await?;
            for at in 0..3 {
                let id = cluster.id(&cluster.nodes[at]).await?;
                ask::<()>(&cluster.nodes[at + 3], &["CLUSTER", "REPLICATE", &id]).await?;
            }
        }
        cluster.ready(count).await?;
        Ok(cluster)
    }

    async fn bus_port(&self, at: usize) -> Result<String, TestkitError> {
        let found: Vec<String> = ask(&self.nodes[at], &["CONFIG", "GET", "cluster-port"]).await?;
        found.into_iter().nth(1).ok_or_else(|| TestkitError::failed("cluster-port", "not told"))
    }

    async fn all_know(&self, count: usize) -> Result<(), TestkitError> {
        for node in &self.nodes {
            eventually("nodes that know each other", PATIENCE, || async {
                let info: String = ask(node, &["CLUSTER", "INFO"]).await.map_err(|e| e.to_string())?;
                if info.contains(&format!("cluster_known_nodes:{count}")) { Ok(()) } else { Err(info) }
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until every node calls the Cluster sound and every replica is in step.
    async fn ready(&self, count: usize) -> Result<(), TestkitError> {
        for (at, node) in self.nodes.iter().enumerate() {
            eventually("a sound Cluster", PATIENCE, || async {
                let info: String = ask(node, &["CLUSTER", "INFO"]).await.map_err(|e| e.to_string())?;
                let known = format!("cluster_known_nodes:{count}");
                if !info.contains("cluster_state:ok") || !info.contains(&known) {
                    return Err(info);
                }
                if at < 3 {
                    return Ok(());
                }
                let info: String = ask(node, &["INFO", "replication"]).await.map_err(|e| e.to_string())?;
                if info.contains("master_link_status:up") { Ok(()) } else { Err(info) }
            })
            .await?;
        }
        Ok(())
    }

    /// `redis+cluster://…` with the first two nodes: the others have to be found.
    pub fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", self.nodes[0].port(), self.nodes[1].port())
    }

    /// All nodes: three that began as primaries, then their replicas in the same order.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// The node with this port.
    pub fn node(&self, port: u16) -> Option<&RedisServer> {
        self.nodes.iter().find(|node| node.port() == port)
    }

    /// Who serves `slot`, as the first node which answers has it.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when no node answers, or nobody serves it.
    pub async fn owner(&self, slot: u16) -> Result<&RedisServer, TestkitError> {
        type Range = (u16, u16, Vec<redis::Value>);
        for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
            let Ok(ranges) = ask::<Vec<Vec<redis::Value>>>(node, &["CLUSTER", "SLOTS"]).await else {
                continue;
            };
            let ranges = ranges.into_iter().filter_map(|range| {
                redis::from_redis_value::<Range>(redis::Value::Array(range.into_iter().take(3).collect()))
                    .ok()
            });
            for (first, last, primary) in ranges {
                let port = primary.into_iter().nth(1).and_then(|port| redis::from_redis_value(port).ok());
                if let Some(owner) =
                    port.and_then(|port| self.node(port)).filter(|_| first <= slot && slot <= last)
                {
                    return Ok(owner);
                }
            }
        }
        Err(TestkitError::failed(format!("owner of slot {slot}"), "nobody tells of one"))
    }

    /// Waits until another node than `old` serves `slot`.
    ///
    /// # Errors
    /// [`TestkitError::Timeout`].
    pub async fn owner_after(&self, slot: u16, old: u16) -> Result<&RedisServer, TestkitError> {
        eventually("another owner of the slot", PATIENCE, || async {
            let owner = self.owner(slot).await.map_err(|e| e.to_string())?;
            if owner.port() == old { Err(format!("still {old}")) } else { Ok(owner) }
        })
        .await
    }

    async fn id(&self, node: &RedisServer) -> Result<String, TestkitError> {
        ask(node, &["CLUSTER", "MYID"]).await
    }

    /// Begins to move a slot: from now on a missing key is asked for at `to`.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when a node refuses.
    pub async fn begin_move(&self, slot: u16, to: &RedisServer) -> Result<(), TestkitError> {
        let from = self.owner(slot).await?;
        let (from_id, to_id) = (self.id(from).await?, self.id(to).await?);
        let slot = slot.to_string();
        ask::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await?;
        ask::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await
    }

    /// Moves up to `most` keys of a slot that is being moved; how many it were.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when a node refuses.
    pub async fn move_keys(&self, slot: u16, to: &RedisServer, most: usize) -> Result<usize, TestkitError> {
        let from = self.owner(slot).await?;
        let (slot, count) = (slot.to_string(), most.to_string());
        let keys: Vec<String> = ask(from, &["CLUSTER", "GETKEYSINSLOT", &slot, &count]).await?;
        if !keys.is_empty() {
            // Nodes with TLS use it among each other.
            let port = to.tls_port().unwrap_or(to.port()).to_string();
            let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            command.extend(keys.iter().map(String::as_str));
            ask::<()>(from, &command).await?;
        }
        Ok(keys.len())
    }

    /// Ends the move of a slot whose keys have all moved.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when a node refuses.
    pub async fn end_move(&self, slot: u16, to: &RedisServer) -> Result<(), TestkitError> {
        let from = self.owner(slot).await?;
        let id = self.id(to).await?;
        let slot = slot.to_string();
        for node in [to, from] {
            ask::<()>(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &id]).await?;
        }
        Ok(())
    }

    /// Moves a slot with all its keys, as `redis-cli --cluster reshard` does.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when a node refuses.
    pub async fn move_slot(&self, slot: u16, to: &RedisServer) -> Result<(), TestkitError> {
        self.begin_move(slot, to).await?;
        while self.move_keys(slot, to, KEYS_PER_MOVE).await? > 0 {}
        self.end_move(slot, to).await
    }
}
