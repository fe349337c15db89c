//! What a whole cluster says of its guests, nodes and storages in one call, and
//! what a storage holds. The rows come from a broadcast of statistics: up to
//! ten seconds old, and empty where the token may not look.

use serde::Deserialize;

use super::{
    client::PveClient,
    error::PveError,
    types::{GuestRow, Usage, lenient_bool, lenient_i64},
};

/// A row of `/cluster/resources`: a guest, a node or a storage, by [`ResourceRow::kind`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct ResourceRow {
    /// `lxc`, `qemu`, `node`, `storage`, or what newer versions have.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The node that it is, or is on.
    #[serde(default)]
    pub node: String,
    /// Guests: the id.
    #[serde(default, deserialize_with = "lenient_i64")]
    pub vmid: Option<i64>,
    /// Guests: the host name.
    #[serde(default)]
    pub name: Option<String>,
    /// `running`, `online`, `available`, …
    #[serde(default)]
    pub status: Option<String>,
    /// Guests: the tags.
    #[serde(default)]
    pub tags: Option<String>,
    /// Guests: the operation that holds it.
    #[serde(default)]
    pub lock: Option<String>,
    /// Guests: whether it is a template.
    #[serde(default, deserialize_with = "lenient_bool")]
    pub template: bool,
    /// Storages: the name.
    #[serde(default)]
    pub storage: Option<String>,
    /// Storages: what may be on it, comma list.
    #[serde(default)]
    pub content: Option<String>,
    /// What is in use, and what there is.
    #[serde(flatten)]
    pub usage: Usage,
}

impl ResourceRow {
    /// The row as a guest, when it is one.
    #[must_use]
    pub fn guest(&self) -> Option<GuestRow> {
        matches!(self.kind.as_str(), "lxc" | "qemu").then(|| GuestRow {
            vmid: self.vmid,
            node: self.node.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            status: self.status.clone(),
            tags: self.tags.clone(),
            usage: self.usage,
        })
    }
}

#[derive(Deserialize)]
struct VolumeRow {
    #[serde(default)]
    volid: String,
}

impl PveClient {
    /// Everything that the cluster knows of: guests, nodes, storages.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn resources(&self) -> Result<Vec<ResourceRow>, PveError> {
        self.get(&["cluster", "resources"], &[]).await
    }

    /// The volume ids of one kind (`vztmpl`, `backup`, …) on a node's storage.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn volumes(&self, node: &str, storage: &str, content: &str) -> Result<Vec<String>, PveError> {
        let rows: Vec<VolumeRow> =
            self.get(&["nodes", node, "storage", storage, "content"], &[("content", content)]).await?;
        Ok(rows.into_iter().map(|row| row.volid).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_of_every_kind_are_read_and_only_guests_are_guests() {
        let rows: Vec<ResourceRow> = serde_json::from_value(json!([
            {"type": "lxc", "vmid": "121", "node": "pve1", "cpu": "0.5", "maxmem": 1024, "disk": null},
            {"type": "storage", "storage": "local", "node": "pve1", "maxdisk": 9, "content": "vztmpl,backup"},
            {"type": "sdn", "sdn": "localnetwork", "new": {}}
        ]))
        .unwrap();
        let usage = &rows[0].usage;
        assert_eq!((usage.cpu, usage.maxmem, usage.disk), (Some(0.5), Some(1024), None));
        assert_eq!(rows[0].guest().and_then(|guest| guest.vmid), Some(121));
        assert!(rows[1].guest().is_none() && rows[2].guest().is_none());
    }
}
