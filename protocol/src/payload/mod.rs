//! What mPanel's producers put into `data`, typed, one file per family of queues.
//!
//! JavaScript producers type loosely: numbers arrive as text, booleans as `0`
//! or `"true"`, absent fields as `null`, integers as `2.0`; and newer producers
//! send fields that we do not know. Decoding forgives all of that and nothing
//! else, and its errors name each field as the producer spells it. Whether a
//! value makes *sense* (cores 0, a host name with a semicolon) is decided by the
//! service that serves the queue, not here.

pub mod cloudpods;
mod fields;
pub mod guardian;
mod kinds;

pub use fields::{FieldProblem, Fields, PayloadError};
pub use kinds::{MpanelJob, defaults_of};
