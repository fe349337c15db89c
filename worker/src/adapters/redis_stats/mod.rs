//! What a Redis server says of itself, and the figures of BullMQ's queues, each
//! in one round trip. Commands that are refused cost only their own answer.

mod queues;

use std::collections::BTreeMap;

use mpanel_connect::{ConnectError, Redis, Shared};
use redis::{Pipeline, RedisError, RedisResult, Value, aio::ConnectionLike as _, from_redis_value};

/// Entries of the slow log that are read.
const SLOWLOG: usize = 128;

pub use self::queues::{QueueFigures, find_queues, queues};

/// Redis cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum RedisStatsError {
    /// It is not reached.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// It refused, or broke off.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
}

/// What one server says.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// `INFO`, by field; or why it is refused.
    pub info: Result<BTreeMap<String, String>, String>,
    /// The slow log's entries, newest first; or why it is refused.
    pub slowlog: Result<Vec<SlowEntry>, String>,
    /// Events with their newest duration, ms; or why they are refused.
    pub latency: Result<Vec<(String, i64)>, String>,
}

/// An entry of the slow log. Its arguments are payloads and stay there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowEntry {
    /// Its number.
    pub id: i64,
    /// How long it ran, µs.
    pub micros: i64,
    /// The command.
    pub command: String,
}

/// Asks every server that takes writes.
///
/// # Errors
/// [`RedisStatsError`] when one is not reached.
pub async fn servers(redis: &Redis) -> Result<Vec<Server>, RedisStatsError> {
    let mut servers = Vec::new();
    for mut shared in redis.shared_all().await? {
        let mut pipe = redis::pipe();
        pipe.cmd("INFO").arg("everything");
        pipe.cmd("SLOWLOG").arg("GET").arg(SLOWLOG);
        pipe.cmd("LATENCY").arg("LATEST");
        let answers = ask(redis, &mut shared, &pipe).await?;
        let mut answers = answers.into_iter().map(answer);
        let mut next = || answers.next().unwrap_or_else(|| Err("no answer".to_owned()));
        servers.push(Server {
            info: next().map(|value| parse_info(&from_redis_value::<String>(value).unwrap_or_default())),
            slowlog: next().map(|value| rows(value).into_iter().filter_map(slow_entry).collect()),
            latency: next().map(|value| rows(value).into_iter().filter_map(latency_event).collect()),
        });
    }
    Ok(servers)
}

async fn ask(redis: &Redis, shared: &mut Shared, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
    let answers = shared.conn.req_packed_commands(pipe, 0, pipe.cmd_iter().count()).await;
    if let Err(error) = &answers {
        redis.report(shared, error).await;
    }
    answers
}

fn answer(value: Value) -> Result<Value, String> {
    match value {
        Value::ServerError(error) => Err(RedisError::from(error).to_string()),
        value => Ok(value),
    }
}

fn rows(value: Value) -> Vec<Vec<Value>> {
    let rows = match value {
        Value::Array(rows) => rows,
        _ => Vec::new(),
    };
    rows.into_iter()
        .filter_map(|row| match row {
            Value::Array(fields) => Some(fields),
            _ => None,
        })
        .collect()
}

fn slow_entry(fields: Vec<Value>) -> Option<SlowEntry> {
    let number = |at: usize| fields.get(at).cloned().and_then(|value| from_redis_value::<i64>(value).ok());
    let arguments = match fields.get(3) {
        Some(Value::Array(arguments)) => arguments.first().cloned(),
        _ => None,
    };
    let command = arguments.and_then(|value| from_redis_value::<Vec<u8>>(value).ok()).unwrap_or_default();
    let command: String =
        String::from_utf8_lossy(&command).chars().filter(|c| c.is_ascii_alphanumeric()).take(30).collect();
    Some(SlowEntry { id: number(0)?, micros: number(2)?, command })
}

fn latency_event(fields: Vec<Value>) -> Option<(String, i64)> {
    let mut fields = fields.into_iter();
    let name = from_redis_value(fields.next()?).ok()?;
    Some((name, from_redis_value(fields.nth(1)?).ok()?))
}

/// The fields of `INFO`; lines that are none are passed over.
#[must_use]
pub fn parse_info(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.trim_end().split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_read_whatever_stands_in_it() {
        let info = parse_info("# Server\r\nredis_version:7.0.15\r\n\r\nnonsense\r\nos:Linux 6.1: x\r\n");
        assert_eq!(info.get("redis_version").map(String::as_str), Some("7.0.15"));
        assert_eq!(info.get("os").map(String::as_str), Some("Linux 6.1: x"));
        assert_eq!(info.len(), 2);
    }
}
