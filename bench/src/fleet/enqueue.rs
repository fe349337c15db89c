//! `enqueue`: one call a job with a window of calls in flight or in bursts, bulks, flows.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

use futures_util::future::try_join_all;
use mpanel_producer::{
    Backoff, BulkJob, EnqueueOptions, FlowJob, FlowOptions, KeepJobs, Producer, QueueProducer,
};

use super::{Cli, Enqueue, Mode, queue_names};
use crate::{
    BoxError,
    contract::{Answer, JOB_NAME, Payload, Window},
};

pub(super) async fn enqueue(cli: &Cli, what: &Enqueue) -> Result<Answer, BoxError> {
    let producer = Producer::connect(&cli.redis_url).await?;
    let mut queues = Vec::new();
    for name in queue_names(cli, what.queues) {
        let queue = producer.queue(&name)?;
        queue.introduce().await?;
        queues.push(queue);
    }
    let first = queues.first().ok_or("--queues 0: there is no queue")?;
    let window = Window::open()?;
    match (what.children, what.mode) {
        (Some(children), _) => flows(&producer, &cli.queue, what, children).await?,
        (None, Mode::Single) => single(first, what).await?,
        (None, Mode::Pipelined) => pipelined(first, what).await?,
        (None, Mode::Bulk) => bulk(&queues, what).await?,
    }
    Ok(window.close(what.n)?)
}

/// What job `i` is given.
fn options(what: &Enqueue, i: u64) -> EnqueueOptions {
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
    if let Some(ms) = what.delay.filter(|ms| *ms > 0) {
        options = options.delay(Duration::from_millis(ms));
    }
    if let Some(priorities) = what.priorities.filter(|count| *count > 0) {
        options = options.priority(1 + u32::try_from(i % u64::from(priorities)).unwrap_or(0));
    }
    options
}

/// As many callers as the window is wide, each waiting for its own job.
async fn single(queue: &QueueProducer, what: &Enqueue) -> Result<(), BoxError> {
    let (next, n) = (Arc::new(AtomicU64::new(0)), what.n);
    let callers = (0..what.window.max(1)).map(|_| {
        let (queue, next, options) = (queue.clone(), next.clone(), options(what, 0));
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

/// The indices of the `n` jobs, in batches.
fn batches(n: u64, batch: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    let batch = batch.max(1);
    (0..n.div_ceil(batch)).map(move |k| k * batch..n.min((k + 1) * batch))
}

/// One caller that starts many calls before it awaits them.
async fn pipelined(queue: &QueueProducer, what: &Enqueue) -> Result<(), BoxError> {
    let options = options(what, 0);
    for batch in batches(what.n, what.batch) {
        let calls = batch.map(|i| {
            let options = options.clone();
            async move { queue.enqueue(JOB_NAME, &Payload::new(i), options).await }
        });
        try_join_all(calls).await?;
    }
    Ok(())
}

async fn bulk(queues: &[QueueProducer], what: &Enqueue) -> Result<(), BoxError> {
    for (batch, queue) in batches(what.n, what.batch).zip(queues.iter().cycle()) {
        let jobs = batch.map(|i| BulkJob::new(JOB_NAME, Payload::new(i)).options(options(what, i)));
        queue.enqueue_bulk(jobs).await?;
    }
    Ok(())
}

/// Flows whose jobs together are `n`.
async fn flows(producer: &Producer, queue: &str, what: &Enqueue, children: u64) -> Result<(), BoxError> {
    let each = children + 1;
    let job = |i| Ok(FlowJob::new(JOB_NAME, queue).data(Payload::new(i))?.options(options(what, i)));
    for batch in batches(what.n / each, what.batch / each) {
        let flows = batch
            .map(|flow| {
                let first = flow * each;
                let below = (first + 1..first + each).map(job).collect::<Result<Vec<_>, BoxError>>()?;
                Ok(job(first)?.children(below))
            })
            .collect::<Result<Vec<_>, BoxError>>()?;
        for outcome in producer.enqueue_flows(flows, &FlowOptions::new()).await? {
            outcome?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_every_job_once() {
        let all: Vec<_> = batches(2500, 1000).collect();
        assert_eq!(all, [0..1000, 1000..2000, 2000..2500]);
        assert_eq!(batches(0, 1000).count(), 0);
        assert_eq!(batches(3, 0).count(), 3);
    }
}
