//! Who is connected to serve the queue, or to read its events.

use std::collections::BTreeMap;

use super::{AdminError, QueueAdmin};
use crate::marker::client_name;

/// What BullMQ puts behind the name of a connection that reads events.
pub(crate) const EVENTS_SUFFIX: &str = ":qe";

/// A connection of a worker or of an event reader, ours or Node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectedClient {
    /// The worker's name, where it has one.
    pub name: Option<String>,
    /// The connection's name as Redis has it.
    pub raw_name: String,
    /// Its id on its server.
    pub id: String,
    /// Host and port it came from.
    pub address: String,
    /// Seconds since it connected.
    pub age_s: u64,
    /// Seconds since its last command.
    pub idle_s: u64,
    /// Every field of CLIENT LIST.
    pub fields: BTreeMap<String, String>,
}

impl ConnectedClient {
    fn from_line(line: &str, worker_prefix: &str) -> Option<Self> {
        let fields: BTreeMap<String, String> = line
            .split(' ')
            .filter_map(|word| word.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_end().to_owned()))
            .collect();
        let text = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let number = |name: &str| fields.get(name).and_then(|n| n.parse().ok()).unwrap_or(0);
        let raw_name = fields.get("name")?.clone();
        Some(Self {
            name: raw_name.strip_prefix(worker_prefix).map(ToOwned::to_owned),
            id: text("id"),
            address: text("addr"),
            age_s: number("age"),
            idle_s: number("idle"),
            raw_name,
            fields,
        })
    }
}

impl QueueAdmin {
    /// The workers connected to serve the queue, of every process, ours and
    /// Node's: what `queue.getWorkers()` gives in Node.
    ///
    /// # Errors
    /// [`AdminError::ClientList`] where the server does not let us look.
    pub async fn workers(&self) -> Result<Vec<ConnectedClient>, AdminError> {
        let plain = client_name(&self.prefix, &self.keys, None);
        let named = client_name(&self.prefix, &self.keys, Some(""));
        self.clients(&named, |name| name == plain || name.starts_with(&named)).await
    }

    /// Who reads the queue's events: what `queue.getQueueEvents()` gives in Node.
    ///
    /// # Errors
    /// [`AdminError::ClientList`] where the server does not let us look.
    pub async fn event_readers(&self) -> Result<Vec<ConnectedClient>, AdminError> {
        let wanted = format!("{}{EVENTS_SUFFIX}", client_name(&self.prefix, &self.keys, None));
        self.clients(&wanted, |name| name == wanted).await
    }

    async fn clients(
        &self,
        worker_prefix: &str,
        matches: impl Fn(&str) -> bool,
    ) -> Result<Vec<ConnectedClient>, AdminError> {
        let mut found = Vec::new();
        // In a Cluster a worker may still be at the server that had the queue before.
        for mut shared in self.redis.shared_all().await? {
            let mut ask = redis::cmd("CLIENT");
            ask.arg("LIST").arg("TYPE").arg("normal");
            let list: Result<Vec<u8>, _> = ask.query_async(&mut shared.conn).await;
            let list = match self.told(&shared, list).await {
                Ok(list) => list,
                Err(AdminError::Redis(error)) if error.code() == Some("ERR") => {
                    return Err(AdminError::ClientList(error));
                }
                Err(AdminError::Forbidden { source, .. }) => return Err(AdminError::ClientList(source)),
                Err(error) => return Err(error),
            };
            let list = String::from_utf8_lossy(&list);
            let clients = list.lines().filter_map(|line| ConnectedClient::from_line(line, worker_prefix));
            found.extend(clients.filter(|client| matches(&client.raw_name)));
        }
        Ok(found)
    }
}
