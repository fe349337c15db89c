//! `enqueue`: one call a job with a window of calls in flight, or bulks.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures_util::future::try_join_all;
use mpanel_producer::{Backoff, BulkJob, EnqueueOptions, KeepJobs, Producer, QueueProducer};

use super::{Cli, Enqueue, Mode};
use crate::{
    BoxError,
    contract::{Answer, JOB_NAME, Payload, Window},
};

pub(super) async fn enqueue(cli: &Cli, what: &Enqueue) -> Result<Answer, BoxError> {
    let queue = Producer::connect(&cli.redis_url).await?.queue(&cli.queue)?;
    queue.introduce().await?;
    let window = Window::open()?;
    match what.mode {
        Mode::Single => single(&queue, what).await?,
        Mode::Bulk => bulk(&queue, what).await?,
    }
    Ok(window.close(what.n)?)
}

fn options(what: &Enqueue) -> EnqueueOptions {
    let mut options = EnqueueOptions::new();
    if let Some(keep) = what.keep {
        options = options.remove_on_complete(KeepJobs::Count(keep));
    }
    if let Some(attempts) = what.attempts {
        options = options.attempts(attempts);
    }
    if let Some(ms) = what.backoff.filter(|ms| *ms > 0) {
        options = options.backoff(Backoff::fixed(ms));
    }
    options
}

/// As many callers as the window is wide, each waiting for its own job.
async fn single(queue: &QueueProducer, what: &Enqueue) -> Result<(), BoxError> {
    let (next, n) = (Arc::new(AtomicU64::new(0)), what.n);
    let callers = (0..what.window.max(1)).map(|_| {
        let (queue, next, options) = (queue.clone(), next.clone(), options(what));
        tokio::spawn(async move {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return Ok::<_, BoxError>(());
                }
                queue.enqueue(JOB_NAME, &Payload::new(i), options.clone()).await?;
            }
        })
    });
    for outcome in try_join_all(callers).await? {
        outcome?;
    }
    Ok(())
}

async fn bulk(queue: &QueueProducer, what: &Enqueue) -> Result<(), BoxError> {
    let options = options(what);
    let mut first = 0;
    while first < what.n {
        let end = what.n.min(first + what.batch.max(1));
        let jobs = (first..end).map(|i| BulkJob::new(JOB_NAME, Payload::new(i)).options(options.clone()));
        queue.enqueue_bulk(jobs).await?;
        first = end;
    }
    Ok(())
}
