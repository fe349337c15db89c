//! The queue's own settings: pause, global concurrency and rate, what `meta` holds.

use std::{collections::BTreeMap, time::Duration};

use mpanel_protocol::{calls::manage, time::millis};

use super::{AdminError, QueueAdmin, job::lossy, script};

/// What BullMQ writes into the limiter to close it: 2^53 - 1.
const RATE_LIMIT_FULL: i64 = 9_007_199_254_740_991;

/// At most so many starts in a window, over all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalRateLimit {
    /// Starts.
    pub max: u32,
    /// The window.
    pub window: Duration,
}

/// The queue's settings as `meta` holds them. A value that is no number is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueueMeta {
    /// The library whose handle was opened last (or first, when ours), and its version.
    pub version: Option<String>,
    /// Whether it is paused.
    pub paused: bool,
    /// Most active jobs over all workers.
    pub concurrency: Option<u32>,
    /// Most starts in [`QueueMeta::window`] over all workers.
    pub max: Option<u32>,
    /// The window of `max`.
    pub window: Option<Duration>,
    /// How many events the stream keeps, about.
    pub max_events: Option<u64>,
    /// All other fields.
    pub other: BTreeMap<String, String>,
}

impl QueueAdmin {
    /// Whether the queue is paused.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn is_paused(&self) -> Result<bool, AdminError> {
        self.ask(redis::cmd("HEXISTS").arg(self.keys.meta()).arg("paused")).await
    }

    /// Stops every worker from taking jobs of the queue.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn pause(&self) -> Result<(), AdminError> {
        script!(self, |conn| manage::pause_queue(conn, &self.keys, self.peer))
    }

    /// Lets workers take jobs of the queue again.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn resume(&self) -> Result<(), AdminError> {
        script!(self, |conn| manage::resume_queue(conn, &self.keys, self.peer))
    }

    /// The queue's settings.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn meta(&self) -> Result<QueueMeta, AdminError> {
        let fields: Vec<(Vec<u8>, Vec<u8>)> =
            match self.ask(redis::cmd("HGETALL").arg(self.keys.meta())).await {
                Ok(fields) => fields,
                Err(error) => return Err(self.explained(error).await),
            };
        let mut fields = lossy(fields);
        let mut number = |name: &str| fields.remove(name).and_then(|text| text.trim().parse::<u64>().ok());
        let (concurrency, max, window) = (number("concurrency"), number("max"), number("duration"));
        let max_events = number("opts.maxLenEvents");
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(QueueMeta {
            version: fields.remove("version"),
            paused: fields.remove("paused").is_some(),
            concurrency: concurrency.map(small),
            max: max.map(small),
            window: window.map(Duration::from_millis),
            max_events,
            other: fields,
        })
    }

    /// Most active jobs over all workers; none when there is no limit.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn global_concurrency(&self) -> Result<Option<u32>, AdminError> {
        Ok(self.meta().await?.concurrency)
    }

    /// At most so many active jobs over all workers.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn set_global_concurrency(&self, most: u32) -> Result<(), AdminError> {
        self.set_meta(&[("concurrency", i64::from(most))]).await
    }

    /// Lifts the limit of active jobs; says whether there was one.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn remove_global_concurrency(&self) -> Result<bool, AdminError> {
        self.ask(redis::cmd("HDEL").arg(self.keys.meta()).arg("concurrency")).await
    }

    /// Whether as many jobs are active as may be.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn is_maxed(&self) -> Result<bool, AdminError> {
        let mut pipe = redis::pipe();
        pipe.atomic().hget(self.keys.meta(), "concurrency").llen(self.keys.active());
        let (most, active): (Option<String>, u64) = self.ask_all(&pipe).await?;
        Ok(most.and_then(|m| m.trim().parse::<u64>().ok()).is_some_and(|most| active >= most))
    }

    /// The limit of starts over all workers.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn global_rate_limit(&self) -> Result<Option<GlobalRateLimit>, AdminError> {
        let meta = self.meta().await?;
        Ok(meta.max.zip(meta.window).map(|(max, window)| GlobalRateLimit { max, window }))
    }

    /// At most so many starts in `window` over all workers.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn set_global_rate_limit(&self, most: u32, window: Duration) -> Result<(), AdminError> {
        self.set_meta(&[("max", i64::from(most)), ("duration", millis(window))]).await
    }

    /// Lifts the limit of starts; says whether there was one.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn remove_global_rate_limit(&self) -> Result<bool, AdminError> {
        let gone: u32 = self.ask(redis::cmd("HDEL").arg(self.keys.meta()).arg("max").arg("duration")).await?;
        Ok(gone > 0)
    }

    /// Lets no worker start a job for `pause` (only queues with a limit heed it).
    /// A pause of nothing ends one that is in force.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn rate_limit(&self, pause: Duration) -> Result<(), AdminError> {
        let ms = millis(pause);
        if ms == 0 {
            return self.end_rate_limit().await.map(drop);
        }
        self.ask(redis::cmd("SET").arg(self.keys.limiter()).arg(RATE_LIMIT_FULL).arg("PX").arg(ms)).await
    }

    /// For how long no worker may start a job yet. `max` is the limit of the
    /// workers meant; without it the queue's own counts, and where that is absent
    /// too, any window that is open.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn rate_limited_for(&self, max: Option<u32>) -> Result<Option<Duration>, AdminError> {
        let mut pipe = redis::pipe();
        pipe.atomic().get(self.keys.limiter()).pttl(self.keys.limiter()).hget(self.keys.meta(), "max");
        let (started, ttl, own): (Option<String>, i64, Option<String>) = self.ask_all(&pipe).await?;
        let number = |text: Option<String>| text.and_then(|t| t.trim().parse::<f64>().ok());
        let max = max.filter(|max| *max > 0).map(f64::from).or_else(|| number(own));
        let full = max.is_none_or(|max| number(started).unwrap_or(0.0) >= max);
        Ok(u64::try_from(ttl).ok().filter(|ttl| full && *ttl > 0).map(Duration::from_millis))
    }

    /// Ends a rate limit that is in force; says whether there was one.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn end_rate_limit(&self) -> Result<bool, AdminError> {
        self.ask(redis::cmd("DEL").arg(self.keys.limiter())).await
    }

    async fn set_meta(&self, fields: &[(&str, i64)]) -> Result<(), AdminError> {
        self.ask(redis::cmd("HSET").arg(self.keys.meta()).arg(fields)).await
    }
}
