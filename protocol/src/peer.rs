//! Which BullMQ generation our writes look like where 5.x and 6.x differ
//! (decisions 2 and 14): the list of a queue paused without a trace, the event
//! `debounced`, stale deduplication keys.

use serde::{Deserialize, Serialize};

/// The generation of the other writers on the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// BullMQ 5.x: what mPanel runs.
    #[default]
    V5,
    /// BullMQ 6.x.
    V6,
}
