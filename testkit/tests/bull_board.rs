//! bull-board on queues that our producer filled and our engine worked on: every
//! state, job, log, flow and action of its JSON API.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{process::Stdio, time::Duration};

use mpanel_engine::{Engine, JobContext, JobError, handler_fn};
use mpanel_producer::{EnqueueOptions, FlowJob, JobOptions, Producer};
use mpanel_testkit::{RedisServer, eventually};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// bull-board as a child; it ends with its stdin.
struct Board {
    _child: Child,
    base: String,
    http: reqwest::Client,
}

impl Board {
    async fn start(redis: &str, version: &str, queues: &[&str]) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/node/bull-board.mjs");
        let mut child = Command::new("node")
            .arg(script)
            .args([redis, version])
            .args(queues)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let base = format!("http://127.0.0.1:{}", line.strip_prefix("listening ").unwrap());
        // A provider that another test of this process installed will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { _child: child, base, http: reqwest::Client::new() }
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.base)).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "GET {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_else(|_| json!(text))
    }

    async fn put(&self, path: &str) {
        let answer = self.http.put(format!("{}{path}", self.base)).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "PUT {path}: {status} {text}");
    }

    /// The queue as its page shows it, with the jobs of one state.
    async fn queue(&self, name: &str, state: &str) -> Value {
        let path = format!("/api/queues?activeQueue={name}&status={state}&page=1&jobsPerPage=20");
        let all = self.get(&path).await;
        let found = all["queues"].as_array().unwrap().iter().find(|q| q["name"] == json!(name)).cloned();
        found.unwrap_or_else(|| panic!("{all}"))
    }

    async fn counts_become(&self, name: &str, expected: &[(&str, u64)]) {
        eventually(&format!("{expected:?}"), PATIENCE, || async {
            let counts = self.queue(name, "latest").await["counts"].clone();
            let fits = expected.iter().all(|(state, count)| counts[state] == json!(count));
            if fits { Ok(()) } else { Err(counts.to_string()) }
        })
        .await
        .unwrap();
    }
}

fn options(options: JobOptions) -> EnqueueOptions {
    EnqueueOptions::from(options)
}

