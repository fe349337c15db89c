//! Our re-statement of mPanel's producer leaves in Redis what mPanel's own file left, key by key
//! (`testkit/data/mpanel`), on both ends of the range of releases that mPanel may run.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::collections::BTreeMap;

use mpanel_testkit::node::BullVersion;
use mpanel_testkit::{NodeSidecar, RedisServer};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

/// Function of mPanel's file, and its arguments.
type Call = (&'static str, Vec<Value>);

/// One dump of mPanel's file, and the calls that made it.
struct Case {
    name: &'static str,
    calls: fn(&Value) -> Vec<Call>,
}

const CASES: [Case; 14] = [
    Case { name: "import-only", calls: |_| vec![] },
    Case { name: "enqueueCloudPodCreate", calls: |a| vec![("enqueueCloudPodCreate", args(a))] },
    Case { name: "enqueueCloudPodCreate-explicit-id", calls: |a| vec![("enqueueCloudPodCreate", args(a))] },
    Case { name: "enqueueCloudPodCreate-same-id-twice", calls: same_id_twice },
    Case { name: "enqueueCloudPodDestroy", calls: |a| vec![("enqueueCloudPodDestroy", args(a))] },
    Case { name: "enqueueCloudPodBackup", calls: |a| vec![("enqueueCloudPodBackup", args(a))] },
    Case { name: "enqueueCloudPodHealth", calls: |a| vec![("enqueueCloudPodHealth", args(a))] },
    Case {
        name: "enqueueCloudPodHealth-two-in-one-ms",
        calls: |a| vec![("enqueueCloudPodHealth", args(a)); 2],
    },
    Case { name: "enqueueCloudPodScale", calls: |a| vec![("enqueueCloudPodScale", args(a))] },
    Case { name: "scheduleHealthChecks", calls: |_| vec![("scheduleHealthChecks", vec![])] },
    Case {
        name: "scheduleHealthChecks-twice-same",
        calls: |_| vec![("scheduleHealthChecks", vec![json!(5)]); 2],
    },
    Case {
        name: "scheduleHealthChecks-5-then-10",
        calls: |_| [5, 10].map(|minutes| ("scheduleHealthChecks", vec![json!(minutes)])).into(),
    },
    Case { name: "scheduleHealthChecks-0", calls: |_| vec![("scheduleHealthChecks", vec![json!(0)])] },
    Case { name: "getQueueStats", calls: one_of_each_then_stats },
];

fn args(recorded: &Value) -> Vec<Value> {
    recorded.as_array().cloned().unwrap_or_default()
}

fn same_id_twice(recorded: &Value) -> Vec<Call> {
    let first = args(recorded);
    let mut second = first.clone();
    second[0]["cores"] = json!(8);
    vec![("enqueueCloudPodCreate", first), ("enqueueCloudPodCreate", second)]
}

/// The recorded arguments are empty here; the payloads are those of the single cases.
fn one_of_each_then_stats(_: &Value) -> Vec<Call> {
    let recorded = |case| args(&golden(case, BullVersion::V5)["argumentsPassed"]);
    vec![
        ("enqueueCloudPodCreate", recorded("enqueueCloudPodCreate")),
        ("enqueueCloudPodHealth", recorded("enqueueCloudPodHealth")),
        ("scheduleHealthChecks", vec![]),
        ("getQueueStats", vec![]),
    ]
}

fn golden(case: &str, version: BullVersion) -> Value {
    let path = format!("{}/data/mpanel/{case}.{}.json", env!("CARGO_MANIFEST_DIR"), version.release());
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// `<uuid>` for UUIDs, `0` for what the dumps mask otherwise: long numbers, and masks of any other name.
fn masked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let uuid = rest.get(..36).is_some_and(|head| uuid::Uuid::try_parse(head).is_ok());
        let mask = rest.strip_prefix('<').and_then(|after| after.split_once('>'));
        if uuid {
            out.push_str("<uuid>");
            rest = &rest[36..];
        } else if let Some((name, after)) = mask {
            out.push_str(if name == "uuid" { "<uuid>" } else { "0" });
            rest = after;
        } else if digits >= 13 {
            out.push('0');
            rest = &rest[digits..];
        } else {
            let step = digits.max(first.len_utf8());
            out.push_str(&rest[..step]);
            rest = &rest[step..];
        }
    }
    out
}

