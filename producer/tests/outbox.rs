//! The outbox: committed means enqueued, whatever dies in between.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use common::{PATIENCE, ask, connect};
use mpanel_producer::{
    EnqueueError, EnqueueOptions, JobId, JobKind, Keyring, Producer, QueueName,
    outbox::{Outbox, OutboxError, OutboxRelay, RelayOptions, SCHEMA, generation},
    testing::{self, Expected},
};
use mpanel_testkit::{Postgres, RedisServer, WorkerProcess, eventually};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

struct Bench {
    server: RedisServer,
    redis: MultiplexedConnection,
    url: String,
    pool: PgPool,
    outbox: Outbox,
}

fn new() -> EnqueueOptions {
    EnqueueOptions::new()
}

impl Bench {
    async fn start() -> Self {
        let url = Postgres::shared().await.unwrap().database("outbox").await.unwrap();
        Self::on(url).await
    }

    async fn on(url: String) -> Self {
        let pool = PgPool::connect(&url).await.unwrap();
        sqlx::raw_sql(SCHEMA).execute(&pool).await.unwrap();
        let server = RedisServer::start().await.unwrap();
        let redis = connect(&server).await;
        Self { server, redis, url, pool, outbox: Outbox::new() }
    }

    async fn producer(&self) -> Producer {
        Producer::connect(&self.server.url()).await.unwrap()
    }

    async fn relay(&self) -> OutboxRelay {
        self.relay_with(RelayOptions::default()).await
    }

    async fn relay_with(&self, options: RelayOptions) -> OutboxRelay {
        OutboxRelay::start(self.pool.clone(), self.producer().await, options).await.unwrap()
    }

