//! The crate rusty-sidekiq. It takes jobs by BRPOP (one that is running when its process
//! dies is lost), keeps no completed job and has no call for many jobs.

use std::sync::Arc;

use async_trait::async_trait;
use mpanel_bench_peers::{
    BoxError, Call, Waits, add_each, answer,
    contract::{Answer, Payload, Window, own_rss_kb},
    produce,
    serve::{Completions, Steering},
    spawn_producer,
};
use sidekiq::{Processor, ProcessorConfig, RedisConnectionManager, RedisPool, Worker, opts};
use tokio::sync::Notify;

const CLASS: &str = "Noop";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let call = Call::read();
    let said = match call.verb.as_str() {
        "version" => Answer::default(),
        "enqueue" => enqueue(&call).await?,
        "drain" => drain(&call).await?,
        "serve" => serve(&call).await?,
        "latency" => latency(&call).await?,
        "produce" => {
            let pool = &pool(&call, 1).await?;
            produce(&call, |payload| add(pool, &call.queue, payload)).await?
        }
        other => return Err(format!("no verb {other}").into()),
    };
    answer("rusty-sidekiq 0.15.2", said)
}

/// A connection for each job that may run, as every one of its workers blocks on one.
async fn pool(call: &Call, connections: u32) -> Result<RedisPool, BoxError> {
    let manager = RedisConnectionManager::new(call.redis_url.as_str())?;
    Ok(bb8::Pool::builder().max_size(connections).build(manager).await?)
}

async fn add(pool: &RedisPool, queue: &str, payload: Payload) -> Result<(), BoxError> {
    Ok(opts().queue(queue).perform_async(pool, CLASS.to_owned(), payload).await?)
}

async fn enqueue(call: &Call) -> Result<Answer, BoxError> {
    let pool = &pool(call, 50).await?;
    let window = Window::open()?;
    add_each(call, |i| add(pool, &call.queue, Payload::new(i))).await?;
    Ok(window.close(call.n)?)
}

/// Counts what it handles.
#[derive(Clone, Default)]
struct Noop {
    completions: Completions,
    waits: Option<Waits>,
    /// So many are wanted; then `done` is told.
    wanted: u64,
    done: Arc<Notify>,
}

#[async_trait]
impl Worker<Payload> for Noop {
    fn class_name() -> String {
        CLASS.to_owned()
    }

    async fn perform(&self, payload: Payload) -> sidekiq::Result<()> {
        if let Some(waits) = &self.waits {
            waits.note(payload.t);
        }
        self.completions.note();
        if self.completions.count() == self.wanted {
            self.done.notify_one();
        }
        Ok(())
    }
}

async fn processor(call: &Call, worker: &Noop) -> Result<Processor, BoxError> {
    let concurrency = call.concurrency();
    let pool = pool(call, concurrency as u32 + 5).await?;
    let mut processor =
        Processor::new(pool, call.queues()).with_config(ProcessorConfig::default().num_workers(concurrency));
    processor.register(worker.clone());
    Ok(processor)
}

async fn drain(call: &Call) -> Result<Answer, BoxError> {
    let worker = Noop { wanted: call.n, ..Noop::default() };
    let processor = processor(call, &worker).await?;
    let stop = processor.get_cancellation_token();
    let rss_idle_kb = own_rss_kb()?;
    let window = Window::open()?;
    let running = tokio::spawn(processor.run());
    worker.done.notified().await;
    let said = window.close(call.n)?;
    stop.cancel();
    running.await?;
    Ok(Answer { rss_idle_kb: Some(rss_idle_kb), ..said })
}

async fn serve(call: &Call) -> Result<Answer, BoxError> {
    let worker = Noop::default();
    let processor = processor(call, &worker).await?;
    let stop = processor.get_cancellation_token();
    let rss_idle_kb = own_rss_kb()?;
    let mut serving = Steering::ready()?.go().await?;
    let running = tokio::spawn(processor.run());
    serving.until_end().await;
    stop.cancel();
    running.await?;
    let said = serving.close(worker.completions.count(), &worker.completions)?;
    Ok(Answer { rss_idle_kb: Some(rss_idle_kb), ..said })
}

async fn latency(call: &Call) -> Result<Answer, BoxError> {
    let waits = Waits::default();
    let worker = Noop { waits: Some(waits.clone()), wanted: call.n, ..Noop::default() };
    let processor = processor(call, &worker).await?;
    let stop = processor.get_cancellation_token();
    let running = tokio::spawn(processor.run());
    let mut producer = spawn_producer(call)?;
    let window = Window::open()?;
    worker.done.notified().await;
    let said = window.close(call.n)?;
    if !producer.wait()?.success() {
        return Err("the producer failed".into());
    }
    stop.cancel();
    running.await?;
    Ok(waits.into_answer(said))
}
