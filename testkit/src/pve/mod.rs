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
mod disks;
mod dispatch;
mod effects;
mod faults;
mod firewall;
mod formats;
mod guest;
mod guest_state;
mod lxc;
mod param;
mod qemu;
mod requests;
mod route;
mod rrd;
mod schema;
mod server;
mod setup;
mod state;
mod storage;
mod tasks;
mod tls;
mod views;
mod wire;
mod work;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use faults::{Fault, FaultAction};
pub use requests::RequestView;
pub use setup::PveSimConfig;
pub use views::{GuestView, Invariants, NodeView, StateView, TaskView, VolumeView};

use setup::{new_cluster, node_names, split_token};
use state::Cluster;

/// The VM template every cluster has on its first node, with its disk on the shared storage.
pub const VM_TEMPLATE: u32 = 9000;
/// The container template every node has.
pub const LXC_TEMPLATE: &str = storage::LXC_TEMPLATE;

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
    log: Mutex<requests::RequestLog>,
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
            log: Mutex::new(requests::RequestLog::new()),
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
