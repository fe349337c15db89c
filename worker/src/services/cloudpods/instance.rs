//! One generation of a pod as the reservation decided it: kept in the database
//! so that a later attempt, under another configuration, makes the same guest.
//! Pure.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::plan::ownership_tag;
use crate::adapters::{
    db::pods::InstanceRow,
    proxmox::{CloneSpec, ContainerSpec, GuestAt, GuestKind},
};

/// What the guest is to be; `fleet_pods.spec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceSpec {
    /// Its node in Proxmox.
    pub node_name: String,
    /// Its region.
    pub region: String,
    /// Its host name.
    pub hostname: String,
    /// CPU cores.
    pub cores: u32,
    /// Memory, MiB.
    pub memory_mb: u32,
    /// Swap, MiB.
    pub swap_mb: u32,
    /// Disk, GiB.
    pub disk_gb: u32,
    /// Template volume.
    pub template: String,
    /// Storage of its disk.
    pub storage: String,
    /// Bridge of its network card.
    pub bridge: String,
    /// VLAN of its network card.
    pub vlan: Option<i32>,
    /// Resource pool; `None` for none.
    pub pool: Option<String>,
    /// Its address.
    pub net: Net,
    /// Its IPv6 address, where its cluster has a pool of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net6: Option<Net6>,
    /// The VMID that had to be given up before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<i32>,
    /// What it is; records of older versions know containers only.
    #[serde(default = "container", with = "kind_word")]
    pub kind: GuestKind,
}

fn container() -> GuestKind {
    GuestKind::Lxc
}

/// The kind as the API's word.
mod kind_word {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::GuestKind;

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(kind: &GuestKind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind.segment())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GuestKind, D::Error> {
        let word = String::deserialize(deserializer)?;
        GuestKind::of_segment(&word).ok_or_else(|| D::Error::custom(format!("`{word}` is no kind of guest")))
    }
}

/// How the guest gets its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "mode")]
pub enum Net {
    /// It is given one by the network and tells us.
    Dhcp,
    /// It has this one.
    Static {
        /// The address.
        ip: String,
        /// Its prefix length.
        prefix: u8,
        /// Its gateway.
        gateway: Option<String>,
    },
}

/// A static IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Net6 {
    /// The address.
    pub ip: String,
    /// Its prefix length.
    pub prefix: u8,
    /// Its gateway.
    pub gateway: Option<String>,
}

/// An instance: its row and its spec.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// The row of `fleet_pods`.
    pub row: InstanceRow,
    /// What the guest is to be.
    pub spec: InstanceSpec,
    /// Its VMID as Proxmox takes it.
    pub vmid: u32,
}

impl Instance {
    /// Reads a row.
    ///
    /// # Errors
    /// When its spec is not what this version writes.
    pub fn of(row: InstanceRow) -> Result<Self, serde_json::Error> {
        let spec = serde_json::from_value(row.spec.clone())?;
        let vmid = u32::try_from(row.vmid).unwrap_or_default();
        Ok(Self { row, spec, vmid })
    }

    /// The tag by which its guest is known.
    #[must_use]
    pub fn tag(&self) -> String {
        ownership_tag(self.row.pod_id)
    }

    /// Its guest, on a node.
    #[must_use]
    pub fn at(&self, node: &str) -> GuestAt {
        GuestAt { node: node.to_owned(), kind: self.spec.kind, vmid: self.vmid }
    }

    /// The request that makes its guest.
    #[must_use]
    pub fn container(&self, queue: &str, job_id: &str) -> ContainerSpec {
        let spec = &self.spec;
        ContainerSpec {
            vmid: self.vmid,
            ostemplate: spec.template.clone(),
            hostname: spec.hostname.clone(),
            cores: spec.cores,
            memory_mb: spec.memory_mb,
            swap_mb: spec.swap_mb,
            rootfs: format!("{}:{}", spec.storage, spec.disk_gb),
            net0: self.net0(),
            pool: spec.pool.clone(),
            tags: self.tags(),
            description: self.description(queue, job_id),
        }
    }

    fn tags(&self) -> Vec<String> {
        vec![self.tag(), format!("mpanel-gen-{}", self.row.generation)]
    }

    fn description(&self, queue: &str, job_id: &str) -> String {
        let line = serde_json::json!({
            "mpanelPod": self.row.pod_id, "generation": self.row.generation, "tenant": self.row.tenant_id,
            "job": format!("{queue}/{job_id}"), "specHash": self.spec_hash(),
        });
        line.to_string()
    }

    /// The request that clones its machine. A machine's name is a DNS name, as host names are.
    #[must_use]
    pub fn clone_of(&self, template: u32, queue: &str, job_id: &str) -> CloneSpec {
        let spec = &self.spec;
        CloneSpec {
            template,
            vmid: self.vmid,
            name: spec.hostname.clone(),
            storage: spec.storage.clone(),
            pool: spec.pool.clone(),
            target: spec.node_name.clone(),
            description: self.description(queue, job_id),
        }
    }

