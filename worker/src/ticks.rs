//! The clock of telemetry: its job schedulers are kept, and where Redis, which is
//! that clock, is away, that is written instead.

use std::{sync::Arc, time::Duration};

use mpanel_connect::{Redis, ServerClock, is_broken};
use mpanel_producer::Producer;
use mpanel_protocol::{ids::Prefix, peer::Peer, time::Clock as _};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    adapters::proxmox::Pve,
    app::App,
    exit::{Exit, Failed},
    services::telemetry::{self, TelemetryService},
};

/// Shortest pause between two looks at the schedulers.
const PAUSE_MIN: Duration = Duration::from_secs(10);
/// A Redis that does not answer for so long is away.
const AWAY_AFTER: Duration = Duration::from_secs(8);

/// Telemetry, as it is configured.
///
/// # Errors
/// Exit 78 when a setting cannot be used.
pub fn service(app: &App) -> Result<TelemetryService, Failed> {
    let wrong = |text: String| Failed::new(Exit::Configuration, text);
    let prefix = Prefix::new(&app.redis.prefix).map_err(|error| wrong(error.to_string()))?;
    let config = app.config.telemetry.clone();
    let service = TelemetryService::new(app.db.clone(), config, app.link.clone(), prefix, app.clock.clone())
        .map_err(|error| wrong(error.to_string()))?;
    Ok(match &app.config.proxmox {
        Some(proxmox) => service.with_proxmox(Pve::new(proxmox)?, proxmox),
        None => service,
    })
}

/// Measures Redis's time; when it does not answer, why.
async fn away(of: &ProducerOf, clock: &ServerClock) -> Option<String> {
    let measured = async {
        let mut shared = of.redis.shared_for(of.prefix.as_str()).await.map_err(|error| error.to_string())?;
        match clock.measure(&mut shared.conn).await {
            Err(error) if is_broken(&error) => {
                of.redis.report(&shared, &error).await;
                Err(error.to_string())
            }
            // A server that refuses TIME is there.
            _ => Ok(()),
        }
    };
    match timeout(AWAY_AFTER, measured).await {
        Ok(measured) => measured.err(),
        Err(_) => Some(format!("it has not answered for {} s", AWAY_AFTER.as_secs())),
    }
}

/// What a producer is made of.
#[derive(Debug, Clone)]
pub struct ProducerOf {
    /// Redis.
    pub redis: Redis,
    /// What its keys begin with.
    pub prefix: Prefix,
    /// Which BullMQ works beside us.
    pub peer: Peer,
}

/// Keeps the schedulers of telemetry's ticks, and the clock by which ticks are late.
pub async fn keep(
    service: TelemetryService,
    of: ProducerOf,
    clock: Arc<ServerClock>,
    stop: CancellationToken,
) {
    let mut told = None;
    let mut producer = None;
    loop {
        if let Some(why) = away(&of, &clock).await
            && let Err(error) = service.redis_is_away(clock.now().0, &why).await
        {
            tracing::debug!(%error, "it is not written that Redis is away");
        }
        let round = async {
            if producer.is_none() {
                let builder = Producer::builder(of.redis.clone()).prefix(of.prefix.clone()).peer(of.peer);
                producer = Some(builder.connect().await?);
            }
            let Some(producer) = &producer else { return Ok(0) };
            let now_ms = clock.now().0;
            telemetry::schedule::ensure(producer, &service.collectors(), service.interval(), now_ms).await
        };
        let round = tokio::select! {
            // cancel-safe: the next start does the rest.
            () = stop.cancelled() => return,
            round = round => round,
        };
        match round {
            Ok(changed) => {
                told = None;
                if changed > 0 {
                    tracing::info!(changed, "telemetry's ticks are scheduled");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    tracing::warn!(%error, "telemetry's ticks are not scheduled; trying again");
                    told = Some(text);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(service.interval().max(PAUSE_MIN)) => {}
        }
    }
}
