//! The loop that takes in queued rows inside `run`. Every process has one; they
//! share the rows.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    migrate::QUEUED_ROWS_CHANNEL,
    services::cloudpods::intake::{Intake, Round},
};

/// Until the next round, when nobody says that there is something.
const PAUSE: Duration = Duration::from_secs(2);
/// Until the next attempt to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(30);

/// Takes in rows until `stop`, every two seconds, and at once when Postgres says
/// that a row has become `queued`.
///
/// # Cancel safety
/// May be dropped at any point: what a round leaves half done the next one finds.
pub async fn keep(intake: Intake, database: PgConnectOptions, stop: CancellationToken) {
    let mut told: Option<String> = None;
    let mut bell = Bell { database, listener: None, not_before: Instant::now() };
    loop {
        let round = tokio::select! {
            () = stop.cancelled() => return,
            round = intake.round() => round,
        };
        match round {
            Ok(round) => {
                if told.take().is_some() {
                    tracing::info!("queued job rows are taken in again");
                }
                if (round.started, round.ended) != (0, 0) {
                    let Round { started, ended, .. } = round;
                    tracing::info!(started, ended, "queued job rows taken in");
                }
            }
            // Said once, not every round.
            Err(error) => {
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    tracing::warn!(%error, "queued job rows are not taken in; trying again");
                    told = Some(text);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(PAUSE) => {}
            () = bell.rung() => {}
        }
    }
}

/// Says that a row has become `queued`, where the trigger is there. Nothing
/// depends on it.
struct Bell {
    database: PgConnectOptions,
    listener: Option<PgListener>,
    /// When listening is tried again.
    not_before: Instant,
}

impl Bell {
    async fn rung(&mut self) {
        loop {
            if let Some(listener) = &mut self.listener {
                match listener.recv().await {
                    Ok(_) => {
                        // Several at once are one round.
                        while let Some(Ok(_)) = futures_util::FutureExt::now_or_never(listener.recv()) {}
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "not listening for queued job rows now");
                        self.listener = None;
                    }
                }
            }
            sleep_until(self.not_before).await;
            self.not_before = Instant::now() + LISTEN_AGAIN;
            match self.listen().await {
                Ok(listener) => self.listener = Some(listener),
                Err(error) => {
                    tracing::debug!(%error, "cannot listen for queued job rows; they are looked for instead");
                }
            }
        }
    }

    async fn listen(&self) -> sqlx::Result<PgListener> {
        // A connection of its own: it is held for ever.
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(self.database.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(QUEUED_ROWS_CHANNEL).await?;
        Ok(listener)
    }
}
