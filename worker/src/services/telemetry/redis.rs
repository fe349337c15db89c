//! The collector of Redis: what the server says of itself, and whether it is fit
//! to hold queues.

use std::{collections::BTreeMap, time::Instant};

use mpanel_connect::Redis;
use sqlx::PgPool;

use super::{
    Collected, NewBaseline,
    sample::{Check, Reading, Samples},
};
use crate::adapters::{
    db::slow_queries,
    redis_stats::{self, Server, SlowEntry},
};

/// Its name in `monitoring_service_status`.
pub const SERVICE: &str = "redis-core";
const BASELINE: &str = "redis slowlog";
/// More of `maxmemory` in use is a warning.
const MEMORY_MAX: f64 = 0.9;

/// Fields of INFO that are figures, and the name of each.
const FIGURES: &[(&str, &str)] = &[
    ("used_memory", "redis_memory_bytes"),
    ("used_memory_rss", "redis_memory_rss_bytes"),
    ("used_memory_peak", "redis_memory_peak_bytes"),
    ("used_memory_dataset", "redis_memory_dataset_bytes"),
    ("maxmemory", "redis_memory_max_bytes"),
    ("mem_fragmentation_ratio", "redis_memory_fragmentation_ratio"),
    ("mem_fragmentation_bytes", "redis_memory_fragmentation_bytes"),
    ("connected_clients", "redis_clients"),
    ("blocked_clients", "redis_blocked_clients"),
    ("maxclients", "redis_clients_max"),
    ("rejected_connections", "redis_rejected_connections_total"),
    ("total_commands_processed", "redis_commands_total"),
    ("instantaneous_ops_per_sec", "redis_commands_per_second"),
    ("evicted_keys", "redis_evicted_keys_total"),
    ("expired_keys", "redis_expired_keys_total"),
    ("total_error_replies", "redis_error_replies_total"),
    ("keyspace_hits", "redis_keyspace_hits_total"),
    ("keyspace_misses", "redis_keyspace_misses_total"),
    ("rdb_changes_since_last_save", "redis_changes_since_save"),
    ("rdb_last_save_time", "redis_last_save_timestamp_seconds"),
    ("aof_enabled", "redis_aof_enabled"),
    ("aof_delayed_fsync", "redis_aof_delayed_fsync_total"),
    ("latest_fork_usec", "redis_latest_fork_microseconds"),
    ("connected_slaves", "redis_replicas"),
    ("master_repl_offset", "redis_replication_offset_bytes"),
    ("uptime_in_seconds", "redis_uptime_seconds"),
];

type Info = BTreeMap<String, String>;

