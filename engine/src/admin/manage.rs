//! Operations on one job.

use std::time::Duration;

use mpanel_protocol::{
    calls::{
        cancel::{CANCELLED_BY, Cancelling, cancel_job},
        flow, locks,
        manage::{self, FinalState, Removal, Reprocess, Update},
    },
    ids::{JobId, LockToken},
    time::millis,
};
use serde::Serialize;

use super::{AdminError, QueueAdmin, script};

/// The highest priority number BullMQ takes.
const PRIORITY_MAX: u32 = 2_097_151;
/// Longest name of someone who cancels a job, characters.
const WHO_MAX: usize = 200;

impl QueueAdmin {
    /// Runs a finished job again.
    ///
    /// # Errors
    /// [`AdminError::Job`] when it is gone or not in that state.
    pub async fn retry(&self, id: &JobId, from: FinalState, how: Reprocess) -> Result<(), AdminError> {
        script!(self, |conn| manage::reprocess_job(conn, &self.keys, self.peer, id, from, how))
    }

    /// Puts a delayed job in line now.
    ///
    /// # Errors
    /// [`AdminError::Job`] when it is not delayed.
    pub async fn promote(&self, id: &JobId) -> Result<(), AdminError> {
        script!(self, |conn| manage::promote_job(conn, &self.keys, self.peer, id))
    }

    /// Lets a delayed job become due `delay` from now.
    ///
    /// # Errors
    /// [`AdminError::Job`] when it is gone or not delayed.
    pub async fn change_delay(&self, id: &JobId, delay: Duration) -> Result<(), AdminError> {
        let now = self.now().await?;
        #[expect(clippy::cast_precision_loss, reason = "a delay in ms")]
        let delay_ms = millis(delay) as f64;
        script!(self, |conn| manage::change_delay(conn, &self.keys, now, id, delay_ms))
    }

    /// Moves a waiting job to another priority (0: none), with `lifo` to its front.
    /// A job in another state takes the priority when it is next in line.
    ///
    /// # Errors
    /// [`AdminError::Job`] when it is gone, [`AdminError::Priority`].
    pub async fn change_priority(&self, id: &JobId, priority: u32, lifo: bool) -> Result<(), AdminError> {
        if priority > PRIORITY_MAX {
            return Err(AdminError::Priority(priority));
        }
        let priority = f64::from(priority);
        script!(self, |conn| manage::change_priority(conn, &self.keys, self.peer, id, priority, lifo))
    }

    /// Gives a job another payload; an attempt that runs keeps the old one.
    ///
    /// # Errors
    /// [`AdminError::Job`] when it is gone, [`AdminError::Value`].
    pub async fn update_data(&self, id: &JobId, data: &impl Serialize) -> Result<(), AdminError> {
        self.data_json(id, &json_of(id, data)?).await
    }

    pub(crate) async fn data_json(&self, id: &JobId, json: &str) -> Result<(), AdminError> {
        script!(self, |conn| manage::update_job(conn, &self.keys, id, Update::Data(json))).map(drop)
    }

    /// Sets a job's progress and announces it.
    ///
    /// # Errors
    /// [`AdminError::Job`] when it is gone, [`AdminError::Value`].
    pub async fn update_progress(&self, id: &JobId, progress: &impl Serialize) -> Result<(), AdminError> {
        self.progress_json(id, &json_of(id, progress)?).await
    }

    pub(crate) async fn progress_json(&self, id: &JobId, json: &str) -> Result<(), AdminError> {
        script!(self, |conn| manage::update_job(conn, &self.keys, id, Update::Progress(json))).map(drop)
    }

    /// Ends a job for good, wherever it is: it becomes failed with `cancelled by
    /// <who>` and is not tried again. A handler that runs it is told within a second
    /// ([`crate::JobContext::cancelled`]); a job that does not run fails when a worker
    /// reaches it, at once if it was delayed or waited for children. Handlers learn of
    /// it by [`crate::Handler::on_failed`].
    ///
    /// A Node worker that runs the job is not disturbed; the job fails if it should
    /// ever run again (not with BullMQ 5.28).
    ///
    /// ```no_run
    /// # async fn run(admin: mpanel_engine::admin::QueueAdmin) -> Result<(), mpanel_engine::admin::AdminError> {
    /// # let id = mpanel_protocol::ids::JobId::stored("42");
    /// admin.cancel(&id, "operator ann").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`AdminError::Job`] when it is gone, or finished already; [`AdminError::Who`].
    pub async fn cancel(&self, id: &JobId, who: &str) -> Result<Cancelling, AdminError> {
        let who = who.trim();
        if who.is_empty() || who.chars().count() > WHO_MAX || who.chars().any(char::is_control) {
            return Err(AdminError::Who);
        }
        let (now, reason) = (self.now().await?, format!("{CANCELLED_BY}{who}"));
        script!(self, |conn| cancel_job(conn, &self.keys, self.peer, now, id, &reason))
    }

    /// Takes a job away unless a worker holds it, with everything below it in a
    /// flow unless a worker holds one of those.
    ///
    /// # Errors
    /// [`AdminError::Job`] when a schedule needs it.
    pub async fn remove(&self, id: &JobId) -> Result<Removal, AdminError> {
        self.remove_job(id, true).await
    }

    /// Takes a job away unless a worker holds it; its children stay.
    ///
    /// # Errors
    /// [`AdminError::Job`] when a schedule needs it.
    pub async fn remove_alone(&self, id: &JobId) -> Result<Removal, AdminError> {
        self.remove_job(id, false).await
    }

    async fn remove_job(&self, id: &JobId, children: bool) -> Result<Removal, AdminError> {
        let now = self.now().await?;
        script!(self, |conn| manage::remove_job(conn, &self.keys, self.peer, now, id, children))
    }

    /// Lets a parent no longer wait for the job; `false` when it did not.
    ///
    /// # Errors
    /// [`AdminError::Job`] when job or parent is missing.
    pub async fn forget_parent(&self, id: &JobId) -> Result<bool, AdminError> {
        script!(self, |conn| flow::forget_parent(conn, &self.keys, self.peer, id))
    }

    /// Lets a lock live `lock` from now; `false` when `token` does not hold it.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn extend_lock(
        &self,
        id: &JobId,
        token: &LockToken,
        lock: Duration,
    ) -> Result<bool, AdminError> {
        let held = [(id.clone(), token.clone())];
        let lost = script!(self, |conn| locks::extend_locks(conn, &self.keys, lock, &held))?;
        Ok(lost.is_empty())
    }

    /// The job that holds a deduplication id.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn deduplicated_by(&self, dedup_id: &str) -> Result<Option<JobId>, AdminError> {
        let id: Option<String> = self.ask(redis::cmd("GET").arg(self.keys.dedup(dedup_id))).await?;
        Ok(id.map(JobId::stored))
    }

    /// Frees a job's deduplication id if the job still holds it; says whether it did.
    ///
    /// # Errors
    /// [`AdminError::Job`] when the job is gone.
    pub async fn free_deduplication(&self, id: &JobId) -> Result<bool, AdminError> {
        script!(self, |conn| manage::free_dedup(conn, &self.keys, id))
    }

    /// Frees a deduplication id, whoever holds it; says whether somebody did.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn remove_deduplication_key(&self, dedup_id: &str) -> Result<bool, AdminError> {
        self.ask(redis::cmd("DEL").arg(self.keys.dedup(dedup_id))).await
    }
}

fn json_of(id: &JobId, value: &impl Serialize) -> Result<String, AdminError> {
    serde_json::to_string(value).map_err(|source| AdminError::Value { id: id.clone(), source })
}
