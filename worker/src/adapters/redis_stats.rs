//! What a Redis server says of itself, and the figures of BullMQ's queues, each
//! in one round trip. Commands that are refused cost only their own answer.

use std::collections::BTreeMap;

use mpanel_connect::{ConnectError, Redis, Shared};
use mpanel_protocol::{
    ids::{Prefix, QueueName},
    keys::QueueKeys,
};
use redis::{Pipeline, RedisError, RedisResult, Value, aio::ConnectionLike as _, from_redis_value};

/// Entries of the slow log that are read.
const SLOWLOG: usize = 128;
/// Keys that a step of the search for queues looks at.
const SCAN: usize = 1000;
/// Queues that are found at most.
const QUEUES_MAX: usize = 2000;
/// Longest queue name that is looked at; others are nobody's.
const NAME_MAX: usize = 200;

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

/// The queues that Redis has: those with a `meta` key.
///
/// # Errors
/// [`RedisStatsError`].
pub async fn find_queues(redis: &Redis, prefix: &Prefix) -> Result<Vec<String>, RedisStatsError> {
    let prefix = prefix.as_str();
    // What the prefix holds is meant as it stands.
    let literal: String =
        prefix.chars().flat_map(|c| "*?[]\\^".contains(c).then_some('\\').into_iter().chain([c])).collect();
    let pattern = format!("{literal}:*:meta");
    let mut names = Vec::new();
    for mut shared in redis.shared_all().await? {
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN);
            let page: RedisResult<(u64, Vec<Vec<u8>>)> = scan.query_async(&mut shared.conn).await;
            let (next, keys) = match page {
                Ok(page) => page,
                Err(error) => {
                    redis.report(&shared, &error).await;
                    return Err(error.into());
                }
            };
            names.extend(keys.iter().filter_map(|key| queue_of(prefix, key)));
            cursor = next;
            if cursor == 0 || names.len() > QUEUES_MAX {
                break;
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    names.truncate(QUEUES_MAX);
    Ok(names)
}

/// The queue of a `meta` key.
fn queue_of(prefix: &str, key: &[u8]) -> Option<String> {
    let name =
        std::str::from_utf8(key).ok()?.strip_prefix(prefix)?.strip_prefix(':')?.strip_suffix(":meta")?;
    // With a colon it is a key of something else: a job whose id is `meta`.
    (!name.is_empty() && name.len() <= NAME_MAX && !name.contains([':', '\0'])).then(|| name.to_owned())
}

/// Figures of one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueFigures {
    /// Its name.
    pub queue: String,
    /// In line, paused or not.
    pub waiting: u64,
    /// In line by priority.
    pub prioritized: u64,
    /// Waiting for a time.
    pub delayed: u64,
    /// Being worked on.
    pub active: u64,
    /// Parents waiting for children.
    pub waiting_children: u64,
    /// Completed and kept.
    pub completed: u64,
    /// Failed and kept.
    pub failed: u64,
    /// Completed in the span that was asked for, of those that are kept.
    pub completed_since: u64,
    /// Failed in it, of those that are kept.
    pub failed_since: u64,
    /// Completed since a worker keeps metrics; absent where none does.
    pub completed_metric: Option<u64>,
    /// When the next delayed job is due, epoch ms.
    pub next_delayed_ms: Option<i64>,
    /// When the job that is taken next was added, epoch ms.
    pub oldest_waiting_ms: Option<i64>,
}

