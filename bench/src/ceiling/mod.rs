//! The bare ceiling: a loop with one connection and two small scripts that do only what
//! an observer of BullMQ's keys must be able to see. No retries, priorities, parents,
//! deduplication, limits, stalled bookkeeping, metrics, handler. A reference, not a
//! product: it loses jobs when anything goes wrong.

use redis::{Script, Value};

use crate::{
    BoxError,
    contract::{Answer, JOB_NAME, Payload, Window, epoch_ms},
    fleet::{Cli, Drain, Enqueue, Mode, Verb},
};

/// Jobs of one call.
const BATCH: u64 = 64;
const TOKEN: &str = "5f0c8bd6-4a39-4b62-8d0f-2f6f6f6f6f6f:1";
const LOCK_MS: &str = "30000";

/// Runs one verb; the ceiling has `version`, `enqueue` and `drain`.
///
/// # Errors
/// What went wrong, as text for the user.
pub async fn run(cli: Cli) -> Result<Answer, BoxError> {
    let mut answer = match &cli.verb {
        Verb::Version { .. } => Answer::default(),
        Verb::Enqueue(options) => enqueue(&cli, options).await?,
        Verb::Drain(options) => drain(&cli, options).await?,
        _ => return Err("the ceiling has no such verb".into()),
    };
    "bare ceiling".clone_into(&mut answer.adapter);
    Ok(answer)
}

fn prefix(cli: &Cli) -> String {
    format!("bull:{}:", cli.queue)
}

fn pack(value: &impl serde::Serialize) -> Result<Vec<u8>, BoxError> {
    Ok(rmp_serde::to_vec(value)?)
}

fn now_text() -> String {
    format!("{:.0}", epoch_ms())
}

async fn enqueue(cli: &Cli, options: &Enqueue) -> Result<Answer, BoxError> {
    let mut conn = redis::Client::open(cli.redis_url.as_str())?.get_multiplexed_async_connection().await?;
    let script = Script::new(include_str!("add.lua"));
    let opts = match options.keep {
        Some(0) => r#"{"attempts":0,"removeOnComplete":true}"#.to_owned(),
        Some(keep) => format!(r#"{{"attempts":0,"removeOnComplete":{keep}}}"#),
        None => r#"{"attempts":0}"#.to_owned(),
    };
    let (per_call, in_flight) = match options.mode {
        Mode::Single => (1, options.window),
        Mode::Pipelined => (1, options.batch),
        Mode::Bulk => (BATCH, options.batch.div_ceil(BATCH)),
    };
    script.prepare_invoke().load_async(&mut conn).await?;
    let window = Window::open()?;
    let mut next = 0;
    while next < options.n {
        let mut calls = Vec::new();
        while next < options.n && (calls.len() as u64) < in_flight {
            let count = per_call.min(options.n - next);
            let jobs = (next..next + count)
                .map(|i| Ok((JOB_NAME, serde_json::to_string(&Payload::new(i))?, opts.as_str())))
                .collect::<Result<Vec<_>, BoxError>>()?;
            next += count;
            let argument = pack(&(now_text(), jobs))?;
            let (script, prefix, mut conn) = (&script, prefix(cli), conn.clone());
            calls
                .push(async move { script.key(prefix).arg(argument).invoke_async::<Value>(&mut conn).await });
        }
        futures_util::future::try_join_all(calls).await?;
    }
    Ok(window.close(options.n)?)
}

async fn drain(cli: &Cli, options: &Drain) -> Result<Answer, BoxError> {
    let mut conn = redis::Client::open(cli.redis_url.as_str())?.get_multiplexed_async_connection().await?;
    let script = Script::new(include_str!("turn.lua"));
    script.prepare_invoke().load_async(&mut conn).await?;
    let most = (options.concurrency as u64).min(BATCH);
    let mut ended: Vec<Vec<u8>> = Vec::new();
    let mut done = 0;
    let window = Window::open()?;
    loop {
        let ids: Vec<&str> = ended.iter().filter_map(|id| std::str::from_utf8(id).ok()).collect();
        let argument = pack(&(now_text(), TOKEN, LOCK_MS, options.keep, most, &ids, "null"))?;
        let jobs: Vec<(Vec<u8>, Value)> =
            script.key(prefix(cli)).arg(argument).invoke_async(&mut conn).await?;
        done += ended.len() as u64;
        if done >= options.n {
            break;
        }
        if jobs.is_empty() {
            return Err(format!("the queue is empty after {done} jobs").into());
        }
        // What a handler would be given is read.
        ended = jobs
            .into_iter()
            .map(|(id, fields)| {
                let fields: std::collections::HashMap<String, String> = redis::from_redis_value(fields)?;
                let _: Payload = serde_json::from_str(fields.get("data").map_or("", String::as_str))?;
                Ok(id)
            })
            .collect::<Result<_, BoxError>>()?;
    }
    Ok(window.close(options.n)?)
}
