//! The verb `serve`, as far as it is the same for all adapters: a worker process that the
//! runner steers. It prints `{"ready":true}` when it is connected, begins at SIGUSR2 and
//! answers after SIGTERM. So several processes begin together, and what starting costs is
//! not measured.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::contract::{Answer, Window, epoch_ms};

/// Completions so far, and when the last one was.
#[derive(Debug, Clone, Default)]
pub struct Completions(Arc<(AtomicU64, AtomicU64)>);

impl Completions {
    /// One more, now.
    pub fn note(&self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        self.note_time();
    }

    /// The last of them was now.
    pub fn note_time(&self) {
        self.0.1.store(epoch_ms().to_bits(), Ordering::Relaxed);
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }

    /// When the last one was, epoch ms.
    fn last_ms(&self) -> Option<f64> {
        Some(f64::from_bits(self.0.1.load(Ordering::Relaxed))).filter(|at| *at > 0.0)
    }
}

/// The runner's two signals.
#[derive(Debug)]
pub struct Steering {
    go: Signal,
    end: Signal,
}

/// A worker process between the two signals.
#[derive(Debug)]
pub struct Serving {
    end: Signal,
    window: Window,
    began_ms: f64,
}

impl Steering {
    /// Says that this process is ready.
    ///
    /// # Errors
    /// When signals cannot be heard or nothing can be printed.
    pub fn ready() -> std::io::Result<Self> {
        let steering =
            Self { go: signal(SignalKind::user_defined2())?, end: signal(SignalKind::terminate())? };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{{\"ready\":true}}")?;
        out.flush()?;
        Ok(steering)
    }

    /// Waits for the order to begin.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub async fn go(mut self) -> std::io::Result<Serving> {
        self.go.recv().await;
        Ok(Serving { end: self.end, window: Window::open()?, began_ms: epoch_ms() })
    }
}

impl Serving {
    /// Waits for the order to end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn until_end(&mut self) {
        self.end.recv().await;
    }

    /// The answer, when `n` jobs were completed and nothing runs any more.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn close(&self, n: u64, completions: &Completions) -> std::io::Result<Answer> {
        let ended_ms = completions.last_ms().unwrap_or_else(epoch_ms);
        Ok(Answer { began_ms: Some(self.began_ms), ended_ms: Some(ended_ms), ..self.window.close(n)? })
    }
}
