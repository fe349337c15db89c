//! What happens on a queue, as its event stream tells it, whoever caused it.
//!
//! [`QueueEvents`] reads the stream: typed, resumable from an id, over broken
//! connections, and says so when entries were trimmed before they were read.
//! [`FinishWatch`] waits for jobs to end; any number of waits share one reader.

mod entry;
mod reader;
mod wait;

pub(crate) use self::wait::Watches;
pub use self::{
    entry::{BadEventId, EventEntry, EventId, QueueEvent},
    reader::{EventsError, Notice, QueueEvents, Start},
    wait::{FinishWatch, Finished, WaitError},
};
