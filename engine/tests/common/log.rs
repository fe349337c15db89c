//! The log lines of the test's thread, as an operator's JSON log has them.

use std::{
    io,
    sync::{Arc, LazyLock, Mutex},
};

use serde_json::Value;
use tracing::{
    Dispatch,
    subscriber::{DefaultGuard, NoSubscriber},
};

/// As long as there is but one subscriber in a process, `tracing` asks the one of the
/// thread that comes first to a line whether anybody wants it, ever: a test beside ours,
/// without a log, would say no for us. With two it asks all of them.
static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::default()));

/// What was logged since [`Log::start`].
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// From now on, until the guard is dropped; for a runtime of one thread.
    pub fn start() -> (Self, DefaultGuard) {
        LazyLock::force(&ANOTHER);
        let log = Self::default();
        let to = log.clone();
        let json = tracing_subscriber::fmt().json().with_writer(move || to.clone()).finish();
        (log, tracing::subscriber::set_default(json))
    }

    /// All lines.
    pub fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The span of each attempt of a job that has ended, in order.
    pub fn attempts(&self, queue: &str, id: &str) -> Vec<Value> {
        let spans = self.lines().into_iter().filter(|line| line["target"] == "mpanel_engine::executor");
        spans
            .map(|line| line["span"].clone())
            .filter(|span| span["queue"] == queue && span["job.id"] == id)
            .collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
