//! `latency`: a producer in a process of its own adds a job every few
//! milliseconds; each says when it was added.

use std::{
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mpanel_engine::{Engine, JobContext, JobError, handler_fn};
use mpanel_producer::{EnqueueOptions, KeepJobs, Producer};
use tokio::time::MissedTickBehavior;

use super::{Cli, Latency, Produce, consume::completed};
use crate::{
    BoxError,
    contract::{Answer, JOB_NAME, Payload, Window, epoch_ms},
};

pub(super) async fn latency(cli: &Cli, what: &Latency) -> Result<Answer, BoxError> {
    let waits = Arc::new(Mutex::new(Vec::<f64>::new()));
    let seen = waits.clone();
    let handler = handler_fn(move |_: JobContext, payload: Payload| {
        let wait = epoch_ms() - payload.t;
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(wait);
        async { Ok::<_, JobError>(()) }
    });
    let engine = Engine::connect(&cli.redis_url).await?;
    let worker = engine
        .worker(&cli.queue)?
        .concurrency(what.concurrency)
        .remove_on_complete(KeepJobs::Count(0))
        .handle_any(handler)
        .start()?;
    worker.until_idle().await;
    let mut producer = Command::new(std::env::current_exe()?)
        .args(own_arguments())
        .args(["produce", &what.n.to_string(), "--interval-ms", &what.interval_ms.to_string()])
        .env("REDIS_URL", &cli.redis_url)
        .env("BENCH_QUEUE", &cli.queue)
        .stdout(Stdio::null())
        .spawn()?;
    let window = Window::open()?;
    completed(&worker, what.n).await;
    let answer = window.close(what.n)?;
    if !producer.wait()?.success() {
        return Err("the producer failed".into());
    }
    worker.stop(Duration::from_secs(5)).await;
    let waits = waits.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(answer.with_waits(waits))
}

/// What stands before the verb when the benchmark's own program is the adapter.
fn own_arguments() -> Option<String> {
    std::env::args().nth(1).filter(|first| first == crate::adapter::AS_ADAPTER)
}

pub(super) async fn produce(cli: &Cli, what: &Produce) -> Result<Answer, BoxError> {
    let queue = Producer::connect(&cli.redis_url).await?.queue(&cli.queue)?;
    let window = Window::open()?;
    let mut beat = tokio::time::interval(Duration::from_millis(what.interval_ms.max(1)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for i in 0..what.n {
        beat.tick().await;
        queue.enqueue(JOB_NAME, &Payload::new(i), EnqueueOptions::new()).await?;
    }
    Ok(window.close(what.n)?)
}
