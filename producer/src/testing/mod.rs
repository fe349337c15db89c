//! For tests of programs that enqueue: a [`Producer`] without Redis that records
//! what it would store, and "exactly these jobs were enqueued" for it and for a
//! real queue.
//!
//! ```
//! use mpanel_producer::{EnqueueOptions, Producer, testing::{self, Expected}};
//! use serde_json::json;
//!
//! // The code under test.
//! async fn sign_up(producer: &Producer, mail: &str) -> Result<(), mpanel_producer::EnqueueError> {
//!     let mails = producer.queue("mails")?;
//!     mails.enqueue("welcome", &json!({ "to": mail }), EnqueueOptions::new().attempts(3)).await?;
//!     Ok(())
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let (producer, recorder) = testing::recording();
//! sign_up(&producer, "a@example.org").await?;
//! recorder.assert_enqueued(&[Expected::new("mails", "welcome").data(json!({ "to": "a@example.org" }))]);
//! # Ok::<(), mpanel_producer::EnqueueError>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compare;
mod real;
mod record;

use std::sync::Arc;

use mpanel_protocol::{ids::Prefix, options::JobOptions, peer::Peer, seal::Keyring, time::Clock};
use serde_json::Value;

pub use compare::{Expected, assert_enqueued};
pub use real::{assert_queue, jobs_of};
pub use record::Recorder;
pub(crate) use record::SystemClock;

use crate::{
    batch::Lane,
    producer::{Backend, Producer},
    rules::{Rules, SIZE_LIMIT},
};

/// A job as a test sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenJob {
    /// Its queue.
    pub queue: String,
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its payload.
    pub data: Value,
    /// Its options as stored.
    pub options: JobOptions,
    /// When it was created, epoch ms.
    pub timestamp_ms: i64,
    /// Delay before its first attempt, ms; 0 for none.
    pub delay_ms: i64,
    /// Its priority; 0 for none.
    pub priority: u32,
    /// Full key of its parent.
    pub parent: Option<String>,
}

/// A producer that stores nothing, and what it was asked to store. It takes and
/// refuses what a real one does, ids and deduplication included (a deduplication
/// ends never, since no job does); a parent that is named is taken to exist.
#[must_use]
pub fn recording() -> (Producer, Arc<Recorder>) {
    recording_with(Arc::new(SystemClock), None)
}

/// The same with a clock of the test's, and with keys for sealed fields.
#[must_use]
pub fn recording_with(clock: Arc<dyn Clock>, keyring: Option<Arc<Keyring>>) -> (Producer, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let producer = Producer {
        backend: Backend::Recorder(recorder.clone()),
        peer: Peer::default(),
        rules: Rules {
            prefix: Prefix::default(),
            clock,
            size_limit: SIZE_LIMIT,
            keyring,
            as_node: false,
            skip_meta: false,
            cluster: false,
        },
        lane: Lane::default(),
        permitted: Arc::default(),
        handles: Arc::default(),
    };
    (producer, recorder)
}
