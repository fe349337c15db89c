//! The crate bullmq-official.

use std::{sync::Arc, time::Duration};

use bullmq::{
    Error, FlowJob, FlowProducer, Job, JobOptions, Queue, QueueOptions, Worker, WorkerOptions,
    flow_producer::FlowProducerOptions,
    options::{MetricsOptions, RateLimiterOptions},
    queue::BulkJob,
    types::{BackoffStrategy, RemoveOnFinish},
    worker::{CancellationToken, ProcessorFn, WorkerEvent},
};
use mpanel_bench_peers::{
    BoxError, Call, Mode, Waits, add_each, answer, batches,
    contract::{Answer, JOB_NAME, Payload, Window, own_rss_kb},
    produce,
    serve::{Completions, Steering},
    spawn_producer,
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
        "serve" => serve(&call).await?,
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
    let queue = queue(call).await?;
    let common = JobOptions {
        attempts: call.option("attempts"),
        backoff: call.option::<u64>("backoff").filter(|ms| *ms > 0).map(BackoffStrategy::Fixed),
        remove_on_complete: call.option("keep").map(keep),
        delay: call.option::<u64>("delay").filter(|ms| *ms > 0),
        ..JobOptions::default()
    };
    let priorities: u64 = call.option("priorities").unwrap_or(0);
    let options = |i: u64| JobOptions {
        priority: (priorities > 0).then(|| 1 + (i % priorities.max(1)) as u32),
        ..common.clone()
    };
    let children: u64 = call.option("children").unwrap_or(0);
    let mut flow_options = FlowProducerOptions::new();
    flow_options.connection.url.clone_from(&call.redis_url);
    let flows = if children > 0 { Some(FlowProducer::with_options(flow_options).await?) } else { None };
    let window = Window::open()?;
    if let Some(flows) = flows {
        let each = children + 1;
        let job =
            |i| Ok::<_, Error>(FlowJob::new(JOB_NAME, &call.queue, Payload::new(i))?.options(options(i)));
        for batch in batches(call.n / each, call.batch() / each) {
            let mut trees = Vec::new();
            for first in batch.map(|flow| flow * each) {
                let below = (first + 1..first + each).map(job).collect::<Result<_, _>>()?;
                trees.push(job(first)?.children(below));
            }
            flows.add_bulk(trees).await?;
        }
    } else if call.mode() == Mode::Bulk {
        for batch in batches(call.n, call.batch()) {
            let jobs = batch.map(|i| BulkJob::new(JOB_NAME, Payload::new(i)).options(options(i))).collect();
            queue.add_bulk(jobs).await?;
        }
    } else {
        let (queue, options) = (&queue, &options);
        add_each(call, |i| async move {
            queue.add(JOB_NAME, Payload::new(i)).options(options(i)).await?;
            Ok(())
        })
        .await?;
    }
    Ok(window.close(call.n)?)
}

async fn worker(
    call: &Call,
    queue: &str,
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
        metrics: call.option("metrics").map(|max_data_points| MetricsOptions { max_data_points }),
        limiter: call.option("limit").map(|max| RateLimiterOptions::new(max, Duration::from_secs(1))),
        ..WorkerOptions::default()
    };
    options.connection.url.clone_from(&call.redis_url);
    Ok(Worker::with_options(queue, processor, options).await?)
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
    let worker = worker(call, &call.queue, move |job| {
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

async fn serve(call: &Call) -> Result<Answer, BoxError> {
    let completions = Completions::default();
    let mut workers = Vec::new();
    for queue in call.queues() {
        workers.push(worker(call, &queue, |_| Ok(())).await?);
    }
    let rss_idle_kb = own_rss_kb()?;
    let mut serving = Steering::ready()?.go().await?;
    for worker in &workers {
        worker.run().await?;
    }
    let followed =
        futures_util::future::try_join_all(workers.iter().map(|worker| note(worker, &completions)));
    tokio::select! {
        () = serving.until_end() => {}
        ended = followed => return Err(ended.err().unwrap_or_else(|| "the workers ended".into())),
    }
    // What runs ends; its events come until the worker is closed.
    for worker in &workers {
        let close = async { worker.close(5000).await.map_err(BoxError::from) };
        tokio::select! {
            closed = close => closed?,
            noted = note(worker, &completions) => noted?,
        }
        while let Some(Some(event)) = futures_util::FutureExt::now_or_never(worker.next_event()) {
            if matches!(event, WorkerEvent::Completed { .. }) {
                completions.note();
            }
        }
    }
    let said = serving.close(completions.count(), &completions)?;
    Ok(Answer { rss_idle_kb: Some(rss_idle_kb), ..said })
}

/// Notes completions for ever.
async fn note(worker: &Worker, completions: &Completions) -> Result<(), BoxError> {
    loop {
        match worker.next_event().await {
            Some(WorkerEvent::Completed { .. }) => completions.note(),
            Some(WorkerEvent::Error(text)) => eprintln!("worker: {text}"),
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

async fn latency(call: &Call) -> Result<Answer, BoxError> {
    let waits = Waits::default();
    let noted = waits.clone();
    let worker = worker(call, &call.queue, move |job| {
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