    /// Commits jobs `own-<from>` to `own-<to>` in the queue.
    async fn commit(&self, queue: &str, ids: std::ops::Range<u32>) {
        let mut tx = self.pool.begin().await.unwrap();
        for n in ids {
            let options = new().job_id(format!("own-{n}"));
            self.outbox.enqueue(&mut tx, queue, "a", &n, options).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    async fn sql(&self, text: &str) {
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&self.pool).await.unwrap();
    }

    /// Rows by state: pending, sent, parked.
    async fn states(&self) -> (i64, i64, i64) {
        sqlx::query_as(
            "SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'sent'),
                    count(*) FILTER (WHERE state = 'parked') FROM fleet_outbox",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }

    async fn states_become(&self, expected: (i64, i64, i64)) {
        eventually(&format!("rows {expected:?}"), PATIENCE, || async {
            let states = self.states().await;
            if states == expected { Ok(()) } else { Err(format!("{states:?}")) }
        })
        .await
        .unwrap();
    }

    /// The ids in line, in order.
    async fn line(&mut self, queue: &str) -> Vec<String> {
        let mut line: Vec<String> = ask(&mut self.redis, &format!("LRANGE bull:{queue}:wait 0 -1")).await;
        line.reverse();
        line
    }
}

#[derive(Serialize, Deserialize)]
struct Confirm {
    order: u32,
}

impl JobKind for Confirm {
    const QUEUE: &'static str = "q";
    const NAME: &'static str = "confirm";
    type Output = ();

    fn options(&self) -> mpanel_producer::JobOptions {
        mpanel_producer::JobOptions { attempts: 4, ..Default::default() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_means_enqueued_and_rolled_back_means_not() {
    let bench = Bench::start().await;
    let relay = bench.relay().await;
    let mut tx = bench.pool.begin().await.unwrap();
    bench.outbox.enqueue(&mut tx, "q", "never", &1, new()).await.unwrap();
    tx.rollback().await.unwrap();
    let due = SystemTime::now() + Duration::from_secs(3600);
    let due_ms = i64::try_from(due.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let mut tx = bench.pool.begin().await.unwrap();
    let outbox = &bench.outbox;
    let plain =
        outbox.enqueue(&mut tx, "q", "plain", &json!({"a": "ü\u{0}"}), new().attempts(3)).await.unwrap();
    assert!(plain.is_new && plain.id.as_str().starts_with("outbox-"));
    outbox.enqueue(&mut tx, "q", "at", &1, new().run_at(due).job_id("at")).await.unwrap();
    outbox.enqueue(&mut tx, "q", "in", &1, new().delay(Duration::from_secs(60)).job_id("in")).await.unwrap();
    let kind = outbox.enqueue_kind(&mut tx, &Confirm { order: 7 }, new().job_id("order-7")).await.unwrap();
    assert!(kind.is_new);
    let again = outbox.enqueue_kind(&mut tx, &Confirm { order: 7 }, new().job_id("order-7")).await.unwrap();
    assert!(!again.is_new && again.id == kind.id);
    let rerun = new().job_id(generation("order-7", 2));
    outbox.enqueue_kind(&mut tx, &Confirm { order: 7 }, rerun).await.unwrap();
    tx.commit().await.unwrap();
    bench.states_become((0, 5, 0)).await;
    let expected = [
        Expected::new("q", "plain")
            .id(plain.id.as_str())
            .data(json!({"a": "ü\u{0}"}))
            .options(new().attempts(3)),
        Expected::new("q", "at").id("at").run_at_ms(due_ms),
        Expected::new("q", "in").id("in").delay_ms(60_000),
        Expected::new("q", "confirm").id("order-7").options(new().attempts(4)),
        Expected::new("q", "confirm").id("order-7-g2"),
    ];
    testing::assert_queue(&bench.producer().await, "q", &expected).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_producer_refuses_the_outbox_refuses_before_the_commit() {
    let bench = Bench::start().await;
    let mut tx = bench.pool.begin().await.unwrap();
    let outbox = bench.outbox.clone().size_limit(100);
    for options in
        [new().job_id("123"), new().job_id("a:b:c"), new().priority(u32::MAX), new().job_id("a\0b")]
    {
        let error = outbox.enqueue(&mut tx, "q", "a", &1, options.clone()).await.unwrap_err();
        assert!(matches!(error, OutboxError::Job(_)), "{options:?}: {error:?}");
    }
    let error = outbox.enqueue(&mut tx, "q", "a", &"x".repeat(100), new()).await.unwrap_err();
    assert!(matches!(error, OutboxError::Job(EnqueueError::TooLarge { .. })), "{error:?}");
    assert!(outbox.enqueue(&mut tx, "a:b", "a", &1, new()).await.is_err());
    // The transaction goes on.
    outbox.enqueue(&mut tx, "q", "a", &1, new()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(bench.states().await, (1, 0, 0));
    let empty = Postgres::shared().await.unwrap().database("empty").await.unwrap();
    let pool = PgPool::connect(&empty).await.unwrap();
    let error = OutboxRelay::start(pool, bench.producer().await, RelayOptions::default()).await.unwrap_err();
    assert!(matches!(error, OutboxError::NoTable), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_wakes_the_relay_and_without_a_wake_up_the_poll_finds_it() {
    let mut bench = Bench::start().await;
    let rare = RelayOptions { poll: Duration::from_secs(600), ..RelayOptions::default() };
    let relay = bench.relay_with(rare).await;
    // The first may be found by the first look; the second only by the wake-up.
    for n in 0..2 {
        bench.commit("q", n..n + 1).await;
        bench.states_become((0, i64::from(n) + 1, 0)).await;
    }
    relay.stop().await;
    let relay = bench.relay().await;
    bench
        .sql("INSERT INTO fleet_outbox (queue, job_id, name, data, options) VALUES ('q', 'by-hand', 'a', '1', '{}')")
        .await;
    bench.states_become((0, 3, 0)).await;
    assert_eq!(bench.line("q").await, ["own-0", "own-1", "by-hand"]);
    let began = Instant::now();
    relay.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_relays_enqueue_each_row_once() {
    let mut bench = Bench::start().await;
    for queue in ["one", "two", "three"] {
        bench.commit(queue, 0..1000).await;
    }
    let mut relays = Vec::new();
    for _ in 0..4 {
        relays.push(bench.relay().await);
    }
    bench.commit("one", 1000..1200).await;
    bench.states_become((0, 3200, 0)).await;
    for (queue, count) in [("one", 1200), ("two", 1000), ("three", 1000)] {
        let mut line = bench.line(queue).await;
        line.sort();
        line.dedup();
        assert_eq!(line.len(), count, "{queue}");
        let length: usize = ask(&mut bench.redis, &format!("LLEN bull:{queue}:wait")).await;
        assert_eq!(length, count, "{queue}");
    }
    for relay in relays {
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_rows_are_parked_with_a_reason_and_hold_nobody_up() {
    let mut bench = Bench::start().await;
    let _: () = ask(&mut bench.redis, "SET bull:broken:events x").await;
    bench
        .sql(
            "INSERT INTO fleet_outbox (queue, job_id, name, data, options, tries) VALUES
             ('q', 'p1', 'a', '{broken', '{}', 0), ('q', 'p2', 'a', '1', 'nonsense', 0),
             ('q', '123', 'a', '1', '{}', 0), ('q', 'x:y:z', 'a', '1', '{}', 0),
             ('a:b', 'p3', 'a', '1', '{}', 0), ('q', 'p4', 'a', '1', '{\"priority\":-1}', 0),
             ('broken', 'p5', 'a', '1', '{}', 0), ('broken', 'p6', 'a', '1', '{}', 9),
             ('q', 'p7', 'a', '1', '{\"parent\":{\"id\":\"none\",\"queue\":\"bull:q\"}}', 9)",
        )
        .await;
    bench.commit("q", 0..700).await;
    let relay = bench.relay().await;
    // p5 is tried again for a while; p6 and p7 have used up their tries.
    bench.states_become((1, 700, 8)).await;
    assert_eq!(bench.line("q").await.len(), 700);
    let reasons: Vec<(String, String)> =
        sqlx::query_as("SELECT job_id, reason FROM fleet_outbox WHERE reason IS NOT NULL ORDER BY job_id")
            .fetch_all(&bench.pool)
            .await
            .unwrap();
    for (id, part) in [
        ("123", "is an integer"),
        ("p1", "cannot be written as JSON"),
        ("p2", "options"),
        ("p3", "contains `:`"),
        ("p4", "priority"),
        ("p5", "WRONGTYPE"),
        ("p6", "WRONGTYPE"),
        ("p7", "parent job is missing"),
        ("x:y:z", "must not hold"),
    ] {
        let reason = &reasons.iter().find(|(job, _)| job == id).unwrap().1;
        assert!(reason.contains(part), "{id}: {reason}");
    }
    // Mended and tried again.
    let _: () = ask(&mut bench.redis, "DEL bull:broken:events").await;
    bench.sql("UPDATE fleet_outbox SET not_before = '-infinity'").await;
    let mut connection = PgConnection::connect(&bench.url).await.unwrap();
    assert_eq!(bench.outbox.unpark(&mut connection, "broken").await.unwrap(), 1);
    bench.states_become((0, 702, 7)).await;
    let mut line = bench.line("broken").await;
    line.sort();
    assert_eq!(line, ["p5", "p6"], "nothing was stored in part before");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outages_park_nothing() {
    let postgres = Postgres::builder().fsync(true).start().await.unwrap();
    let mut bench = Bench::on(postgres.database("outbox").await.unwrap()).await;
    let relay = bench.relay().await;
    bench.commit("q", 0..10).await;
    bench.states_become((0, 10, 0)).await;
    bench.server.stop().await.unwrap();
    bench.commit("q", 10..20).await;
    eventually("a relay that has met the outage", PATIENCE, || async {
        let free: Vec<(i64,)> =
            sqlx::query_as("SELECT id FROM fleet_outbox WHERE state = 'pending' FOR UPDATE SKIP LOCKED")
                .fetch_all(&bench.pool)
                .await
                .map_err(|e| e.to_string())?;
        if free.len() == 10 { Ok(()) } else { Err(format!("{} free", free.len())) }
    })
    .await
    .unwrap();
    bench.server.restart().await.unwrap();
    bench.redis = connect(&bench.server).await;
    bench.states_become((0, 20, 0)).await;
    postgres.crash().await.unwrap();
    postgres.restart().await.unwrap();
    let pool = &bench.pool;
    eventually("Postgres", PATIENCE, || async {
        sqlx::query("SELECT 1").execute(pool).await.map_err(|e| e.to_string())
    })
    .await
    .unwrap();
    bench.commit("q", 20..30).await;
    bench.states_become((0, 30, 0)).await;
    let tries: i64 = sqlx::query_scalar("SELECT sum(tries) FROM fleet_outbox").fetch_one(pool).await.unwrap();
    assert_eq!(tries, 0);
    assert_eq!(bench.line("q").await, (0..30).map(|n| format!("own-{n}")).collect::<Vec<_>>());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sent_rows_go_when_they_are_old() {
    let bench = Bench::start().await;
    bench.commit("q", 0..3).await;
    let relay = bench.relay().await;
    bench.states_become((0, 3, 0)).await;
    relay.stop().await;
    bench.sql("UPDATE fleet_outbox SET settled_at = now() - interval '2 days' WHERE job_id <> 'own-0'").await;
    bench.sql("UPDATE fleet_outbox SET state = 'parked' WHERE job_id = 'own-1'").await;
    let relay = bench.relay().await;
    bench.states_become((0, 1, 1)).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_field_is_sealed_in_the_row() {
    let bench = Bench::start().await;
    let keyring = Keyring::new("k1", "x5sPSBwrMlHkSn8JRSmsI8XXzXdvYEgV7pGX8HMZ6QI=").unwrap();
    let outbox = Outbox::new().keyring(Arc::new(keyring));
    let mut tx = bench.pool.begin().await.unwrap();
    let options = new().seal(&["password"]);
    outbox.enqueue(&mut tx, "q", "a", &json!({"password": "hunter2"}), options).await.unwrap();
    tx.commit().await.unwrap();
    let row: String =
        sqlx::query_scalar("SELECT o::text FROM fleet_outbox o").fetch_one(&bench.pool).await.unwrap();
    assert!(row.contains("$sealed") && !row.contains("hunter2"), "{row}");
}

/// Not a test by itself: the relay that the next one kills.
#[tokio::test(flavor = "multi_thread")]
async fn relay_process() {
    let (Ok(database), Ok(redis)) = (std::env::var("RELAY_DATABASE"), std::env::var("RELAY_REDIS")) else {
        return;
    };
    let pool = PgPool::connect(&database).await.unwrap();
    let producer = Producer::connect(&redis).await.unwrap();
    let _relay = OutboxRelay::start(pool, producer, RelayOptions::default()).await.unwrap();
    std::future::pending::<()>().await;
}

fn relay_process_of(bench: &Bench) -> WorkerProcess {
    WorkerProcess::builder(std::env::current_exe().unwrap())
        .args(["--exact", "relay_process", "--nocapture"])
        .env("RELAY_DATABASE", &bench.url)
        .env("RELAY_REDIS", bench.server.url())
        .start()
        .unwrap()
}

/// Where the relay is killed.
#[derive(Debug, Clone, Copy)]
enum Point {
    BeforeAdd,
    Adding,
    BeforeMark,
    BeforeCommit,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_killed_at_any_point_loses_and_doubles_nothing() {
    for point in [Point::BeforeAdd, Point::Adding, Point::BeforeMark, Point::BeforeCommit] {
        let mut bench = Bench::start().await;
        // Whoever takes this lock stops the relay where the trigger asks for it.
        let mut gate = PgConnection::connect(&bench.url).await.unwrap();
        sqlx::query("SELECT pg_advisory_lock(42)").execute(&mut gate).await.unwrap();
        bench
            .sql(
                "CREATE FUNCTION stop_here() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END $$",
            )
            .await;
        match point {
            Point::BeforeAdd => ask(&mut bench.redis, "CLIENT PAUSE 60000 WRITE").await,
            Point::Adding => {}
            Point::BeforeMark => {
                bench
                    .sql(
                        "CREATE TRIGGER stop_here BEFORE UPDATE ON fleet_outbox
                         FOR EACH STATEMENT EXECUTE FUNCTION stop_here()",
                    )
                    .await;
            }
            Point::BeforeCommit => {
                bench
                    .sql(
                        "CREATE CONSTRAINT TRIGGER stop_here AFTER UPDATE ON fleet_outbox
                         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION stop_here()",
                    )
                    .await;
            }
        }
        bench.commit("q", 0..50).await;
        let relay = relay_process_of(&bench);
        if matches!(point, Point::Adding) {
            // Frozen with the call in its socket: it is carried out after the kill.
            relay_has_connected(&bench).await;
            bench.server.sigstop().unwrap();
            bench.commit("q", 50..60).await;
        }
        eventually(&format!("a relay that holds rows at {point:?}"), PATIENCE, || async {
            let count = "SELECT count(*) FROM
                (SELECT id FROM fleet_outbox WHERE state = 'pending' FOR UPDATE SKIP LOCKED) free";
            let free: i64 =
                sqlx::query_scalar(count).fetch_one(&bench.pool).await.map_err(|e| e.to_string())?;
            if free == 0 { Ok(()) } else { Err(format!("{free} rows are free")) }
        })
        .await
        .unwrap();
        if matches!(point, Point::BeforeMark | Point::BeforeCommit) {
            eventually(&format!("a relay that stands at {point:?}"), PATIENCE, || async {
                let waits =
                    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)";
                let waits: bool =
                    sqlx::query_scalar(waits).fetch_one(&bench.pool).await.map_err(|e| e.to_string())?;
                if waits { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await
            .unwrap();
            assert_eq!(bench.line("q").await.len(), 50, "{point:?}: the jobs are in Redis");
        }
        relay.kill9();
        let total = match point {
            Point::BeforeAdd => {
                assert_eq!(bench.line("q").await.len(), 0, "{point:?}");
                let _: () = ask(&mut bench.redis, "CLIENT UNPAUSE").await;
                50
            }
            Point::Adding => {
                bench.server.sigcont().unwrap();
                60
            }
            Point::BeforeMark | Point::BeforeCommit => 50,
        };
        if !matches!(point, Point::BeforeCommit) {
            assert!(bench.states().await.0 > 0, "{point:?}: rows are still pending");
        }
        sqlx::query("SELECT pg_advisory_unlock(42)").execute(&mut gate).await.unwrap();
        let relay = bench.relay().await;
        bench.states_become((0, total, 0)).await;
        let mut line = bench.line("q").await;
        line.sort();
        let mut expected: Vec<String> = (0..total).map(|n| format!("own-{n}")).collect();
        expected.sort();
        assert_eq!(line, expected, "{point:?}");
        relay.stop().await;
    }
}

/// The relay has enqueued what was there, and so has its connection.
async fn relay_has_connected(bench: &Bench) {
    bench.states_become((0, 50, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_waits_for_its_parent_to_be_relayed() {
    let bench = Bench::start().await;
    let mut tx = bench.pool.begin().await.unwrap();
    let orphan = new().parent(QueueName::new("parents").unwrap(), JobId::stored("later")).job_id("child");
    bench.outbox.enqueue(&mut tx, "q", "child", &1, orphan).await.unwrap();
    tx.commit().await.unwrap();
    let relay = bench.relay().await;
    eventually("a child that was put off", PATIENCE, || async {
        let tries: i32 = sqlx::query_scalar("SELECT tries FROM fleet_outbox")
            .fetch_one(&bench.pool)
            .await
            .map_err(|e| e.to_string())?;
        if tries > 0 { Ok(()) } else { Err("not tried".to_owned()) }
    })
    .await
    .unwrap();
    let parents = bench.producer().await.queue("parents").unwrap();
    parents.enqueue("parent", &1, new().job_id("later")).await.unwrap();
    bench.states_become((0, 1, 0)).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_producer_takes_what_is_relayed() {
    let bench = Bench::start().await;
    let (producer, recorder) = testing::recording();
    let relay = OutboxRelay::start(bench.pool.clone(), producer, RelayOptions::default()).await.unwrap();
    bench.commit("q", 0..2).await;
    bench.states_become((0, 2, 0)).await;
    recorder
        .assert_enqueued(&[Expected::new("q", "a").id("own-0").data(0), Expected::new("q", "a").id("own-1")]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_rows_are_taken_few_at_a_time() {
    let bench = Bench::start().await;
    let large = "x".repeat(11 * 1024 * 1024);
    let mut tx = bench.pool.begin().await.unwrap();
    for n in 0..8 {
        let options = new().job_id(format!("own-{n}"));
        bench.outbox.enqueue(&mut tx, "q", "a", &large, options).await.unwrap();
    }
    tx.commit().await.unwrap();
    // The poll would be too late: the relay knows that there is more.
    let rare = RelayOptions { poll: Duration::from_secs(600), ..RelayOptions::default() };
    let relay = bench.relay_with(rare).await;
    bench.states_become((0, 8, 0)).await;
    relay.stop().await;
}
