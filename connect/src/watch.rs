//! Looking at the topology while connections are open: often, and whenever somebody
//! met a reason to. Ends the connections to servers that stopped
//! being primaries, so that nobody waits for a frozen one; a single server is not
//! watched.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use redis::{RedisError, Value, aio::MultiplexedConnection};
use tokio::{sync::Notify, task::JoinHandle};

use crate::{
    ConnectError,
    dial::Dialer,
    node::NodeAddr,
    redis_handle::{Inner, Place, Route},
    sentinel::is_primary,
    slots::SlotMap,
};

/// Between two looks without a reason. A primary that was replaced while it lives
/// goes on acknowledging what will be lost: the Sentinels are asked more often.
const INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL_OF_SENTINELS: Duration = Duration::from_millis(250);
/// Between two looks, however many reasons there are.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a node may take to tell its view.
const PATIENCE: Duration = Duration::from_secs(1);

/// The task that looks; begun with the first connection, and anew when the runtime
/// it lived on has ended.
#[derive(Default)]
pub(crate) struct Watch(Mutex<Option<JoinHandle<()>>>);

impl Watch {
    pub(crate) fn keep(&self, inner: &Arc<Inner>) {
        let mut task = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(watch(Arc::downgrade(inner), inner.look.clone())));
        }
    }
}

async fn watch(inner: Weak<Inner>, wanted: Arc<Notify>) {
    let mut interval = INTERVAL;
    loop {
        // cancel-safe: a wish that is not taken stays for the next turn.
        let _ = tokio::time::timeout(interval, wanted.notified()).await;
        let Some(inner) = inner.upgrade() else { return };
        if let Route::Sentinel { .. } = inner.route {
            interval = INTERVAL_OF_SENTINELS;
        }
        inner.look_around().await;
        drop(inner);
        tokio::time::sleep(PAUSE).await;
    }
}

impl Inner {
    async fn look_around(&self) {
        match &self.route {
            Route::Single(_) => {}
            Route::Sentinel { sentinels, dialer, home } => {
                let held = home.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Some(held) = held else { return };
                if !sentinels.doubt(&held.node).await {
                    return;
                }
                let Ok(candidates) = sentinels.candidates(self.endpoint()).await else { return };
                let Some(best) = candidates.first() else { return };
                if best.node == held.node || best.epoch < held.epoch {
                    return;
                }
                // One Sentinel may be wrong: the connections stay until another server
                // says itself that it is the primary.
                let Ok(mut conn) = dialer.dial(&best.node).await else { return };
                if is_primary(&mut conn).await.is_ok_and(|yes| yes) {
                    tracing::warn!(from = %held.node, to = %best.node, "the primary has changed");
                    let mut home = home.lock().unwrap_or_else(PoisonError::into_inner);
                    // Somebody may have connected to the new one meanwhile.
                    if home.as_ref() == Some(&held) {
                        *home = None;
                        drop(home);
                        self.cut(&Place(None));
                    }
                }
            }
            Route::Cluster { view, dialer } => {
                let Ok(primaries) = view.refresh(dialer, self.endpoint()).await else { return };
                for place in self.places() {
                    if let Place(Some(node)) = &place
                        && !primaries.contains(node)
                    {
                        self.cut(&place);
                    }
                }
            }
        }
    }
}

/// What is known of a Cluster.
#[derive(Debug)]
pub(crate) struct ClusterView {
    seeds: Vec<NodeAddr>,
    map: RwLock<Option<SlotMap>>,
    open: Mutex<HashMap<NodeAddr, MultiplexedConnection>>,
    /// Whom to ask first next time.
    turn: std::sync::atomic::AtomicUsize,
}

impl ClusterView {
    pub(crate) fn new(seeds: Vec<NodeAddr>) -> Self {
        Self { seeds, map: RwLock::default(), open: Mutex::default(), turn: 0.into() }
    }

    fn read<T>(&self, look: impl FnOnce(&SlotMap) -> T) -> Option<T> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(look)
    }

    /// Who serves a slot; asks the nodes when none was asked before.
    pub(crate) async fn owner(
        &self,
        slot: u16,
        dialer: &Dialer,
        endpoint: &str,
    ) -> Result<Option<NodeAddr>, ConnectError> {
        if let Some(owner) = self.read(|map| map.owner(slot).cloned()) {
            return Ok(owner);
        }
        Box::pin(self.refresh(dialer, endpoint)).await?;
        Ok(self.read(|map| map.owner(slot).cloned()).flatten())
    }

    /// Every node that serves slots; asks the nodes when none was asked before.
    pub(crate) async fn primaries(
        &self,
        dialer: &Dialer,
        endpoint: &str,
    ) -> Result<Vec<NodeAddr>, ConnectError> {
        match self.read(|map| map.primaries().to_vec()) {
            Some(primaries) => Ok(primaries),
            None => Box::pin(self.refresh(dialer, endpoint)).await,
        }
    }

    /// The slot has a new owner.
    pub(crate) fn moved(&self, slot: u16, to: NodeAddr) {
        if let Some(map) = self.map.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
            map.moved(slot, to);
        }
    }

    /// Asks one node after the other until one tells who serves what; gives the
    /// primaries.
    pub(crate) async fn refresh(
        &self,
        dialer: &Dialer,
        endpoint: &str,
    ) -> Result<Vec<NodeAddr>, ConnectError> {
        let mut nodes: Vec<NodeAddr> = self.read(|map| map.nodes().cloned().collect()).unwrap_or_default();
        if !nodes.is_empty() {
            // In turn, so that a node that is cut off from the others does not keep us.
            let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let count = nodes.len();
            nodes.rotate_left(turn % count);
        }
        for seed in &self.seeds {
            if !nodes.contains(seed) {
                nodes.push(seed.clone());
            }
        }
        let mut failures = Vec::new();
        for node in nodes {
            let asked = tokio::time::timeout(PATIENCE, self.ask(&node, dialer)).await;
            let answer = asked.unwrap_or_else(|_| {
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time").into())
            });
            match answer {
                Ok(reply) => match SlotMap::read(reply, &node) {
                    Ok(map) => {
                        let primaries = map.primaries().to_vec();
                        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Some(map);
                        return Ok(primaries);
                    }
                    Err(why) => failures.push(format!("{node}: {why}")),
                },
                Err(error) => {
                    self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
                    if error.to_string().contains("cluster support disabled") {
                        failures.push(format!("{node} is no Cluster node; use redis:// for a single server"));
                        continue;
                    }
                    match ConnectError::from_redis(&node.to_string(), error) {
                        refused @ ConnectError::Refused { .. } => return Err(refused),
                        other => failures.push(other.to_string()),
                    }
                }
            }
        }
        Err(ConnectError::NoPrimary { endpoint: endpoint.to_owned(), why: failures.join("; ") })
    }

    async fn ask(&self, node: &NodeAddr, dialer: &Dialer) -> Result<Value, RedisError> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned();
        let mut conn = match open {
            Some(conn) => conn,
            None => {
                let conn = dialer.dial(node).await?;
                self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), conn.clone());
                conn
            }
        };
        redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut conn).await
    }
}