#[tokio::test(flavor = "multi_thread")]
async fn bull_board_shows_and_manages_our_queues() {
    let server = RedisServer::start().await.unwrap();
    let producer = Producer::connect(&server.url()).await.unwrap();
    let engine = Engine::connect(&server.url()).await.unwrap();
    for version in ["bullmq-5", "bullmq-6"] {
        let name = format!("q-{version}");
        let queue = producer.queue(&name).unwrap();
        let plain = EnqueueOptions::default;
        let done = queue.enqueue("good", &json!({"to": "a@b.c"}), plain()).await.unwrap().id().clone();
        let failed = queue.enqueue("bad", &json!({"n": 1}), plain()).await.unwrap().id().clone();
        let handler = |fails: bool| {
            handler_fn(move |ctx: JobContext, _: Value| async move {
                ctx.log("first line").await.ok();
                ctx.log("second line").await.ok();
                ctx.progress(&json!(40)).await.ok();
                if fails { Err(JobError::never("as told")) } else { Ok(json!({"sent": true})) }
            })
        };
        let worker = engine
            .worker(&name)
            .unwrap()
            .name("w1")
            .handle("good", handler(false))
            .handle("bad", handler(true))
            .start()
            .unwrap();
        let board = Board::start(&server.url(), version, &[&name]).await;
        board.counts_become(&name, &[("completed", 1), ("failed", 1)]).await;

        let workers = board.get(&format!("/api/queues/{name}/workers")).await;
        assert!(workers.to_string().contains("w1"), "{workers}");
        worker.stop(PATIENCE).await;

        let later = JobOptions { delay: Some(3_600_000.0), ..JobOptions::default() };
        let later = queue.enqueue("later", &json!({}), options(later)).await.unwrap().id().clone();
        let urgent = JobOptions { priority: Some(3.0), ..JobOptions::default() };
        queue.enqueue("urgent", &json!({}), options(urgent)).await.unwrap();
        queue.enqueue("plain", &json!({"x": "ü"}), plain()).await.unwrap();
        let child = FlowJob::new("child", &name).data(json!({})).unwrap();
        let flow = FlowJob::new("parent", &name).data(json!({})).unwrap().child(child);
        let parent = producer.enqueue_flow(flow).await.unwrap().id;

        // Every state's page.
        for (state, job, count) in [
            ("waiting", "plain", 2),
            ("delayed", "later", 1),
            ("prioritized", "urgent", 1),
            ("completed", "good", 1),
            ("failed", "bad", 1),
            ("waiting-children", "parent", 1),
        ] {
            let page = board.queue(&name, state).await;
            assert_eq!(page["counts"][state], json!(count), "{version} {state} {}", page["counts"]);
            let names: Vec<&str> =
                page["jobs"].as_array().unwrap().iter().filter_map(|j| j["name"].as_str()).collect();
            assert!(names.contains(&job), "{version} {state}: {names:?}");
        }
        assert_eq!(board.queue(&name, "active").await["jobs"], json!([]));

        // A job's page, its log, its flow.
        let page = board.get(&format!("/api/queues/{name}/{done}")).await;
        assert_eq!(page["status"], json!("completed"), "{page}");
        assert_eq!(page["job"]["returnValue"], json!({"sent": true}), "{page}");
        assert_eq!(page["job"]["progress"], json!(40));
        let page = board.get(&format!("/api/queues/{name}/{failed}")).await;
        let job = &page["job"];
        assert!(job["failedReason"].as_str().unwrap().contains("as told"), "{page}");
        assert_eq!((job["isFailed"].clone(), job["attempts"].clone()), (json!(true), json!(1)), "{page}");
        assert!(!job["stacktrace"].as_array().unwrap().is_empty());
        let logs = board.get(&format!("/api/queues/{name}/{done}/logs")).await;
        assert!(
            logs.to_string().contains("first line") && logs.to_string().contains("second line"),
            "{logs}"
        );
        let flow = board.get(&format!("/api/queues/{name}/{parent}/flow")).await;
        assert!(flow.to_string().contains("child"), "{flow}");
        board.get(&format!("/api/queues/{name}/metrics")).await;
        board.get("/api/redis/stats").await;

        // Actions, on the board and seen by ours.
        let admin = engine.admin(&name).unwrap();
        board.put(&format!("/api/queues/{name}/{failed}/retry")).await;
        assert_eq!(admin.counts().await.unwrap().failed, 0);
        board.put(&format!("/api/queues/{name}/{later}/promote")).await;
        assert_eq!(admin.counts().await.unwrap().delayed, 0);
        board.put(&format!("/api/queues/{name}/pause")).await;
        assert!(admin.is_paused().await.unwrap());
        assert_eq!(board.queue(&name, "latest").await["isPaused"], json!(true));
        let counts = admin.counts().await.unwrap();
        assert_eq!(counts.waiting + counts.paused, 4, "{version} {counts:?}");
        admin.resume().await.unwrap();
        assert_eq!(board.queue(&name, "latest").await["isPaused"], json!(false));
        // The board cleans only what is five seconds old.
        eventually("cleaned", PATIENCE, || async {
            board.put(&format!("/api/queues/{name}/clean/completed")).await;
            let completed = admin.counts().await.map_err(|e| e.to_string())?.completed;
            if completed == 0 { Ok(()) } else { Err(completed.to_string()) }
        })
        .await
        .unwrap();
        board.counts_become(&name, &[("completed", 0), ("waiting", 4)]).await;

        // What the board put in line, our worker does.
        let worker = engine.worker(&name).unwrap().handle_any(handler(false)).start().unwrap();
        board.counts_become(&name, &[("completed", 6), ("waiting", 0), ("waiting-children", 0)]).await;
        worker.stop(PATIENCE).await;
    }
}
