//! Jobs by their payloads: queue, name and options come from the type.

use std::sync::PoisonError;

use mpanel_protocol::{job_kind::JobKind, payload::MpanelJob};
use uuid::Uuid;

use crate::{
    enqueued::Enqueued,
    error::EnqueueError,
    flow::FlowJob,
    options::EnqueueOptions,
    producer::Producer,
    queue::{BulkJob, QueueProducer},
};

impl EnqueueOptions {
    /// The options that a kind of job has by itself.
    #[must_use]
    pub fn of_kind<K: JobKind>(job: &K) -> Self {
        job.options().into()
    }
}

impl<'k, K: JobKind> BulkJob<&'k K> {
    /// A job with the name and options of its kind; for the queue [`JobKind::QUEUE`].
    pub fn kind(job: &'k K) -> Self {
        Self { name: K::NAME.to_owned(), data: job, options: EnqueueOptions::of_kind(job) }
    }
}

impl FlowJob {
    /// A job with queue, name and options of its kind.
    ///
    /// # Errors
    /// [`EnqueueError::Payload`] when it is no JSON.
    pub fn kind<K: JobKind>(job: &K) -> Result<Self, EnqueueError> {
        FlowJob::new(K::NAME, K::QUEUE).options(EnqueueOptions::of_kind(job)).data(job)
    }
}

impl Producer {
    /// Enqueues a job in the queue, under the name and with the options of its kind.
    /// [`Enqueued::id`] is what to wait for when its result is wanted.
    ///
    /// ```no_run
    /// use mpanel_producer::{JobKind, JobOptions, Producer};
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
    ///     fn options(&self) -> JobOptions {
    ///         JobOptions { attempts: 3, ..JobOptions::default() }
    ///     }
    /// }
    ///
    /// # async fn run(producer: Producer) -> Result<(), Box<dyn std::error::Error>> {
    /// let job = producer.enqueue_kind(&Welcome { to: "a@example.org".into() }).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`QueueProducer::enqueue`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the job.
    pub async fn enqueue_kind<K: JobKind>(&self, job: &K) -> Result<Enqueued, EnqueueError> {
        self.enqueue_kind_with(job, EnqueueOptions::new()).await
    }

    /// The same with options of one's own; what they leave open is the kind's.
    ///
    /// # Errors
    /// As [`QueueProducer::enqueue`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the job.
    pub async fn enqueue_kind_with<K: JobKind>(
        &self,
        job: &K,
        options: EnqueueOptions,
    ) -> Result<Enqueued, EnqueueError> {
        let options = options.with_defaults(&EnqueueOptions::of_kind(job));
        self.handle::<K>()?.enqueue(K::NAME, job, options).await
    }

    /// Enqueues many jobs of one kind, in order; see [`QueueProducer::enqueue_bulk`].
    ///
    /// # Errors
    /// As [`QueueProducer::enqueue_bulk`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the jobs.
    pub async fn enqueue_kinds<K: JobKind>(&self, jobs: &[K]) -> Result<Vec<Enqueued>, EnqueueError> {
        self.handle::<K>()?.enqueue_bulk(jobs.iter().map(BulkJob::kind)).await
    }

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
    ///
    /// # Cancel safety
    /// A dropped call may have stored the job.
    pub async fn enqueue<J: MpanelJob>(&self, job: &J) -> Result<Enqueued, EnqueueError> {
        let unique = Uuid::new_v4().simple().to_string();
        let id = format!("{}-{}-{}-{}", J::NAME, job.subject(), self.rules.clock.now().0, &unique[..8]);
        self.enqueue_as(job, &id).await
    }

    /// The same under an id of your own: a second call with it stores nothing.
    ///
    /// # Errors
    /// [`EnqueueError`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped call may have stored the job.
    pub async fn enqueue_as<J: MpanelJob>(&self, job: &J, id: &str) -> Result<Enqueued, EnqueueError> {
        self.enqueue_kind_with(job, EnqueueOptions::new().job_id(id)).await
    }

    fn handle<K: JobKind>(&self) -> Result<QueueProducer, EnqueueError> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = handles.get(K::QUEUE) {
            return Ok(handle.clone());
        }
        let handle = self.queue(K::QUEUE)?;
        handles.insert(K::QUEUE, handle.clone());
        Ok(handle)
    }
}
