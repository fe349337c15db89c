//! Sealed fields from producer to handler, with Node on either side, and what
//! becomes of jobs that cannot be opened.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use common::PATIENCE;
use mpanel_connect::Redis;
use mpanel_engine::{Engine, JobContext, JobError, Worker, admin::QueueAdmin, handler_fn};
use mpanel_producer::{
    EnqueueError, EnqueueOptions, FlowJob, Keyring, Peer, Prefix, Producer, QueueName, SealError,
};
use mpanel_protocol::ids::JobId;
use mpanel_testkit::{BullVersion, NodeSidecar, RedisServer, eventually};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const K1: &str = "x5sPSBwrMlHkSn8JRSmsI8XXzXdvYEgV7pGX8HMZ6QI=";
const K2: &str = "mHk4kQ2OZ0X5o0k4dUq1m5b3cJHf4yOq8u0eS0XkqkY=";
/// Planted in payloads; must be found nowhere.
const CANARY: &str = "hunter2-canary";

fn old() -> Keyring {
    Keyring::new("k1", K1).unwrap()
}

fn rotated() -> Keyring {
    Keyring::new("k2", K2).unwrap().and("k1", K1).unwrap()
}

async fn producer(server: &RedisServer, keyring: Option<Keyring>) -> Producer {
    let builder = Producer::builder(Redis::open(&server.url()).unwrap());
    let builder = match keyring {
        Some(keyring) => builder.keyring(Arc::new(keyring)),
        None => builder,
    };
    builder.connect().await.unwrap()
}

/// A worker that gives on what its handler sees.
async fn worker(server: &RedisServer, keyring: Option<Keyring>) -> (Worker, mpsc::UnboundedReceiver<Value>) {
    let builder = Engine::builder(Redis::open(&server.url()).unwrap());
    let builder = match keyring {
        Some(keyring) => builder.keyring(Arc::new(keyring)),
        None => builder,
    };
    let engine = builder.connect().await.unwrap();
    let (send, seen) = mpsc::unbounded_channel();
    let see = handler_fn(move |ctx: JobContext, data: Value| {
        assert!(!format!("{ctx:?}").contains(CANARY));
        let _ = send.send(data);
        async { Ok::<_, JobError>(()) }
    });
    #[derive(Deserialize)]
    struct Pin {
        #[serde(rename = "password")]
        _password: u32,
    }
    let typed = handler_fn(|_: JobContext, _: Pin| async { Ok::<_, JobError>(()) });
    (engine.worker("pods").unwrap().handle("create", see).handle("typed", typed).start().unwrap(), seen)
}

fn admin(server: &RedisServer) -> QueueAdmin {
    let redis = Redis::open(&server.url()).unwrap();
    QueueAdmin::new(redis, &Prefix::default(), &QueueName::new("pods").unwrap(), Peer::V5)
}

/// `failedReason` of a job, once it has failed.
async fn reason(server: &RedisServer, id: &JobId) -> String {
    let admin = admin(server);
    eventually("a failed job", PATIENCE, || async {
        let job = admin.job(id).await.map_err(|e| e.to_string())?.ok_or("gone")?;
        job.failed_reason.ok_or_else(|| "not failed".to_owned())
    })
    .await
    .unwrap()
}

fn secret() -> Value {
    json!({"host": "shop", "password": CANARY, "smtp": {"a/b": [{"pin": CANARY}]}})
}

fn sealed() -> EnqueueOptions {
    EnqueueOptions::new().seal(&["password", "/smtp/a~1b/0/pin"]).attempts(3)
}

