//! `testkit/data` holds copies of what the project's shared folder owns; where that folder is present beside
//! the clone they must be equal to it, file by file. A clean clone has only the copies.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// (below `testkit/data`, below the shared folder)
const COPIES: [(&str, &str); 8] = [
    ("scenarios", "conformance/scenarios"),
    ("golden", "conformance/golden"),
    ("mpanel", "conformance/mpanel"),
    ("proxmox", "conformance/proxmox"),
    ("oracle.mjs", "conformance/oracle.mjs"),
    ("oracle.md", "conformance/README.md"),
    ("examples", "design/examples"),
    ("mpanel-schema.sql", "design/mpanel-schema.sql"),
];
/// Tools of the shared folder; the copy is executable.
const TOOL: (&str, &str) = ("redis-topology.sh", "tools/redis-topology.sh");

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

fn shared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared")
}

/// Relative path and content of a file, or of every file below a directory.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let content = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            found.insert(path.strip_prefix(root).unwrap().to_path_buf(), content);
        }
    }
    found
}

#[test]
fn the_copies_equal_the_shared_folder_where_it_is_present() {
    if !shared().join("conformance").is_dir() {
        println!("no shared folder beside this clone: the copies are all there is");
        return;
    }
    let mut differences = Vec::new();
    for (ours, theirs) in COPIES.iter().chain([&TOOL]) {
        let (ours_read, theirs_read) = (contents(&data().join(ours)), contents(&shared().join(theirs)));
        for name in theirs_read.keys().chain(ours_read.keys()) {
            if ours_read.get(name) != theirs_read.get(name) {
                differences.push(format!("data/{ours}/{} != {theirs}", name.display()));
            }
        }
    }
    differences.dedup();
    assert!(differences.is_empty(), "copy them anew: {differences:#?}");
}

#[test]
fn every_scenario_has_a_golden_dump_per_version() {
    for name in contents(&data().join("scenarios")).keys() {
        let text = std::fs::read_to_string(data().join("scenarios").join(name)).unwrap();
        let scenario: serde_json::Value = serde_json::from_str(&text).unwrap();
        for version in mpanel_testkit::BullVersion::ALL {
            let meant = scenario["versions"].as_array();
            if meant.is_some_and(|versions| !versions.iter().any(|v| v == version.alias())) {
                continue;
            }
            let golden = data().join("golden").join(version.alias()).join(name);
            assert!(golden.is_file(), "{} is missing", golden.display());
        }
    }
}
