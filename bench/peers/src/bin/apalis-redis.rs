//! The crate apalis-redis. Every push goes to its set of scheduled tasks; a worker moves
//! what is due when it polls, all of it in one script call, and keeps every completed task.

use std::{sync::Arc, time::Duration};

use apalis::prelude::*;
use apalis_redis::{Config, RedisStorage};
use mpanel_bench_peers::{
    BoxError, Call, Mode, add_each, answer, batches,
    contract::{Answer, Payload, Window, own_rss_kb},
    serve::Completions,
};
use tokio::sync::Notify;

/// Lua's `unpack` takes less than 8000 values, and so does its fetch script.
const MOST_DUE: u64 = 5000;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let call = Call::read();
    let said = match call.verb.as_str() {
        "version" => Answer::default(),
        "enqueue" => enqueue(&call).await?,
        "drain" => drain(&call).await?,
        other => return Err(format!("no verb {other}").into()),
    };
    answer("apalis-redis 1.0.0", said)
}

async fn storage(call: &Call) -> Result<RedisStorage<Payload>, BoxError> {
    let config = Config::default().queue(call.queue.as_str()).batch_size(call.concurrency());
    // A busy machine must not end a run.
    let patient = redis::aio::ConnectionManagerConfig::new()
        .set_response_timeout(Some(Duration::from_secs(60)))
        .set_connection_timeout(Some(Duration::from_secs(60)));
    let client = redis::Client::open(call.redis_url.as_str())?;
    let conn = client.get_connection_manager_with_config(patient).await?;
    Ok(RedisStorage::new(conn).with_config(config))
}

async fn enqueue(call: &Call) -> Result<Answer, BoxError> {
    let mut storage = storage(call).await?;
    let window = Window::open()?;
    if call.mode() == Mode::Bulk {
        let mut unmoved = 0;
        for batch in batches(call.n, call.batch()) {
            unmoved += batch.end - batch.start;
            storage.push_bulk(batch.clone().map(Payload::new).collect()).await?;
            if call.is_preload() && (unmoved + call.batch() > MOST_DUE || batch.end == call.n) {
                move_due(&mut storage).await?;
                unmoved = 0;
            }
        }
    } else {
        let storage = &storage;
        add_each(call, |i| {
            let mut storage = storage.clone();
            async move { Ok(storage.push(Payload::new(i)).await?) }
        })
        .await?;
    }
    Ok(window.close(call.n)?)
}

/// What its fetch script does with due tasks, before the clock starts and in parts that
/// the script can take.
async fn move_due(storage: &mut RedisStorage<Payload>) -> Result<(), BoxError> {
    let script = redis::Script::new(
        "local due = redis.call('zrange', KEYS[1], 0, ARGV[1] - 1)
         if #due == 0 then return 0 end
         redis.call('rpush', KEYS[2], unpack(due))
         return redis.call('zremrangebyrank', KEYS[1], 0, #due - 1)",
    );
    let (scheduled, active) =
        (storage.get_config().scheduled_jobs_set(), storage.get_config().active_jobs_list());
    loop {
        let moved: u64 =
            script.key(&scheduled).key(&active).arg(MOST_DUE).invoke_async(storage.get_connection()).await?;
        if moved == 0 {
            return Ok(());
        }
    }
}

/// Completed when Redis says so: its worker writes results behind the handlers.
async fn drain(call: &Call) -> Result<Answer, BoxError> {
    let mut storage = storage(call).await?;
    let done = storage.get_config().done_jobs_set();
    let completions = Completions::default();
    let (all_handled, wanted) = (Arc::new(Notify::new()), call.n);
    let (counted, told) = (completions.clone(), all_handled.clone());
    let handler = move |_: Payload| {
        let (counted, told) = (counted.clone(), told.clone());
        async move {
            counted.note();
            if counted.count() == wanted {
                told.notify_one();
            }
            Ok::<(), BoxDynError>(())
        }
    };
    let worker = WorkerBuilder::new("bench")
        .backend(storage.clone().poll_with_interval(Duration::from_millis(20)))
        .concurrency(call.concurrency())
        .parallelize(tokio::spawn)
        .build(handler);
    let rss_idle_kb = own_rss_kb()?;
    let window = Window::open()?;
    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let running = tokio::spawn(worker.run_until(async move {
        stopped.notified().await;
        Ok::<(), WorkerError>(())
    }));
    tokio::select! {
        () = all_handled.notified() => {}
        () = async { while !running.is_finished() { tokio::time::sleep(Duration::from_millis(50)).await } } => {
            let handled = completions.count();
            return Err(format!("the worker ended after {handled} jobs: {:?}", running.await).into());
        }
    }
    while redis::cmd("SCARD").arg(&done).query_async::<u64>(storage.get_connection()).await? < wanted {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let said = window.close(call.n)?;
    stop.notify_one();
    running.await??;
    Ok(Answer { rss_idle_kb: Some(rss_idle_kb), ..said })
}
