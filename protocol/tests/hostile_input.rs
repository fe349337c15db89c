//! Whatever other programs leave in a job, reading it never panics, never takes
//! long, and what was read can be used: arbitrary text, real values with a byte
//! changed, JSON of any shape. `FLEET_TEST_TIER=full` tries a hundred times as many.
#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

use mpanel_protocol::{
    ids::{JobId, Prefix, QueueName},
    lenient,
    options::JobOptions,
    payload::{
        cloudpods::{
            BackupPayload, CreatePayload, DestroyPayload, HealthPayload, ScalePayload, SweepPayload,
        },
        guardian::{RemediationPayload, ScanPayload},
    },
    peer::Peer,
    schedule::{Bounds, Cron, Repeat, Zone},
    seal::{Keyring, unseal},
    time::TimestampMs,
    trace::{SpanId, TraceContext, TraceId},
    unique,
};
use proptest::{collection::vec, prelude::*, sample::select};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

fn config() -> ProptestConfig {
    let full = std::env::var("FLEET_TEST_TIER").is_ok_and(|tier| tier == "full");
    ProptestConfig {
        cases: if full { 100_000 } else { 1_000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What stands in real jobs.
const SEEDS: &[&str] = &[
    r#"{"attempts":3,"backoff":{"type":"exponential","delay":1000,"jitter":0.5},"priority":7,"kl":9}"#,
    r#"{"attempts":0,"removeOnComplete":{"age":60,"count":5,"limit":9},"removeOnFail":true,"lifo":true}"#,
    r#"{"de":{"id":"x","ttl":500,"extend":true,"replace":true,"keepLastIfActive":false},"delay":-5}"#,
    r#"{"repeat":{"pattern":"0 3 * * *","tz":"Europe/Berlin","limit":3},"prevMillis":1700000000000,"tm":"{}"}"#,
    r#"{"repeat":{"every":60000,"offset":17,"startDate":"2026-01-01","endDate":1e13},"omc":true}"#,
    r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"a=b"}"#,
    r#"{"podId":"0b0e7a3c-6a64-4a3a-9c39-6a3f6a1d2d11","vmid":121,"hostname":"a","cores":2,"memoryMb":2048}"#,
    r#"{"tenantId":"0b0e7a3c-6a64-4a3a-9c39-6a3f6a1d2d11","type":"mail","scanId":"x","policy":{"a":[1,2]}}"#,
    r#"{"secret":{"$sealed":{"v":1,"kid":"k1","iv":"AAAAAAAAAAAAAAAA","ct":"AAAAAAAAAAAAAAAAAAAAAA=="}}}"#,
    "*/5 * * * *",
    "0 0 12 ? * MON-FRI#2,L",
    "59 23 29 2 0-7/2",
];

fn any_json() -> impl Strategy<Value = Value> {
    let words = [
        "attempts", "backoff", "type", "delay", "repeat", "every", "de", "id", "$sealed", "kid", "vmid", "tm",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(vec![
            json!(1e308),
            json!(-1),
            json!(9_007_199_254_740_993_u64),
            json!("1e999"),
            json!("\u{0}")
        ]),
        ".{0,20}".prop_map(Value::from),
    ];
    let key = prop_oneof![select(words.to_vec()).prop_map(str::to_owned), ".{0,8}"];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((key.clone(), inner), 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A real value with some of its bytes changed, taken out or put in.
fn damaged() -> impl Strategy<Value = String> {
    let damage = (any::<prop::sample::Index>(), any::<u8>(), 0..3);
    (select(SEEDS.to_vec()), vec(damage, 0..4)).prop_map(|(seed, damages)| {
        let mut bytes = seed.as_bytes().to_vec();
        for (at, byte, how) in damages {
            let at = at.index(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            match how {
                0 if !bytes.is_empty() => bytes[at] = byte,
                1 if !bytes.is_empty() => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![damaged(), any_json().prop_map(|value| value.to_string()), ".{0,60}", "\\[{0,300}"]
}

/// A payload that is taken can be written, and is taken again.
fn payload<T: Serialize + DeserializeOwned>(text: &str) {
    if let Ok(read) = serde_json::from_str::<T>(text) {
        let written = serde_json::to_string(&read).unwrap();
        assert!(serde_json::from_str::<T>(&written).is_ok(), "{written}");
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn options_of_any_kind_are_read_or_refused(text in hostile(), made in any::<u32>(), random in 0.0..1.0f64) {
        if let Ok(options) = JobOptions::from_json(&text) {
            prop_assert!(options.max_attempts() >= 1);
            if let Some(delay_ms) = options.backoff.as_ref().and_then(|b| b.delay_ms(made.max(1), random)) {
                // A time that lies so far away is a number still, and a whole one fits.
                prop_assert!(delay_ms.abs() <= 9_007_199_254_740_991.0, "{delay_ms}");
            }
            let traces = options.limit_stacktrace(vec!["a".into(); 20]);
            prop_assert!(traces.len() <= 20);
            let written = serde_json::to_string(&options).unwrap();
            prop_assert_eq!(JobOptions::from_json(&written).unwrap().max_attempts(), options.max_attempts());
        }
    }

    #[test]
    fn payloads_of_every_queue_are_read_or_refused(text in hostile()) {
        payload::<CreatePayload>(&text);
        payload::<DestroyPayload>(&text);
        payload::<BackupPayload>(&text);
        payload::<HealthPayload>(&text);
        payload::<SweepPayload>(&text);
        payload::<ScalePayload>(&text);
        payload::<ScanPayload>(&text);
        payload::<RemediationPayload>(&text);
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let _ = (lenient::number(&value), lenient::truth(&value));
            let _ = unique::key("a", &value, &["id".into(), "/a/0".into(), text.clone()]);
        }
    }

    #[test]
    fn sealed_payloads_are_opened_or_refused(text in hostile()) {
        let keys = Keyring::new("k1", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
        let queue = QueueName::new("q").unwrap();
        for keyring in [None, Some(&keys)] {
            let _ = unseal(&text, &queue, &JobId::stored(text.clone()), keyring);
        }
    }

    #[test]
    fn trace_contexts_are_read_and_written_again(text in hostile()) {
        let (context, parent) = TraceContext::continuing(Some(&text), TraceId::random(1), SpanId::random(2));
        let again = TraceContext::from_carrier(&context.to_carrier()).unwrap();
        prop_assert_eq!(&again, &context);
        prop_assert_eq!(parent.is_some(), TraceContext::from_carrier(&text).is_some());
    }

    #[test]
    fn schedules_come_up_later_or_never(text in hostile(), at in 0i64..4_000_000_000_000, zone in ".{0,12}") {
        let local = Zone::named(&zone, Zone::utc()).unwrap_or_default();
        for peer in [Peer::V5, Peer::V6] {
            if let Ok(cron) = Cron::parse(&text, peer)
                && let Some(next) = cron.next_after(TimestampMs(at), local, Bounds::default())
            {
                prop_assert!(next.0 > at, "{text} after {at}: {next:?}");
            }
        }
        if let Ok(Value::Object(fields)) = serde_json::from_str(&text) {
            let repeat = fields.get("repeat").and_then(Value::as_object).cloned().unwrap_or(fields);
            let _ = Repeat::from_json(repeat).rhythm();
        }
    }

    #[test]
    fn lone_surrogates_become_replacements_and_nothing_else_changes(text in hostile(), units in vec(0xD7F0u16..0xE010, 0..6)) {
        let escaped: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
        let value: String = serde_json::from_str(&format!("\"{}\"", lenient::without_lone_surrogates(&escaped))).unwrap();
        prop_assert_eq!(value, String::from_utf16_lossy(&units));
        if serde_json::from_str::<Value>(&text).is_ok() {
            prop_assert_eq!(&*lenient::without_lone_surrogates(&text), text.as_str());
        }
    }

    #[test]
    fn names_are_taken_or_refused(text in hostile()) {
        let _ = (QueueName::new(text.clone()), Prefix::new(text.clone()), JobId::custom(text));
    }
}
