//! What a cluster says about itself: version, nodes, guests, storages, backups.

use reqwest::Method;
use serde_json::Value;

use super::{
    client::PveClient,
    error::{Class, Outcome, PveError},
    types::{ClusterRow, GuestRow, NodeRow, StorageRow, Volume},
    upid::Upid,
};

/// A backup to be made.
#[derive(Debug, Clone, Copy)]
pub struct Backup<'a> {
    /// The guest.
    pub vmid: u32,
    /// `snapshot`, `suspend` or `stop`.
    pub mode: &'a str,
    /// Where to.
    pub storage: &'a str,
    /// The note on the volume, by which it is known again.
    pub note: &'a str,
}

impl PveClient {
    /// Whether the API answers and takes our login.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn check(&self) -> Result<(), PveError> {
        self.get::<Value>(&["version"], &[]).await.map(|_| ())
    }

    /// The nodes of the cluster.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, PveError> {
        self.get(&["nodes"], &[]).await
    }

    /// Whether the cluster has quorum. A host without a cluster always has.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn is_quorate(&self) -> Result<bool, PveError> {
        let rows: Vec<ClusterRow> = self.get(&["cluster", "status"], &[]).await?;
        Ok(rows.iter().find(|row| row.kind == "cluster").is_none_or(|row| row.quorate))
    }

    /// All guests of the cluster. Up to ten seconds old: absence here proves nothing alone.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn guests(&self) -> Result<Vec<GuestRow>, PveError> {
        self.get(&["cluster", "resources"], &[("type", "vm")]).await
    }

    /// A VMID that the cluster believes free. It reserves nothing.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn next_id(&self) -> Result<u32, PveError> {
        let path = ["cluster", "nextid"];
        let id: Value = self.get(&path, &[]).await?;
        id.as_str()
            .and_then(|text| text.parse().ok())
            .or_else(|| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .ok_or_else(|| self.error(&Method::GET, &path, Class::BadAnswer, None, format!("{id} is no id")))
    }

    /// Whether no guest of the cluster has this VMID, by the cluster's own file
    /// system: unlike the lists it does not lag, and needs no right to see guests.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn vmid_is_free(&self, vmid: u32) -> Result<bool, PveError> {
        let vmid = vmid.to_string();
        match self.get::<Value>(&["cluster", "nextid"], &[("vmid", vmid.as_str())]).await {
            Ok(_) => Ok(true),
            Err(error) if error.class == Class::Exists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The storages that a node reaches.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn storages(&self, node: &str) -> Result<Vec<StorageRow>, PveError> {
        self.get(&["nodes", node, "storage"], &[]).await
    }

    /// The backups of a guest in a storage.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn backups(&self, node: &str, storage: &str, vmid: u32) -> Result<Vec<Volume>, PveError> {
        let vmid = vmid.to_string();
        let query = [("content", "backup"), ("vmid", vmid.as_str())];
        self.get(&["nodes", node, "storage", storage, "content"], &query).await
    }

    /// Removes a volume. Answers a task's name, or none when it was done at once.
    pub async fn delete_volume(&self, node: &str, storage: &str, volid: &str) -> Outcome<Option<String>> {
        self.mutate(Method::DELETE, &["nodes", node, "storage", storage, "content", volid], &[]).await
    }

    /// Makes a backup. Prunes nothing: other backups are not ours to remove.
    pub async fn back_up(&self, node: &str, backup: Backup<'_>) -> Outcome<Upid> {
        let vmid = backup.vmid.to_string();
        let form = [
            ("vmid", vmid.as_str()),
            ("mode", backup.mode),
            ("storage", backup.storage),
            ("compress", "zstd"),
            ("notes-template", backup.note),
            ("remove", "0"),
        ];
        self.task(Method::POST, &["nodes", node, "vzdump"], &form).await
    }
}
