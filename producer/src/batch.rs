//! Group commit for one queue: while one call is under way, the jobs that arrive
//! gather, and the next call takes them all. An idle queue adds no wait.
//!
//! Callers who ask for replicas have a batcher and a connection of their own:
//! WAIT blocks the connection it is sent over, and nobody else shall wait.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use mpanel_connect::{Conn, Redis, Shared, is_broken};
use mpanel_protocol::{
    calls::add::{Added, JOBS_PER_CALL, NewJob, add_jobs, fit_in_call},
    keys::QueueKeys,
    peer::Peer,
    script::ScriptError,
    time::TimestampMs,
};
use redis::RedisError;
use tokio::sync::{mpsc, oneshot};

use crate::{
    durability::{Durability, Replication},
    error::EnqueueError,
    producer::{Producer, permitted},
    rules::Rules,
};

/// How many script calls travel together: 5,000 jobs in one round trip.
const CHUNKS_IN_FLIGHT: usize = 25;

/// How long any reply may take, beyond what was asked for with WAIT.
pub(crate) const RESPONSE: Duration = Duration::from_secs(10);

/// What `meta.version` says of a queue that we touched first.
pub(crate) const META_VERSION: &str = concat!("mpanel-fleet:", env!("CARGO_PKG_VERSION"));

/// What became of each job of one caller, and of their replication.
pub(crate) type Reply = (Vec<Result<Added, EnqueueError>>, Option<Replication>);

/// Jobs of one caller, and where their results go.
pub(crate) struct Pending {
    pub(crate) jobs: Vec<NewJob>,
    pub(crate) reply: oneshot::Sender<Result<Reply, EnqueueError>>,
}

/// What all callers of one batcher ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Lane {
    pub(crate) durability: Durability,
    pub(crate) max_waiting: Option<u64>,
}

/// What the server has from us already.
#[derive(Debug, Default)]
struct Known {
    /// The queue's `meta`.
    introduced: bool,
    /// The script's text.
    script: bool,
}

/// The connection that a batch travels over.
#[derive(Clone)]
struct Link {
    conn: Conn,
    /// Absent for a connection of one's own.
    shared: Option<Shared>,
}

/// The one who talks to Redis for the callers of a lane of a queue.
pub(crate) struct Batcher {
    pub(crate) redis: Redis,
    pub(crate) keys: QueueKeys,
    pub(crate) peer: Peer,
    pub(crate) rules: Rules,
    pub(crate) lane: Lane,
    pub(crate) permitted: Arc<Mutex<HashSet<String>>>,
    known: Known,
    own: Option<Conn>,
}

impl Batcher {
    pub(crate) fn new(redis: Redis, keys: QueueKeys, producer: &Producer, lane: Lane) -> Self {
        let Producer { peer, rules, permitted, .. } = producer;
        let (peer, rules, permitted) = (*peer, rules.clone(), permitted.clone());
        Self { redis, keys, peer, rules, lane, permitted, known: Known::default(), own: None }
    }

