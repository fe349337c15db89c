//! Looking at a queue and managing it: counts, job detail, pause, retry, remove.
//!
//! Read-only calls never change a key. What moves jobs goes through the scripts.

use mpanel_connect::{ConnectError, Redis};
use mpanel_protocol::{
    calls::{
        flow,
        manage::{self, FinalState, Removal, Reprocess},
        sweep::{self, Cleanable, Obliterated},
    },
    ids::{JobId, Prefix, QueueName},
    job::FetchedJob,
    keys::QueueKeys,
    outcome::JobOpError,
    peer::Peer,
    script::ScriptError,
    state::JobState,
    time::{TimestampMs, millis},
};
use redis::RedisError;
use serde::Serialize;

/// What BullMQ writes into the limiter to close it: 2^53 - 1.
const RATE_LIMIT_FULL: i64 = 9_007_199_254_740_991;

/// Why an admin call failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A plain command failed.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    /// A script failed.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The operation on a job was refused.
    #[error(transparent)]
    Job(#[from] JobOpError),
}

/// How many jobs are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// In line.
    pub waiting: u64,
    /// In line while paused.
    pub paused: u64,
    /// In line by priority.
    pub prioritized: u64,
    /// Waiting for a time.
    pub delayed: u64,
    /// Being worked on.
    pub active: u64,
    /// Parents waiting for children.
    pub waiting_children: u64,
    /// Completed and kept.
    pub completed: u64,
    /// Failed and kept.
    pub failed: u64,
}

/// A handle to look at and manage one queue.
#[derive(Debug, Clone)]
pub struct QueueAdmin {
    redis: Redis,
    keys: QueueKeys,
    peer: Peer,
}

impl QueueAdmin {
    /// A handle on `queue` under `prefix`.
    #[must_use]
    pub fn new(redis: Redis, prefix: &Prefix, queue: &QueueName, peer: Peer) -> Self {
        Self { redis, keys: QueueKeys::new(prefix, queue), peer }
    }

    /// How many jobs are in each state.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn counts(&self) -> Result<Counts, AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        let k = &self.keys;
        let (waiting, paused, active, prioritized, delayed, waiting_children, completed, failed, markers): (
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            u64,
            Vec<String>,
        ) = redis::pipe()
            .llen(k.wait())
            .llen(k.paused())
            .llen(k.active())
            .zcard(k.prioritized())
            .zcard(k.delayed())
            .zcard(k.waiting_children())
            .zcard(k.completed())
            .zcard(k.failed())
            .lrange(k.wait(), -1, -1)
            .query_async(&mut shared.conn)
            .await?;
        // BullMQ 3 and 4 kept a marker in the list; it is no job.
        let marker = u64::from(markers.first().is_some_and(|id| id.starts_with("0:")));
        Ok(Counts {
            waiting: waiting.saturating_sub(marker),
            paused,
            prioritized,
            delayed,
            active,
            waiting_children,
            completed,
            failed,
        })
    }

    /// Where a job is.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn state(&self, id: &JobId) -> Result<Option<JobState>, AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(manage::job_state(&mut shared.conn, &self.keys, id).await?)
    }

    /// A job as stored; `None` when its hash is missing.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn job(&self, id: &JobId) -> Result<Option<JobDetail>, AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        let fields: Vec<(String, String)> =
            redis::cmd("HGETALL").arg(self.keys.job(id)).query_async(&mut shared.conn).await?;
        Ok((!fields.is_empty()).then(|| JobDetail::from_fields(id.clone(), fields)))
    }

    /// Whether the queue is paused.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn is_paused(&self) -> Result<bool, AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(redis::cmd("HEXISTS").arg(self.keys.meta()).arg("paused").query_async(&mut shared.conn).await?)
    }

    /// Stops every worker from taking jobs of the queue.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn pause(&self) -> Result<(), AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(manage::pause_queue(&mut shared.conn, &self.keys, self.peer).await?)
    }

    /// Lets workers take jobs of the queue again.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn resume(&self) -> Result<(), AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(manage::resume_queue(&mut shared.conn, &self.keys, self.peer).await?)
    }

    /// Lets no worker start a job for `pause` (only queues with a limit heed it).
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn rate_limit(&self, pause: std::time::Duration) -> Result<(), AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        redis::cmd("SET")
            .arg(self.keys.limiter())
            .arg(RATE_LIMIT_FULL)
            .arg("PX")
            .arg(millis(pause))
            .query_async::<()>(&mut shared.conn)
            .await?;
        Ok(())
    }

    /// Ends a rate limit that is in force; says whether there was one.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn end_rate_limit(&self) -> Result<bool, AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(redis::cmd("DEL").arg(self.keys.limiter()).query_async(&mut shared.conn).await?)
    }

    /// At most so many active jobs over all workers.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn set_global_concurrency(&self, most: u32) -> Result<(), AdminError> {
        self.set_meta(&[("concurrency", i64::from(most))]).await
    }

    /// At most so many starts in `window` over all workers.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn set_global_rate_limit(
        &self,
        most: u32,
        window: std::time::Duration,
    ) -> Result<(), AdminError> {
        self.set_meta(&[("max", i64::from(most)), ("duration", millis(window))]).await
    }

    async fn set_meta(&self, fields: &[(&str, i64)]) -> Result<(), AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        redis::cmd("HSET").arg(self.keys.meta()).arg(fields).query_async::<()>(&mut shared.conn).await?;
        Ok(())
    }

    /// Runs a finished job again.
    ///
    /// # Errors
    /// [`AdminError`]; [`AdminError::Job`] when it is not in that state.
    pub async fn retry(&self, id: &JobId, from: FinalState, how: Reprocess) -> Result<(), AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(manage::reprocess_job(&mut shared.conn, &self.keys, self.peer, id, from, how).await?)
    }

    /// Takes a job away unless a worker holds it, with everything below it in a
    /// flow unless a worker holds one of those.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn remove(&self, id: &JobId, now: TimestampMs) -> Result<Removal, AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(manage::remove_job(&mut shared.conn, &self.keys, self.peer, now, id, true).await?)
    }

    /// Takes a job away unless a worker holds it; its children stay.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn remove_alone(&self, id: &JobId, now: TimestampMs) -> Result<Removal, AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(manage::remove_job(&mut shared.conn, &self.keys, self.peer, now, id, false).await?)
    }

    /// Lets a parent no longer wait for the job; `false` when it did not.
    ///
    /// # Errors
    /// [`AdminError`]; [`AdminError::Job`] when job or parent is missing.
    pub async fn forget_parent(&self, id: &JobId) -> Result<bool, AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(flow::forget_parent(&mut shared.conn, &self.keys, self.peer, id).await?)
    }

    /// Takes away everything in line, with `delayed` also what waits for a time.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn drain(&self, delayed: bool, now: TimestampMs) -> Result<(), AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(sweep::drain_queue(&mut shared.conn, &self.keys, self.peer, now, delayed).await?)
    }

    /// Takes away jobs of one state that are at least `grace` old, at most `limit`
    /// (0: all); gives back their ids.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn clean(
        &self,
        state: Cleanable,
        grace: std::time::Duration,
        limit: u32,
        now: TimestampMs,
    ) -> Result<Vec<JobId>, AdminError> {
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        let newest = TimestampMs(now.0.saturating_sub(millis(grace)));
        Ok(sweep::clean_jobs(&mut shared.conn, &self.keys, self.peer, now, state, newest, limit).await?)
    }

    /// Pauses the queue and deletes it, with `force` also when jobs are active;
    /// what waits for children stays.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn obliterate(&self, force: bool, now: TimestampMs) -> Result<Obliterated, AdminError> {
        self.pause().await?;
        let mut shared = self.redis.shared_for(self.keys.meta()).await?;
        Ok(sweep::obliterate_queue(&mut shared.conn, &self.keys, self.peer, now, force).await?)
    }
}

