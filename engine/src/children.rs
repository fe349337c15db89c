//! A running job that waits for its children: `active` to `waiting-children`,
//! while its handler still runs and may have to go on.

use std::time::Duration;

use mpanel_protocol::{
    calls::finish::{Finish, FinishNote, Transition},
    ids::{JobId, LockToken},
    outcome::Refusal,
    script::ScriptError,
};
use tokio_util::sync::CancellationToken;

use crate::{
    exchange::{exchange, is_transient},
    handler::JobError,
    worker::Shared,
};

/// Pauses between tries while Redis cannot be reached, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What became of a job that is to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// It waits; the attempt is over.
    Waiting,
    /// No child is pending; it goes on.
    NothingPending,
}

/// Moves the job, unless no child is pending. Waits out a Redis that cannot be
/// reached.
///
/// # Errors
/// A [`JobError`] for the handler to end with.
pub(crate) async fn park(
    shared: &Shared,
    id: &JobId,
    token: &LockToken,
    child_key: Option<&str>,
    cancelled: &CancellationToken,
) -> Result<Parked, JobError> {
    let transition = Transition::AwaitChildren { child_key: child_key.map(str::to_owned) };
    let finish = Finish { id: id.clone(), token: token.clone(), transition };
    let mut uncertain = false;
    let mut pause = PAUSE_MIN;
    loop {
        match ask(shared, &finish).await {
            Ok(Ok(FinishNote::NothingPending)) => return Ok(Parked::NothingPending),
            Ok(Ok(FinishNote::Done)) => {
                // From here on its lock is nobody's.
                shared.locks.release(id, token);
                return Ok(Parked::Waiting);
            }
            // A call before this one had come through, only its answer had not.
            Ok(Err(Refusal::MissingLock | Refusal::NotInState)) if uncertain => {
                shared.locks.release(id, token);
                return Ok(Parked::Waiting);
            }
            Ok(Err(Refusal::FailedChild)) => {
                return Err(JobError::never("a child of the job failed"));
            }
            Ok(Err(refusal)) => return Err(JobError::retry(format!("cannot wait for children: {refusal}"))),
            Err(error) if is_transient(&error) => {
                uncertain |= !error.is_not_done();
                tracing::warn!(%error, "the job cannot be moved to its children yet; trying again");
            }
            Err(error) => return Err(JobError::retry("cannot wait for children").because(error)),
        }
        // cancel-safe: both only wait.
        tokio::select! {
            () = cancelled.cancelled() => return Err(JobError::retry("cancelled while it was to wait for children")),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn ask(shared: &Shared, finish: &Finish) -> Result<Result<FinishNote, Refusal>, ScriptError> {
    let mut asked = exchange(shared, std::slice::from_ref(finish), 0, &finish.token).await?;
    // It answers for each item.
    Ok(asked.results.pop().unwrap_or(Err(Refusal::Unknown(0))))
}
