//! The payload as a handler sees it: sealed fields in clear, or why they are not.

use mpanel_protocol::{
    ids::QueueName,
    job::FetchedJob,
    seal::{Keyring, unseal},
};

use crate::{
    handler::FinalCause,
    outcome::{Again, AttemptFailure},
};

/// A payload, opened.
pub(crate) struct Payload {
    /// JSON text for the handler.
    pub(crate) json: String,
    /// Why the job cannot run.
    pub(crate) refused: Option<String>,
    secret: bool,
}

impl Payload {
    /// Opens the sealed fields of a job; a plain payload stays as it is.
    pub(crate) fn open(job: &FetchedJob, queue: &QueueName, keyring: Option<&Keyring>) -> Self {
        match unseal(&job.data, queue, &job.id, keyring) {
            Ok(json) => Self {
                secret: matches!(json, std::borrow::Cow::Owned(_)),
                json: json.into_owned(),
                refused: None,
            },
            Err(error) => Self {
                json: job.data.clone(),
                refused: Some(format!("Decode(Sealed): {error}")),
                secret: false,
            },
        }
    }

    /// A decoder's words may quote values: of a payload with secrets they are withheld.
    pub(crate) fn redact(&self, failure: AttemptFailure) -> AttemptFailure {
        if self.secret && failure.again == Again::Never(FinalCause::BadPayload) {
            let reason = "Decode(Sealed): the payload does not decode into the handler's type; \
                          the decoder's words are withheld, since fields of it are sealed";
            return AttemptFailure::unrecoverable(reason, FinalCause::BadPayload);
        }
        failure
    }
}
