//! What a producer knows of the number of partitions, and for how long it may
//! believe it.
//!
//! The rule that makes shrinking safe: a job is acknowledged only when the layout
//! that chose its partition was read less than [`TRUST`] before, or else when another
//! look shows, or makes sure, that the partition is served. Whoever retires a
//! partition waits for longer than that (`admin::Partitions::retire` in the engine).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mpanel_connect::Redis;
use mpanel_protocol::{
    calls::partition::{keep_served, read_layout},
    partition::{Layout, PartitionedName},
};

use crate::{
    error::EnqueueError,
    producer::{Backend, Producer},
};

/// How old a layout may become before another look, made on the side.
const REFRESH: Duration = Duration::from_secs(5);
/// How old a layout may be that a job is acknowledged by.
const TRUST: Duration = Duration::from_secs(30);

/// A layout, and when it was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) layout: Layout,
    at: Instant,
}

/// The layout as it was seen last.
#[derive(Debug)]
pub(crate) struct LayoutCache {
    name: PartitionedName,
    /// Absent for a producer that stores nothing.
    redis: Option<Redis>,
    seen: Mutex<Seen>,
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl LayoutCache {
    pub(crate) async fn open(producer: &Producer, name: &PartitionedName) -> Result<Self, EnqueueError> {
        let redis = match &producer.backend {
            Backend::Redis(redis) => Some(redis.clone()),
            Backend::Recorder(_) => None,
        };
        let seen = match &redis {
            Some(redis) => read(redis, name).await?,
            None => Seen { layout: Layout::of(1), at: Instant::now() },
        };
        Ok(Self { name: name.clone(), redis, seen: Mutex::new(seen), reading: Arc::default() })
    }

    fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A layout that may be believed. Nobody waits for Redis, unless it has not been
    /// heard of for [`TRUST`].
    pub(crate) async fn get(self: &Arc<Self>) -> Result<Seen, EnqueueError> {
        let seen = self.seen();
        let Some(redis) = &self.redis else { return Ok(seen) };
        let age = seen.at.elapsed();
        if age < REFRESH {
            return Ok(seen);
        }
        if age < TRUST {
            if let Ok(reading) = self.reading.clone().try_lock_owned() {
                let cache = self.clone();
                tokio::spawn(async move {
                    // What went wrong is told when it has lasted too long to go on.
                    if let Some(redis) = &cache.redis
                        && let Ok(seen) = read(redis, &cache.name).await
                    {
                        cache.keep(seen);
                    }
                    drop(reading);
                });
            }
            return Ok(seen);
        }
        let _reading = self.reading.lock().await;
        let seen = self.seen();
        if seen.at.elapsed() < REFRESH {
            return Ok(seen);
        }
        let seen = read(redis, &self.name).await?;
        self.keep(seen);
        Ok(seen)
    }

    fn keep(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Makes sure that a partition is served that was chosen by `seen`, and which has
    /// jobs of ours now.
    pub(crate) async fn settle(&self, seen: &Seen, index: u32) -> Result<(), EnqueueError> {
        let Some(redis) = self.redis.as_ref().filter(|_| seen.at.elapsed() >= TRUST) else { return Ok(()) };
        let unsure = |why: String| {
            let queue = self.name.partition(index);
            EnqueueError::Unknown(format!(
                "the job was stored in {queue}, but the call took so long that the partition may be served no more, \
                 and that cannot be looked at: {why}"
            ))
        };
        let now = read(redis, &self.name).await.map_err(|e| unsure(e.to_string()))?;
        if index >= now.layout.served() {
            let shared = redis.shared_for(&self.name.layout_key()).await;
            let mut shared = shared.map_err(|e| unsure(e.to_string()))?;
            if let Err(error) = keep_served(&mut shared.conn, &self.name, index + 1).await {
                redis.report(&shared, &error).await;
                return Err(unsure(error.to_string()));
            }
        }
        self.keep(now);
        Ok(())
    }
}

async fn read(redis: &Redis, name: &PartitionedName) -> Result<Seen, EnqueueError> {
    let at = Instant::now();
    let mut shared = redis.shared_for(&name.layout_key()).await?;
    match read_layout(&mut shared.conn, name).await {
        Ok(Some(layout)) => Ok(Seen { layout, at }),
        Ok(None) => Err(EnqueueError::NotPartitioned { queue: name.queue().to_string() }),
        Err(error) => {
            redis.report(&shared, &error).await;
            let denied = error.code() == Some("NOPERM");
            let why = format!("the layout of `{}`: {error}", name.queue());
            Err(if denied { EnqueueError::Forbidden(why) } else { EnqueueError::Refused(why) })
        }
    }
}

#[cfg(test)]
mod tests {
    use mpanel_protocol::{calls::partition::open_partitions, ids::QueueName, time::TimestampMs};
    use mpanel_testkit::RedisServer;

    use super::*;

    /// A cache that has seen five partitions; meanwhile three of them were retired.
    async fn behind(server: &RedisServer) -> (Redis, Arc<LayoutCache>) {
        let redis = Redis::open(&server.url()).unwrap();
        let producer = Producer::builder(redis.clone()).connect().await.unwrap();
        let queue = QueueName::new("mail").unwrap();
        let name = PartitionedName::new(&producer.rules.prefix, &queue).unwrap();
        let mut shared = redis.shared().await.unwrap();
        open_partitions(&mut shared.conn, &name, 5, TimestampMs(1)).await.unwrap();
        let cache = Arc::new(LayoutCache::open(&producer, &name).await.unwrap());
        let retire =
            redis::cmd("ZADD").arg(name.layout_key()).arg(2).arg("open").arg(2).arg("served").to_owned();
        retire.query_async::<()>(&mut shared.conn).await.unwrap();
        (redis, cache)
    }

    async fn served(redis: &Redis, cache: &LayoutCache) -> u32 {
        read(redis, &cache.name).await.unwrap().layout.served()
    }

    #[tokio::test]
    async fn a_job_that_took_too_long_is_acknowledged_in_a_partition_that_is_served() {
        let server = RedisServer::start().await.unwrap();
        let (redis, cache) = behind(&server).await;
        let young = cache.get().await.unwrap();
        assert_eq!(young.layout.open(), 5, "a young layout is believed");
        cache.settle(&young, 4).await.unwrap();
        assert_eq!(served(&redis, &cache).await, 2, "who retires has waited for longer than it is believed");

        let old = Seen { at: young.at.checked_sub(TRUST).unwrap(), ..young };
        cache.settle(&old, 1).await.unwrap();
        assert_eq!(served(&redis, &cache).await, 2);
        cache.settle(&old, 3).await.unwrap();
        assert_eq!(served(&redis, &cache).await, 4, "workers come back for the job");
        server.kill9();
        let error = cache.settle(&old, 3).await.unwrap_err();
        assert!(matches!(error, EnqueueError::Unknown(_)), "the job is stored: {error}");
    }

    #[tokio::test]
    async fn a_layout_is_looked_at_anew_before_it_is_too_old() {
        let server = RedisServer::start().await.unwrap();
        let (_redis, cache) = behind(&server).await;
        let aged = |by: Duration| {
            let seen = cache.seen();
            cache.keep(Seen { layout: Layout::of(5), at: seen.at.checked_sub(by).unwrap() });
        };
        aged(TRUST);
        assert_eq!(cache.get().await.unwrap().layout.open(), 2, "too old: nobody goes by it");
        aged(REFRESH);
        assert_eq!(cache.get().await.unwrap().layout.open(), 5, "looked at on the side");
        while cache.get().await.unwrap().layout.open() != 2 {
            tokio::task::yield_now().await;
        }
        server.kill9();
        aged(REFRESH);
        assert_eq!(cache.get().await.unwrap().layout.open(), 5, "the server is away for a moment");
        aged(TRUST);
        let error = cache.get().await.unwrap_err();
        assert!(error.is_not_stored() && error.is_retryable(), "{error}");
    }
}