    /// Serves callers until the last handle is gone.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Pending>) {
        while let Some(first) = inbox.recv().await {
            let mut callers = vec![first];
            let mut jobs = callers[0].jobs.len();
            while jobs < JOBS_PER_CALL
                && let Ok(next) = inbox.try_recv()
            {
                jobs += next.jobs.len();
                callers.push(next);
            }
            self.serve(callers).await;
        }
    }

    /// One round trip for all callers; several script calls when they have many jobs.
    async fn serve(&mut self, callers: Vec<Pending>) {
        let mut replies = Vec::with_capacity(callers.len());
        let mut jobs = Vec::new();
        for caller in callers {
            replies.push((caller.jobs.len(), caller.reply));
            jobs.extend(caller.jobs);
        }
        let (results, replication) = match self.store(&jobs).await {
            Ok(stored) => stored,
            Err(error) => {
                for (_, reply) in replies {
                    let _ = reply.send(Err(error.clone()));
                }
                return;
            }
        };
        let mut results = results.into_iter();
        for (count, reply) in replies {
            let own = results.by_ref().take(count).collect();
            // The caller may have gone; its jobs are stored all the same.
            let _ = reply.send(Ok((own, replication.clone())));
        }
    }

    /// A result for each job, in order; an error when none was tried.
    pub(crate) async fn store(&mut self, jobs: &[NewJob]) -> Result<Reply, EnqueueError> {
        let link = self.link().await?;
        if !self.known.introduced {
            if let Err(error) = self.introduce(&link).await {
                if let Some(source) = error.redis() {
                    self.report(&link, source).await;
                }
                return Err(EnqueueError::before_sending(&error));
            }
            self.known.introduced = true;
        }
        let now = self.rules.clock.now();
        let mut chunks = Vec::new();
        let mut uncut = jobs;
        while !uncut.is_empty() {
            let (chunk, later) = uncut.split_at(fit_in_call(uncut.iter()));
            chunks.push(chunk);
            uncut = later;
        }
        let mut results = Vec::with_capacity(jobs.len());
        let mut rest = &chunks[..];
        while !rest.is_empty() {
            // The first call of all goes alone: it brings the script to the server,
            // and later ones rely on its being there to stay in order.
            let window = if self.known.script { rest.len().min(CHUNKS_IN_FLIGHT) } else { 1 };
            let (send, later) = rest.split_at(window);
            for (chunk, outcome) in send.iter().zip(self.send(&link, now, send).await) {
                match outcome {
                    Ok(added) => {
                        self.known.script = true;
                        results.extend(added.into_iter().map(Ok));
                    }
                    Err(error) => {
                        if let Some(source) = error.redis() {
                            self.report(&link, source).await;
                        }
                        results.extend(vec![Err(EnqueueError::from_script(&error)); chunk.len()]);
                    }
                }
            }
            rest = later;
        }
        let replication = match self.lane.durability {
            Durability::Replicated { replicas, within } if results.iter().any(Result::is_ok) => {
                let replication = Replication::wait(&mut link.conn.clone(), replicas, within).await;
                if replication.trouble.is_some() {
                    self.own = None;
                }
                Some(replication)
            }
            _ => None,
        };
        Ok((results, replication))
    }

    /// Asks for our permissions, and leaves in `meta` what BullMQ's Queue leaves.
    async fn introduce(&self, link: &Link) -> Result<(), ScriptError> {
        let mut conn = link.conn.clone();
        permitted(&self.permitted, &mut conn, &self.keys).await?;
        if self.rules.skip_meta {
            return Ok(());
        }
        introduce(&self.keys, &mut conn).await.map_err(|source| ScriptError::Redis { script: "meta", source })
    }

    async fn send(
        &self,
        link: &Link,
        now: TimestampMs,
        chunks: &[&[NewJob]],
    ) -> Vec<Result<Vec<Added>, ScriptError>> {
        let calls = chunks.iter().map(|chunk| {
            let mut conn = link.conn.clone();
            async move { add_jobs(&mut conn, &self.keys, self.peer, now, chunk, self.lane.max_waiting).await }
        });
        join_all(calls).await
    }

    async fn link(&mut self) -> Result<Link, EnqueueError> {
        let Durability::Replicated { within, .. } = self.lane.durability else {
            let shared = self.redis.shared_for(self.keys.meta()).await?;
            return Ok(Link { conn: shared.conn.clone(), shared: Some(shared) });
        };
        let conn = match self.own.take() {
            Some(conn) => conn,
            None => self.redis.dedicated(self.keys.meta(), None, within.saturating_add(RESPONSE)).await?,
        };
        self.own = Some(conn.clone());
        Ok(Link { conn, shared: None })
    }

    async fn report(&mut self, link: &Link, error: &RedisError) {
        match &link.shared {
            Some(shared) => self.redis.report(shared, error).await,
            None if is_broken(error) => self.own = None,
            None => {}
        }
    }
}

/// Leaves what BullMQ's Queue leaves in `meta`, without taking anything over.
async fn introduce(keys: &QueueKeys, conn: &mut Conn) -> redis::RedisResult<()> {
    redis::pipe()
        .hset_nx(keys.meta(), "opts.maxLenEvents", 10_000)
        .ignore()
        .hset_nx(keys.meta(), "version", META_VERSION)
        .ignore()
        .query_async(conn)
        .await
}
