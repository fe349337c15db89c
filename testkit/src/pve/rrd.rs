//! Metric rows of guests and nodes, with the gaps a real round-robin file has.
//!
//! Values are a pure function of (id, time), so that two readers see the same.

use serde_json::{Value, json};

use super::dispatch::Call;
use super::state::{Cluster, Guest, unix_s};
use super::wire::Reply;

const ROWS: u64 = 70;

pub(crate) fn guest(cluster: &Cluster, guest: &Guest, call: &Call<'_>) -> Reply {
    rows(call, u64::from(guest.vmid), guest.cores(), guest.memory_bytes(), cluster.disk_bytes(guest))
}

pub(crate) fn node(cluster: &Cluster, name: &str, call: &Call<'_>) -> Reply {
    let seed = name.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    rows(call, seed, u64::from(cluster.limits.node_cores), cluster.limits.node_memory_bytes, 100 << 30)
}

fn rows(call: &Call<'_>, seed: u64, cores: u64, memory: u64, disk: u64) -> Reply {
    let step_s = match call.params.text("timeframe") {
        "day" => 1_800,
        "week" => 10_800,
        "month" => 43_200,
        "year" | "decade" => 604_800,
        _ => 60,
    };
    let end = unix_s() / step_s * step_s;
    let rows = (0..ROWS)
        .map(|index| {
            let time = end.saturating_sub((ROWS - 1 - index) * step_s);
            let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003) ^ time);
            // The newest interval is not closed yet, and now and then a broadcast is missed.
            if index + 1 == ROWS || rng.u8(..) < 12 {
                return json!({ "time": time, "maxcpu": cores, "maxmem": memory, "cpu": null, "mem": null });
            }
            if rng.u8(..) < 8 {
                return json!({ "time": time });
            }
            json!({
                "time": time, "maxcpu": cores, "maxmem": memory, "maxdisk": disk, "cpu": rng.f64() * 0.6,
                "mem": memory as f64 * (0.2 + rng.f64() * 0.3), "disk": disk as f64 * 0.125,
                "netin": rng.f64() * 20_000.0, "netout": rng.f64() * 9_000.0, "diskread": rng.f64() * 40_000.0,
                "diskwrite": rng.f64() * 30_000.0,
            })
        })
        .collect();
    Reply::Data(Value::Array(rows))
}
