//! The samples that mPanel's own producer leaves, and the looseness allowed.

use serde_json::{Value, json};

use super::*;
use crate::payload::guardian::{RemediationPayload, ScanPayload};

fn round_trip<T>(data: &str) -> T
where
    T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug,
{
    let decoded: T = serde_json::from_str(data).unwrap();
    let written = serde_json::to_value(&decoded).unwrap();
    let original: Value = serde_json::from_str(data).unwrap();
    for (field, value) in original.as_object().unwrap() {
        assert_eq!(&written[field], value, "field {field}");
    }
    let again: T = serde_json::from_value(written).unwrap();
    assert_eq!(again, decoded);
    decoded
}

#[test]
fn every_sample_of_mpanel_survives_the_round_trip() {
    let create: CreatePayload = round_trip(
        r#"{"tenantId":"5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11","vmid":151,"hostname":"shop-01.example.net",
        "autoIp":true,"cores":2,"memoryMb":2048,"swapMb":512,"diskGb":20,"region":"migra-us-east-1",
        "requestedBy":"c2b7e4d0-95a3-4f7e-b1c8-2e6f0a9d7b35","planId":"student"}"#,
    );
    assert_eq!((create.vmid, create.kind, create.ip), (Some(151), None, None));
    round_trip::<DestroyPayload>(
        r#"{"tenantId":"5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11","vmid":121,
        "cloudPodId":"0b8e2f7d-3c19-4c55-8a0e-6f2f9b1d4a02","requestedBy":"api","reason":"subscription ended"}"#,
    );
    round_trip::<BackupPayload>(
        r#"{"tenantId":"5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11","vmid":121,
        "cloudPodId":"0b8e2f7d-3c19-4c55-8a0e-6f2f9b1d4a02","mode":"snapshot",
        "snapshotName":"before-upgrade","triggeredBy":"pre-scale"}"#,
    );
    round_trip::<HealthPayload>(
        r#"{"tenantId":"5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11","vmid":121,
        "cloudPodId":"0b8e2f7d-3c19-4c55-8a0e-6f2f9b1d4a02","triggeredBy":"focalpilot"}"#,
    );
    round_trip::<SweepPayload>(
        r#"{"tenantId":"system","vmid":0,"cloudPodId":"all","triggeredBy":"schedule"}"#,
    );
    round_trip::<ScalePayload>(
        r#"{"tenantId":"5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11","vmid":121,
        "cloudPodId":"0b8e2f7d-3c19-4c55-8a0e-6f2f9b1d4a02","currentCores":2,"currentMemoryMb":2048,
        "newCores":4,"newMemoryMb":4096,"requestedBy":"api","backupFirst":true}"#,
    );
    round_trip::<ScanPayload>(
        r#"{"scanId":"9d1b6f0e-54c7-4a39-b0d2-17c3e8a6f501",
        "tenantId":"5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11","serverId":null,"dataRegion":"us","type":"tls"}"#,
    );
    round_trip::<RemediationPayload>(
        r#"{"remediationId":"c2a7d4e9-0f36-4b8d-9e15-a4b60d7f8c33",
        "tenantId":"5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11","serverId":null,"dataRegion":"us"}"#,
    );
}

fn sample() -> Value {
    json!({"tenantId": "5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11", "vmid": 121, "hostname": "shop",
        "autoIp": true, "cores": 2, "memoryMb": 2048, "swapMb": 512, "diskGb": 20, "region": "r"})
}

#[test]
fn loose_typing_and_unknown_fields_are_forgiven() {
    let mut data = sample();
    data["vmid"] = json!("121");
    data["cores"] = json!(2.0);
    data["memoryMb"] = json!(" 2.048e3 ");
    data["autoIp"] = json!("true");
    data["ip"] = Value::Null;
    data["planId"] = json!(7);
    data["blueprintId"] = json!("");
    data["fromTheFuture"] = json!({"a": [1]});
    let payload = CreatePayload::try_from(data).unwrap();
    assert_eq!((payload.vmid, payload.cores, payload.memory_mb), (Some(121), 2, 2048));
    assert_eq!(payload.plan_id.as_deref(), Some("7"));
    assert_eq!((payload.auto_ip, payload.ip, payload.blueprint_id), (Some(true), None, None));
    for (word, flag) in [(json!(0), false), (json!(1), true), (json!("0"), false), (json!(false), false)] {
        let mut data = sample();
        data["autoIp"] = word;
        assert_eq!(CreatePayload::try_from(data).unwrap().auto_ip, Some(flag));
    }
}

#[test]
fn every_wrong_field_is_named_at_once_as_the_producer_spells_it() {
    let error = CreatePayload::try_from(json!({
        "tenantId": "acme", "hostname": ["a"], "cores": 1.5, "memoryMb": "much", "autoIp": "perhaps",
        "kind": "pony", "vmid": 1e300, "requestedBy": "a\0b"
    }))
    .unwrap_err();
    let text = error.to_string();
    for field in [
        "tenantId",
        "hostname",
        "cores",
        "memoryMb",
        "autoIp",
        "kind",
        "vmid",
        "requestedBy",
        "diskGb is missing",
    ] {
        assert!(text.contains(field), "{field} in {text}");
    }
    assert!(text.contains("lxc vm"), "{text}");
    assert_eq!(error.problems.iter().filter(|problem| problem.field == "cores").count(), 1);
}

#[test]
fn what_is_no_object_is_refused() {
    for data in [json!(null), json!([1]), json!("x"), json!(7)] {
        let text = CreatePayload::try_from(data).unwrap_err().to_string();
        assert!(text.starts_with("Invalid payload: data must be a JSON object"), "{text}");
    }
}