    /// What a machine's configuration must say; a clone says what its template did.
    #[must_use]
    pub fn machine_config(&self) -> Vec<(&'static str, String)> {
        let spec = &self.spec;
        let mut net = format!(
            "virtio={},bridge={}",
            hardware_address(self.row.pod_id, self.row.generation),
            spec.bridge
        );
        if let Some(vlan) = spec.vlan {
            let _ = write!(net, ",tag={vlan}");
        }
        vec![
            ("cores", spec.cores.to_string()),
            ("memory", spec.memory_mb.to_string()),
            ("net0", net),
            ("ipconfig0", self.ip_config()),
            ("agent", "1".to_owned()),
            ("onboot", "1".to_owned()),
            ("tags", self.tags().join(";")),
        ]
    }

    fn ip_config(&self) -> String {
        let mut config = match &self.spec.net {
            Net::Dhcp => "ip=dhcp".to_owned(),
            Net::Static { ip, prefix, gateway } => {
                let gateway = gateway.as_ref().map(|gateway| format!(",gw={gateway}")).unwrap_or_default();
                format!("ip={ip}/{prefix}{gateway}")
            }
        };
        if let Some(Net6 { ip, prefix, gateway }) = &self.spec.net6 {
            let _ = write!(config, ",ip6={ip}/{prefix}");
            if let Some(gateway) = gateway {
                let _ = write!(config, ",gw6={gateway}");
            }
        }
        config
    }

    fn net0(&self) -> String {
        let mut net = format!(
            "name=eth0,bridge={},hwaddr={},type=veth",
            self.spec.bridge,
            hardware_address(self.row.pod_id, self.row.generation)
        );
        if let Some(vlan) = self.spec.vlan {
            let _ = write!(net, ",tag={vlan}");
        }
        net.push(',');
        net.push_str(&self.ip_config());
        net
    }

    /// A short hash of what the guest is to be.
    #[must_use]
    pub fn spec_hash(&self) -> String {
        let digest = Sha256::digest(self.row.spec.to_string().as_bytes());
        digest.iter().take(8).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// A locally administered unicast address out of the pod's id, so that the
/// guest keeps it and a re-read compares equal.
fn hardware_address(pod_id: Uuid, generation: i32) -> String {
    let id = pod_id.as_bytes();
    let mut bytes = [id[0], id[1], id[2], id[3], id[4], id[5] ^ generation.to_le_bytes()[0]];
    bytes[0] = (bytes[0] & 0xFE) | 0x02;
    bytes.map(|byte| format!("{byte:02X}")).join(":")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn instance(net: Net) -> Instance {
        let spec = InstanceSpec {
            node_name: "pve1".to_owned(),
            region: "east".to_owned(),
            hostname: "shop".to_owned(),
            cores: 2,
            memory_mb: 2048,
            swap_mb: 512,
            disk_gb: 20,
            template: "local:vztmpl/t".to_owned(),
            storage: "clients-main".to_owned(),
            bridge: "vmbr0".to_owned(),
            vlan: None,
            pool: None,
            net,
            net6: None,
            moved_from: None,
            kind: GuestKind::Lxc,
        };
        let pod_id = Uuid::from_u128(0x5f0c_1a52_6a43_4b7e_9a51_2b1f_5d0c_7e11);
        let row = InstanceRow {
            pod_id,
            generation: 1,
            tenant_id: Uuid::nil(),
            cluster_id: 1,
            node_id: 1,
            vmid: 121,
            phase: "reserved".to_owned(),
            spec: serde_json::to_value(&spec).unwrap(),
            api_url: None,
        };
        Instance::of(row).unwrap()
    }

    #[test]
    fn the_request_carries_our_marks_and_one_network_card() {
        let net = Net::Static { ip: "10.0.0.5".to_owned(), prefix: 24, gateway: Some("10.0.0.1".to_owned()) };
        let container = instance(net).container("cloudpods-create", "create-121-1");
        assert_eq!(container.tags[0], "mpanel-pod-5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11");
        assert_eq!(container.rootfs, "clients-main:20");
        assert_eq!(
            container.net0,
            "name=eth0,bridge=vmbr0,hwaddr=5E:0C:1A:52:6A:42,type=veth,ip=10.0.0.5/24,gw=10.0.0.1"
        );
        assert!(container.description.contains("cloudpods-create/create-121-1"));
        assert!(instance(Net::Dhcp).container("q", "j").net0.ends_with(",ip=dhcp"));
    }

    #[test]
    fn the_spec_survives_the_database() {
        let before = instance(Net::Dhcp);
        let again: InstanceSpec = serde_json::from_value(before.row.spec.clone()).unwrap();
        assert_eq!(again, before.spec);
    }
}
