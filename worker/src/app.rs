//! `run`: wiring. Waits for what must be there, checks what must be right,
//! builds the handlers, serves them.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use mpanel_connect::{Redis, ServerClock};
use mpanel_protocol::payload::cloudpods::CREATE_QUEUE;
use secrecy::ExposeSecret as _;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    adapters::{
        db::{self, nodes},
        proxmox::Pve,
    },
    config::{CloudpodsConfig, Config, RedisConfig, RunConfig},
    exit::{Exit, Failed},
    migrate,
    serve::{of_connect, serve},
    services::{
        cloudpods::{
            CreateHandler, CreateService, Sites,
            dns::Names,
            metrics::Metrics,
            operation::{Operation, OperationHandler, OperationService},
            reconcile::Reconciler,
        },
        telemetry::{self, TelemetryHandler},
    },
    signals, ticks, upkeep,
};

/// Longest pause between two looks at a database that is away.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// Everything that handlers are built from.
#[derive(Debug)]
pub struct App {
    /// The configuration.
    pub config: Config,
    /// Redis.
    pub redis: RedisConfig,
    /// Its connections; opened when they are needed.
    pub link: Redis,
    /// Its time.
    pub clock: Arc<ServerClock>,
    /// Postgres; connects when it is needed.
    pub db: PgPool,
    /// Proxmox; telemetry alone does without.
    pub proxmox: Option<Proxmox>,
}

/// Proxmox, as services use it.
#[derive(Debug)]
pub struct Proxmox {
    /// Which API answers for which node.
    pub sites: Sites,
    /// How long a request of unknown outcome may still take effect.
    pub settle: Duration,
}

/// A queue that can be served.
#[derive(Debug)]
pub struct QueueService {
    /// The queue.
    pub queue: &'static str,
    /// Jobs at once.
    pub concurrency: u32,
    /// What serves it.
    pub handler: ServiceHandler,
}

/// The handlers; one variant a kind of job, since their types differ.
#[derive(Debug)]
pub enum ServiceHandler {
    /// Creates pods.
    CloudpodsCreate(CreateHandler),
    /// Does something to pods that exist.
    CloudpodsOperation(OperationHandler),
    /// Collects telemetry.
    Telemetry(TelemetryHandler),
}

impl App {
    /// Builds the clients. Opens no connection.
    ///
    /// # Errors
    /// Exit 78 when the configuration cannot be used.
    pub fn new(config: Config) -> Result<Self, Failed> {
        let missing = || Failed::new(Exit::Configuration, "Redis is not configured");
        let redis = config.redis.clone().ok_or_else(missing)?;
        let link = Redis::open(redis.url.expose_secret()).map_err(of_connect)?;
        let proxmox = match &config.proxmox {
            Some(proxmox) => {
                Some(Proxmox { sites: Sites::new(Pve::new(proxmox)?, proxmox), settle: proxmox.settle })
            }
            None => None,
        };
        let db = db::pool(config.database.options.clone(), config.database.max_connections);
        Ok(Self { config, redis, link, clock: Arc::default(), db, proxmox })
    }
}

/// The queues that this process serves.
///
/// # Errors
/// Exit 78 when a queue is named that we do not know.
pub fn services(app: &App) -> Result<Vec<QueueService>, Failed> {
    let RunConfig { queues, concurrency, .. } = &app.config.run;
    let mut all = Vec::new();
    if let Some(Proxmox { sites, settle }) = &app.proxmox {
        let cloudpods = &app.config.cloudpods;
        let create = CreateService::new(app.db.clone(), sites.clone(), cloudpods.clone(), *settle);
        all.push(QueueService {
            queue: CREATE_QUEUE,
            // mPanel's own figure for this queue.
            concurrency: concurrency.unwrap_or(2),
            handler: ServiceHandler::CloudpodsCreate(CreateHandler::new(create)),
        });
        let operations = OperationService::new(app.db.clone(), sites.clone(), cloudpods.clone(), *settle);
        all.extend(Operation::ALL.into_iter().map(|operation| QueueService {
            queue: operation.queue(),
            concurrency: concurrency.unwrap_or(operation.concurrency()),
            handler: ServiceHandler::CloudpodsOperation(OperationHandler::new(operations.clone(), operation)),
        }));
    }
    all.push(QueueService {
        queue: telemetry::QUEUE,
        // One collector never waits for another.
        concurrency: u32::try_from(telemetry::clock::Collector::ALL.len()).unwrap_or(1),
        handler: ServiceHandler::Telemetry(TelemetryHandler::new(ticks::service(app)?)),
    });
    let Some(wanted) = queues else { return Ok(all) };
    let known: Vec<&str> = all.iter().map(|service| service.queue).collect();
    let unknown: Vec<&str> =
        wanted.iter().map(String::as_str).filter(|queue| !known.contains(queue)).collect();
    if !unknown.is_empty() {
        return Err(Failed::new(
            Exit::Configuration,
            format!(
                "--queues names {}, which this version does not serve; it serves {}",
                unknown.join(", "),
                known.join(", ")
            ),
        ));
    }
    all.retain(|service| wanted.iter().any(|queue| queue == service.queue));
    Ok(all)
}

