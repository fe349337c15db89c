//! A kind of job in one place: payload, queue, name, result and default options,
//! so that producers and workers cannot disagree about them.

use serde::{Serialize, de::DeserializeOwned};

use crate::options::JobOptions;

/// A payload that knows where it goes and how it is run.
///
/// ```
/// use mpanel_protocol::{job_kind::JobKind, options::JobOptions};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Welcome {
///     to: String,
/// }
///
/// impl JobKind for Welcome {
///     const QUEUE: &'static str = "mails";
///     const NAME: &'static str = "welcome";
///     type Output = ();
///
///     fn options(&self) -> JobOptions {
///         JobOptions { attempts: 3, ..JobOptions::default() }
///     }
/// }
/// ```
pub trait JobKind: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The queue.
    const QUEUE: &'static str;
    /// The job's name.
    const NAME: &'static str;
    /// What the handler gives back, stored as `returnvalue`.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// Options of a job whose producer says nothing else; default: Node's.
    fn options(&self) -> JobOptions {
        JobOptions::default()
    }
}
