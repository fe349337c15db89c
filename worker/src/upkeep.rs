//! Duties beside the queues, each in a loop of its own until the process stops:
//! late job rows, names of pods, the comparison with Proxmox, pods' figures. A duty that fails
//! is tried again; what is wrong is said once, not every round.

use std::{fmt::Display, future::Future, time::Duration};

use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::services::cloudpods::{
    self,
    dns::{self, Names},
    metrics::Metrics,
    reconcile::Reconciler,
};

/// How often rows are reconciled that mPanel inserts after it has enqueued.
const LATE_ROWS: Duration = Duration::from_secs(5);
/// How often names of pods are brought up to date.
const NAMES: Duration = Duration::from_secs(10);
/// How often it is looked whether old figures are to be thinned out.
const TIDY: Duration = Duration::from_secs(300);

/// Runs `round` again and again, with pauses. `what` is not done while it fails.
async fn repeat<T, E, F>(
    what: &str,
    pause: Duration,
    stop: &CancellationToken,
    mut round: impl FnMut() -> F,
    tell: impl Fn(T),
) where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let mut told: Option<String> = None;
    loop {
        let result = tokio::select! {
            // cancel-safe: what a round leaves half done the next one finds.
            () = stop.cancelled() => return,
            result = round() => result,
        };
        match result {
            Ok(done) => {
                if told.take().is_some() {
                    tracing::info!("{what} again");
                }
                tell(done);
            }
            Err(error) => {
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    tracing::warn!("not {what}; trying again: {text}");
                    told = Some(text);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

/// How often a duty looks whether its round is due: a few times an interval, so
/// that a process that ended is missed soon.
fn pace(every: Duration) -> Duration {
    (every / 4).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

/// Brings job rows up to date that mPanel inserted after it had enqueued.
pub async fn late_rows(db: PgPool, stop: CancellationToken) {
    let tell = |rows| {
        if rows > 0 {
            tracing::debug!(rows, "late job rows brought up to date");
        }
    };
    repeat(
        "bringing late job rows up to date",
        LATE_ROWS,
        &stop,
        || cloudpods::reconcile_late_rows(&db),
        tell,
    )
    .await;
}

/// Brings names of pods up to date at the name server, where one is configured.
pub async fn names(names: Option<Names>, stop: CancellationToken) {
    let Some(names) = names else { return };
    let tell = |round: dns::Round| {
        if round != dns::Round::default() {
            tracing::info!(
                written = round.written,
                removed = round.removed,
                taken = round.taken,
                "names of pods"
            );
        }
    };
    repeat("keeping names of pods up to date", NAMES, &stop, || names.round(), tell).await;
}

/// Compares books and Proxmox, unless that is switched off.
pub async fn reconcile(reconciler: Reconciler, every: Duration, stop: CancellationToken) {
    if every.is_zero() {
        return;
    }
    let tell = |report| {
        if let Some(report) = report {
            tracing::debug!(?report, "pods compared with Proxmox");
        }
    };
    repeat("comparing pods with Proxmox", pace(every), &stop, || reconciler.round(), tell).await;
}

/// Collects what pods use, unless that is switched off.
pub async fn metrics(metrics: Metrics, every: Duration, stop: CancellationToken) {
    if every.is_zero() {
        return;
    }
    let tell = |collected| {
        if let Some(collected) = collected {
            tracing::debug!(?collected, "pods' figures written");
        }
    };
    repeat("collecting pods' figures", pace(every), &stop, || metrics.round(), tell).await;
}

/// Thins out old figures, unless nobody collects any.
pub async fn tidy_metrics(metrics: Metrics, every: Duration, stop: CancellationToken) {
    if every.is_zero() {
        return;
    }
    let tell = |done| {
        if let Some(done) = done {
            tracing::debug!(?done, "old figures thinned out");
        }
    };
    repeat("thinning out old figures", TIDY, &stop, || metrics.tidy_round(), tell).await;
}