/// The figures of all these queues, in two round trips: counts, then the age of
/// what waits. Beside them the server's time, epoch ms. Ends of jobs are counted
/// from after `since_ms` until `until_ms`.
///
/// # Errors
/// [`RedisStatsError`]. A key of another type than BullMQ's counts as empty.
pub async fn queues(
    redis: &Redis,
    prefix: &Prefix,
    names: &[String],
    (since_ms, until_ms): (i64, i64),
) -> Result<(Vec<QueueFigures>, i64), RedisStatsError> {
    let keys: Vec<(&String, QueueKeys)> = names
        .iter()
        .filter_map(|name| Some((name, QueueKeys::new(prefix, &QueueName::new(name.as_str()).ok()?))))
        .collect();
    let Some((_, first)) = keys.first() else { return Ok((Vec::new(), 0)) };
    // In a Cluster the prefix has a hash tag, and all queues one server.
    let mut shared = redis.shared_for(first.meta()).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("TIME");
    let since = format!("({since_ms}");
    for (_, keys) in &keys {
        let metrics = format!("{}metrics:completed", keys.base());
        pipe.llen(keys.wait()).llen(keys.paused()).llen(keys.active());
        pipe.zcard(keys.prioritized()).zcard(keys.delayed()).zcard(keys.waiting_children());
        pipe.zcard(keys.completed()).zcard(keys.failed());
        pipe.zcount(keys.completed(), &since, until_ms).zcount(keys.failed(), &since, until_ms);
        pipe.hget(metrics, "count");
        pipe.cmd("ZRANGE").arg(keys.delayed()).arg(0).arg(0).arg("WITHSCORES");
        // The end that jobs are taken from; BullMQ 3 and 4 kept a marker `0:…` there.
        pipe.lrange(keys.wait(), -2, -1).lrange(keys.paused(), -2, -1);
        pipe.zrange(keys.prioritized(), 0, 0);
    }
    const EACH: usize = 15;
    let mut answers = ask(redis, &mut shared, &pipe).await?.into_iter();
    let time: (i64, i64) =
        from_redis_value(answer(answers.next().unwrap_or(Value::Nil)).unwrap_or(Value::Nil))
            .map_err(RedisError::from)?;
    let answers: Vec<Value> = answers.map(|value| answer(value).unwrap_or(Value::Nil)).collect();
    let mut figures = Vec::new();
    let mut heads = Vec::new();
    for ((name, keys), answers) in keys.iter().zip(answers.chunks(EACH)) {
        let number = |at: usize| answers.get(at).cloned().and_then(|v| from_redis_value::<u64>(v).ok());
        let texts = |at: usize| -> Vec<String> {
            answers.get(at).cloned().and_then(|v| from_redis_value(v).ok()).unwrap_or_default()
        };
        let mut marked = 0;
        let mut head = None;
        for at in [12, 13] {
            let mut ends = texts(at);
            if ends.last().is_some_and(|id| id.starts_with("0:")) {
                marked += 1;
                ends.pop();
            }
            head = head.or(ends.pop());
        }
        let head = head.or_else(|| texts(14).pop());
        heads.push(head.map(|id| format!("{}{id}", keys.base())));
        let count = |at: usize| number(at).unwrap_or(0);
        figures.push(QueueFigures {
            queue: (*name).clone(),
            waiting: (count(0) + count(1)).saturating_sub(marked),
            active: count(2),
            prioritized: count(3),
            delayed: count(4),
            waiting_children: count(5),
            completed: count(6),
            failed: count(7),
            completed_since: count(8),
            failed_since: count(9),
            completed_metric: texts_of(answers.get(10)).and_then(|text| text.parse().ok()),
            // A score is the time, and a counter in its lowest 12 bits.
            next_delayed_ms: texts(11).pop().and_then(|score| whole(&score)).map(|score| score / 4096),
            oldest_waiting_ms: None,
        });
    }
    let mut ages = redis::pipe();
    heads.iter().flatten().for_each(|key| {
        ages.hget(key, "timestamp");
    });
    if ages.cmd_iter().count() > 0 {
        let mut answers = ask(redis, &mut shared, &ages).await?.into_iter();
        for (figures, _) in figures.iter_mut().zip(&heads).filter(|(_, head)| head.is_some()) {
            let value = answers.next().and_then(|value| answer(value).ok());
            figures.oldest_waiting_ms = texts_of(value.as_ref()).and_then(|text| whole(&text));
        }
    }
    Ok((figures, time.0.saturating_mul(1000).saturating_add(time.1 / 1000)))
}

fn texts_of(value: Option<&Value>) -> Option<String> {
    value.cloned().and_then(|value| from_redis_value::<Option<String>>(value).ok()).flatten()
}

/// A number that may be written as Lua or Node write large ones.
fn whole(text: &str) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "saturates")]
    text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().map(|number| number as i64))
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

    #[test]
    fn queues_are_found_by_their_meta_key() {
        for (key, name) in [
            ("bull:mails:meta", Some("mails")),
            ("bull:{a}:meta", Some("{a}")),
            ("bull:mails:meta:meta", None),
            ("bull::meta", None),
            ("other:mails:meta", None),
            ("bull:mails:id", None),
        ] {
            assert_eq!(queue_of("bull", key.as_bytes()).as_deref(), name, "{key}");
        }
    }
}
