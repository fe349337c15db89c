//! Disk parameters and the volumes they become: `local-lvm:8` in, `local-lvm:vm-100-disk-0,size=8G` out.
//!
//! Shared by containers and virtual machines. Works on storages, never on guests.

use super::formats::{format_size, parse_size, property};
use super::state::{Config, GIB, GuestKind, unix_s};
use super::storage::{Content, Storage, Volume, find, find_mut};

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

#[cfg(test)]
mod tests {
    use super::super::storage::initial;
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