/// Whether a text is in a file of the server's append-only log.
fn logged(dir: &Path, text: &str) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return logged(&path, text);
        }
        let bytes = std::fs::read(&path).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handler_sees_what_redis_never_saw() {
    let server = RedisServer::builder().config("appendfsync always").start().await.unwrap();
    let (running, mut seen) = worker(&server, Some(rotated())).await;
    let producer = producer(&server, Some(old())).await;
    let job = producer.queue("pods").unwrap().enqueue("create", &secret(), sealed()).await.unwrap();
    assert!(job.id().as_str().len() == 36, "a UUID: {}", job.id());
    assert_eq!(seen.recv().await.unwrap(), secret());
    let flow = FlowJob::new("create", "pods").options(sealed()).data(secret()).unwrap();
    producer.enqueue_flow(flow).await.unwrap();
    assert_eq!(seen.recv().await.unwrap(), secret());
    // One that does not decode: the decoder's words would quote the secret.
    let wrong = producer.queue("pods").unwrap().enqueue("typed", &secret(), sealed()).await.unwrap();
    let why = reason(&server, wrong.id()).await;
    assert!(why.starts_with("Decode(Sealed): the payload does not decode"), "{why}");
    // A plain job next to it is told in full.
    let plain = json!({"password": "plain"});
    let options = EnqueueOptions::new();
    let wrong = producer.queue("pods").unwrap().enqueue("typed", &plain, options).await.unwrap();
    let why = reason(&server, wrong.id()).await;
    assert!(why.contains("plain") && why.starts_with("the payload cannot be decoded"), "{why}");
    running.stop(PATIENCE).await;
    let client = redis::Client::open(server.url()).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let dir: Vec<String> = redis::cmd("CONFIG").arg("GET").arg("dir").query_async(&mut conn).await.unwrap();
    assert!(logged(Path::new(&dir[1]), "shop"), "what is in clear can be found");
    assert!(!logged(Path::new(&dir[1]), CANARY), "what is sealed cannot");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_cannot_be_opened_fail_for_good_and_others_go_on() {
    let server = RedisServer::start().await.unwrap();
    let producer = producer(&server, Some(rotated())).await;
    let queue = producer.queue("pods").unwrap();
    let enqueue =
        async |id: &str| queue.enqueue("create", &secret(), sealed().job_id(id)).await.unwrap().id().clone();
    let (missing, changed, moved) =
        (enqueue("missing").await, enqueue("changed").await, enqueue("moved").await);
    let client = redis::Client::open(server.url()).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let mut rewrite = async |id: &str, data: String| {
        let hset = redis::cmd("HSET").arg(format!("bull:pods:{id}")).arg("data").arg(data).to_owned();
        hset.query_async::<()>(&mut conn).await.unwrap();
    };
    // Sealed with the old key, so that the worker has it; then spoilt.
    let by_old = self::producer(&server, Some(old())).await.queue("pods").unwrap();
    let mut donor = by_old.enqueue("other", &secret(), sealed().job_id("donor")).await.unwrap();
    let data = admin(&server).job(donor.id()).await.unwrap().unwrap().job.data;
    rewrite("moved", data.clone()).await;
    donor = by_old.enqueue("other", &secret(), sealed().job_id("donor-2")).await.unwrap();
    let spoilt =
        admin(&server).job(donor.id()).await.unwrap().unwrap().job.data.replace("\"ct\":\"", "\"ct\":\"AAAA");
    rewrite("changed", spoilt).await;
    let plain =
        queue.enqueue("create", &json!({"$sealed": {"note": 1}}), EnqueueOptions::new()).await.unwrap();
    let (running, mut seen) = worker(&server, Some(old())).await;
    for (id, text) in [
        (
            &missing,
            "Decode(Sealed): field `/password` is sealed with key `k2`, which this process does not have",
        ),
        (&changed, "Decode(Sealed): field `/password` cannot be unsealed with key `k1`"),
        (&moved, "Decode(Sealed): field `/password` cannot be unsealed with key `k1`"),
    ] {
        let why = reason(&server, id).await;
        assert!(why.starts_with(text), "{why}");
        let job = admin(&server).job(id).await.unwrap().unwrap().job;
        assert_eq!(job.attempts_made, 1, "no attempt is left for it");
    }
    // Not one of ours: a payload like any other.
    assert_eq!(seen.recv().await.unwrap(), json!({"$sealed": {"note": 1}}));
    let done = async || {
        let state = admin(&server).state(plain.id()).await.map_err(|e| e.to_string())?;
        if format!("{state:?}").contains("Completed") { Ok(()) } else { Err(format!("{state:?}")) }
    };
    eventually("the plain job completed", PATIENCE, done).await.unwrap();
    running.stop(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sealed_is_refused() {
    let server = RedisServer::start().await.unwrap();
    let without = producer(&server, None).await.queue("pods").unwrap();
    let error = without.enqueue("create", &secret(), sealed()).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Option { option: "seal", .. }), "{error:?}");
    let with = producer(&server, Some(old())).await.queue("pods").unwrap();
    let error = with.enqueue("create", &json!({"password": 1}), sealed()).await.unwrap_err();
    assert!(matches!(error, EnqueueError::Seal(SealError::MissingField(_))), "{error:?}");
    let digits = sealed().job_id("123");
    assert!(matches!(with.enqueue("create", &secret(), digits).await, Err(EnqueueError::Name(_))));
    assert!(!format!("{error:?}{error}{with:?}").contains(CANARY));
}

/// The code of the guide, run by Node.
fn node(program: &str) -> Value {
    let guide = include_str!("../../docs/guide/encryption.md");
    let code = guide.split("```js\n").nth(1).unwrap().split("```").next().unwrap();
    let keys =
        format!("const keys = {{ k1: Buffer.from('{K1}', 'base64'), k2: Buffer.from('{K2}', 'base64') }};");
    let file = std::env::temp_dir().join(format!("fleet-seal-{}.mjs", uuid::Uuid::new_v4()));
    std::fs::write(&file, format!("{code}\n{keys}\n{program}")).unwrap();
    let out = Command::new("node").arg(&file).output().unwrap();
    let _ = std::fs::remove_file(&file);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn node_seals_and_unseals_with_the_guides_code() {
    let server = RedisServer::start().await.unwrap();
    let values = [
        json!("ü€😀\u{2028}\"\\"),
        json!(null),
        json!(1.5),
        json!({"a": [1, true]}),
        json!(""),
        json!("x".repeat(100_000)),
    ];
    // Ours -> Node's. The queue's and the field's names have what JSON escapes.
    let queue = producer(&server, Some(rotated())).await.queue("pods").unwrap();
    for (n, value) in values.iter().enumerate() {
        let id = format!("ours-\"{n}-ü");
        let options = EnqueueOptions::new().job_id(&id).seal(&["pass\"wörd/~"]);
        let job = queue.enqueue("other", &json!({"pass\"wörd/~": value}), options).await.unwrap();
        let data = admin(&server).job(job.id()).await.unwrap().unwrap().job.data;
        let place = json!({"queue": "pods", "jobId": id, "pointer": "/pass\"wörd~1~0"});
        let clear = node(&format!(
            "console.log(JSON.stringify(unseal({data}['pass\"wörd/~'], {{ ...{place}, keys }})));"
        ));
        assert_eq!(clear, *value);
    }
    // Node's -> ours, through a real Queue.
    let (running, mut seen) = worker(&server, Some(rotated())).await;
    let theirs = NodeSidecar::start(&server.url()).await.unwrap().queue(BullVersion::V5, "pods");
    for (n, value) in values.iter().enumerate() {
        let place =
            json!({"queue": "pods", "jobId": format!("node-{n}"), "pointer": "/password", "kid": "k1"});
        let password = node(&format!("console.log(JSON.stringify(seal({value}, {{ ...{place}, keys }})));"));
        theirs
            .add("create", json!({"password": password}), json!({"jobId": format!("node-{n}")}))
            .await
            .unwrap();
        assert_eq!(seen.recv().await.unwrap(), json!({"password": value}));
    }
    running.stop(PATIENCE).await;
}
