//! `data/redis-topology.sh`, which operators and other programs use: what it starts can be used by what it prints.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mpanel_connect::Redis;
use mpanel_engine::Engine;
use mpanel_producer::{EnqueueOptions, Prefix, Producer};
use mpanel_testkit::eventually;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

/// Topologies of the script; stopped when dropped.
struct Script {
    dir: tempfile::TempDir,
    base: u16,
    started: Vec<&'static str>,
}

impl Script {
    /// With thirteen free ports in a row.
    fn new() -> Self {
        // Not within the range from which the kernel gives ports to others, and above 10,000: bus ports are below.
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        let first = 20_000 + u16::try_from(std::process::id() % 800).unwrap() * 15;
        let base = (first..32_000)
            .step_by(15)
            .find(|base| (0..13).all(|n| free(base + n)) && (7..13).all(|n| free(base + n - 10_000)));
        Self { dir: tempfile::tempdir().unwrap(), base: base.unwrap(), started: Vec::new() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let script: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/redis-topology.sh");
        let mut command = Command::new("bash");
        command.arg(script).args(args);
        command.env("FLEET_REDIS_BASE", self.base.to_string()).env("FLEET_REDIS_DIR", self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    fn start(&mut self, topology: &'static str) -> String {
        self.started.push(topology);
        self.run(&["start", topology])
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        for topology in &self.started {
            // What did not start need not be stopped.
            let _ = self.command(&["stop", topology]).output();
        }
    }
}

async fn a_job_is_done(redis: &Redis, prefix: &str, id: &str) {
    let prefix = Prefix::new(prefix).unwrap();
    let engine = Engine::builder(redis.clone()).prefix(prefix.clone()).connect().await.unwrap();
    let producer = eventually("a connected producer", PATIENCE, || async {
        let builder = Producer::builder(redis.clone()).prefix(prefix.clone());
        builder.connect().await.map_err(|e| e.to_string())
    })
    .await
    .unwrap();
    let queue = producer.queue("q").unwrap();
    eventually("an accepted job", PATIENCE, || async {
        let enqueued = queue.enqueue("a", &json!({}), EnqueueOptions::new().job_id(id)).await;
        enqueued.map_err(|e| e.to_string())
    })
    .await
    .unwrap();
    let handler = mpanel_engine::handler_fn(|_: mpanel_engine::JobContext, _: serde_json::Value| async {
        Ok::<_, mpanel_engine::JobError>(())
    });
    let worker = engine.worker("q").unwrap().handle_any(handler).start().unwrap();
    let watch = engine.finish_watch("q").unwrap();
    watch.wait(&mpanel_protocol::ids::JobId::stored(id), PATIENCE).await.unwrap();
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_script_starts_is_reached_by_what_it_prints() {
    let mut script = Script::new();
    script.start("standalone");
    let standalone = Redis::open(&format!("redis://127.0.0.1:{}", script.base)).unwrap();
    a_job_is_done(&standalone, "bull", "j").await;

    let ready = script.start("sentinel");
    assert!(ready.contains("sentinel ready"), "{ready}");
    let env = script.run(&["env", "sentinel"]);
    let value = |name: &str| env.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).unwrap();
    let (sentinels, master) = (value("FLEET_REDIS_SENTINELS"), value("FLEET_REDIS_SENTINEL_MASTER"));
    let sentinel = Redis::open(&format!("redis+sentinel://{sentinels}/{master}")).unwrap();
    a_job_is_done(&sentinel, "bull", "before").await;
    let killed = script.run(&["kill-primary", "sentinel"]);
    a_job_is_done(&sentinel, "bull", "after").await;
    let port = killed.trim().rsplit(' ').next().unwrap();
    script.run(&["restart-node", "sentinel", port]);
    let status = script.run(&["status", "sentinel"]);
    assert!(!status.starts_with(&format!("primary {port}\n")), "{status}");

    let ready = script.start("cluster6");
    let seeds: Vec<&str> = ready.trim().rsplit(": ").next().unwrap().split(' ').collect();
    let cluster = Redis::open(&format!("redis+cluster://{}", seeds[..2].join(","))).unwrap();
    a_job_is_done(&cluster, "{bull}", "j").await;
}
