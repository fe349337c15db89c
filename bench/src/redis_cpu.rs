//! What the server spent on a run: CPU (INFO cpu), commands (INFO commandstats)
//! and what was slow (SLOWLOG, LATENCY).

use std::{collections::BTreeMap, ops::Sub};

use mpanel_connect::Conn;
use serde::Serialize;

/// SLOWLOG notes scripts above this, µs (decision 24: no script over 5 ms).
const SLOW_MICROS: u64 = 5_000;

/// Commands that the benchmark itself sends.
const OWN_COMMANDS: [&str; 8] =
    ["info", "config", "slowlog", "latency", "flushall", "client", "hello", "dbsize"];

/// The server's counters at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    cpu_micros: f64,
    commands: f64,
    script_calls: f64,
}

impl Sub for Counters {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self {
            cpu_micros: self.cpu_micros - before.cpu_micros,
            commands: self.commands - before.commands,
            script_calls: self.script_calls - before.script_calls,
        }
    }
}

/// What a run cost the server.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ServerCost {
    /// User and system CPU time, µs.
    pub cpu_micros: f64,
    /// Commands, those inside scripts included.
    pub commands: f64,
    /// Scripts called: the round trips that move jobs.
    pub script_calls: f64,
    /// SLOWLOG: scripts above the threshold.
    pub slow: u64,
    /// The worst of them, ms; 0 without one.
    pub slowest_ms: f64,
    /// LATENCY: events above the threshold, and the longest of each, ms.
    pub latency: BTreeMap<String, u64>,
}

impl ServerCost {
    /// Both together, as of two rounds of one run.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.cpu_micros += other.cpu_micros;
        self.commands += other.commands;
        self.script_calls += other.script_calls;
        self.slow += other.slow;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
        for (event, ms) in other.latency {
            let worst = self.latency.entry(event).or_default();
            *worst = ms.max(*worst);
        }
        self
    }
}

/// Measures one run on a server of its own.
#[derive(Debug)]
pub struct Meter {
    conn: Conn,
    before: Counters,
}

impl Meter {
    /// On this connection, which nobody else uses.
    ///
    /// # Errors
    /// Those of Redis.
    pub async fn new(mut conn: Conn) -> redis::RedisResult<Self> {
        for (name, value) in [
            ("slowlog-log-slower-than", SLOW_MICROS),
            ("slowlog-max-len", 4096),
            ("latency-monitor-threshold", SLOW_MICROS / 1000),
        ] {
            redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query_async::<()>(&mut conn).await?;
        }
        Ok(Self { conn, before: Counters::default() })
    }

    /// Removes all data.
    ///
    /// # Errors
    /// Those of Redis.
    pub async fn clear(&mut self) -> redis::RedisResult<()> {
        redis::cmd("FLUSHALL").arg("SYNC").query_async(&mut self.conn).await
    }

    /// From here on it counts.
    ///
    /// # Errors
    /// Those of Redis.
    pub async fn begin(&mut self) -> redis::RedisResult<()> {
        redis::cmd("SLOWLOG").arg("RESET").query_async::<()>(&mut self.conn).await?;
        redis::cmd("LATENCY").arg("RESET").query_async::<()>(&mut self.conn).await?;
        self.before = self.counters().await?;
        Ok(())
    }

    /// Up to here.
    ///
    /// # Errors
    /// Those of Redis.
    pub async fn end(&mut self) -> redis::RedisResult<ServerCost> {
        let spent = self.counters().await? - self.before;
        let slow: Vec<Vec<redis::Value>> =
            redis::cmd("SLOWLOG").arg("GET").arg(-1).query_async(&mut self.conn).await?;
        let micros: Vec<f64> = slow.iter().filter_map(|entry| script_micros(entry)).collect();
        // An event is [name, time of the last, ms of the last, ms of the longest].
        let events: Vec<(String, u64, u64, u64)> =
            redis::cmd("LATENCY").arg("LATEST").query_async(&mut self.conn).await?;
        Ok(ServerCost {
            cpu_micros: spent.cpu_micros,
            commands: spent.commands,
            script_calls: spent.script_calls,
            slow: micros.len() as u64,
            slowest_ms: micros.iter().copied().fold(0.0, f64::max) / 1000.0,
            latency: events.into_iter().map(|(event, _, _, longest)| (event, longest)).collect(),
        })
    }

    /// The connection, for checks between runs.
    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    async fn counters(&mut self) -> redis::RedisResult<Counters> {
        let text: String =
            redis::cmd("INFO").arg("cpu").arg("commandstats").query_async(&mut self.conn).await?;
        Ok(read_info(&text))
    }
}

/// The time of an entry of SLOWLOG, [id, time, µs, arguments, …], if it is a script's.
fn script_micros(entry: &[redis::Value]) -> Option<f64> {
    let arguments: Vec<Vec<u8>> = redis::from_redis_value_ref(entry.get(3)?).ok()?;
    let command = String::from_utf8_lossy(arguments.first()?).to_lowercase();
    let is_script = matches!(command.as_str(), "eval" | "evalsha" | "fcall" | "exec");
    is_script.then(|| redis::from_redis_value_ref(entry.get(2)?).ok()).flatten()
}

fn read_info(text: &str) -> Counters {
    let mut counters = Counters::default();
    for (name, value) in text.lines().filter_map(|line| line.trim_end().split_once(':')) {
        match name {
            "used_cpu_user" | "used_cpu_sys" => {
                counters.cpu_micros += value.parse::<f64>().unwrap_or(0.0) * 1e6;
            }
            _ => {
                let Some(command) = name.strip_prefix("cmdstat_") else { continue };
                let calls = value.strip_prefix("calls=").and_then(|v| v.split(',').next());
                let calls = calls.and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
                let base = command.split('|').next().unwrap_or(command);
                if !OWN_COMMANDS.contains(&base) {
                    counters.commands += calls;
                }
                if matches!(base, "evalsha" | "eval") {
                    counters.script_calls += calls;
                }
            }
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_read() {
        let text = "# CPU\r\nused_cpu_sys:1.5\r\nused_cpu_user:2.0\r\nused_cpu_sys_children:9.0\r\n\
            # Commandstats\r\ncmdstat_evalsha:calls=3,usec=9\r\ncmdstat_hset:calls=10,usec=5\r\n\
            cmdstat_config|set:calls=7,usec=1\r\n";
        let counters = read_info(text);
        assert!((counters.cpu_micros - 3.5e6).abs() < 1.0);
        let entry = |command: &str| {
            let text = |text: &str| redis::Value::BulkString(text.as_bytes().to_vec());
            let arguments = redis::Value::Array(vec![text(command), text("x")]);
            vec![redis::Value::Int(1), redis::Value::Int(2), redis::Value::Int(7000), arguments]
        };
        assert_eq!(script_micros(&entry("EVALSHA")), Some(7000.0));
        assert_eq!(script_micros(&entry("KEYS")), None);
        assert_eq!((counters.commands as u64, counters.script_calls as u64), (13, 3));
    }
}
