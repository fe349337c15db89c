//! How a simulator is configured, and the cluster it begins with.
//!
//! Runs once at start; knows nothing of requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::faults::Fault;
use super::state::{self, Cluster, Config, Guest, GuestKind, Limits, Node, Pool};
use super::{SimError, VM_TEMPLATE, disks, firewall, storage, tasks};

/// How a simulator is set up. All addresses default to free ports on 127.0.0.1.
#[derive(Debug, Clone)]
pub struct PveSimConfig {
    /// Address of the HTTPS API.
    pub listen: SocketAddr,
    /// Address of the control listener; `None` for no control listener.
    pub control: Option<SocketAddr>,
    /// API token as `user@realm!id=secret`.
    pub token: String,
    /// Password of the token's user, for tickets.
    pub password: String,
    /// Number of nodes `pve1…`, unless `node_names` says otherwise.
    pub nodes: usize,
    /// Names of the nodes; empty means `pve1…pveN`.
    pub node_names: Vec<String>,
    /// Duration of every task.
    pub task_ms: u64,
    /// Wait before a 401.
    pub auth_delay_ms: u64,
    /// Seed of MAC addresses and of the chance in faults.
    pub seed: u64,
    /// Faults armed from the start.
    pub faults: Vec<Fault>,
    /// Reported version, 8.x or 9.x.
    pub version: String,
    /// Cores of each node.
    pub node_cores: u32,
    /// Memory of each node in MiB.
    pub node_memory_mib: u64,
    /// Size of `local` on each node.
    pub local_gib: u64,
    /// Size of `local-lvm` on each node.
    pub local_lvm_gib: u64,
    /// Size of the shared `clients-main`.
    pub clients_main_gib: u64,
    /// Time from start to a leased address.
    pub dhcp_delay_ms: u64,
    /// Time from start to an answering guest agent.
    pub agent_delay_ms: u64,
    /// Age that `/cluster/resources` may have.
    pub stats_lag_ms: u64,
    /// Creates and clones at once on one storage before one of them ends in a lock time-out.
    pub parallel_per_storage: Option<usize>,
    /// Privileges the token and its user do not have.
    pub denied_privileges: Vec<String>,
}

impl Default for PveSimConfig {
    fn default() -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: any_port,
            control: Some(any_port),
            token: "root@pam!fleet=5f2a9c1e-0d3b-4c55-9a77-3a1f6f0f7e10".to_owned(),
            password: "pve-sim".to_owned(),
            nodes: 1,
            node_names: Vec::new(),
            task_ms: 100,
            auth_delay_ms: 3000,
            seed: 1,
            faults: Vec::new(),
            version: "9.1.2".to_owned(),
            node_cores: 32,
            node_memory_mib: 64 * 1024,
            local_gib: 500,
            local_lvm_gib: 1000,
            clients_main_gib: 4000,
            dhcp_delay_ms: 100,
            agent_delay_ms: 100,
            stats_lag_ms: 0,
            parallel_per_storage: None,
            denied_privileges: Vec::new(),
        }
    }
}

pub(super) fn split_token(token: &str) -> Result<(String, String), SimError> {
    let wrong = || SimError::Config("the token has the form USER@REALM!ID=UUID".to_owned());
    let (id, secret) = token.split_once('=').ok_or_else(wrong)?;
    let (user, name) = id.split_once('!').ok_or_else(wrong)?;
    if secret.is_empty() || name.is_empty() || !user.contains('@') || id.contains(':') {
        return Err(wrong());
    }
    Ok((id.to_owned(), secret.to_owned()))
}

pub(super) fn node_names(config: &PveSimConfig) -> Result<Vec<String>, SimError> {
    let names = if config.node_names.is_empty() {
        (1..=config.nodes).map(|index| format!("pve{index}")).collect()
    } else {
        config.node_names.clone()
    };
    let distinct: BTreeSet<&String> = names.iter().collect();
    let good = |name: &String| {
        !name.is_empty() && name.len() < 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if names.is_empty() || distinct.len() != names.len() || !names.iter().all(good) {
        return Err(SimError::Config(
            "at least one node, with distinct names of letters, digits and -".to_owned(),
        ));
    }
    Ok(names)
}

pub(super) fn new_cluster(config: &PveSimConfig, names: &[String]) -> Cluster {
    let limits = Limits {
        node_cores: config.node_cores,
        node_memory_bytes: config.node_memory_mib << 20,
        dhcp_delay: Duration::from_millis(config.dhcp_delay_ms),
        agent_delay: Duration::from_millis(config.agent_delay_ms),
        stats_lag: Duration::from_millis(config.stats_lag_ms),
        parallel_per_storage: config.parallel_per_storage,
        version: config.version.clone(),
    };
    let mut cluster = Cluster {
        limits,
        nodes: names
            .iter()
            .map(|name| Node { name: name.clone(), online: true, booted_at: Instant::now() })
            .collect(),
        guests: BTreeMap::new(),
        storages: storage::initial(names, config.local_gib, config.local_lvm_gib, config.clients_main_gib),
        // mPanel's default pool.
        pools: BTreeMap::from([("ClientPods".to_owned(), Pool::default())]),
        tasks: tasks::TaskTable::default(),
        firewall: firewall::Firewall::default(),
        quorate: true,
        vmid_range: (100, 1_000_000),
        rng: fastrand::Rng::with_seed(config.seed),
        stats: None,
    };
    add_vm_template(&mut cluster, &names[0]);
    cluster
}

fn add_vm_template(cluster: &mut Cluster, node: &str) {
    let mut guest_config: Config = [
        ("name", "debian-12-cloud"),
        ("template", "1"),
        ("cores", "1"),
        ("memory", "1024"),
        ("agent", "1"),
        ("boot", "order=scsi0"),
        ("scsihw", "virtio-scsi-pci"),
        ("ostype", "l26"),
        ("ipconfig0", "ip=dhcp"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    guest_config.insert("net0".to_owned(), format!("virtio={},bridge={}", cluster.new_mac(), state::BRIDGE));
    for (key, wish) in [("scsi0", "clients-main:2"), ("ide2", "clients-main:cloudinit")] {
        if let disks::DiskWish::New(plan) = disks::read_disk(GuestKind::Qemu, key, wish)
            && let Ok(value) = disks::allocate(&mut cluster.storages, node, VM_TEMPLATE, &plan)
        {
            guest_config.insert(key.to_owned(), value);
        }
    }
    cluster.guests.insert(VM_TEMPLATE, Guest::new(VM_TEMPLATE, GuestKind::Qemu, node, guest_config, None));
}
