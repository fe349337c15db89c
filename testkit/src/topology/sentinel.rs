//! A primary, two replicas, three Sentinels.

use std::time::Duration;

use super::{PATIENCE, ask};
use crate::redis_server::RedisServerBuilder;
use crate::tls::Authority;
use crate::{RedisServer, TestkitError, eventually};

/// The name the Sentinels give the primary.
const MASTER: &str = "fleet";

/// Servers watched by Sentinels, which agree that a primary is down after a second.
#[derive(Debug)]
pub struct Sentinel {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl Sentinel {
    /// Starts all six and waits until they know each other.
    ///
    /// # Errors
    /// As [`RedisServer::start`]; [`TestkitError::Timeout`] when they do not find together.
    pub async fn start() -> Result<Self, TestkitError> {
        Self::with(|server| server).await
    }

    /// The same, each data server with more settings.
    ///
    /// # Errors
    /// As [`Sentinel::start`].
    pub async fn with(
        settings: impl Fn(RedisServerBuilder) -> RedisServerBuilder,
    ) -> Result<Self, TestkitError> {
        Self::start_as(settings, None).await
    }

    /// The same with TLS everywhere: between servers, between Sentinels, and for clients.
    ///
    /// # Errors
    /// As [`Sentinel::start`].
    pub async fn tls(authority: &Authority) -> Result<Self, TestkitError> {
        Self::start_as(|server| server, Some(authority)).await
    }

    async fn start_as(
        settings: impl Fn(RedisServerBuilder) -> RedisServerBuilder,
        authority: Option<&Authority>,
    ) -> Result<Self, TestkitError> {
        let sealed = |server: RedisServerBuilder| match authority {
            Some(authority) => server.tls(authority).config("tls-replication yes"),
            None => server,
        };
        let common = || {
            let lines = ["min-replicas-to-write 1", "min-replicas-max-lag 10", "repl-diskless-sync-delay 0"];
            settings(sealed(lines.into_iter().fold(RedisServer::builder(), RedisServerBuilder::config)))
        };
        let primary = common().start().await?;
        let of = format!("replicaof 127.0.0.1 {}", public_port(&primary));
        let (a, b) = tokio::join!(common().config(&of).start(), common().config(&of).start());
        let monitor = format!("sentinel monitor {MASTER} 127.0.0.1 {} 2", public_port(&primary));
        let sentinel = || {
            sealed(RedisServer::builder().sentinel())
                .config(&monitor)
                .config(&format!("sentinel down-after-milliseconds {MASTER} 1000"))
                .config(&format!("sentinel failover-timeout {MASTER} 4000"))
                .start()
        };
        let servers = vec![primary, a?, b?];
        for replica in &servers[1..] {
            eventually("a replica in step", PATIENCE, || async {
                let info: String = ask(replica, &["INFO", "replication"]).await.map_err(|e| e.to_string())?;
                if info.contains("master_link_status:up") { Ok(()) } else { Err(info) }
            })
            .await?;
        }
        let (x, y, z) = tokio::join!(sentinel(), sentinel(), sentinel());
        let topology = Self { servers, sentinels: vec![x?, y?, z?] };
        topology.quorum().await?;
        Ok(topology)
    }

    /// Waits until every Sentinel knows the others and two replicas: only then can they fail over.
    async fn quorum(&self) -> Result<(), TestkitError> {
        for sentinel in &self.sentinels {
            eventually("Sentinels that know each other", PATIENCE, || async {
                let about: std::collections::BTreeMap<String, String> =
                    ask(sentinel, &["SENTINEL", "MASTER", MASTER]).await.map_err(|e| e.to_string())?;
                let seen = (about["num-other-sentinels"].clone(), about["num-slaves"].clone());
                if seen == ("2".to_owned(), "2".to_owned()) { Ok(()) } else { Err(format!("{seen:?}")) }
            })
            .await?;
        }
        Ok(())
    }

    /// `redis+sentinel://…/fleet` with all three; `rediss+…` where they have TLS.
    pub fn url(&self) -> String {
        let sentinels: Vec<String> =
            self.sentinels.iter().map(|s| format!("127.0.0.1:{}", public_port(s))).collect();
        let tls = if self.sentinels[0].tls_port().is_some() { "s" } else { "" };
        format!("redis{tls}+sentinel://{}/{MASTER}", sentinels.join(","))
    }

    /// The Sentinels.
    pub fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// The data servers, whatever their role.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// The server that the first Sentinel which answers calls the primary.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when none answers.
    pub async fn primary(&self) -> Result<&RedisServer, TestkitError> {
        let mut last = TestkitError::failed("primary", "no Sentinel answers");
        for sentinel in &self.sentinels {
            match ask::<(String, u16)>(sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]).await {
                Ok((_, port)) => {
                    if let Some(server) = self.servers.iter().find(|s| public_port(s) == port) {
                        return Ok(server);
                    }
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Waits until another server than `old` is the primary, and says so itself.
    ///
    /// # Errors
    /// [`TestkitError::Timeout`].
    pub async fn primary_after(&self, old: u16) -> Result<&RedisServer, TestkitError> {
        eventually("another primary", PATIENCE, || async {
            let now = self.primary().await.map_err(|e| e.to_string())?;
            if now.port() == old {
                return Err(format!("still {old}"));
            }
            let info: String = ask(now, &["INFO", "replication"]).await.map_err(|e| e.to_string())?;
            if info.contains("role:master") { Ok(now) } else { Err(info) }
        })
        .await
    }

    /// Has the Sentinels make a replica the primary, as an operator would.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when they refuse.
    pub async fn fail_over(&self) -> Result<(), TestkitError> {
        // A Sentinel refuses while it does not know a good replica yet.
        eventually("an accepted SENTINEL FAILOVER", PATIENCE, || async {
            ask::<()>(&self.sentinels[0], &["SENTINEL", "FAILOVER", MASTER]).await.map_err(|e| e.to_string())
        })
        .await
    }

    /// Waits until two replicas have all that the primary has. Until then it may be lost with the primary, whatever
    /// `min-replicas-to-write` says: Redis counts a replica that still loads.
    ///
    /// # Errors
    /// [`TestkitError::Timeout`].
    pub async fn in_step(&self) -> Result<(), TestkitError> {
        eventually("replicas in step", PATIENCE, || async {
            let primary = self.primary().await.map_err(|e| e.to_string())?;
            let info: String = ask(primary, &["INFO", "replication"]).await.map_err(|e| e.to_string())?;
            let offset = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
            let offset = format!("state=online,offset={},", offset.unwrap_or("?").trim());
            if info.matches(&offset).count() == 2 { Ok(()) } else { Err(info) }
        })
        .await
    }

    /// Waits until a server follows the primary.
    ///
    /// # Errors
    /// [`TestkitError::Timeout`].
    pub async fn follows(&self, server: &RedisServer, within: Duration) -> Result<(), TestkitError> {
        eventually("a replica in step", within, || async {
            let info: String = ask(server, &["INFO", "replication"]).await.map_err(|e| e.to_string())?;
            if info.contains("master_link_status:up") { Ok(()) } else { Err(info) }
        })
        .await
    }
}

/// The port that others are told.
fn public_port(server: &RedisServer) -> u16 {
    server.tls_port().unwrap_or(server.port())
}
