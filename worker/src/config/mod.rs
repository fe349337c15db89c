//! Configuration: from layered sources to typed values, all problems at once.
//!
//! [`Config::from_sources`] is pure; only [`sources`] reads the environment and
//! files. Nothing else in the crate may.

pub mod database;
mod dns;
pub mod proxmox;
pub mod redis;
mod resolve;
pub mod settings;
pub mod sources;
mod telemetry;
mod upkeep;

use std::{fmt, time::Duration};

use sqlx::postgres::PgConnectOptions;

pub use self::{
    dns::DnsConfig,
    proxmox::{Login, ProxmoxConfig, TlsTrust},
    redis::{PeerLine, RedisConfig},
    resolve::Layers,
    sources::Sources,
    telemetry::{Target, TargetKind, TelemetryConfig},
    upkeep::{HealthLimits, MetricsConfig, ReconcileConfig, Threshold},
};

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable, flag or file that is wrong.
    pub what: String,
    /// What is wrong and what would work.
    pub problem: String,
}

impl Problem {
    /// A problem of `what`.
    #[must_use]
    pub fn new(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { what: what.into(), problem: problem.into() }
    }
}

/// The configuration cannot be used; shows every problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration: {} problem{}", self.0.len(), if self.0.len() == 1 { "" } else { "s" })?;
        for Problem { what, problem } in &self.0 {
            write!(f, "\n  {what} {problem}")?;
        }
        Ok(())
    }
}

/// Which parts a command needs; the others may be absent or wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Only Postgres: `migrate`, `cloudpods nodes`, `cloudpods pools`.
    Database,
    /// Postgres and Proxmox: `cloudpods plan`.
    Proxmox,
    /// Everything: `run`, `check-config`.
    All,
}

/// The database.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// How to connect.
    pub options: PgConnectOptions,
    /// Most connections this process opens.
    pub max_connections: u32,
}

impl fmt::Debug for DatabaseConfig {
    /// Redacted: the options print their password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseConfig")
            .field("host", &self.options.get_host())
            .field("database", &self.options.get_database())
            .finish_non_exhaustive()
    }
}

/// What pods get when neither payload nor blueprint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudpodsConfig {
    /// LXC template volume.
    pub template: String,
    /// VM template, for virtual machines.
    pub vm_template_vmid: Option<u32>,
    /// Storage of the root disk.
    pub storage: String,
    /// Bridge of the first network card.
    pub bridge: String,
    /// Resource pool; `None` sends none.
    pub pool: Option<String>,
    /// Region of nodes that were given none.
    pub default_region: String,
    /// Storage for backups.
    pub backup_storage: Option<String>,
    /// How long a started pod may take to show its DHCP address.
    pub address_wait: Duration,
    /// Between two health sweeps; zero leaves their schedule alone.
    pub sweep_every: Duration,
    /// Whether nodes are filled one after the other, or the emptiest taken.
    pub placement: Placement,
    /// How books and Proxmox are compared.
    pub reconcile: ReconcileConfig,
    /// How pods' figures are collected and kept.
    pub metrics: MetricsConfig,
    /// When a pod is in want.
    pub health: HealthLimits,
}

/// How nodes are filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// One after the other.
    Pack,
    /// The emptiest first.
    Spread,
}

/// How `run` behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunConfig {
    /// Queues to serve; `None` is all.
    pub queues: Option<Vec<String>>,
    /// Refuse to start beside Node workers.
    pub exclusive: bool,
    /// Jobs at once in each queue; `None` is each queue's own figure.
    pub concurrency: Option<u32>,
    /// How long running jobs may take to end.
    pub drain_timeout: Duration,
    /// How long a job's lock lives without renewal.
    pub lock: Duration,
    /// How often jobs of dead workers are looked for.
    pub stalled_interval: Duration,
    /// How often a job may lose its worker before it is failed.
    pub stalls_allowed: u32,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A filter as `tracing_subscriber` takes it.
    pub filter: String,
    /// JSON lines instead of text.
    pub json: bool,
}

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The database.
    pub database: DatabaseConfig,
    /// Redis; present when the command needs it.
    pub redis: Option<RedisConfig>,
    /// Proxmox; present when the command needs it.
    pub proxmox: Option<ProxmoxConfig>,
    /// Defaults of pods.
    pub cloudpods: CloudpodsConfig,
    /// Names of pods; `None`: nobody keeps them.
    pub dns: Option<DnsConfig>,
    /// What telemetry looks at.
    pub telemetry: TelemetryConfig,
    /// How `run` behaves.
    pub run: RunConfig,
    /// What is logged.
    pub log: LogConfig,
}

