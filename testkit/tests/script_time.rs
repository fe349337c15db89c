//! No script runs long (decision 24), however large the queue is: SLOWLOG is the
//! judge. It counts the time in which another process has the CPU along, so the
//! limit grows with what Redis had to wait for it, and each case has a few tries. On a
//! machine slower than the one the limit was set on it grows as much as a loop of
//! plain commands is slower.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

use std::time::Duration;

use mpanel_connect::Redis;
use mpanel_engine::admin::QueueAdmin;
use mpanel_producer::{BulkJob, EnqueueOptions, FlowJob, Prefix, Producer, QueueName};
use mpanel_protocol::{
    calls::{
        fetch::{FetchSpec, fetch_jobs},
        locks::{Sweep, rescue_stalled},
        manage::{FinalState, Removal, promote_all, reprocess_all},
        sweep::{Cleanable, Obliterated},
    },
    ids::{JobId, LockToken},
    keys::QueueKeys,
    peer::Peer,
    script,
    time::TimestampMs,
};
use mpanel_testkit::RedisServer;
use redis::aio::MultiplexedConnection;

const NOW: TimestampMs = TimestampMs(1_700_000_000_000);
const LIMIT_US: i64 = 5000;
const TRIES: usize = 5;
/// [`REFERENCE`] on the slowest machine on which the limit is to hold, µs.
const REFERENCE_US: i64 = 6000;
const REFERENCE: &str = "local function us() local t = redis.call('TIME') return t[1] * 1000000 + t[2] end \
    local from = us() for i = 1, 5000 do redis.call('HSET', 'h' .. i % 50, 'f', i) end return us() - from";

/// One case at a time: they would take the CPU from each other.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Bench {
    _alone: tokio::sync::MutexGuard<'static, ()>,
    server: RedisServer,
    /// What Redis had run and waited when the case began.
    since: (i64, i64),
    /// The longest a script may run here when it is not interrupted, µs.
    limit_us: i64,
    conn: MultiplexedConnection,
    admin: QueueAdmin,
    producer: Producer,
    keys: QueueKeys,
}

impl Bench {
    async fn start() -> Self {
        let alone = ALONE.lock().await;
        let server = RedisServer::builder().appendonly(false).start().await.unwrap();
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let client = redis::Client::open(server.url()).unwrap();
        let mut conn = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
        let mut reference_us = i64::MAX;
        for _ in 0..5 {
            let us: i64 = redis::cmd("EVAL").arg(REFERENCE).arg(0).query_async(&mut conn).await.unwrap();
            reference_us = reference_us.min(us);
        }
        let name = QueueName::new("q").unwrap();
        let prefix = Prefix::default();
        let admin = QueueAdmin::new(Redis::open(&server.url()).unwrap(), &prefix, &name, Peer::V5);
        let producer = Producer::connect(&server.url()).await.unwrap();
        Self {
            _alone: alone,
            server,
            since: (0, 0),
            limit_us: LIMIT_US * reference_us.max(REFERENCE_US) / REFERENCE_US,
            conn,
            admin,
            producer,
            keys: QueueKeys::new(&prefix, &name),
        }
    }

    /// Empties the database and fills it by a script of the test's own.
    async fn fill(&mut self, script: &str) {
        redis::cmd("FLUSHALL").query_async::<()>(&mut self.conn).await.unwrap();
        let text = format!("local P, call = 'bull:q:', redis.call {script}");
        redis::cmd("EVAL").arg(text).arg(0).query_async::<redis::Value>(&mut self.conn).await.unwrap();
        self.reset().await;
    }

    async fn reset(&mut self) {
        redis::cmd("CONFIG")
            .arg(&["SET", "slowlog-log-slower-than", "5000"])
            .query_async::<()>(&mut self.conn)
            .await
            .unwrap();
        redis::cmd("SLOWLOG").arg("RESET").query_async::<()>(&mut self.conn).await.unwrap();
        self.since = self.scheduled();
    }