/// Serves until told to stop.
///
/// # Errors
/// With the exit code of what made it impossible.
pub async fn run(config: Config, drain: bool) -> Result<(), Failed> {
    let app = App::new(config)?;
    let services = services(&app)?;
    let names = match app.config.dns.clone() {
        Some(config) => Some(
            Names::new(app.db.clone(), config)
                .map_err(|error| Failed::new(Exit::Configuration, error.to_string()))?,
        ),
        None => None,
    };
    let orders = signals::listen();
    let stop = orders.stop.clone();
    let result = tokio::select! {
        // cancel-safe: nothing but looking happens before serving.
        () = stop.cancelled() => Ok(()),
        ready = ready(&app) => match ready {
            Ok(()) => {
                let duties = start_duties(&app, names, &stop);
                let served = Box::pin(serve(&app, services, drain, orders)).await;
                stop.cancel();
                // They end by the token; a panic in one has been printed.
                let _ = join_all(duties).await;
                served
            }
            Err(failed) => Err(failed),
        },
    };
    app.db.close().await;
    result
}

/// What is done beside the queues.
fn start_duties(app: &App, names: Option<Names>, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
    let db = || app.db.clone();
    let mut duties = vec![
        tokio::spawn(upkeep::late_rows(db(), stop.clone())),
        tokio::spawn(upkeep::names(names, stop.clone())),
    ];
    if let Some(Proxmox { sites, .. }) = &app.proxmox {
        let CloudpodsConfig { reconcile: compare, metrics, health, .. } = &app.config.cloudpods;
        let every = metrics.every;
        let metrics = Metrics::new(db(), sites.clone(), *metrics, *health);
        let reconciler = Reconciler::new(db(), sites.clone(), compare);
        duties.extend([
            tokio::spawn(upkeep::reconcile(reconciler, compare.every, stop.clone())),
            tokio::spawn(upkeep::metrics(metrics.clone(), every, stop.clone())),
            tokio::spawn(upkeep::tidy_metrics(metrics, every, stop.clone())),
        ]);
    }
    duties
}

/// Waits for the database, then checks it and Proxmox.
async fn ready(app: &App) -> Result<(), Failed> {
    wait_for_database(app).await?;
    check_proxmox(app).await
}

async fn wait_for_database(app: &App) -> Result<(), Failed> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(500);
    loop {
        // A plain connection first: it fails at once, where the pool waits in silence.
        let checked = match PgConnection::connect_with(&app.config.database.options).await {
            Ok(connection) => {
                // Only its success mattered.
                let _ = connection.close().await;
                migrate::check_current(&app.db).await
            }
            Err(error) => Err(migrate::Error::Unreachable(error)),
        };
        let error = match checked {
            Ok(()) => return Ok(()),
            Err(error @ (migrate::Error::Unreachable(_) | migrate::Error::Sql(_))) => error,
            Err(error) => return Err(error.into()),
        };
        let failed = Failed::from(error);
        // Wrong credentials do not become right by waiting.
        if matches!(failed.exit, Exit::Permission | Exit::Configuration) {
            return Err(failed);
        }
        tracing::warn!(
            waited_s = started.elapsed().as_secs(),
            next_try_s = pause.as_secs_f32(),
            "waiting for Postgres (DATABASE_URL): {failed}"
        );
        sleep(pause).await;
        pause = (pause * 2).min(WAIT_MAX);
    }
}

/// Asks each node's API whether it takes our token. One that is away is no
/// reason not to start; one that refuses us is.
async fn check_proxmox(app: &App) -> Result<(), Failed> {
    let Some(Proxmox { sites, .. }) = &app.proxmox else { return Ok(()) };
    let nodes = nodes::all(&app.db).await?;
    if nodes.is_empty() {
        tracing::warn!(
            "cloud_pod_nodes is empty: no pod can be placed; see `mpanel-worker cloudpods nodes add --help`"
        );
    }
    let mut bases = BTreeSet::new();
    for node in nodes.iter().filter(|node| node.provider.eq_ignore_ascii_case("proxmox")) {
        match sites.base(&node.api_url) {
            Ok(base) => {
                bases.insert(base);
            }
            Err(problem) => tracing::warn!(node = %node.name, "api_url {problem}; the node is passed over"),
        }
    }
    // With PROXMOX_API_URL set the check needs no node.
    if let Ok(base) = sites.base("") {
        bases.insert(base);
    }
    for base in bases {
        match sites.at(&base).check().await {
            Ok(()) => tracing::info!(api = %base, "Proxmox takes our token"),
            Err(error) if error.class.is_configuration() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(api = %base, %error, "Proxmox does not answer yet; jobs will be retried")
            }
        }
    }
    Ok(())
}
