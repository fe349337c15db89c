//! The crate bullmq-official.

use std::sync::Arc;

use bullmq::{
    Error, Job, JobOptions, Queue, QueueOptions, Worker, WorkerOptions,
    queue::BulkJob,
    types::{BackoffStrategy, RemoveOnFinish},
    worker::{CancellationToken, ProcessorFn, WorkerEvent},
};
use mpanel_bench_peers::{
    BoxError, Call, Waits, answer,
    contract::{Answer, JOB_NAME, Payload, Window, own_rss_kb},
    produce, spawn_producer,
};
use serde_json::Value;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let call = Call::read();
    let said = match call.verb.as_str() {
        "version" => Answer::default(),
        "enqueue" => enqueue(&call).await?,
        "drain" => drain(&call, false).await?,
        "retry" => drain(&call, true).await?,
        "latency" => latency(&call).await?,
        "produce" => {
            let queue = queue(&call).await?;
            let queue = &queue;
            produce(&call, |payload| async move {
                queue.add(JOB_NAME, payload).await?;
                Ok(())
            })
            .await?
        }
        other => return Err(format!("no verb {other}").into()),
    };
    answer("bullmq-official 1.4.4", said)
}

async fn queue(call: &Call) -> Result<Queue, BoxError> {
    let mut options = QueueOptions::default();
    options.connection.url.clone_from(&call.redis_url);
    Ok(Queue::with_options(&call.queue, options).await?)
}

fn keep(n: usize) -> RemoveOnFinish {
    if n == 0 { RemoveOnFinish::Bool(true) } else { RemoveOnFinish::Count(n) }
}

async fn enqueue(call: &Call) -> Result<Answer, BoxError> {
    let queue = Arc::new(queue(call).await?);
    let options = JobOptions {
        attempts: call.option("attempts"),
        backoff: call.option::<u64>("backoff").filter(|ms| *ms > 0).map(BackoffStrategy::Fixed),
        remove_on_complete: call.option("keep").map(keep),
        ..JobOptions::default()
    };
    let window = Window::open()?;
    if call.is_single() {
        let next = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let callers = (0..call.option("window").unwrap_or(200u64)).map(|_| {
            let (queue, options, next, n) = (queue.clone(), options.clone(), next.clone(), call.n);
            async move {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if i >= n {
                        return Ok::<_, Error>(());
                    }
                    queue.add(JOB_NAME, Payload::new(i)).options(options.clone()).await?;
                }
            }
        });
        futures_util::future::try_join_all(callers).await?;
    } else {
        let batch = call.option("batch").unwrap_or(1000u64);
        for first in (0..call.n).step_by(batch as usize) {
            let jobs = (first..call.n.min(first + batch))
                .map(|i| BulkJob::new(JOB_NAME, Payload::new(i)).options(options.clone()))
                .collect();
            queue.add_bulk(jobs).await?;
        }
    }
    Ok(window.close(call.n)?)
}

async fn worker(
    call: &Call,
    handler: impl Fn(&Job) -> Result<(), Error> + Send + Sync + 'static,
) -> Result<Worker, BoxError> {
    let handler = Arc::new(handler);
    let processor: ProcessorFn = Arc::new(move |job: Job, _: CancellationToken| {
        let handler = handler.clone();
        Box::pin(async move { handler(&job).map(|()| Value::Null) })
    });
    let mut options = WorkerOptions {
        concurrency: call.concurrency(),
        autorun: false,
        remove_on_complete: Some(keep(call.option("keep").unwrap_or(0))),
        ..WorkerOptions::default()
    };
    options.connection.url.clone_from(&call.redis_url);
    Ok(Worker::with_options(&call.queue, processor, options).await?)
}

/// Waits for so many completions.
async fn completed(worker: &Worker, n: u64) -> Result<(), BoxError> {
    let mut seen = 0;
    while seen < n {
        match worker.next_event().await {
            Some(WorkerEvent::Completed { .. }) => seen += 1,
            Some(WorkerEvent::Error(text)) => eprintln!("worker: {text}"),
            Some(_) => {}
            None => return Err(format!("the worker ended after {seen} jobs").into()),
        }
    }
    Ok(())
}

async fn drain(call: &Call, fails_first: bool) -> Result<Answer, BoxError> {
    let worker = worker(call, move |job| {
        if fails_first && job.attempts_made() == 0 {
            return Err(Error::ProcessingError("the first attempt fails".into()));
        }
        Ok(())
    })
    .await?;
    let rss_idle_kb = own_rss_kb()?;
    let window = Window::open()?;
    worker.run().await?;
    completed(&worker, call.n).await?;
    let said = window.close(call.n)?;
    worker.close(1000).await?;
    Ok(Answer { rss_idle_kb: Some(rss_idle_kb), ..said })
}

async fn latency(call: &Call) -> Result<Answer, BoxError> {
    let waits = Waits::default();
    let noted = waits.clone();
    let worker = worker(call, move |job| {
        noted.note(job.data()["t"].as_f64().unwrap_or(0.0));
        Ok(())
    })
    .await?;
    worker.run().await?;
    let mut producer = spawn_producer(call)?;
    let window = Window::open()?;
    completed(&worker, call.n).await?;
    let said = window.close(call.n)?;
    if !producer.wait()?.success() {
        return Err("the producer failed".into());
    }
    Ok(waits.into_answer(said))
}
