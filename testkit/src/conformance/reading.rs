//! The reading test for 5.28: its final state is loaded, and our admin handle
//! must report the same counts, states, fields and results.

use mpanel_connect::Redis;
use mpanel_engine::admin::{Counts, QueueAdmin};
use mpanel_protocol::{
    ids::{JobId, Prefix, QueueName},
    peer::Peer,
    state::JobState,
};
use serde_json::{Map, Value, json};

use super::{
    PREFIX, dump,
    rules::{Difference, readable},
    scenario::Golden,
};
use crate::TestkitError;

fn failed(error: impl std::fmt::Display) -> TestkitError {
    TestkitError::failed("load a golden state", error.to_string())
}

/// A dumped field as it was stored.
fn stored(value: &Value) -> String {
    match value.get("$json") {
        Some(json) => json.to_string(),
        None => value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned),
    }
}

/// Writes a dump into Redis.
async fn load(redis: &Redis, keys: &Map<String, Value>) -> Result<(), TestkitError> {
    dump::wipe(redis).await?;
    let mut conn = redis.shared().await.map_err(failed)?.conn;
    for (key, entry) in keys {
        let value = &entry["value"];
        let items = value.as_array().cloned().unwrap_or_default();
        let mut commands = redis::pipe();
        match entry["type"].as_str().unwrap_or_default() {
            "hash" => {
                for (field, v) in value.as_object().into_iter().flatten() {
                    commands.hset(key, field, stored(v)).ignore();
                }
            }
            "list" => items.iter().for_each(|i| {
                commands.rpush(key, stored(i)).ignore();
            }),
            "set" => items.iter().for_each(|i| {
                commands.sadd(key, stored(i)).ignore();
            }),
            "zset" => items.iter().for_each(|pair| {
                commands.cmd("ZADD").arg(key).arg(stored(&pair[1])).arg(stored(&pair[0])).ignore();
            }),
            "stream" => items.iter().for_each(|event| {
                let command = commands.cmd("XADD").arg(key).arg("*");
                for pair in event.as_array().into_iter().flatten() {
                    command.arg(stored(&pair[0])).arg(stored(&pair[1]));
                }
                command.ignore();
            }),
            _ => {
                commands.set(key, stored(value)).ignore();
            }
        }
        commands.query_async::<()>(&mut conn).await.map_err(failed)?;
    }
    Ok(())
}

/// Which state the dump has a job in.
fn expected_state(keys: &Map<String, Value>, base: &str, id: &str) -> Option<JobState> {
    let holds = |suffix: &str| {
        keys.get(&format!("{base}{suffix}"))
            .and_then(|e| e["value"].as_array())
            .is_some_and(|items| items.iter().any(|i| i == id || i.get(0).is_some_and(|member| member == id)))
    };
    [
        ("completed", JobState::Completed),
        ("failed", JobState::Failed),
        ("delayed", JobState::Delayed),
        ("prioritized", JobState::Prioritized),
        ("waiting-children", JobState::WaitingChildren),
        ("active", JobState::Active),
        ("wait", JobState::Waiting),
        ("paused", JobState::Paused),
    ]
    .into_iter()
    .find(|(suffix, _)| holds(suffix))
    .map(|(_, state)| state)
}

fn expected_counts(keys: &Map<String, Value>, base: &str) -> Counts {
    let len = |suffix: &str| {
        keys.get(&format!("{base}{suffix}")).and_then(|e| e["value"].as_array()).map_or(0, |a| a.len() as u64)
    };
    Counts {
        waiting: len("wait"),
        paused: len("paused"),
        prioritized: len("prioritized"),
        delayed: len("delayed"),
        active: len("active"),
        waiting_children: len("waiting-children"),
        completed: len("completed"),
        failed: len("failed"),
    }
}

fn differ(path: String, expected: &Value, got: &Value) -> Difference {
    Difference { path, expected: expected.to_string(), got: got.to_string() }
}