    /// How long Redis ran, and how long it waited for a CPU, ns.
    fn scheduled(&self) -> (i64, i64) {
        let text =
            std::fs::read_to_string(format!("/proc/{}/schedstat", self.server.pid().unwrap())).unwrap();
        let mut numbers = text.split(' ').map(|n| n.trim().parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    /// The scripts that ran longer than allowed since the last reset, with their µs.
    async fn slow(&mut self) -> Vec<(&'static str, i64)> {
        type Entry = (i64, i64, i64, Vec<Vec<u8>>, redis::Value, redis::Value);
        let log: Vec<Entry> =
            redis::cmd("SLOWLOG").arg(&["GET", "100"]).query_async(&mut self.conn).await.unwrap();
        let (cpu, wait) = self.scheduled();
        let (cpu, wait) = (cpu - self.since.0, wait - self.since.1);
        let limit_us = self.limit_us + self.limit_us * 4 * wait / cpu.max(1);
        let ours = script::all();
        let name = |text: &[u8]| {
            ours.iter().find(|s| s.hash().as_bytes() == text || s.source().as_bytes().starts_with(text))
        };
        log.into_iter()
            .filter(|(_, _, us, args, ..)| args[0].starts_with(b"EVAL") && *us > limit_us)
            .map(|(_, _, us, args, ..)| (name(&args[1]).map_or("another", |s| s.name), us))
            .collect()
    }

    async fn len(&mut self, command: &str, key: &str) -> i64 {
        redis::cmd(command).arg(format!("bull:q:{key}")).query_async(&mut self.conn).await.unwrap()
    }
}

/// Runs `fill` and `act` until no script was slow.
macro_rules! quick {
    ($bench:ident, $fill:expr, $act:expr) => {{
        let mut slow = Vec::new();
        for _ in 0..TRIES {
            $bench.fill($fill).await;
            $act;
            slow = $bench.slow().await;
            if slow.is_empty() {
                break;
            }
        }
        assert!(slow.is_empty(), "{slow:?}: slow scripts in each of {TRIES} tries");
    }};
}

const JOB: &str = "local function job(id) call('HSET', P .. id, 'name', 'n', 'data', '{}', 'opts', '{}', \
                   'timestamp', 1, 'delay', 0, 'priority', 0) end ";

#[tokio::test]
async fn fifty_thousand_active_jobs_are_swept() {
    let mut bench = Bench::start().await;
    // Their workers live: locks are there.
    let living = format!(
        "{JOB} for i = 1, 50000 do job(i) call('LPUSH', P .. 'active', i) call('SET', P .. i .. ':lock', 't') \
         call('SADD', P .. 'stalled', i) end"
    );
    quick!(bench, &living, {
        let keys = bench.keys.clone();
        let sweep =
            rescue_stalled(&mut bench.conn, &keys, Peer::V5, NOW, Duration::from_secs(30), 1).await.unwrap();
        assert_eq!(sweep, Sweep::Rescued(Vec::new()));
        assert_eq!(bench.len("SCARD", "stalled").await, 50_000);
    });
    // Their workers are gone.
    let dead = format!(
        "{JOB} for i = 1, 50000 do job(i) call('LPUSH', P .. 'active', i) call('SADD', P .. 'stalled', i) end"
    );
    quick!(bench, &dead, {
        let keys = bench.keys.clone();
        let sweep =
            rescue_stalled(&mut bench.conn, &keys, Peer::V5, NOW, Duration::from_secs(30), 1).await.unwrap();
        assert!(matches!(sweep, Sweep::Rescued(ids) if ids.len() == 50_000));
        assert_eq!((bench.len("LLEN", "active").await, bench.len("LLEN", "wait").await), (0, 50_000));
    });
}

fn deep(levels: usize) -> FlowJob {
    let mut flow = FlowJob::new("leaf", "q");
    for i in (0..levels).rev() {
        let options = EnqueueOptions::new().job_id(format!("l{i}"));
        flow = FlowJob::new("level", "q").options(options).child(flow);
    }
    flow
}

#[tokio::test]
async fn a_flow_of_a_thousand_levels_is_removed() {
    let mut bench = Bench::start().await;
    quick!(bench, "", {
        bench.producer.enqueue_flow(deep(999)).await.unwrap();
        assert_eq!(bench.len("ZCARD", "waiting-children").await, 999);
        assert_eq!(bench.admin.remove(&JobId::stored("l0")).await.unwrap(), Removal::Removed);
        assert_eq!((bench.len("ZCARD", "waiting-children").await, bench.len("LLEN", "wait").await), (0, 0));
    });
    let left: Vec<String> = redis::cmd("KEYS").arg("bull:q:*").query_async(&mut bench.conn).await.unwrap();
    assert!(left.iter().all(|k| !k.starts_with("bull:q:l")), "{left:?}");
}

#[tokio::test]
async fn a_flow_of_ten_thousand_children_is_removed() {
    let mut bench = Bench::start().await;
    quick!(bench, "", {
        let mut flow = FlowJob::new("root", "q").options(EnqueueOptions::new().job_id("root"));
        for i in 0..10_000 {
            flow = flow.child(FlowJob::new("n", "q").options(EnqueueOptions::new().job_id(format!("c{i}"))));
        }
        bench.producer.enqueue_flow(flow).await.unwrap();
        assert_eq!(bench.len("SCARD", "root:dependencies").await, 10_000);
        assert_eq!(bench.admin.remove(&JobId::stored("root")).await.unwrap(), Removal::Removed);
        assert_eq!((bench.len("EXISTS", "root").await, bench.len("LLEN", "wait").await), (0, 0));
    });
}

#[tokio::test]
async fn two_long_lists_are_merged_by_pause_and_resume() {
    let mut bench = Bench::start().await;
    let both =
        "for i = 1, 50000 do call('LPUSH', P .. 'paused', i) call('LPUSH', P .. 'wait', i + 50000) end";
    quick!(bench, both, {
        bench.admin.pause().await.unwrap();
        assert_eq!((bench.len("LLEN", "paused").await, bench.len("LLEN", "wait").await), (100_000, 0));
        // The order stays: the oldest is the next one.
        let all: Vec<u32> = redis::cmd("LRANGE")
            .arg(&["bull:q:paused", "0", "-1"])
            .query_async(&mut bench.conn)
            .await
            .unwrap();
        assert!(all.into_iter().rev().eq(1..=100_000));
        bench.admin.resume().await.unwrap();
        assert_eq!((bench.len("LLEN", "paused").await, bench.len("LLEN", "wait").await), (0, 100_000));
    });
}

#[tokio::test]
async fn long_queues_are_drained_cleaned_retried_and_obliterated() {
    let mut bench = Bench::start().await;
    let waiting = format!(
        "{JOB} for i = 1, 20000 do job(i) call('LPUSH', P .. 'wait', i) job('p' .. i) \
         call('ZADD', P .. 'prioritized', i, 'p' .. i) end"
    );
    quick!(bench, &waiting, {
        bench.admin.drain(false).await.unwrap();
        assert_eq!((bench.len("LLEN", "wait").await, bench.len("ZCARD", "prioritized").await), (0, 0));
    });
    let finished = format!(
        "{JOB} for i = 1, 20000 do job(i) call('ZADD', P .. 'failed', i, i) job('d' .. i) \
         call('ZADD', P .. 'delayed', i, 'd' .. i) end"
    );
    quick!(bench, &finished, {
        let keys = bench.keys.clone();
        reprocess_all(&mut bench.conn, &keys, Peer::V5, FinalState::Failed, NOW).await.unwrap();
        promote_all(&mut bench.conn, &keys, Peer::V5).await.unwrap();
        assert_eq!(bench.len("LLEN", "wait").await, 40_000);
        let cleaned = bench.admin.clean(Cleanable::Waiting, Duration::ZERO, 0).await.unwrap();
        assert_eq!(cleaned.len(), 40_000);
    });
    // One of them waited for ten thousand children, which are gone.
    let heavy = format!(
        "{JOB} for i = 1, 20000 do job(i) call('LPUSH', P .. 'wait', i) end \
         for i = 1, 10000 do call('SADD', P .. '7:dependencies', 'bull:q:gone' .. i) \
         call('HSET', P .. '7:processed', 'bull:q:done' .. i, '1') end"
    );
    quick!(bench, &heavy, {
        assert_eq!(bench.admin.obliterate(false).await.unwrap(), Obliterated::Gone);
        let left: Vec<String> =
            redis::cmd("KEYS").arg("bull:q:*").query_async(&mut bench.conn).await.unwrap();
        assert_eq!(left, Vec::<String>::new());
    });
}

#[tokio::test]
async fn many_due_jobs_and_large_bulks() {
    let mut bench = Bench::start().await;
    let due = format!("{JOB} for i = 1, 10000 do job(i) call('ZADD', P .. 'delayed', i * 4096, i) end");
    quick!(bench, &due, {
        let keys = bench.keys.clone();
        let token = LockToken::new("t");
        let lock = Duration::from_secs(30);
        let spec = FetchSpec { slots: 64, token: &token, lock, limiter: None, worker_name: None };
        let mut taken = 0;
        while taken < 10_000 {
            let fetched = fetch_jobs(&mut bench.conn, &keys, Peer::V5, NOW, &spec).await.unwrap();
            assert!(!fetched.jobs.is_empty(), "{taken}");
            taken += fetched.jobs.len();
        }
        let jobs: Vec<_> = (0..10_000).map(|i| BulkJob::new("n", serde_json::json!({ "i": i }))).collect();
        bench.producer.queue("q").unwrap().enqueue_bulk(jobs).await.unwrap();
    });
}

#[tokio::test]
async fn a_schedule_is_changed_beside_half_a_million_waiting_jobs() {
    let mut bench = Bench::start().await;
    let line = "local t = {} for i = 1, 5000 do t[i] = i end \
                for i = 1, 100 do call('RPUSH', P .. 'wait', unpack(t)) end ";
    let run = format!(
        "{JOB} {line} job('repeat:s:1') call('HSET', P .. 'repeat:s:1', 'rjk', 's') \
         call('ZADD', P .. 'repeat', 1, 's') call('HSET', P .. 'repeat:s', 'name', 'n', 'every', 60000) "
    );
    for place in ["'RPUSH', P .. 'wait'", "'LPUSH', P .. 'wait'", "'LPUSH', P .. 'active'"] {
        let fill = format!("{run} call({place}, 'repeat:s:1')");
        quick!(bench, &fill, {
            let schedules = bench.producer.schedules("q").unwrap();
            for _ in 0..3 {
                let every = mpanel_producer::Repeat::every(Duration::from_secs(60));
                let template = mpanel_producer::JobTemplate::new("n");
                schedules.upsert("s", every, template).await.unwrap().unwrap();
            }
            assert_eq!(bench.len("ZCARD", "repeat").await, 1);
            assert!(schedules.remove("s").await.unwrap());
        });
    }
}
