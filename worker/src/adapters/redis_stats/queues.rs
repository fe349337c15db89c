//! Which queues there are, and the figures of all of them.

use mpanel_connect::Redis;
use mpanel_protocol::{
    ids::{Prefix, QueueName},
    keys::QueueKeys,
};
use redis::{RedisError, RedisResult, Value, from_redis_value};

use super::{RedisStatsError, answer, ask};

/// Keys that a step of the search for queues looks at.
const SCAN: usize = 1000;
/// Queues that are found at most.
const QUEUES_MAX: usize = 2000;
/// Longest queue name that is looked at; others are nobody's.
const NAME_MAX: usize = 200;
/// Answers that belong to one queue.
const EACH: usize = 15;

/// The queues that Redis has: those with a `meta` key. Beside them how many round
/// trips it took to find them, which grows with all that is in Redis.
///
/// # Errors
/// [`RedisStatsError`].
pub async fn find_queues(redis: &Redis, prefix: &Prefix) -> Result<(Vec<String>, u32), RedisStatsError> {
    let prefix = prefix.as_str();
    // What the prefix holds is meant as it stands.
    let literal: String =
        prefix.chars().flat_map(|c| "*?[]\\^".contains(c).then_some('\\').into_iter().chain([c])).collect();
    let pattern = format!("{literal}:*:meta");
    let mut names = Vec::new();
    let mut trips = 0;
    for mut shared in redis.shared_all().await? {
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN);
            trips += 1;
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
    Ok((names, trips))
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
