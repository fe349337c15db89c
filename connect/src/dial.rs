//! Making a connection to one server: login, TLS, deadlines. Each server has a
//! deadpool manager; which server it is to be is decided elsewhere.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use deadpool_redis::{Manager, Pool, PoolError};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo, RedisConnectionInfo, RedisError, TlsCertificates, aio::MultiplexedConnection,
};

use crate::{node::NodeAddr, url::TlsFiles};

/// How long a reply may take before the connection counts as broken. Far above
/// any script's time, so that it only fires when the server hangs.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes connections with one login.
#[derive(Debug)]
pub(crate) struct Dialer {
    login: RedisConnectionInfo,
    tls: Tls,
    patience: Duration,
    pools: Mutex<HashMap<NodeAddr, Pool>>,
}

#[derive(Debug, Clone)]
enum Tls {
    No,
    /// With certificates read from files, inside an address of the redis crate,
    /// which is the only place it can be had from.
    Yes(Box<ConnectionAddr>),
}

impl Dialer {
    /// A dialer that gives up a server which does not let us in for `patience`.
    /// Reads the files of TLS.
    pub(crate) fn new(
        login: RedisConnectionInfo,
        tls: Option<&TlsFiles>,
        patience: Duration,
    ) -> Result<Self, String> {
        let tls = match tls {
            None => Tls::No,
            Some(files) => Tls::Yes(Box::new(certificates(files)?)),
        };
        Ok(Self { login, tls, patience, pools: Mutex::default() })
    }

    /// The same certificates with another login.
    pub(crate) fn with_login(&self, login: RedisConnectionInfo, patience: Duration) -> Self {
        Self { login, tls: self.tls.clone(), patience, pools: Mutex::default() }
    }

    /// A new connection to `node`.
    pub(crate) async fn dial(&self, node: &NodeAddr) -> Result<MultiplexedConnection, RedisError> {
        let pool = self.pool(node)?;
        taken(pool).await
    }

    /// The way to `node`.
    pub(crate) fn pool(&self, node: &NodeAddr) -> Result<Pool, RedisError> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(node) {
            return Ok(pool.clone());
        }
        let addr = match &self.tls {
            Tls::No => ConnectionAddr::Tcp(node.host.clone(), node.port),
            Tls::Yes(with) => {
                let tls_params = match &**with {
                    ConnectionAddr::TcpTls { tls_params, .. } => tls_params.clone(),
                    _ => None,
                };
                let (host, port) = (node.host.clone(), node.port);
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params }
            }
        };
        let info = addr.into_connection_info()?.set_redis_settings(self.login.clone());
        let pool = pool_of(info, self.patience)?;
        pools.insert(node.clone(), pool.clone());
        Ok(pool)
    }
}

/// The way to a single server, however it is addressed.
pub(crate) fn pool_of(info: ConnectionInfo, patience: Duration) -> Result<Pool, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(patience))
        .set_response_timeout(Some(RESPONSE_TIMEOUT));
    let manager = Manager::new_with_config(info, config)?;
    // Connections are taken out for good, so the size bounds only how many are
    // being made at once.
    let pool = Pool::builder(manager).max_size(8).build();
    pool.map_err(|e| RedisError::from((ErrorKind::InvalidClientConfig, "pool", e.to_string())))
}

/// A new connection, out of the pool for good.
pub(crate) async fn taken(pool: Pool) -> Result<MultiplexedConnection, RedisError> {
    match pool.get().await {
        Ok(conn) => Ok(deadpool_redis::Connection::take(conn)),
        Err(PoolError::Backend(error)) => Err(error),
        Err(other) => Err(RedisError::from((ErrorKind::Io, "pool", other.to_string()))),
    }
}

fn certificates(files: &TlsFiles) -> Result<ConnectionAddr, String> {
    let read = |what: &str, path: &Path| {
        std::fs::read(path).map_err(|e| format!("{what} file {} cannot be read: {e}", path.display()))
    };
    let root_cert = files.ca.as_deref().map(|path| read("ca", path)).transpose()?;
    let client_tls = match &files.client {
        Some((cert, key)) => {
            Some(ClientTlsConfig { client_cert: read("cert", cert)?, client_key: read("key", key)? })
        }
        None => None,
    };
    let (host, port) = ("certificates".to_owned(), 1);
    let addr = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
    if root_cert.is_none() && client_tls.is_none() {
        return Ok(addr);
    }
    for (what, pem) in [("ca", root_cert.as_ref()), ("cert", client_tls.as_ref().map(|c| &c.client_cert))] {
        if pem.is_some_and(|pem| !String::from_utf8_lossy(pem).contains("-----BEGIN CERTIFICATE-----")) {
            return Err(format!("the {what} file holds no certificate in PEM form"));
        }
    }
    let client = Client::build_with_tls(addr, TlsCertificates { client_tls, root_cert });
    let client = client.map_err(|e| format!("ca, cert or key cannot be used: {e}"))?;
    Ok(client.get_connection_info().addr().clone())
}