impl Config {
    /// Types and checks what the sources say.
    ///
    /// # Errors
    /// Every problem found, each with the variable's name and an example.
    pub fn from_sources(sources: &Sources, needs: Needs) -> Result<Self, ConfigError> {
        let mut layers = Layers::of(sources);
        let database = database_config(&mut layers);
        let (redis, proxmox) = match needs {
            Needs::Database => (None, None),
            Needs::Proxmox => (None, proxmox::proxmox(&mut layers)),
            Needs::All => {
                let proxmox = needs_proxmox(&layers).then(|| proxmox::proxmox(&mut layers)).flatten();
                (redis::redis(&mut layers), proxmox)
            }
        };
        let cloudpods = cloudpods(&mut layers);
        let dns = dns::dns(&mut layers);
        let telemetry = telemetry::telemetry(&mut layers);
        let run = run(&mut layers);
        if layers.text("log.format").is_some_and(|format| !matches!(format, "text" | "json")) {
            layers.problem("log.format", "must be text or json");
        }
        let log = LogConfig {
            filter: layers.text("log.level").unwrap_or("info,sqlx=warn").to_owned(),
            json: layers.text("log.format") == Some("json"),
        };
        match (database, cloudpods, telemetry, run) {
            (Some(database), Some(cloudpods), Some(telemetry), Some(run)) if layers.problems.is_empty() => {
                Ok(Self { database, redis, proxmox, cloudpods, dns, telemetry, run, log })
            }
            _ => Err(ConfigError(layers.problems)),
        }
    }
}

/// Telemetry by itself does without Proxmox, unless one is configured.
fn needs_proxmox(layers: &Layers) -> bool {
    let only_telemetry = layers.text("run.queues").is_some_and(|queues| {
        let mut queues = queues.split(',').map(str::trim).filter(|queue| !queue.is_empty()).peekable();
        queues.peek().is_some() && queues.all(|queue| queue.starts_with("telemetry-"))
    });
    let configured = ["proxmox.token_id", "proxmox.username"].iter().any(|key| layers.text(key).is_some());
    !only_telemetry || configured
}

fn database_config(layers: &mut Layers) -> Option<DatabaseConfig> {
    if layers.text("database.url").is_none() {
        layers.problem("database.url", "is not set");
    }
    let options = layers.parsed("database.url", database::connect_options);
    let max_connections = layers.number("database.max_connections", 2, 1000);
    Some(DatabaseConfig { options: options?, max_connections: u32::try_from(max_connections?).ok()? })
}

fn cloudpods(layers: &mut Layers) -> Option<CloudpodsConfig> {
    let vm_template_vmid = match layers.get("cloudpods.vm_template_vmid") {
        Some(_) => layers.number("cloudpods.vm_template_vmid", 100, 999_999_999),
        None => None,
    };
    let template = layers.parsed("cloudpods.template", |text| {
        if text.contains(':') && !text.contains(char::is_whitespace) {
            Ok(text.to_owned())
        } else {
            Err(format!("must be a volume id storage:vztmpl/file, is `{text}`"))
        }
    });
    let storage = layers.parsed("cloudpods.storage", word);
    let bridge = layers.parsed("cloudpods.bridge", word);
    let pool = match layers.text("cloudpods.pool") {
        None | Some("") => Some(None),
        Some(_) => layers.parsed("cloudpods.pool", word).map(Some),
    };
    let address_wait = layers.number("cloudpods.address_seconds", 1, 3600);
    let health_minutes = layers.number("cloudpods.health_minutes", 0, 10_080);
    let placement = layers.parsed("cloudpods.placement", |text| match text {
        "pack" => Ok(Placement::Pack),
        "spread" => Ok(Placement::Spread),
        other => Err(format!("must be pack or spread, is `{other}`")),
    });
    let reconcile = upkeep::reconcile(layers);
    let metrics = upkeep::metrics(layers);
    let health = upkeep::health(layers);
    Some(CloudpodsConfig {
        template: template?,
        vm_template_vmid: vm_template_vmid.and_then(|vmid| u32::try_from(vmid).ok()),
        storage: storage?,
        bridge: bridge?,
        pool: pool?,
        default_region: layers.text("cloudpods.default_region")?.to_owned(),
        backup_storage: layers.text("cloudpods.backup_storage").map(str::to_owned),
        address_wait: Duration::from_secs(address_wait?),
        sweep_every: health_minutes.map(|minutes| Duration::from_secs(minutes * 60))?,
        placement: placement?,
        reconcile: reconcile?,
        metrics: metrics?,
        health: health?,
    })
}

/// A name that Proxmox accepts for storages, bridges and pools.
fn word(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'));
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!("must be a name of letters, digits, `-`, `_`, `.`; is `{text}`"))
    }
}

fn run(layers: &mut Layers) -> Option<RunConfig> {
    let queues = layers.text("run.queues").map(|list| {
        list.split(',')
            .map(str::trim)
            .filter(|queue| !queue.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    let exclusive = layers.flag("run.exclusive");
    let concurrency = match layers.get("run.concurrency") {
        Some(_) => layers.number("run.concurrency", 1, 1000),
        None => None,
    };
    let drain = layers.number("run.drain_seconds", 0, 86_400);
    let lock = layers.number("run.lock_ms", 1_000, 3_600_000);
    let stalled = layers.number("run.stalled_ms", 1_000, 3_600_000);
    let stalls = layers.number("run.stalls_allowed", 0, 1_000_000);
    Some(RunConfig {
        queues: queues.filter(|queues| !queues.is_empty()),
        exclusive: exclusive?,
        concurrency: concurrency.and_then(|number| u32::try_from(number).ok()),
        drain_timeout: Duration::from_secs(drain?),
        lock: Duration::from_millis(lock?),
        stalled_interval: Duration::from_millis(stalled?),
        stalls_allowed: u32::try_from(stalls?).ok()?,
    })
}

#[cfg(test)]
mod tests;
