//! Next times of cron patterns: ours against those of every bullmq generation,
//! over zones, changed clocks, start and end dates (`reliability.md`, row 23).

use std::{path::Path, process::Command};

use mpanel_protocol::{
    peer::Peer,
    schedule::{Bounds, Cron, Zone},
    time::TimestampMs,
};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    version: String,
    pattern: String,
    tz: String,
    from: i64,
    start_date: Option<i64>,
    end_date: Option<i64>,
    next: Option<i64>,
}

fn ours(case: &Case) -> Result<Option<i64>, String> {
    let peer = if case.version == "bullmq-6" { Peer::V6 } else { Peer::V5 };
    let zone = Zone::named(&case.tz, Zone::utc()).map_err(|e| e.to_string())?;
    let bounds = Bounds { start: case.start_date.map(TimestampMs), end: case.end_date.map(TimestampMs) };
    let cron = Cron::parse(&case.pattern, peer).map_err(|e| e.to_string())?;
    Ok(cron.next_after(TimestampMs(case.from), zone, bounds).map(|at| at.0))
}

#[test]
fn cron_slots_equal_those_of_node() {
    let seed = std::env::var("SEED").unwrap_or_else(|_| "20260901".to_owned());
    let count = std::env::var("COUNT").unwrap_or_else(|_| "15000".to_owned());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("node/cron-slots.mjs");
    let output = Command::new("node").arg(script).args([&seed, &count]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (mut compared, mut refused) = (0, Vec::new());
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        match (ours(&case), case.next) {
            (Ok(ours), node) => {
                assert_eq!(ours, node, "seed {seed}: {line}");
                compared += usize::from(node.is_some());
            }
            // Where Node finds nothing, or refuses, an error is the better answer.
            (Err(_), None) => {}
            // What is refused knowingly though Node makes something of it.
            (Err(why), Some(_)) => refused.push(format!("{}: {why}", case.pattern)),
        }
    }
    let known = |text: &str| text.contains('H') || text.contains("1-2-3");
    let unknown: Vec<_> = refused.iter().filter(|r| !known(r)).collect();
    assert!(unknown.is_empty(), "refused though Node takes them: {unknown:#?}");
    let wanted: usize = count.parse::<usize>().unwrap() * 8 / 10;
    assert!(compared >= wanted, "only {compared} times were compared");
}