/// A job as stored, with the parts that a fetch does not read.
#[derive(Debug, Clone, PartialEq)]
pub struct JobDetail {
    /// What a fetch reads.
    pub job: FetchedJob,
    /// JSON text of the result.
    pub return_value: Option<String>,
    /// Why it failed.
    pub failed_reason: Option<String>,
    /// JSON text of the progress.
    pub progress: Option<String>,
    /// When the last attempt began, epoch ms.
    pub processed_on_ms: Option<i64>,
    /// When it finished, epoch ms.
    pub finished_on_ms: Option<i64>,
    /// The name of the worker that took it last.
    pub processed_by: Option<String>,
}

impl JobDetail {
    fn from_fields(id: JobId, fields: Vec<(String, String)>) -> Self {
        let mut map: std::collections::HashMap<String, String> = fields.into_iter().collect();
        let mut text = |name: &str| map.remove(name);
        let number = |text: Option<String>| text.and_then(|t| t.parse::<i64>().ok());
        let count = |text: Option<String>| {
            text.and_then(|t| t.parse::<i64>().ok()).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
        };
        let old_attempts = text("attemptsMade");
        let old_stalls = text("stalledCounter");
        Self {
            return_value: text("returnvalue"),
            failed_reason: text("failedReason"),
            progress: text("progress"),
            processed_on_ms: number(text("processedOn")),
            finished_on_ms: number(text("finishedOn")),
            processed_by: text("pb"),
            job: FetchedJob {
                id,
                name: text("name").unwrap_or_default(),
                data: text("data").unwrap_or_else(|| "{}".to_owned()),
                opts: text("opts").unwrap_or_else(|| "{}".to_owned()),
                timestamp_ms: number(text("timestamp")).unwrap_or(0),
                attempts_made: count(text("atm").or(old_attempts)),
                attempts_started: count(text("ats")),
                stalls: count(text("stc").or(old_stalls)),
                priority: count(text("priority")),
                parent_key: text("parentKey"),
                scheduler: text("rjk"),
                dedup_id: text("deid"),
                deferred_failure: text("defa"),
                stacktrace: text("stacktrace"),
            },
        }
    }
}
