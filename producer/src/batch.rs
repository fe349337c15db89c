//! Group commit for one queue: while one call is under way, the jobs that arrive
//! gather, and the next call takes them all. An idle queue adds no wait.

use std::sync::Arc;

use futures_util::future::join_all;
use mpanel_connect::Redis;
use mpanel_protocol::{
    calls::add::{Added, JOBS_PER_CALL, NewJob, add_jobs},
    keys::QueueKeys,
    peer::Peer,
    script::ScriptError,
    time::Clock,
};
use tokio::sync::{mpsc, oneshot};

use crate::error::EnqueueError;

/// How many script calls travel together: 5,000 jobs in one round trip.
const CHUNKS_IN_FLIGHT: usize = 25;

/// What `meta.version` says of a queue that we touched first.
pub(crate) const META_VERSION: &str = concat!("mpanel-fleet:", env!("CARGO_PKG_VERSION"));

/// Jobs of one caller, and where their results go.
pub(crate) struct Pending {
    pub(crate) jobs: Vec<NewJob>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Added>, EnqueueError>>,
}

/// What the server has from us already.
#[derive(Debug, Default)]
struct Known {
    /// The queue's `meta`.
    introduced: bool,
    /// The script's text.
    script: bool,
}

/// The one who talks to Redis for a queue.
pub(crate) struct Batcher {
    pub(crate) redis: Redis,
    pub(crate) keys: QueueKeys,
    pub(crate) peer: Peer,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Batcher {
    /// Serves callers until the last handle is gone.
    pub(crate) async fn run(self, mut inbox: mpsc::Receiver<Pending>) {
        let mut known = Known::default();
        while let Some(first) = inbox.recv().await {
            let mut callers = vec![first];
            let mut jobs = callers[0].jobs.len();
            while jobs < JOBS_PER_CALL
                && let Ok(next) = inbox.try_recv()
            {
                jobs += next.jobs.len();
                callers.push(next);
            }
            self.serve(callers, &mut known).await;
        }
    }

    /// One round trip for all callers; several script calls when they have many jobs.
    async fn serve(&self, callers: Vec<Pending>, known: &mut Known) {
        let mut replies = Vec::with_capacity(callers.len());
        let mut jobs = Vec::new();
        for caller in callers {
            replies.push((caller.jobs.len(), caller.reply));
            jobs.extend(caller.jobs);
        }
        if jobs.is_empty() {
            let outcome = match self.redis.shared_for(self.keys.meta()).await {
                Ok(mut shared) => {
                    self.introduce(&mut shared.conn).await.map_err(|e| EnqueueError::Refused(e.to_string()))
                }
                Err(error) => Err(error.into()),
            };
            known.introduced |= outcome.is_ok();
            for (_, reply) in replies {
                let _ = reply.send(outcome.clone().map(|()| Vec::new()));
            }
            return;
        }
        let mut results = self.store(&jobs, known).await.into_iter();
        for (count, reply) in replies {
            let own: Result<Vec<Added>, EnqueueError> = results.by_ref().take(count).collect();
            // The caller may have gone; its jobs are stored all the same.
            let _ = reply.send(own);
        }
    }

    /// A result for each job, in order.
    async fn store(&self, jobs: &[NewJob], known: &mut Known) -> Vec<Result<Added, EnqueueError>> {
        let mut shared = match self.redis.shared_for(self.keys.meta()).await {
            Ok(shared) => shared,
            Err(error) => return vec![Err(error.into()); jobs.len()],
        };
        if !known.introduced {
            if let Err(error) = self.introduce(&mut shared.conn).await {
                self.redis.report(&shared, &error).await;
                return vec![Err(EnqueueError::Refused(error.to_string())); jobs.len()];
            }
            known.introduced = true;
        }
        let now = self.clock.now();
        let chunks: Vec<&[NewJob]> = jobs.chunks(JOBS_PER_CALL).collect();
        let mut results = Vec::with_capacity(jobs.len());
        let mut rest = &chunks[..];
        while !rest.is_empty() {
            // The first call of all goes alone: it brings the script to the server,
            // and later ones rely on its being there to stay in order.
            let window = if known.script { rest.len().min(CHUNKS_IN_FLIGHT) } else { 1 };
            let (send, later) = rest.split_at(window);
            let calls = send.iter().map(|chunk| {
                let mut conn = shared.conn.clone();
                async move { add_jobs(&mut conn, &self.keys, self.peer, now, chunk).await }
            });
            for (chunk, outcome) in send.iter().zip(join_all(calls).await) {
                match outcome {
                    Ok(added) => {
                        known.script = true;
                        results.extend(added.into_iter().map(Ok));
                    }
                    Err(error) => {
                        if let ScriptError::Redis { source, .. } = &error {
                            self.redis.report(&shared, source).await;
                        }
                        results.extend(vec![Err(EnqueueError::from_script(&error)); chunk.len()]);
                    }
                }
            }
            rest = later;
        }
        results
    }

    /// Leaves what BullMQ's Queue leaves in `meta`, without taking anything over.
    async fn introduce(&self, conn: &mut redis::aio::MultiplexedConnection) -> redis::RedisResult<()> {
        redis::pipe()
            .hset_nx(self.keys.meta(), "opts.maxLenEvents", 10_000)
            .ignore()
            .hset_nx(self.keys.meta(), "version", META_VERSION)
            .ignore()
            .query_async(conn)
            .await
    }
}
