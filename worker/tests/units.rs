//! The systemd units are what systemd takes, and hardened; the examples of their
//! environments name what there is.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use mpanel_worker::services;

/// Most exposure that `systemd-analyze security` may find, in tenths.
const EXPOSURE_MAX: &str = "--threshold=15";
const FLEET_ENV: &str = include_str!("../../deploy/env/fleet.env.example");
type Queues = fn() -> Vec<&'static str>;

/// The units of services: their environments, and their queues.
const SERVICES: [(&str, &str, Queues); 2] = [
    ("mpanel-cloudpods.service", include_str!("../../deploy/systemd/mpanel-cloudpods.env.example"), || {
        services::cloudpods::queues().collect()
    }),
    ("mpanel-telemetry.service", include_str!("../../deploy/systemd/mpanel-telemetry.env.example"), || {
        services::telemetry::queues().collect()
    }),
];

fn units() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "service")).collect()
}

/// Runs `systemd-analyze`; what it said when it was not content.
fn analyze(args: &[&str], unit: &Path) -> Option<String> {
    let output = Command::new("systemd-analyze").args(args).arg(unit).output();
    let output = output.expect("systemd-analyze is missing: run `make setup` or `apt-get install systemd`");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (!output.status.success()).then_some(text)
}

#[test]
fn every_unit_is_valid_and_hardened() {
    let dir = tempfile::tempdir().unwrap();
    let units = units();
    assert!(units.len() >= 2, "{units:?}");
    for unit in units {
        let text = fs::read_to_string(&unit).unwrap();
        // The program is not installed here, and must be where the unit says.
        let text = text.replace("/usr/bin/mpanel-worker", env!("CARGO_BIN_EXE_mpanel-worker"));
        let name = unit.file_name().unwrap().to_str().unwrap().replace("@.", "@any.");
        let copy = dir.path().join(&name);
        fs::write(&copy, text).unwrap();
        assert_eq!(analyze(&["verify", "--man=no"], &copy), None, "{name}");
        assert_eq!(analyze(&["security", "--offline=true", EXPOSURE_MAX], &copy), None, "{name}");
    }
}

#[test]
fn units_drain_before_they_are_killed_and_do_not_start_again_when_wrong() {
    for unit in units() {
        let text = fs::read_to_string(&unit).unwrap();
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .unwrap_or_else(|| panic!("{unit:?}: {key}"))
        };
        // The drain time of the settings, 300 s, and a margin.
        assert!(value("TimeoutStopSec").parse::<u32>().unwrap() > 300, "{unit:?}");
        assert_eq!((value("Type"), value("KillMode")), ("notify", "mixed"), "{unit:?}");
        assert!(value("RestartPreventExitStatus").split(' ').any(|code| code == "78"), "{unit:?}");
    }
}

#[test]
fn the_units_serve_every_queue_of_their_services() {
    for (name, _, known) in SERVICES {
        let unit = units().into_iter().find(|path| path.ends_with(name)).unwrap();
        let text = fs::read_to_string(unit).unwrap();
        let exec = text.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
        let queues = exec.split(' ').skip_while(|word| *word != "--queues").nth(1).unwrap();
        let mut queues: Vec<&str> = queues.split(',').collect();
        queues.sort_unstable();
        let mut known = known();
        known.sort_unstable();
        assert_eq!(queues, known, "{name}");
    }
}

#[test]
fn the_examples_beside_the_units_are_parts_of_the_whole() {
    let sections = |text: &'static str| text.split("\n# --- ").skip(1).map(str::trim_end);
    let theirs: Vec<&str> = sections(FLEET_ENV).collect();
    for (name, environment, _) in SERVICES {
        let own = sections(environment).filter(|section| !section.starts_with("This unit's own"));
        let mut count = 0;
        for section in own {
            count += 1;
            assert!(theirs.contains(&section), "{name} differs from fleet.env.example:\n{section}");
        }
        assert!(count >= 1, "{name}");
    }
}
