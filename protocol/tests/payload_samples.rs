//! Every payload that mPanel's own producer was seen to leave is read, and
//! written again as it was.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

use std::{fs, path::Path};

use mpanel_protocol::payload::{
    cloudpods::{BackupPayload, CreatePayload, DestroyPayload, HealthPayload, ScalePayload, SweepPayload},
    guardian::{RemediationPayload, ScanPayload},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn same<T: Serialize + DeserializeOwned>(data: &Value, from: &str) {
    let decoded: T = serde_json::from_value(data.clone()).unwrap_or_else(|error| panic!("{from}: {error}"));
    let written = serde_json::to_value(decoded).unwrap();
    for (field, value) in data.as_object().unwrap() {
        assert_eq!(written.get(field), Some(value), "{from}: {field}");
    }
}

fn check(name: &str, data: &Value, from: &str) {
    match name {
        "create" => same::<CreatePayload>(data, from),
        "destroy" => same::<DestroyPayload>(data, from),
        "backup" => same::<BackupPayload>(data, from),
        "health" => same::<HealthPayload>(data, from),
        "scheduled-health-sweep" => same::<SweepPayload>(data, from),
        "scale" => same::<ScalePayload>(data, from),
        "guardian-scan" => same::<ScanPayload>(data, from),
        "guardian-remediation" => same::<RemediationPayload>(data, from),
        other => panic!("{from}: no payload type for job name {other}"),
    }
}

fn files(folder: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/data").join(folder);
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".json") {
            files.push((name, serde_json::from_str(&fs::read_to_string(entry.path()).unwrap()).unwrap()));
        }
    }
    assert!(!files.is_empty(), "{} holds no sample", folder.display());
    files
}

#[test]
fn the_examples_are_read() {
    for (file, sample) in files("examples") {
        check(sample["name"].as_str().unwrap(), &sample["data"], &file);
    }
}

#[test]
fn what_mpanels_producer_was_called_with_is_read() {
    let mut checked = 0;
    for (file, dump) in files("mpanel") {
        let Some(name) = dump["returned"]["name"].as_str() else { continue };
        let Some(data) = dump["argumentsPassed"].get(0).filter(|data| data.is_object()) else { continue };
        check(name, data, &file);
        checked += 1;
    }
    assert!(checked >= 15, "only {checked} dumps hold a payload");
}
