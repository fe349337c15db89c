//! One look at something from outside: a page fetched, or a connection opened,
//! with the time that each part of it took.
//!
//! Every look opens a connection of its own, since faults of names, networks
//! and certificates hide behind one that is kept open. It follows no redirect,
//! reads a bounded part of a body, and ends at its deadline whatever the other
//! side does. What an answer means is decided elsewhere.

mod der;
mod http;
mod tls;

use std::{net::SocketAddr, path::Path, time::Duration};

use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, timeout_at},
};

pub use self::http::HttpAnswer;
use self::tls::Trust;

/// Most of a look's time that opening the connection may take.
const CONNECT_SHARE: f64 = 0.4;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The name leads nowhere.
    #[error("the name {host} cannot be resolved: {detail}")]
    Name {
        /// The name.
        host: String,
        /// What the resolver says.
        detail: String,
    },
    /// Nobody takes the connection.
    #[error("{to} does not take the connection: {detail}")]
    Connect {
        /// Address and port.
        to: String,
        /// What happened.
        detail: String,
    },
    /// TLS cannot be agreed on, or the certificate is not believed.
    #[error("TLS: {0}")]
    Tls(String),
    /// What came is not HTTP, or broke off.
    #[error("no HTTP answer: {0}")]
    Http(String),
    /// The time ran out.
    #[error("no end within {within:?}: it stopped while {during}")]
    Timeout {
        /// The time there was.
        within: Duration,
        /// What was under way.
        during: &'static str,
    },
    /// It cannot be tried at all.
    #[error("{0}")]
    Setup(String),
}

/// How long the parts of a look took; a part that was not reached is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Finding the address.
    pub dns: Option<Duration>,
    /// Opening the connection.
    pub connect: Option<Duration>,
    /// Agreeing on TLS.
    pub tls: Option<Duration>,
    /// From the request to the head of the answer.
    pub first_byte: Option<Duration>,
    /// All of it, to the last byte that was read.
    pub total: Duration,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed<T> {
    /// How long its parts took.
    pub timings: Timings,
    /// When the certificate ends, epoch seconds; also of one that is not believed.
    pub certificate_end: Option<i64>,
    /// What came of it.
    pub outcome: Result<T, ProbeError>,
}

/// Looks at targets. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Prober {
    trust: Trust,
    within: Duration,
}

/// One look under way: its deadline, and what is known so far.
struct Look {
    started: Instant,
    deadline: Instant,
    within: Duration,
    timings: Timings,
    certificate_end: Option<i64>,
}

impl Look {
    fn timeout(&self, during: &'static str) -> ProbeError {
        ProbeError::Timeout { within: self.within, during }
    }

    fn done<T>(mut self, outcome: Result<T, ProbeError>) -> Probed<T> {
        self.timings.total = self.started.elapsed();
        Probed { timings: self.timings, certificate_end: self.certificate_end, outcome }
    }

    /// Finds the address and opens the connection; one address after the other.
    async fn connect(&mut self, host: &str, port: u16) -> Result<TcpStream, ProbeError> {
        let begun = Instant::now();
        let found = timeout_at(self.deadline, lookup_host((host, port))).await;
        let found = found.map_err(|_| self.timeout("its name was resolved"))?;
        let unknown = |detail: String| ProbeError::Name { host: host.to_owned(), detail };
        let addresses: Vec<SocketAddr> = found.map_err(|error| unknown(error.to_string()))?.collect();
        self.timings.dns = Some(begun.elapsed());
        let mut failed = unknown("it has no address".to_owned());
        let connect_deadline = self.deadline.min(Instant::now() + self.within.mul_f64(CONNECT_SHARE));
        for address in addresses {
            let begun = Instant::now();
            match timeout_at(connect_deadline, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    self.timings.connect = Some(begun.elapsed());
                    return Ok(stream);
                }
                Ok(Err(error)) => {
                    failed = ProbeError::Connect { to: address.to_string(), detail: error.to_string() };
                }
                Err(_) => {
                    let within = self.within.mul_f64(CONNECT_SHARE);
                    return Err(ProbeError::Timeout { within, during: "the connection was opened" });
                }
            }
        }
        Err(failed)
    }
}

impl Prober {
    /// A prober that believes the system's certificates and those of `ca_file`,
    /// and gives each look this long. Reads certificates from files: call it once.
    ///
    /// # Errors
    /// [`ProbeError::Setup`] when `ca_file` cannot be used.
    pub fn new(ca_file: Option<&Path>, within: Duration) -> Result<Self, ProbeError> {
        Ok(Self { trust: Trust::load(ca_file).map_err(ProbeError::Setup)?, within })
    }

    fn look(&self) -> Look {
        let started = Instant::now();
        Look {
            started,
            deadline: started + self.within,
            within: self.within,
            timings: Timings::default(),
            certificate_end: None,
        }
    }

    /// Opens a connection, and closes it.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn tcp(&self, host: &str, port: u16) -> Probed<()> {
        let mut look = self.look();
        let opened = look.connect(host, port).await.map(drop);
        look.done(opened)
    }
}
