//! The crate oxana. It keeps no completed job.

use std::{sync::Arc, time::Duration};

use mpanel_bench_peers::{
    BoxError, Call, Mode, Waits, add_each, answer, batches,
    contract::{Answer, Payload, Window, own_rss_kb},
    produce,
    serve::{Completions, Steering},
    spawn_producer,
};
use oxana::{JobContext, Queue, QueueConfig, RuntimeBuilder, Storage, StorageBuilderTimeouts};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

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
            let storage = &storage(&call)?;
            produce(&call, |payload| async move {
                storage.enqueue(Bench, Noop(payload)).await?;
                Ok(())
            })
            .await?
        }
        other => return Err(format!("no verb {other}").into()),
    };
    answer("oxana 2.5.0", said)
}

fn storage(call: &Call) -> Result<Storage, BoxError> {
    // A busy machine must not end a run.
    let builder = Storage::builder()
        .timeouts(StorageBuilderTimeouts::new(Duration::from_secs(60)))
        .redis_response_timeout(Duration::from_secs(60));
    Ok(builder.build_from_redis_url(&call.redis_url)?)
}

#[derive(Debug, Serialize, Deserialize)]
struct Noop(Payload);

impl oxana::Job for Noop {}

/// Its queues are types; this one is the queue of every run.
#[derive(Serialize)]
struct Bench;

impl Queue for Bench {
    fn to_config() -> QueueConfig {
        QueueConfig::as_static("bench")
    }
}

/// What the handler is given.
#[derive(Clone, Default)]
struct Counted {
    completions: Completions,
    waits: Option<Waits>,
    fails_first: bool,
    /// So many are wanted; then `done` is told.
    wanted: u64,
    done: Arc<Notify>,
}

struct Handler(Counted);

impl oxana::FromContext<Counted> for Handler {
    fn from_context(context: &Counted) -> Self {
        Self(context.clone())
    }
}

#[async_trait::async_trait]
impl oxana::Worker<Noop> for Handler {
    type Error = std::io::Error;

    async fn process(&self, job: Noop, context: &JobContext) -> Result<(), Self::Error> {
        if self.0.fails_first && context.meta.retries == 0 {
            return Err(std::io::Error::other("the first attempt fails"));
        }
        if let Some(waits) = &self.0.waits {
            waits.note(job.0.t);
        }
        self.0.completions.note();
        if self.0.completions.count() == self.0.wanted {
            self.0.done.notify_one();
        }
        Ok(())
    }

    fn retry_delay(&self, _: &Noop, _: u32) -> u64 {
        0
    }
}

async fn enqueue(call: &Call) -> Result<Answer, BoxError> {
    let storage = &storage(call)?;
    let window = Window::open()?;
    if call.mode() == Mode::Bulk {
        for batch in batches(call.n, call.batch()) {
            storage.enqueue_list(Bench, batch.map(|i| Noop(Payload::new(i)))).await?;
        }
    } else {
        add_each(call, |i| async move {
            storage.enqueue(Bench, Noop(Payload::new(i))).await?;
            Ok(())
        })
        .await?;
    }
    Ok(window.close(call.n)?)
}

fn runtime(call: &Call, context: Counted) -> Result<RuntimeBuilder<Counted>, BoxError> {
    let queue = Bench::to_config().concurrency(call.concurrency());
    Ok(storage(call)?.runtime(context).queue_with(queue).worker::<Handler, Noop>())
}

async fn drain(call: &Call, fails_first: bool) -> Result<Answer, BoxError> {
    let context = Counted { fails_first, wanted: call.n, ..Counted::default() };
    let (done, stop) = (context.done.clone(), Arc::new(Notify::new()));
    let runtime = stopped_by(runtime(call, context)?, stop.clone());
    let rss_idle_kb = own_rss_kb()?;
    let window = Window::open()?;
    let running = tokio::spawn(runtime.run());
    done.notified().await;
    let said = window.close(call.n)?;
    stop.notify_one();
    running.await??;
    Ok(Answer { rss_idle_kb: Some(rss_idle_kb), ..said })
}

fn stopped_by(runtime: RuntimeBuilder<Counted>, stop: Arc<Notify>) -> RuntimeBuilder<Counted> {
    runtime.shutdown_timeout(Duration::from_secs(30)).shutdown_on(async move {
        stop.notified().await;
        Ok(())
    })
}

async fn serve(call: &Call) -> Result<Answer, BoxError> {
    let context = Counted::default();
    let (completions, stop) = (context.completions.clone(), Arc::new(Notify::new()));
    let runtime = stopped_by(runtime(call, context)?, stop.clone());
    let rss_idle_kb = own_rss_kb()?;
    let mut serving = Steering::ready()?.go().await?;
    let running = tokio::spawn(runtime.run());
    serving.until_end().await;
    stop.notify_one();
    running.await??;
    let said = serving.close(completions.count(), &completions)?;
    Ok(Answer { rss_idle_kb: Some(rss_idle_kb), ..said })
}

async fn latency(call: &Call) -> Result<Answer, BoxError> {
    let waits = Waits::default();
    let context = Counted { waits: Some(waits.clone()), wanted: call.n, ..Counted::default() };
    let (done, stop) = (context.done.clone(), Arc::new(Notify::new()));
    let running = tokio::spawn(stopped_by(runtime(call, context)?, stop.clone()).run());
    let mut producer = spawn_producer(call)?;
    let window = Window::open()?;
    done.notified().await;
    let said = window.close(call.n)?;
    if !producer.wait()?.success() {
        return Err("the producer failed".into());
    }
    stop.notify_one();
    running.await??;
    Ok(waits.into_answer(said))
}
