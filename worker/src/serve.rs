//! The engine's workers, one a queue: started, watched, stopped. The one place
//! where the worker meets the engine.

use futures_util::future::join_all;
use mpanel_connect::{ConnectError, Redis};
use mpanel_engine::{Engine, EngineError, Worker};
use mpanel_producer::Producer;
use mpanel_protocol::{ids::Prefix, payload::cloudpods::HEALTH_QUEUE, peer::Peer};
use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::{
    app::{App, QueueService, ServiceHandler},
    config::PeerLine,
    exit::{Exit, Failed},
    intake, neighbours, outbox,
    services::cloudpods::{intake::Intake, sweeps},
    signals::Orders,
    ticks,
};

/// Serves the queues until told to stop, or with `drain` until they are empty.
///
/// # Errors
/// Exit 69 or 77 when Redis cannot be used, 78 for a setting it refuses, 4 when
/// Node workers are there and `run.exclusive` is set.
pub async fn serve(
    app: &App,
    services: Vec<QueueService>,
    drain: bool,
    orders: Orders,
) -> Result<(), Failed> {
    let Orders { stop, mut quiet } = orders;
    let redis = app.link.clone();
    let prefix =
        Prefix::new(&app.redis.prefix).map_err(|e| Failed::new(Exit::Configuration, e.to_string()))?;
    let peer = match app.redis.peer {
        PeerLine::V5 => Peer::V5,
        PeerLine::V6 => Peer::V6,
    };
    let engine = Engine::builder(redis.clone()).prefix(prefix.clone()).peer(peer).connect();
    let engine = tokio::select! {
        // cancel-safe: only waiting for the server.
        () = stop.cancelled() => return Ok(()),
        engine = engine => engine.map_err(of_engine)?,
    };
    let queues: Vec<&str> = services.iter().map(|service| service.queue).collect();
    look_for_neighbours(app, &engine, &queues).await?;

    for queue in &queues {
        let asked = engine.worker(queue).map_err(of_engine)?.check_permissions().await;
        // Whatever else goes wrong, the worker waits for it.
        if let Err(error @ EngineError::Forbidden { .. }) = asked {
            return Err(of_engine(error));
        }
    }

    let telemetry = services.iter().find_map(|service| match &service.handler {
        ServiceHandler::Telemetry(handler) => Some(handler.service().clone()),
        _ => None,
    });
    let name = neighbours::own_name();
    let workers = services
        .into_iter()
        .map(|service| start(app, &engine, service, &name))
        .collect::<Result<Vec<Worker>, EngineError>>()
        .map_err(of_engine)?;
    let relay_stop = stop.child_token();
    let relay =
        tokio::spawn(outbox::relay(app.db.clone(), redis.clone(), prefix.clone(), peer, relay_stop.clone()));
    let intake = Intake::new(app.db.clone(), engine.clone(), &queues);
    let intake = tokio::spawn(intake::keep(intake, app.config.database.options.clone(), stop.child_token()));
    if queues.contains(&HEALTH_QUEUE) && !app.config.cloudpods.sweep_every.is_zero() {
        schedule_sweeps(app, &redis, &prefix, peer).await;
    }
    // Who is to end when the queues are empty makes no new jobs.
    let keeper = telemetry.filter(|_| !drain).map(|service| {
        let of = ticks::ProducerOf { redis: redis.clone(), prefix: prefix.clone(), peer };
        tokio::spawn(ticks::keep(service, of, app.clock.clone(), stop.child_token()))
    });
    tracing::info!(redis = %app.redis.shown, ?queues, worker = name, "ready");
    tell_systemd(NotifyState::Ready);

    let empty = async {
        if drain {
            join_all(workers.iter().map(Worker::until_idle)).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        // cancel-safe: all only wait, or do what may be done twice.
        () = stop.cancelled() => {}
        () = empty => tracing::info!("the queues are empty"),
        () = keep_quiet(&workers, &mut quiet) => {}
    }
    tell_systemd(NotifyState::Stopping);
    let grace = app.config.run.drain_timeout;
    let reports = join_all(workers.into_iter().map(|worker| worker.stop(grace))).await;
    relay_stop.cancel();
    // A panic in it has been printed.
    let _ = relay.await;
    intake.abort();
    let _ = intake.await;
    if let Some(keeper) = keeper {
        keeper.abort();
        let _ = keeper.await;
    }
    let unfinished: usize = reports.iter().map(|report| report.unfinished).sum();
    if unfinished > 0 {
        tracing::warn!(unfinished, "some jobs did not end in time; they are rescued when their locks expire");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Jobs are served with or without it: what goes wrong is told.
async fn schedule_sweeps(app: &App, redis: &Redis, prefix: &Prefix, peer: Peer) {
    let every = app.config.cloudpods.sweep_every;
    let ensured = async {
        let producer = Producer::builder(redis.clone()).prefix(prefix.clone()).peer(peer).connect().await?;
        sweeps::ensure(&producer, peer, every).await
    };
    match ensured.await {
        Ok(true) => tracing::info!(minutes = every.as_secs() / 60, "the health sweep is scheduled"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "the health sweep is not scheduled; the next start tries again"),
    }
}

/// Lets the workers take jobs or not, as told.
async fn keep_quiet(workers: &[Worker], quiet: &mut watch::Receiver<bool>) {
    loop {
        let now = *quiet.borrow_and_update();
        for worker in workers {
            if now { worker.pause() } else { worker.resume() }
        }
        tell_systemd(NotifyState::Status(if now { "quiet: takes no new jobs" } else { "serving" }));
        if quiet.changed().await.is_err() {
            // Nobody listens for signals.
            std::future::pending::<()>().await;
        }
    }
}

/// Outside systemd (no NOTIFY_SOCKET) nothing happens.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd was not told");
    }
}

fn start(app: &App, engine: &Engine, service: QueueService, name: &str) -> Result<Worker, EngineError> {
    let run = &app.config.run;
    let worker = engine
        .worker(service.queue)?
        .name(name)
        .concurrency(usize::try_from(service.concurrency).unwrap_or(1))
        .lock(run.lock)
        .stalled_interval(run.stalled_interval)
        .stalls_allowed(run.stalls_allowed);
    match service.handler {
        ServiceHandler::CloudpodsCreate(handler) => worker.handle("create", handler).start(),
        // The queue says what is to be done; mPanel's health queue has two names for its jobs.
        ServiceHandler::CloudpodsOperation(handler) => worker.handle_any(handler).start(),
        ServiceHandler::Telemetry(handler) => worker.handle_any(handler).start(),
    }
}

/// Warns of Node workers on our queues, or refuses to start beside them.
async fn look_for_neighbours(app: &App, engine: &Engine, queues: &[&str]) -> Result<(), Failed> {
    let servers = engine.redis().shared_all().await.map_err(of_connect)?;
    let found = match neighbours::find(servers, &app.redis.prefix, queues).await {
        Ok(found) => found,
        Err(error) if app.config.run.exclusive => {
            let text = format!(
                "--exclusive needs CLIENT LIST to look for Node workers, and Redis refuses it: {error}"
            );
            return Err(Failed::new(Exit::Permission, text));
        }
        Err(error) => {
            tracing::warn!(%error, "cannot look for Node workers on the same queues (CLIENT LIST)");
            return Ok(());
        }
    };
    for queue in queues {
        let at: Vec<&str> = found.iter().filter(|n| n.queue == *queue).map(|n| n.address.as_str()).collect();
        if !at.is_empty() {
            tracing::warn!(
                queue,
                addresses = at.join(", "),
                "Node workers serve this queue too: its jobs are shared between two provisioners; stop them, or use --exclusive"
            );
        }
    }
    if app.config.run.exclusive && !found.is_empty() {
        let list: Vec<String> = found.iter().map(|n| format!("{} at {}", n.queue, n.address)).collect();
        let text =
            format!("--exclusive: Node workers serve the same queues: {}; stop them first", list.join(", "));
        return Err(Failed::new(Exit::Precondition, text));
    }
    Ok(())
}

pub(crate) fn of_connect(error: ConnectError) -> Failed {
    let exit = match &error {
        ConnectError::Url { .. } => Exit::Configuration,
        ConnectError::Unreachable { .. } | ConnectError::NoPrimary { .. } => Exit::Unavailable,
        ConnectError::Refused { .. } => Exit::Permission,
    };
    Failed::new(exit, error.to_string())
}

fn of_engine(error: EngineError) -> Failed {
    match error {
        EngineError::Connect(error) => of_connect(error),
        EngineError::Name(_) | EngineError::Setting(_) => Failed::new(Exit::Configuration, error.to_string()),
        EngineError::Forbidden { .. } => Failed::new(Exit::Permission, error.to_string()),
        EngineError::Script(_) => Failed::new(Exit::Unavailable, error.to_string()),
        EngineError::Thread(_) => Failed::new(Exit::Failure, error.to_string()),
    }
}
