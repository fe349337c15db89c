//! mPanel's jobs by their payloads.

use std::sync::PoisonError;

use mpanel_protocol::{options::JobOptions, payload::MpanelJob};
use uuid::Uuid;

use crate::{
    error::EnqueueError,
    options::EnqueueOptions,
    producer::{Enqueued, Producer, QueueProducer},
};

impl Producer {
    /// Enqueues a job of mPanel as mPanel itself would: its queue, its name, its
    /// attempts, backoff and retention. The id is mPanel's form
    /// `<name>-<subject>-<ms>` with a random end, since mPanel's alone collide
    /// within a millisecond.
    ///
    /// # Errors
    /// [`EnqueueError`]; it says whether the job may have been stored.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn enqueue<J: MpanelJob>(&self, job: &J) -> Result<Enqueued, EnqueueError> {
        let queue = self.handle::<J>()?;
        let unique = Uuid::new_v4().simple().to_string();
        let id = format!("{}-{}-{}-{}", J::NAME, job.subject(), queue.clock.now().0, &unique[..8]);
        self.enqueue_as(job, &id).await
    }

    /// The same under an id of your own: a second call with it stores nothing.
    ///
    /// # Errors
    /// [`EnqueueError`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn enqueue_as<J: MpanelJob>(&self, job: &J, id: &str) -> Result<Enqueued, EnqueueError> {
        let options = JobOptions { job_id: Some(id.to_owned()), ..job.options() };
        self.handle::<J>()?.enqueue(J::NAME, job, EnqueueOptions::from(options)).await
    }

    fn handle<J: MpanelJob>(&self) -> Result<QueueProducer, EnqueueError> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = handles.get(J::QUEUE) {
            return Ok(handle.clone());
        }
        let handle = self.queue(J::QUEUE)?;
        handles.insert(J::QUEUE, handle.clone());
        Ok(handle)
    }
}
