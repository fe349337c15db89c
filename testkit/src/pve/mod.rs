//! A Proxmox VE simulator: the HTTPS API of a small cluster, with tasks that take time and faults on demand.
//!
//! Start one in a test with [`PveSim::start`], or run the `pve-sim` binary. The API side is what a client may
//! know; everything else (state, requests, faults, nodes going down) is reached through the handle or the
//! separate control listener. Dev-only: nothing that ships depends on it.
//!
//! Parameters are checked against `data/pve-api-extract.json`. A method that is in the extract but not simulated
//! answers 501 with a text that says so.

mod auth;
mod backup;
mod cluster;
mod config;
mod content;
mod control;
mod faults;
mod firewall;
mod formats;
mod guest;
mod lxc;
mod qemu;
mod route;
mod rrd;
mod schema;
mod server;
mod state;
mod storage;
mod tasks;
mod tls;
mod views;
mod wire;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use faults::{Fault, FaultAction};
pub use views::{GuestView, Invariants, NodeView, RequestView, StateView, TaskView, VolumeView};

use state::{Cluster, Config, Guest, GuestKind, Limits, Node, Pool};

/// The VM template every cluster has on its first node, with its disk on the shared storage.
pub const VM_TEMPLATE: u32 = 9000;
/// The container template every node has.
pub const LXC_TEMPLATE: &str = storage::LXC_TEMPLATE;

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

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The configuration makes no sense.
    #[error("{0}")]
    Config(String),
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Certificate(String),
}

impl SimError {
    fn certificate(error: impl std::fmt::Display) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// What all parts share.
#[derive(Debug)]
struct Core {
    config: PveSimConfig,
    schema: schema::Schema,
    auth: auth::Auth,
    state: Mutex<Cluster>,
    faults: Mutex<faults::FaultSet>,
    log: Mutex<views::RequestLog>,
}

/// Locks a mutex; a panic elsewhere leaves plain data that is still good to look at.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running simulator; dropping it stops both listeners and every connection.
#[derive(Debug)]
pub struct PveSim {
    core: Arc<Core>,
    address: SocketAddr,
    control: Option<SocketAddr>,
    ca_pem: String,
    fingerprint: String,
    token_id: String,
    token_secret: String,
    stop: watch::Sender<bool>,
}

impl PveSim {
    /// Starts a simulator; when this returns, both listeners accept.
    pub async fn start(config: PveSimConfig) -> Result<Self, SimError> {
        let (token_id, token_secret) = split_token(&config.token)?;
        let names = node_names(&config)?;
        let bind = async |address: SocketAddr| {
            let listener =
                TcpListener::bind(address).await.map_err(|source| SimError::Listen { address, source })?;
            let address = listener.local_addr().map_err(|source| SimError::Listen { address, source })?;
            Ok::<_, SimError>((listener, address))
        };
        let (listener, address) = bind(config.listen).await?;
        let control = match config.control {
            Some(wanted) => Some(bind(wanted).await?),
            None => None,
        };
        let identity = tls::generate(address.ip())?;
        let mut faults = faults::FaultSet::new(config.seed);
        config.faults.iter().cloned().for_each(|fault| faults.add(fault));
        let core = Arc::new(Core {
            schema: schema::Schema::load(),
            auth: auth::Auth::new(
                &token_id,
                &token_secret,
                &config.password,
                &config.denied_privileges,
                config.seed,
            ),
            state: Mutex::new(new_cluster(&config, &names)),
            faults: Mutex::new(faults),
            log: Mutex::new(views::RequestLog::new()),
            config,
        });
        let (stop, stopped) = watch::channel(false);
        let acceptor = TlsAcceptor::from(Arc::clone(&identity.server));
        tokio::spawn(server::serve(listener, acceptor, Arc::clone(&core), stopped.clone()));
        let control = control.map(|(listener, address)| {
            let router = control::router(Arc::clone(&core));
            let mut stopped = stopped;
            tokio::spawn(async move {
                tokio::select! {
                    // The control listener ends with the simulator, or not at all.
                    _ = axum::serve(listener, router) => {}
                    _ = stopped.changed() => {}
                }
            });
            address
        });
        Ok(Self {
            core,
            address,
            control,
            ca_pem: identity.ca_pem,
            fingerprint: identity.fingerprint,
            token_id,
            token_secret,
            stop,
        })
    }