/// Loads a golden and compares what we read with what is there.
///
/// # Errors
/// When Redis fails.
pub async fn check(redis: &Redis, golden: &Golden) -> Result<Option<Difference>, TestkitError> {
    load(redis, &golden.keys).await?;
    let prefix = Prefix::new(PREFIX).map_err(failed)?;
    let mut queues: Vec<&str> = golden
        .keys
        .keys()
        .filter_map(|k| k.strip_prefix("conf:").and_then(|rest| rest.split(':').next()))
        .collect();
    queues.sort_unstable();
    queues.dedup();
    for queue in queues {
        let name = QueueName::new(queue).map_err(failed)?;
        let admin = QueueAdmin::new(redis.clone(), &prefix, &name, Peer::V5);
        let base = format!("{PREFIX}:{queue}:");
        let counts = admin.counts().await.map_err(failed)?;
        let expected = expected_counts(&golden.keys, &base);
        if counts != expected {
            return Ok(Some(differ(format!("{queue}.counts"), &json!(expected), &json!(counts))));
        }
        for (key, entry) in &golden.keys {
            let Some(id) = key.strip_prefix(&base) else { continue };
            let Some(fields) = entry["value"].as_object().filter(|f| f.contains_key("timestamp")) else {
                continue;
            };
            let id = JobId::stored(id);
            let at = |what: &str| format!("{queue}.{id}.{what}");
            let state = admin.state(&id).await.map_err(failed)?;
            let expected = expected_state(&golden.keys, &base, id.as_str());
            if state != expected {
                return Ok(Some(differ(at("state"), &json!(expected), &json!(state))));
            }
            let Some(detail) = admin.job(&id).await.map_err(failed)? else {
                return Ok(Some(differ(at("job"), &json!("there"), &json!("absent"))));
            };
            let count = |name: &str, old: &str| {
                let stored = fields.get(name).or_else(|| fields.get(old)).and_then(Value::as_str);
                readable(stored.unwrap_or("0"), false)
            };
            let field = |name: &str| fields.get(name).map(stored);
            let time = |name: &str| field(name).map(|text| readable(&text, true));
            let pairs = [
                ("name", field("name"), Some(detail.job.name.clone())),
                ("data", field("data"), Some(detail.job.data.clone())),
                ("timestamp", time("timestamp"), Some(detail.job.timestamp_ms.to_string())),
                (
                    "attemptsMade",
                    Some(count("atm", "attemptsMade")),
                    Some(detail.job.attempts_made.to_string()),
                ),
                ("attemptsStarted", Some(count("ats", "-")), Some(detail.job.attempts_started.to_string())),
                ("stalls", Some(count("stc", "stalledCounter")), Some(detail.stalls.to_string())),
                ("priority", Some(count("priority", "-")), Some(detail.priority.to_string())),
                ("returnvalue", field("returnvalue"), detail.return_value.clone()),
                ("failedReason", field("failedReason"), detail.failed_reason.clone()),
                ("stacktrace", field("stacktrace"), detail.job.stacktrace.clone()),
                ("progress", field("progress"), detail.progress.clone()),
                ("processedOn", time("processedOn"), detail.processed_on_ms.map(|n| n.to_string())),
                ("finishedOn", time("finishedOn"), detail.finished_on_ms.map(|n| n.to_string())),
                ("processedBy", field("pb"), detail.processed_by.clone()),
                ("parentKey", field("parentKey"), detail.job.parent_key.clone()),
                ("deduplicationId", field("deid"), detail.dedup_id.clone()),
            ];
            if let Some((what, e, g)) = pairs.into_iter().find(|(_, e, g)| e != g) {
                return Ok(Some(differ(at(what), &json!(e), &json!(g))));
            }
            if let Err(error) = detail.job.options() {
                return Ok(Some(differ(at("opts"), &json!("options"), &json!(error.to_string()))));
            }
        }
    }
    Ok(None)
}
