//! Storages and volumes: what exists where, how much room is left, how disks are named.
//!
//! State only; the HTTP side is in `content`, backups in `backup`, disk parameters in `disks`. Knows guests by number, not by content.

use std::collections::BTreeMap;

use super::state::{Config, GIB, GuestKind, unix_s};

/// The template every node offers.
pub(crate) const LXC_TEMPLATE: &str = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst";
pub(crate) const LOCAL: &str = "local";
pub(crate) const LOCAL_LVM: &str = "local-lvm";
pub(crate) const CLIENTS_MAIN: &str = "clients-main";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Template,
    Backup,
    RootDir,
    Images,
}

impl Content {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Template => "vztmpl",
            Self::Backup => "backup",
            Self::RootDir => "rootdir",
            Self::Images => "images",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StorageKind {
    /// A folder: templates and backups.
    Dir,
    /// Thin volumes of one node.
    LvmThin,
    /// Block volumes that every node reaches.
    Rbd,
}

impl StorageKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::LvmThin => "lvmthin",
            Self::Rbd => "rbd",
        }
    }

    pub(crate) fn contents(self) -> &'static [Content] {
        match self {
            Self::Dir => &[Content::Template, Content::Backup],
            Self::LvmThin | Self::Rbd => &[Content::RootDir, Content::Images],
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) content: Content,
    pub(crate) bytes: u64,
    pub(crate) vmid: Option<u32>,
    pub(crate) created_at_s: u64,
    pub(crate) notes: String,
    pub(crate) protected: bool,
    /// A backup carries the configuration it was taken of.
    pub(crate) backup_of: Option<(GuestKind, Config)>,
}

/// One storage as one node sees it; a shared one exists once, without a node.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) id: String,
    pub(crate) node: Option<String>,
    pub(crate) kind: StorageKind,
    pub(crate) total_bytes: u64,
    /// By volume id, storage prefix included.
    pub(crate) volumes: BTreeMap<String, Volume>,
}

impl Storage {
    pub(crate) fn used_bytes(&self) -> u64 {
        self.volumes.values().map(|volume| volume.bytes).sum()
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.used_bytes())
    }

    pub(crate) fn is_on(&self, node: &str) -> bool {
        self.node.as_deref().is_none_or(|own| own == node)
    }

    pub(super) fn take(&self, bytes: u64) -> Result<(), String> {
        let free = self.free_bytes();
        if bytes > free {
            return Err(format!(
                "no space left on device: storage '{}' has {} bytes free, {bytes} are wanted",
                self.id, free
            ));
        }
        Ok(())
    }
}

/// The storages of a fresh cluster.
pub(crate) fn initial(nodes: &[String], local_gib: u64, lvm_gib: u64, clients_gib: u64) -> Vec<Storage> {
    let mut all = Vec::new();
    for node in nodes {
        let template = Volume {
            content: Content::Template,
            bytes: 126_515_062,
            vmid: None,
            created_at_s: unix_s(),
            notes: String::new(),
            protected: false,
            backup_of: None,
        };
        all.push(Storage {
            id: LOCAL.to_owned(),
            node: Some(node.clone()),
            kind: StorageKind::Dir,
            total_bytes: local_gib * GIB,
            volumes: BTreeMap::from([(LXC_TEMPLATE.to_owned(), template)]),
        });
        all.push(Storage {
            id: LOCAL_LVM.to_owned(),
            node: Some(node.clone()),
            kind: StorageKind::LvmThin,
            total_bytes: lvm_gib * GIB,
            volumes: BTreeMap::new(),
        });
    }
    all.push(Storage {
        id: CLIENTS_MAIN.to_owned(),
        node: None,
        kind: StorageKind::Rbd,
        total_bytes: clients_gib * GIB,
        volumes: BTreeMap::new(),
    });
    all
}

pub(crate) fn find<'a>(storages: &'a [Storage], node: &str, id: &str) -> Result<&'a Storage, String> {
    storages
        .iter()
        .find(|storage| storage.id == id && storage.is_on(node))
        .ok_or_else(|| format!("storage '{id}' does not exist"))
}

pub(crate) fn find_mut<'a>(
    storages: &'a mut [Storage],
    node: &str,
    id: &str,
) -> Result<&'a mut Storage, String> {
    storages
        .iter_mut()
        .find(|storage| storage.id == id && storage.is_on(node))
        .ok_or_else(|| format!("storage '{id}' does not exist"))
}

/// The storage part of a volume id.
pub(crate) fn storage_of(volid: &str) -> &str {
    volid.split_once(':').map_or("", |(storage, _)| storage)
}

/// Removes all volumes that carry a guest's id, except its backups.
pub(crate) fn free_guest(storages: &mut [Storage], vmid: u32) {
    for storage in storages {
        storage.volumes.retain(|_, volume| volume.vmid != Some(vmid) || volume.content == Content::Backup);
    }
}

/// Changes a volume's size; growing needs room.
pub(crate) fn set_size(storages: &mut [Storage], node: &str, volid: &str, bytes: u64) -> Result<(), String> {
    let storage = find_mut(storages, node, storage_of(volid))?;
    let present = storage.volumes.get(volid).map_or(0, |volume| volume.bytes);
    storage.take(bytes.saturating_sub(present))?;
    if let Some(volume) = storage.volumes.get_mut(volid) {
        volume.bytes = bytes;
    }
    Ok(())
}

/// Moves a guest's volumes to the same or another storage of a second node; all or none.
pub(crate) fn relocate(
    storages: &mut [Storage],
    from: &str,
    to: &str,
    vmid: u32,
    target_storage: Option<&str>,
) -> Result<Vec<(String, String)>, String> {
    let mut moves = Vec::new();
    for storage in storages.iter().filter(|storage| storage.is_on(from)) {
        for (volid, volume) in storage.volumes.iter().filter(|(_, volume)| volume.vmid == Some(vmid)) {
            let target = target_storage.unwrap_or(&storage.id);
            let stays = storage.node.is_none() && target == storage.id;
            if volume.content != Content::Backup && !stays {
                moves.push((storage.id.clone(), target.to_owned(), volid.clone(), volume.clone()));
            }
        }
    }
    let mut wanted: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, target, _, volume) in &moves {
        *wanted.entry(target).or_default() += volume.bytes;
    }
    for (target, bytes) in wanted {
        find(storages, to, target)?.take(bytes)?;
    }
    let mut renamed = Vec::new();
    for (source, target, volid, volume) in moves {
        find_mut(storages, from, &source)?.volumes.remove(&volid);
        let name = volid.split_once(':').map_or(volid.as_str(), |(_, name)| name);
        let new_volid = format!("{target}:{name}");
        find_mut(storages, to, &target)?.volumes.insert(new_volid.clone(), volume);
        renamed.push((volid, new_volid));
    }
    Ok(renamed)
}
