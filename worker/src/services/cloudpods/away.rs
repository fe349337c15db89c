//! Patience with a Proxmox that does not answer. A job has few attempts, and
//! they are seconds apart: an API that restarts must not use them up.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::CreateError;
use crate::adapters::proxmox::{Class, PveError};

/// How long one attempt waits, from the first call without an answer.
const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What one attempt has met so far.
#[derive(Debug, Default)]
pub(super) struct Away {
    since: Option<Instant>,
    pause: Duration,
}

impl Away {
    /// Waits a moment if that may help; whether the step is to be entered again.
    pub(super) async fn waited(&mut self, error: &CreateError) -> bool {
        let CreateError::Pve(cause) = error else { return false };
        self.waited_for(cause).await
    }

    /// The same for a call that failed.
    pub(super) async fn waited_for(&mut self, cause: &PveError) -> bool {
        if !matches!(cause.class, Class::NodeUnreachable | Class::Ambiguous) {
            return false;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= PATIENCE {
            return false;
        }
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        tracing::warn!(error = %cause, wait_s = self.pause.as_secs(), "Proxmox does not answer; waiting for it");
        sleep(self.pause).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(class: Class) -> CreateError {
        let (text, call, api) = (String::new(), "GET /nodes".to_owned(), "https://h".to_owned());
        PveError { class, status: None, text, call, api }.into()
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_the_network_alone_and_not_for_ever() {
        let mut away = Away::default();
        assert!(!away.waited(&error(Class::BadCredentials)).await);
        assert!(!away.waited(&CreateError::Cancelled).await);
        let started = Instant::now();
        let mut waits = 0;
        while away.waited(&error(Class::NodeUnreachable)).await {
            waits += 1;
        }
        assert!(started.elapsed() < PATIENCE + PAUSE_MAX * 2);
        assert!((15..40).contains(&waits), "{waits}");
    }
}
