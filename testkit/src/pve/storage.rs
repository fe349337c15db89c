//! Storages and volumes: what exists where, how much room is left, how disks are named.
//!
//! State only; the HTTP side is in `content`, backups in `backup`. Knows guests by number, not by content.

use std::collections::BTreeMap;

use super::formats::{format_size, parse_size, property};
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

    fn take(&self, bytes: u64) -> Result<(), String> {
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

/// A disk to be made for a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskPlan {
    /// Configuration key: `rootfs`, `mp0`, `scsi0`…
    pub(crate) key: String,
    pub(crate) storage: String,
    pub(crate) bytes: u64,
    /// Options kept beside the volume, without `size`.
    pub(crate) options: String,
    pub(crate) content: Content,
    pub(crate) name: DiskName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskName {
    Numbered,
    CloudInit,
}

/// What a disk parameter asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DiskWish {
    New(DiskPlan),
    /// Names a volume that has to exist.
    Existing(String),
    /// `none`, or a CD image: nothing to allocate.
    Nothing,
    /// A path of the host, which only root itself may give.
    HostPath,
}

/// True for keys whose value is a disk.
pub(crate) fn is_disk_key(kind: GuestKind, key: &str) -> bool {
    let prefixes: &[&str] = match kind {
        GuestKind::Lxc => &["rootfs", "mp"],
        GuestKind::Qemu => &["scsi", "virtio", "sata", "ide", "efidisk", "tpmstate"],
    };
    key == "rootfs"
        || prefixes.iter().any(|prefix| {
            key.strip_prefix(prefix)
                .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        })
}

/// Reads a disk parameter such as `local-lvm:8,mp=/data`.
pub(crate) fn read_disk(kind: GuestKind, key: &str, value: &str) -> DiskWish {
    let volume = value
        .split(',')
        .find_map(|part| match part.split_once('=') {
            None => Some(part),
            Some(("volume" | "file", volume)) => Some(volume),
            Some(_) => None,
        })
        .unwrap_or_default();
    let options: Vec<&str> = value
        .split(',')
        .filter(|part| {
            part.split_once('=').is_some_and(|(key, _)| !matches!(key, "volume" | "file" | "size"))
        })
        .collect();
    let content = match kind {
        GuestKind::Lxc => Content::RootDir,
        GuestKind::Qemu => Content::Images,
    };
    if volume.starts_with('/') {
        return DiskWish::HostPath;
    }
    let plan = |storage: &str, bytes, name, options: &[&str]| {
        DiskWish::New(DiskPlan {
            key: key.to_owned(),
            storage: storage.to_owned(),
            bytes,
            options: options.join(","),
            content,
            name,
        })
    };
    match volume.split_once(':') {
        Some((storage, "cloudinit")) => {
            let mut options = options;
            if !options.iter().any(|option| option.starts_with("media=")) {
                options.push("media=cdrom");
            }
            plan(storage, 4 << 20, DiskName::CloudInit, &options)
        }
        Some((storage, rest)) => match rest.parse::<f64>() {
            Ok(gib) if gib.is_finite() && gib > 0.0 && gib < 1e6 => {
                plan(storage, (gib * GIB as f64) as u64, DiskName::Numbered, &options)
            }
            Ok(_) => DiskWish::Existing(volume.to_owned()),
            Err(_) if value.contains("media=cdrom") => DiskWish::Nothing,
            Err(_) => DiskWish::Existing(volume.to_owned()),
        },
        None => DiskWish::Nothing,
    }
}

/// Checks that a planned disk's storage exists on the node and holds such volumes.
pub(crate) fn check_plan(storages: &[Storage], node: &str, plan: &DiskPlan) -> Result<(), String> {
    let storage = find(storages, node, &plan.storage)?;
    if storage.kind.contents().contains(&plan.content) {
        return Ok(());
    }
    Err(match plan.content {
        Content::RootDir => format!("storage '{}' does not support container directories", plan.storage),
        _ => format!("storage '{}' does not support vm images", plan.storage),
    })
}

/// Makes the volume and returns the configuration value that names it.
pub(crate) fn allocate(
    storages: &mut [Storage],
    node: &str,
    vmid: u32,
    plan: &DiskPlan,
) -> Result<String, String> {
    let storage = find_mut(storages, node, &plan.storage)?;
    storage.take(plan.bytes)?;
    let volid = match plan.name {
        DiskName::CloudInit => format!("{}:vm-{vmid}-cloudinit", storage.id),
        DiskName::Numbered => (0..)
            .map(|index: u32| format!("{}:vm-{vmid}-disk-{index}", storage.id))
            .find(|volid| !storage.volumes.contains_key(volid))
            .unwrap_or_default(),
    };
    storage.volumes.insert(
        volid.clone(),
        Volume {
            content: plan.content,
            bytes: plan.bytes,
            vmid: Some(vmid),
            created_at_s: unix_s(),
            notes: String::new(),
            protected: false,
            backup_of: None,
        },
    );
    let mut value = volid;
    if !plan.options.is_empty() {
        value = format!("{value},{}", plan.options);
    }
    Ok(format!("{value},size={}", format_size(plan.bytes)))
}

/// Removes all volumes that carry a guest's id, except its backups.
pub(crate) fn free_guest(storages: &mut [Storage], vmid: u32) {
    for storage in storages {
        storage.volumes.retain(|_, volume| volume.vmid != Some(vmid) || volume.content == Content::Backup);
    }
}

/// The volumes a configuration names, with their sizes.
pub(crate) fn disks_of(kind: GuestKind, config: &Config) -> Vec<(String, String, u64)> {
    config
        .iter()
        .filter(|(key, _)| is_disk_key(kind, key))
        .filter_map(|(key, value)| {
            let volid = value.split(',').next().filter(|volid| volid.contains(':'))?;
            let bytes = property(value, "size").and_then(parse_size)?;
            Some((key.clone(), volid.to_owned(), bytes))
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_parameters_are_told_apart() {
        let DiskWish::New(plan) = read_disk(GuestKind::Lxc, "mp0", "local-lvm:8,mp=/data,size=1G") else {
            panic!("a new disk is meant");
        };
        assert_eq!((plan.bytes, plan.options.as_str()), (8 * GIB, "mp=/data"));
        assert_eq!(read_disk(GuestKind::Lxc, "mp0", "/srv,mp=/data"), DiskWish::HostPath);
        assert_eq!(read_disk(GuestKind::Qemu, "ide2", "none,media=cdrom"), DiskWish::Nothing);
        assert!(matches!(read_disk(GuestKind::Qemu, "scsi0", "x:vm-1-disk-0"), DiskWish::Existing(_)));
    }

    #[test]
    fn a_full_storage_says_so() {
        let mut all = initial(&["n".to_owned()], 1, 4, 1);
        let DiskWish::New(plan) = read_disk(GuestKind::Lxc, "rootfs", "local-lvm:3") else { panic!("new") };
        assert_eq!(allocate(&mut all, "n", 100, &plan).unwrap(), "local-lvm:vm-100-disk-0,size=3G");
        assert!(allocate(&mut all, "n", 101, &plan).unwrap_err().contains("no space left"));
    }
}