    /// Base address of the API, such as `https://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Base address of the control listener; empty when there is none.
    pub fn control_url(&self) -> String {
        self.control.map(|address| format!("http://{address}")).unwrap_or_default()
    }

    /// SHA-256 of the server certificate, as `AA:BB:…`.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The authority that signed the server certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// `user@realm!id`.
    pub fn token_id(&self) -> &str {
        &self.token_id
    }

    /// The token's secret.
    pub fn token_secret(&self) -> &str {
        &self.token_secret
    }

    /// Arms one more fault; its counting starts now.
    pub fn add_fault(&self, fault: Fault) {
        lock(&self.core.faults).add(fault);
    }

    /// Disarms all faults.
    pub fn clear_faults(&self) {
        lock(&self.core.faults).clear();
    }

    /// All guests but templates.
    pub fn guests(&self) -> Vec<GuestView> {
        let mut guests = views::guests(&lock(&self.core.state));
        guests.retain(|guest| !guest.template);
        guests
    }

    /// One guest.
    pub fn guest(&self, vmid: u32) -> Option<GuestView> {
        views::guests(&lock(&self.core.state)).into_iter().find(|guest| guest.vmid == vmid)
    }

    /// Everything, as `GET /state` shows it.
    pub fn state(&self) -> StateView {
        views::state(&lock(&self.core.state))
    }

    /// Tasks, newest first.
    pub fn tasks(&self) -> Vec<TaskView> {
        views::tasks(&lock(&self.core.state))
    }

    /// Requests that arrived, oldest first.
    pub fn requests(&self) -> Vec<RequestView> {
        lock(&self.core.log).all()
    }

    /// Takes a node's power away; false when there is no such node.
    pub fn node_down(&self, node: &str) -> bool {
        lock(&self.core.state).node_down(node)
    }

    /// Boots a node again; false when there is no such node.
    pub fn node_up(&self, node: &str) -> bool {
        lock(&self.core.state).node_up(node)
    }

    /// Takes quorum away or gives it back: reads work, writes fail without it.
    pub fn set_quorum(&self, quorate: bool) {
        lock(&self.core.state).quorate = quorate;
    }

    /// Removes a guest's lock, as root does on the node; false when there is no such guest.
    pub fn unlock(&self, vmid: u32) -> bool {
        lock(&self.core.state).guests.get_mut(&vmid).map(|guest| guest.lock = None).is_some()
    }

    /// What should hold in a healthy run.
    pub fn invariants(&self) -> Invariants {
        views::invariants(&lock(&self.core.state))
    }
}

impl Drop for PveSim {
    fn drop(&mut self) {
        // Without receivers there is nothing left to stop.
        let _ = self.stop.send(true);
    }
}

/// Reads a fault file's text: an array of faults, or one.
pub fn parse_faults(text: &str) -> Result<Vec<Fault>, SimError> {
    faults::parse(text).map_err(SimError::Config)
}

fn split_token(token: &str) -> Result<(String, String), SimError> {
    let wrong = || SimError::Config("the token has the form USER@REALM!ID=UUID".to_owned());
    let (id, secret) = token.split_once('=').ok_or_else(wrong)?;
    let (user, name) = id.split_once('!').ok_or_else(wrong)?;
    if secret.is_empty() || name.is_empty() || !user.contains('@') || id.contains(':') {
        return Err(wrong());
    }
    Ok((id.to_owned(), secret.to_owned()))
}

fn node_names(config: &PveSimConfig) -> Result<Vec<String>, SimError> {
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

fn new_cluster(config: &PveSimConfig, names: &[String]) -> Cluster {
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
        if let storage::DiskWish::New(plan) = storage::read_disk(GuestKind::Qemu, key, wish)
            && let Ok(value) = storage::allocate(&mut cluster.storages, node, VM_TEMPLATE, &plan)
        {
            guest_config.insert(key.to_owned(), value);
        }
    }
    cluster.guests.insert(VM_TEMPLATE, Guest::new(VM_TEMPLATE, GuestKind::Qemu, node, guest_config, None));
}
