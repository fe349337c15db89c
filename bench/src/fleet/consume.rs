//! `drain` and `retry`: a worker with a handler that does nothing.

use std::time::Duration;

use mpanel_engine::{Engine, JobContext, JobError, RateLimit, Worker, WorkerBuilder, handler_fn};
use mpanel_producer::KeepJobs;

use super::{Cli, Drain};
use crate::{
    BoxError,
    contract::{Answer, Payload, Window, own_rss_kb},
};

/// Which attempts of a job fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failing {
    Never,
    FirstAttempt,
}

pub(super) async fn consume(cli: &Cli, what: &Drain, failing: Failing) -> Result<Answer, BoxError> {
    let handler = handler_fn(move |ctx: JobContext, _: Payload| async move {
        if failing == Failing::FirstAttempt && ctx.attempts_made() == 0 {
            return Err(JobError::retry("the first attempt fails"));
        }
        Ok(())
    });
    let engine = Engine::connect(&cli.redis_url).await?;
    let worker = worker(&engine, &cli.queue, what)?.handle_any(handler);
    let rss_idle_kb = own_rss_kb()?;
    let window = Window::open()?;
    let worker = worker.start()?;
    completed(&worker, what.n).await;
    let answer = window.close(what.n)?;
    worker.stop(Duration::from_secs(5)).await;
    Ok(Answer { rss_idle_kb: Some(rss_idle_kb), ..answer })
}

/// A worker as the options want it.
pub(super) fn worker(engine: &Engine, queue: &str, what: &Drain) -> Result<WorkerBuilder, BoxError> {
    let mut worker =
        engine.worker(queue)?.concurrency(what.concurrency).remove_on_complete(KeepJobs::Count(what.keep));
    if let Some(points) = what.metrics {
        worker = worker.metrics(points);
    }
    if let Some(max) = what.limit {
        worker = worker.rate_limit(RateLimit { max, window: Duration::from_secs(1) });
    }
    Ok(worker)
}

/// Waits until Redis has acknowledged the `n`-th completion.
pub(super) async fn completed(worker: &Worker, n: u64) {
    // Idle: every outcome is written and the fetch that came with the last of them
    // found nothing. Jobs may be delayed, so it may come true several times.
    loop {
        worker.until_idle().await;
        if worker.stats().completed >= n {
            return;
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}
