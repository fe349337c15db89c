//! The keys of a database in the form of the goldens: sorted, parsed where the
//! order is free, masked where values are random.

use mpanel_connect::Redis;
use redis::Value as Reply;
use serde_json::{Map, Value, json};

use super::PREFIX;
use crate::TestkitError;

fn failed(error: impl std::fmt::Display) -> TestkitError {
    TestkitError::failed("dump the keys", error.to_string())
}

/// Replaces every UUID.
#[must_use]
pub fn mask(text: &str) -> String {
    const SHAPE: [usize; 5] = [8, 4, 4, 4, 12];
    let bytes = text.as_bytes();
    let is_uuid = |at: usize| -> Option<usize> {
        let mut i = at;
        for (n, len) in SHAPE.into_iter().enumerate() {
            if n > 0 {
                (bytes.get(i) == Some(&b'-')).then_some(())?;
                i += 1;
            }
            for _ in 0..len {
                bytes.get(i).filter(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))?;
                i += 1;
            }
        }
        Some(i)
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = 0;
    let mut i = 0;
    while i < bytes.len() {
        if let Some(end) = is_uuid(i) {
            out.push_str(&text[rest..i]);
            out.push_str("<uuid>");
            rest = end;
            i = end;
        } else {
            i += 1;
        }
    }
    out.push_str(&text[rest..]);
    out
}

/// Objects with their keys in order.
#[must_use]
pub fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Object(map) => {
            let mut keys: Vec<_> = map.keys().cloned().collect();
            keys.sort();
            Value::Object(keys.into_iter().map(|k| (k.clone(), sorted(&map[&k]))).collect())
        }
        _ => super::js::normalised(value),
    }
}

fn hash_value(key: &str, mut fields: Vec<(String, String)>) -> Value {
    fields.sort();
    let mut out = Map::new();
    for (name, text) in fields {
        let value = if name == "version" && key.ends_with(":meta") {
            json!("<version>")
        } else if matches!(name.as_str(), "opts" | "parent" | "pd") {
            match serde_json::from_str::<Value>(&mask(&text)) {
                Ok(parsed) => json!({ "$json": sorted(&parsed) }),
                Err(_) => json!(mask(&text)),
            }
        } else {
            json!(mask(&text))
        };
        out.insert(mask(&name), value);
    }
    Value::Object(out)
}

/// Every key under the scenario prefix.
///
/// # Errors
/// When Redis fails.
pub async fn dump(redis: &Redis) -> Result<Map<String, Value>, TestkitError> {
    Ok(entries(redis).await?.into_iter().collect())
}

/// The same as pairs: jobs with random ids are all of one name, of which a dump shows the
/// last.
///
/// # Errors
/// When Redis fails.
pub async fn entries(redis: &Redis) -> Result<Vec<(String, Value)>, TestkitError> {
    let mut conn = redis.shared().await.map_err(failed)?.conn;
    let mut keys: Vec<String> =
        redis::cmd("KEYS").arg(format!("{PREFIX}:*")).query_async(&mut conn).await.map_err(failed)?;
    keys.sort();
    let mut out = Vec::new();
    for key in keys {
        let (kind, ttl): (String, i64) = redis::pipe()
            .cmd("TYPE")
            .arg(&key)
            .cmd("PTTL")
            .arg(&key)
            .query_async(&mut conn)
            .await
            .map_err(failed)?;
        let value = match kind.as_str() {
            "hash" => {
                let fields = redis::cmd("HGETALL").arg(&key).query_async(&mut conn).await.map_err(failed)?;
                hash_value(&key, fields)
            }
            "list" => {
                let items: Vec<String> = redis::cmd("LRANGE")
                    .arg(&key)
                    .arg(0)
                    .arg(-1)
                    .query_async(&mut conn)
                    .await
                    .map_err(failed)?;
                items.iter().map(|i| mask(i)).collect()
            }
            "set" => {
                let mut items: Vec<String> =
                    redis::cmd("SMEMBERS").arg(&key).query_async(&mut conn).await.map_err(failed)?;
                items.sort();
                items.iter().map(|i| mask(i)).collect()
            }
            "zset" => {
                let pairs: Vec<(String, String)> = redis::cmd("ZRANGE")
                    .arg(&key)
                    .arg(0)
                    .arg(-1)
                    .arg("WITHSCORES")
                    .query_async(&mut conn)
                    .await
                    .map_err(failed)?;
                pairs.into_iter().map(|(m, s)| json!([mask(&m), s])).collect()
            }
            "stream" => {
                let entries: Vec<(String, Vec<(String, String)>)> = redis::cmd("XRANGE")
                    .arg(&key)
                    .arg("-")
                    .arg("+")
                    .query_async(&mut conn)
                    .await
                    .map_err(failed)?;
                entries
                    .into_iter()
                    .map(|(_, fields)| {
                        fields.into_iter().map(|(f, v)| json!([f, mask(&v)])).collect::<Value>()
                    })
                    .collect()
            }
            _ => {
                let text: Option<String> =
                    redis::cmd("GET").arg(&key).query_async(&mut conn).await.map_err(failed)?;
                // Expired since the keys were listed.
                let Some(text) = text else { continue };
                json!(mask(&text))
            }
        };
        let ttl = if ttl >= 0 { "set" } else { "none" };
        out.push((mask(&key), json!({ "type": kind, "ttl": ttl, "value": value })));
    }
    Ok(out)
}

/// Removes every key under the scenario prefix.
///
/// # Errors
/// When Redis fails.
pub async fn wipe(redis: &Redis) -> Result<(), TestkitError> {
    let mut conn = redis.shared().await.map_err(failed)?.conn;
    let keys: Vec<String> =
        redis::cmd("KEYS").arg(format!("{PREFIX}:*")).query_async(&mut conn).await.map_err(failed)?;
    if !keys.is_empty() {
        redis::cmd("DEL").arg(keys).query_async::<()>(&mut conn).await.map_err(failed)?;
    }
    Ok(())
}

/// A reply to a raw command, as Node's client would give it.
#[must_use]
pub fn reply_to_json(reply: &Reply) -> Value {
    match reply {
        Reply::Nil => Value::Null,
        Reply::Int(n) => json!(n),
        Reply::Okay => json!("OK"),
        Reply::BulkString(bytes) => json!(String::from_utf8_lossy(bytes)),
        Reply::SimpleString(text) => json!(text),
        Reply::Array(items) => items.iter().map(reply_to_json).collect(),
        other => json!(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_masked_wherever_they_stand() {
        let id = "5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11";
        assert_eq!(mask(&format!("a:{id}:lock")), "a:<uuid>:lock");
        assert_eq!(mask(&format!("{id}{id}")), "<uuid><uuid>");
        assert_eq!(mask("1-2-3 é"), "1-2-3 é");
    }

    #[test]
    fn objects_are_sorted_and_whole_floats_are_integers() {
        assert_eq!(
            sorted(&json!({"b": 1.0, "a": [{"d": 1, "c": 2}]})).to_string(),
            r#"{"a":[{"c":2,"d":1}],"b":1}"#
        );
    }
}