/// Masks every text below; payload and options are compared as JSON, since the order of
/// their fields means nothing.
fn normal(value: &Value) -> Value {
    match value {
        Value::String(text) => masked(text).into(),
        Value::Array(items) => items.iter().map(normal).collect(),
        Value::Object(fields) => {
            let repeated = fields.contains_key("rjk");
            let field = |(name, value): (&String, &Value)| {
                let mut value = normal(value);
                if name == "data" || name == "opts" {
                    let text = value.as_str().unwrap().replace("\"delay\":\"0\"", "\"delay\":0");
                    value = serde_json::from_str(&text).unwrap();
                    // Time to the first slot: different in every run.
                    if repeated && name == "opts" {
                        value["delay"] = json!(0);
                    }
                }
                if name == "delay" && repeated {
                    value = json!(0);
                }
                (masked(name), value)
            };
            Value::Object(fields.iter().map(field).collect())
        }
        other => other.clone(),
    }
}

async fn dump(connection: &mut MultiplexedConnection) -> Value {
    let command = |args: &[&str]| {
        let mut command = redis::cmd(args[0]);
        command.arg(&args[1..]);
        let mut connection = connection.clone();
        async move { command.query_async::<redis::Value>(&mut connection).await.unwrap() }
    };
    let keys: Vec<String> = redis::from_redis_value(command(&["KEYS", "bull:*"]).await).unwrap();
    let mut dumped = serde_json::Map::new();
    for key in keys {
        let kind: String = redis::from_redis_value(command(&["TYPE", &key]).await).unwrap();
        let ttl: i64 = redis::from_redis_value(command(&["PTTL", &key]).await).unwrap();
        let value = match kind.as_str() {
            "hash" => json!(text_map(command(&["HGETALL", &key]).await)),
            "list" => json!(texts(command(&["LRANGE", &key, "0", "-1"]).await)),
            "zset" => json!(pairs(&texts(command(&["ZRANGE", &key, "0", "-1", "WITHSCORES"]).await))),
            "stream" => json!(entries(command(&["XRANGE", &key, "-", "+"]).await)),
            _ => json!(redis::from_redis_value::<String>(command(&["GET", &key]).await).unwrap()),
        };
        let ttl = if ttl < 0 { "none" } else { "set" };
        dumped.insert(key, json!({"type": kind, "ttl": ttl, "value": value}));
    }
    Value::Object(dumped)
}

fn texts(value: redis::Value) -> Vec<String> {
    redis::from_redis_value(value).unwrap()
}

fn text_map(value: redis::Value) -> BTreeMap<String, String> {
    redis::from_redis_value(value).unwrap()
}

fn pairs(flat: &[String]) -> Vec<&[String]> {
    flat.chunks(2).collect()
}

/// Stream entries without their ids.
fn entries(value: redis::Value) -> Vec<Vec<String>> {
    let entries: Vec<(String, Vec<String>)> = redis::from_redis_value(value).unwrap();
    entries.into_iter().map(|(_, fields)| fields).collect()
}

#[tokio::test]
async fn what_it_leaves_equals_the_dumps_of_mpanel_s_own_file() {
    let redis = RedisServer::builder().appendonly(false).start().await.unwrap();
    let node = NodeSidecar::start(&redis.url()).await.unwrap();
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for version in [BullVersion::V5_28, BullVersion::V5] {
        for case in &CASES {
            let expected = golden(case.name, version);
            let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
            let mpanel = node.mpanel(version);
            mpanel.open().await.unwrap();
            let mut last = Ok(Value::Null);
            for (function, args) in (case.calls)(&expected["argumentsPassed"]) {
                last = mpanel.call_at(function, args, 1_764_800_000_000).await;
            }
            mpanel.close().await.unwrap();
            match case.name {
                "getQueueStats" => assert_eq!(last.unwrap(), expected["returned"]),
                "scheduleHealthChecks-0" => assert!(last.is_err()),
                _ => drop(last.unwrap()),
            }
            let (ours, theirs) = (normal(&dump(&mut connection).await), normal(&expected["keys"]));
            for key in theirs.as_object().unwrap().keys().chain(ours.as_object().unwrap().keys()) {
                assert_eq!(ours[key], theirs[key], "{} on {}: {key}", case.name, version.release());
            }
        }
    }
}

#[test]
fn masks_leave_short_numbers_and_text_alone() {
    assert_eq!(masked("create-151-1764800000000"), "create-151-0");
    assert_eq!(masked("create-151-<ms>"), "create-151-0");
    assert_eq!(masked("größer 5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11!"), "größer <uuid>!");
    assert_eq!(
        masked("repeat:775baf7d31e163ff254591f3d495b9ea:<slot_ms>"),
        "repeat:775baf7d31e163ff254591f3d495b9ea:0"
    );
}
