//! What the process is told from outside: stop, stop at once, be quiet, go on.
//! Knows no queue.

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::exit::Exit;

/// SIGTSTP on Linux; tokio has no name for it.
const SIGTSTP: i32 = 20;
/// SIGCONT on Linux.
const SIGCONT: i32 = 18;

/// The orders, as the rest of the process sees them.
#[derive(Debug, Clone)]
pub struct Orders {
    /// Fires when the process is to stop.
    pub stop: CancellationToken,
    /// Whether it is to take nothing new.
    pub quiet: watch::Receiver<bool>,
}

struct Listening {
    terminate: Signal,
    interrupt: Signal,
    quiet: Signal,
    go_on: Signal,
}

impl Listening {
    fn start() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quiet: signal(SignalKind::from_raw(SIGTSTP))?,
            go_on: signal(SignalKind::from_raw(SIGCONT))?,
        })
    }
}

/// Listens from now on: the first SIGTERM or Ctrl-C stops, the second leaves at
/// once; SIGTSTP makes quiet, SIGCONT ends that.
///
/// # Panics
/// Outside a Tokio runtime.
#[must_use]
pub fn listen() -> Orders {
    let stop = CancellationToken::new();
    let (quiet, is_quiet) = watch::channel(false);
    match Listening::start() {
        Ok(listening) => {
            tokio::spawn(obey(listening, stop.clone(), quiet));
        }
        Err(error) => {
            tracing::error!(%error, "signals cannot be handled; only SIGKILL will stop this process");
        }
    }
    Orders { stop, quiet: is_quiet }
}

async fn obey(mut signals: Listening, stop: CancellationToken, quiet: watch::Sender<bool>) {
    loop {
        // cancel-safe: a signal that is not taken comes again with the next turn.
        tokio::select! {
            _ = signals.terminate.recv() => {}
            _ = signals.interrupt.recv() => {}
            _ = signals.quiet.recv() => {
                tracing::info!("quiet: no new jobs, running ones go on; SIGCONT takes jobs again, SIGTERM stops");
                quiet.send_replace(true);
                continue;
            }
            _ = signals.go_on.recv() => {
                // Also sent to a process that was frozen (SIGSTOP): then it changes nothing.
                if quiet.send_replace(false) {
                    tracing::info!("taking jobs again");
                }
                continue;
            }
        }
        if stop.is_cancelled() {
            tracing::warn!("second signal: leaving at once; running jobs are rescued by the stalled check");
            std::process::exit(i32::from(Exit::Interrupted as u8));
        }
        tracing::info!("stopping: no new jobs, running ones may end; signal again to leave at once");
        stop.cancel();
    }
}