/// Looks at every server.
pub(super) async fn collect(db: &PgPool, redis: &Redis) -> Collected {
    let begun = Instant::now();
    let servers = match redis_stats::servers(redis).await {
        Ok(servers) => servers,
        Err(error) => {
            let reading = Reading::down(error.to_string());
            return Collected { checks: vec![Check::of(SERVICE, reading)], ..Collected::default() };
        }
    };
    let took = i32::try_from(begun.elapsed().as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    let before = slow_queries::baseline(db, BASELINE).await.ok().flatten();
    let from = before.as_ref().map(|before| before.tick_at);
    let seen: BTreeMap<String, i64> =
        before.and_then(|before| serde_json::from_str(&before.data).ok()).unwrap_or_default();
    let mut collected = Collected::default();
    let mut now_seen = BTreeMap::new();
    let mut complaints = Vec::new();
    let mut refused = Vec::new();
    for (n, server) in servers.iter().enumerate() {
        // There is mostly one; those of a Cluster are told apart by their place.
        let subject = if servers.len() == 1 { String::new() } else { format!("server-{}", n + 1) };
        match &server.info {
            Ok(info) => {
                figures(&mut collected.samples, &subject, info);
                complaints.extend(unfit(info));
                if let (Ok(entries), Some(run)) = (&server.slowlog, info.get("run_id")) {
                    slow_commands(&mut collected.samples, &subject, entries, seen.get(run).copied());
                    let newest = entries.iter().map(|entry| entry.id).max();
                    now_seen.insert(run.clone(), newest.or(seen.get(run).copied()).unwrap_or(-1));
                }
            }
            Err(why) => refused.push(format!("INFO: {why}")),
        }
        refused.extend(refusals(server));
        for (event, ms) in server.latency.iter().flatten() {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
            collected.samples.add("redis_latency_seconds", event, *ms as f64 / 1000.0);
        }
    }
    let reading = match complaints.first() {
        None => Reading::up(Some(took)),
        Some(_) => Reading::degraded(Some(took), complaints.join("; ")),
    };
    collected.checks.push(Check::of(SERVICE, reading));
    collected.baseline =
        serde_json::to_string(&now_seen).ok().map(|data| NewBaseline { name: BASELINE, data, from });
    if !refused.is_empty() {
        let why = refused.join("; ");
        collected.problem =
            Some(format!("Redis refuses to tell: {why}; grant +info +slowlog|get +latency|latest"));
    }
    collected
}

fn refusals(server: &Server) -> impl Iterator<Item = String> {
    let slowlog = server.slowlog.as_ref().err().map(|why| format!("SLOWLOG GET: {why}"));
    let latency = server.latency.as_ref().err().map(|why| format!("LATENCY LATEST: {why}"));
    slowlog.into_iter().chain(latency)
}

fn figures(samples: &mut Samples, subject: &str, info: &Info) {
    for (field, metric) in FIGURES {
        samples.add_some(metric, subject, number(info, field));
    }
    for (field, text) in info {
        if let Some(kind) = field.strip_prefix("errorstat_") {
            let count = text.strip_prefix("count=").and_then(|count| count.split(',').next()?.parse().ok());
            samples.add_some("redis_errors_total", kind, count);
        }
    }
}

fn number(info: &Info, field: &str) -> Option<f64> {
    info.get(field)?.parse().ok()
}

/// What makes a server unfit to hold queues; every field may be missing.
#[must_use]
pub fn unfit(info: &Info) -> Vec<String> {
    let text = |field: &str| info.get(field).map_or("", String::as_str);
    let mut complaints = Vec::new();
    if text("loading") == "1" {
        complaints.push("it is still loading its data".to_owned());
    }
    let policy = text("maxmemory_policy");
    if !matches!(policy, "" | "noeviction") {
        complaints.push(format!("maxmemory-policy is {policy}: jobs may be evicted; set noeviction"));
    }
    if let (Some(used), Some(max)) = (number(info, "used_memory"), number(info, "maxmemory"))
        && max > 0.0
        && used / max > MEMORY_MAX
    {
        complaints.push(format!("{:.0} % of maxmemory is used", 100.0 * used / max));
    }
    for (field, what) in [
        ("rdb_last_bgsave_status", "the last snapshot failed"),
        ("aof_last_write_status", "the append-only file cannot be written"),
        ("aof_last_bgrewrite_status", "the append-only file could not be rewritten"),
    ] {
        if text(field) == "err" {
            complaints.push(format!("{what} ({field} is err); look at its log and its disk"));
        }
    }
    if text("master_link_status") == "down" {
        complaints.push("its link to the primary is down".to_owned());
    }
    complaints
}

/// Commands that entered the slow log since the last look; at the first none are new.
fn slow_commands(samples: &mut Samples, subject: &str, entries: &[SlowEntry], seen: Option<i64>) {
    let new: Vec<&SlowEntry> =
        entries.iter().filter(|entry| seen.is_some_and(|seen| entry.id > seen)).collect();
    let longest = new.iter().map(|entry| entry.micros).max().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "counts and microseconds")]
    {
        samples.add("redis_slow_commands", subject, new.len() as f64);
        samples.add("redis_slowest_command_seconds", subject, longest as f64 / 1_000_000.0);
    }
    let mut by_command: BTreeMap<&str, u32> = BTreeMap::new();
    new.iter().for_each(|entry| *by_command.entry(entry.command.as_str()).or_default() += 1);
    for (command, count) in by_command {
        tracing::debug!(command, count, "slow commands in Redis");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::redis_stats::parse_info;

    #[test]
    fn only_what_endangers_queues_is_complained_of() {
        // An empty server's ratio of fragmentation is high and means nothing.
        let fine = "loading:0\r\nmaxmemory:0\r\nused_memory:999\r\nmaxmemory_policy:noeviction\r\n\
                    rdb_last_bgsave_status:ok\r\nmem_fragmentation_ratio:7.50\r\n";
        assert_eq!(unfit(&parse_info(fine)), Vec::<String>::new());
        assert_eq!(unfit(&parse_info("")), Vec::<String>::new());
        for (line, why) in [
            ("loading:1", "loading"),
            ("maxmemory_policy:allkeys-lru", "set noeviction"),
            ("maxmemory:1000", "100 % of maxmemory"),
            ("aof_last_write_status:err", "append-only"),
            ("master_link_status:down", "link"),
        ] {
            let found = unfit(&parse_info(&format!("{fine}{line}\r\n")));
            assert!(found.len() == 1 && found[0].contains(why), "{line}: {found:?}");
        }
    }

    #[test]
    fn slow_commands_are_counted_once_each() {
        let entries: Vec<SlowEntry> = [(7, 500), (6, 20_000), (5, 90_000)]
            .into_iter()
            .map(|(id, micros)| SlowEntry { id, micros, command: "EVALSHA".to_owned() })
            .collect();
        let count = |seen| {
            let mut samples = Samples::default();
            slow_commands(&mut samples, "", &entries, seen);
            (samples.0[0].value, samples.0[1].value)
        };
        assert_eq!(count(None), (0.0, 0.0));
        assert_eq!(count(Some(5)), (2.0, 0.02));
        assert_eq!(count(Some(7)), (0.0, 0.0));
    }
}
