//! Schedules served by our workers, alone and beside npm bullmq: no slot is lost,
//! none runs twice, and a worker's death ends none.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test; helpers outside #[test] count too")]

mod common;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{Bench, PATIENCE, echo};
use mpanel_producer::{JobTemplate, Page, Repeat, Schedules};
use mpanel_protocol::{
    calls::fetch::{FetchSpec, fetch_jobs},
    ids::{JobId, LockToken, Prefix, QueueName},
    keys::QueueKeys,
    peer::Peer,
    time::TimestampMs,
};
use mpanel_testkit::{BullVersion, NodeSidecar, eventually};
use serde_json::{Value, json};

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// The slot in a job id `repeat:<key>:<ms>`.
fn slot(id: &str) -> i64 {
    id.rsplit(':').next().unwrap().parse().unwrap()
}

/// Waits until at least `count` iterations are completed; gives back their ids.
async fn completed_ids(bench: &Bench, queue: &str, count: usize) -> Vec<String> {
    eventually(&format!("{count} completed runs"), PATIENCE, || async {
        let ids: Vec<String> = bench.ask(&format!("ZRANGE bull:{queue}:completed 0 -1")).await;
        if ids.len() >= count { Ok(()) } else { Err(format!("{ids:?}")) }
    })
    .await
    .unwrap();
    bench.ask(&format!("ZRANGE bull:{queue}:completed 0 -1")).await
}

/// Every slot ran once; where one is missing, its time had passed when the run after
/// it was made.
async fn no_slot_is_lost_or_doubled(bench: &Bench, queue: &str, ids: &[String], every: i64) {
    let mut started = bench.event_ids(queue, "active").await;
    started.retain(|id| ids.contains(id));
    started.sort_by_key(|id| slot(id));
    let mut expected = ids.to_vec();
    expected.sort_by_key(|id| slot(id));
    assert_eq!(started, expected, "every run began once");
    for pair in expected.windows(2) {
        let (before, after) = (slot(&pair[0]), slot(&pair[1]));
        assert_eq!((after - before) % every, 0, "{pair:?}");
        if after - before > every {
            let made: i64 = bench.ask(&format!("HGET bull:{queue}:{} timestamp", pair[1])).await;
            assert!(made >= before + every, "the slot after {} was lost", pair[0]);
        }
    }
}

/// Of a live schedule exactly one run is in the queue and not yet finished.
async fn one_run_is_to_come(bench: &Bench, queue: &str, key: &str) {
    let at: String = bench.ask(&format!("ZSCORE bull:{queue}:repeat {key}")).await;
    let state = bench.admin(queue).state(&JobId::stored(format!("repeat:{key}:{at}"))).await.unwrap();
    assert!(state.is_some_and(|s| !matches!(s.as_str(), "completed" | "failed")), "{state:?}");
}

fn schedules(bench: &Bench, queue: &str) -> Schedules {
    bench.producer.schedules(queue).unwrap()
}

async fn mpanels_sweep(version: BullVersion) {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    let panel = node.mpanel(version);
    panel.schedule_health_checks(1.0 / 60.0).await.unwrap();
    let worker = bench.worker("cloudpods-health").handle("scheduled-health-sweep", echo()).start().unwrap();
    completed_ids(&bench, "cloudpods-health", 3).await;
    // mPanel starts again: the same interval keeps the one schedule.
    panel.schedule_health_checks(1.0 / 60.0).await.unwrap();
    completed_ids(&bench, "cloudpods-health", 6).await;
    let ids = completed_ids(&bench, "cloudpods-health", 6).await;
    no_slot_is_lost_or_doubled(&bench, "cloudpods-health", &ids, 1000).await;
    let listed = schedules(&bench, "cloudpods-health").repeatables(Page::default()).await.unwrap();
    assert_eq!(
        (listed.len(), listed[0].every, listed[0].name.as_str()),
        (1, Some(1000), "scheduled-health-sweep")
    );
    for id in &ids {
        let job = bench.job("cloudpods-health", &JobId::stored(id.clone())).await.job;
        let data: Value = serde_json::from_str(&job.data).unwrap();
        assert_eq!(data["triggeredBy"], "schedule");
        assert_eq!(job.options().unwrap().max_attempts(), 1);
    }
    one_run_is_to_come(&bench, "cloudpods-health", &listed[0].key).await;
    // Removed as mPanel would, through its own library.
    let health = node.queue(version, "cloudpods-health");
    let removed = health.queue_call("removeRepeatableByKey", vec![json!(listed[0].key)]).await.unwrap();
    assert_eq!(removed, true);
    assert_eq!(schedules(&bench, "cloudpods-health").count().await.unwrap(), 0);
    worker.stop(PATIENCE).await;
    let left: i64 = bench.ask("ZCARD bull:cloudpods-health:delayed").await;
    assert_eq!(left, 0, "nothing comes back");
}

#[tokio::test]
async fn mpanels_health_sweep_of_5_81_runs_at_every_slot() {
    mpanels_sweep(BullVersion::V5).await;
}

#[tokio::test]
async fn mpanels_health_sweep_of_5_28_runs_at_every_slot() {
    mpanels_sweep(BullVersion::V5_28).await;
}

/// Ours and Node's workers, one kind after the other, then all at once.
async fn workers_take_turns(queue: &str, every: i64, repeat: Repeat, versions: &[BullVersion]) {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    let template = JobTemplate::new("tick").data(json!({"k": 1})).unwrap();
    schedules(&bench, queue).upsert("tick", repeat, template).await.unwrap().unwrap();
    let mut wanted = 0;
    for version in std::iter::once(None).chain(versions.iter().map(Some)) {
        wanted += 3;
        match version {
            None => {
                let worker = bench.worker(queue).handle("tick", echo()).start().unwrap();
                completed_ids(&bench, queue, wanted).await;
                worker.stop(PATIENCE).await;
            }
            Some(version) => {
                let worker = node.queue(*version, queue).start_worker(json!({}), json!({})).await.unwrap();
                completed_ids(&bench, queue, wanted).await;
                worker.close(false).await.unwrap();
            }
        }
    }
    let ours = bench.worker(queue).handle("tick", echo()).start().unwrap();
    let mut theirs = Vec::new();
    for version in versions {
        theirs.push(node.queue(*version, queue).start_worker(json!({}), json!({})).await.unwrap());
    }
    let ids = completed_ids(&bench, queue, wanted + 8).await;
    no_slot_is_lost_or_doubled(&bench, queue, &ids, every).await;
    one_run_is_to_come(&bench, queue, "tick").await;
    for id in &ids {
        assert_eq!(bench.job(queue, &JobId::stored(id.clone())).await.job.data, r#"{"k":1}"#);
    }
    // Node sees the schedule as its own.
    let seen =
        node.queue(BullVersion::V5, queue).queue_call("getJobScheduler", vec![json!("tick")]).await.unwrap();
    assert_eq!((&seen["name"], &seen["template"]["data"]), (&json!("tick"), &json!({"k": 1})));
    for worker in theirs {
        worker.close(false).await.unwrap();
    }
    ours.stop(PATIENCE).await;
}

#[tokio::test]
async fn four_kinds_of_workers_take_turns_on_a_pattern() {
    workers_take_turns("pattern", 1000, Repeat::cron("* * * * * *"), &BullVersion::ALL).await;
}

// Without 5.28, which counts from now on where it finds no time of the run before,
// as 5.81 and 6 leave none.
#[tokio::test]
async fn three_kinds_of_workers_take_turns_on_an_interval() {
    let repeat = Repeat::every(Duration::from_millis(500));
    workers_take_turns("interval", 500, repeat, &[BullVersion::V5, BullVersion::V6]).await;
}

#[tokio::test]
async fn upsert_storm_with_worker() {
    let bench = Bench::start().await;
    let queue = "storm";
    let schedules = schedules(&bench, queue);
    let worker = bench.worker(queue).concurrency(4).handle("tick", echo()).start().unwrap();
    let storm = async {
        for i in 0..150 {
            let every = if i % 10 == 9 { 25 } else { 20 };
            let repeat = Repeat::every(Duration::from_millis(every));
            // A slot whose run is busy or done is walked past; none is made twice.
            schedules.upsert("tick", repeat, JobTemplate::new("tick")).await.unwrap();
        }
    };
    let other = async {
        for _ in 0..150 {
            let repeat = Repeat::every(Duration::from_millis(20));
            schedules.upsert("tick", repeat, JobTemplate::new("tick")).await.unwrap();
        }
    };
    tokio::join!(storm, other);
    let so_far: usize = bench.ask(&format!("ZCARD bull:{queue}:completed")).await;
    completed_ids(&bench, queue, so_far + 10).await;
    assert_eq!(schedules.count().await.unwrap(), 1);
    assert!(schedules.remove("tick").await.unwrap());
    worker.stop(PATIENCE).await;
    let mut started = bench.event_ids(queue, "active").await;
    let all = started.len();
    started.sort();
    started.dedup();
    assert_eq!(started.len(), all, "no run began twice");
    for set in ["delayed", "prioritized"] {
        let left: i64 = bench.ask(&format!("ZCARD bull:{queue}:{set}")).await;
        assert_eq!(left, 0, "no run without a schedule is left in {set}");
    }
}

#[tokio::test]
async fn a_worker_killed_between_take_and_next_run_ends_no_schedule() {
    let bench = Bench::start().await;
    let queue = "killed";
    let schedules = schedules(&bench, queue);
    let first = schedules
        .upsert("tick", Repeat::every(Duration::from_millis(200)), JobTemplate::new("tick"))
        .await
        .unwrap()
        .unwrap();
    // What a worker leaves that dies right after its fetch was answered.
    let keys = QueueKeys::new(&Prefix::default(), &QueueName::new(queue).unwrap());
    let token = LockToken::new("dead");
    let spec = FetchSpec {
        slots: 1,
        token: &token,
        lock: Duration::from_millis(100),
        limiter: None,
        worker_name: None,
    };
    let fetched =
        fetch_jobs(&mut bench.conn().await, &keys, Peer::V5, TimestampMs(now_ms()), &spec).await.unwrap();
    assert_eq!(fetched.jobs[0].id, first.id);
    let lines: (i64, i64) = (
        bench.ask(&format!("ZCARD bull:{queue}:delayed")).await,
        bench.ask(&format!("LLEN bull:{queue}:wait")).await,
    );
    assert_eq!(lines, (0, 0), "the chain hangs by the dead worker's job");
    let worker = bench
        .worker(queue)
        .stalled_interval(Duration::from_millis(300))
        .handle("tick", echo())
        .start()
        .unwrap();
    let ids = completed_ids(&bench, queue, 4).await;
    assert!(ids.contains(&first.id.to_string()), "the orphan ran: {ids:?}");
    one_run_is_to_come(&bench, queue, "tick").await;
    worker.stop(PATIENCE).await;
}

/// Not a test of its own: the worker process that the next one kills. Without its
/// variable it does nothing.
#[tokio::test]
async fn worker_process() {
    let Ok(url) = std::env::var("SCHEDULES_TEST_REDIS") else { return };
    let engine = mpanel_engine::Engine::connect(&url).await.unwrap();
    let worker = engine
        .worker("kills")
        .unwrap()
        .lock(Duration::from_millis(400))
        .stalled_interval(Duration::from_millis(200))
        .handle("tick", echo())
        .start()
        .unwrap();
    tokio::time::sleep(PATIENCE).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test]
async fn kill_9_again_and_again_ends_no_schedule() {
    let bench = Bench::start().await;
    let queue = "kills";
    let schedules = schedules(&bench, queue);
    let names = ["a", "b", "c"];
    for (i, name) in names.iter().enumerate() {
        let every = Duration::from_millis(5 + 4 * i as u64);
        schedules.upsert(name, Repeat::every(every), JobTemplate::new("tick")).await.unwrap();
    }
    let mut seen = 0;
    for _ in 0..12 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker_process"])
            .env("SCHEDULES_TEST_REDIS", bench.server.url())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // In the midst of work: it takes and makes some hundred runs a second.
        seen = completed_ids(&bench, queue, seen + 20).await.len();
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let worker = bench
        .worker(queue)
        .lock(Duration::from_millis(400))
        .stalled_interval(Duration::from_millis(200))
        .handle("tick", echo())
        .start()
        .unwrap();
    for name in names {
        let before: i64 = bench.ask(&format!("ZSCORE bull:{queue}:repeat {name}")).await;
        eventually("the schedule goes on", PATIENCE, || async {
            let at: i64 = bench.ask(&format!("ZSCORE bull:{queue}:repeat {name}")).await;
            if at > before + 200 { Ok(()) } else { Err(format!("{name} stands at {at}")) }
        })
        .await
        .unwrap();
        schedules.remove(name).await.unwrap();
    }
    eventually("nothing is left to do", PATIENCE, || async {
        let counts = bench.admin(queue).counts().await.map_err(|e| e.to_string())?;
        let open = counts.waiting + counts.active + counts.delayed + counts.prioritized;
        if open == 0 { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await
    .unwrap();
    worker.stop(PATIENCE).await;
    let mut done = bench.event_ids(queue, "completed").await;
    let all = done.len();
    done.sort();
    done.dedup();
    assert_eq!(done.len(), all, "no run was finished twice");
}

#[tokio::test]
async fn connections_cut_again_and_again_end_no_schedule() {
    let bench = Bench::start().await;
    let queue = "cut";
    let schedules = schedules(&bench, queue);
    for name in ["a", "b"] {
        schedules
            .upsert(name, Repeat::every(Duration::from_millis(15)), JobTemplate::new("tick"))
            .await
            .unwrap();
    }
    let worker = bench
        .worker(queue)
        .concurrency(4)
        .lock(Duration::from_millis(500))
        .stalled_interval(Duration::from_millis(250))
        .handle("tick", echo())
        .start()
        .unwrap();
    let mut seen = 0;
    for _ in 0..25 {
        let _cut: i64 = bench.ask("CLIENT KILL TYPE normal SKIPME yes").await;
        seen = completed_ids(&bench, queue, seen + 3).await.len();
    }
    for name in ["a", "b"] {
        let before: i64 = bench.ask(&format!("ZSCORE bull:{queue}:repeat {name}")).await;
        eventually("the schedule goes on", PATIENCE, || async {
            let at: i64 = bench.ask(&format!("ZSCORE bull:{queue}:repeat {name}")).await;
            if at > before + 100 { Ok(()) } else { Err(format!("{name} stands at {at}")) }
        })
        .await
        .unwrap();
    }
    worker.stop(PATIENCE).await;
    let mut done = bench.event_ids(queue, "completed").await;
    let all = done.len();
    done.sort();
    done.dedup();
    assert_eq!(done.len(), all, "no run was finished twice");
}

#[tokio::test]
async fn a_limit_ends_a_schedule_and_its_entry_stays() {
    let bench = Bench::start().await;
    let queue = "limited";
    let schedules = schedules(&bench, queue);
    let repeat = Repeat::cron("* * * * * *").time_zone("Europe/Berlin").limit(3);
    schedules.upsert("tick", repeat, JobTemplate::new("tick")).await.unwrap().unwrap();
    let worker = bench.worker(queue).handle("tick", echo()).start().unwrap();
    let ids = completed_ids(&bench, queue, 3).await;
    no_slot_is_lost_or_doubled(&bench, queue, &ids, 1000).await;
    worker.stop(PATIENCE).await;
    let listed = schedules.get("tick").await.unwrap().unwrap();
    assert_eq!(
        (listed.limit, listed.iteration_count, listed.pattern.as_deref()),
        (Some(3), Some(3), Some("* * * * * *"))
    );
    let delayed: i64 = bench.ask(&format!("ZCARD bull:{queue}:delayed")).await;
    assert_eq!(delayed, 0);
}

#[tokio::test]
async fn schedulers_of_5_28_keep_their_data() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    let queue = "old";
    let theirs = node.queue(BullVersion::V5_28, queue);
    let template = json!({"name": "tick", "data": {"k": 7}, "opts": {"attempts": 2}});
    theirs
        .queue_call("upsertJobScheduler", vec![json!("tick"), json!({"every": 300}), template])
        .await
        .unwrap();
    let worker = bench.worker(queue).handle("tick", echo()).start().unwrap();
    for id in completed_ids(&bench, queue, 4).await {
        let job = bench.job(queue, &JobId::stored(id)).await.job;
        assert_eq!((job.data.as_str(), job.options().unwrap().attempts), (r#"{"k":7}"#, 2));
    }
    worker.stop(PATIENCE).await;
}

#[tokio::test]
async fn repeatables_of_bullmq_3_go_on_under_their_text_keys() {
    let bench = Bench::start().await;
    let queue = "ancient";
    let key = "sweep::::400";
    let at = (now_ms() / 400 + 1) * 400;
    let id = "repeat:0123456789abcdef:1";
    let opts = json!({"attempts": 0, "jobId": id, "delay": 0, "prevMillis": at - 400, "timestamp": at - 400,
        "repeat": {"every": 400, "count": 1}});
    let mut conn = bench.conn().await;
    redis::pipe()
        .zadd(format!("bull:{queue}:repeat"), key, at - 400)
        .hset_multiple(
            format!("bull:{queue}:{id}"),
            &[
                ("name", "sweep"),
                ("data", "{}"),
                ("opts", &opts.to_string()),
                ("timestamp", "1"),
                ("delay", "0"),
                ("priority", "0"),
                ("rjk", key),
            ],
        )
        .lpush(format!("bull:{queue}:wait"), id)
        .query_async::<()>(&mut conn)
        .await
        .unwrap();
    let worker = bench.worker(queue).handle("sweep", echo()).start().unwrap();
    let ids = completed_ids(&bench, queue, 4).await;
    let slots: BTreeMap<i64, &String> = ids.iter().filter(|i| *i != id).map(|i| (slot(i), i)).collect();
    assert_eq!(slots.len(), ids.len() - 1);
    assert!(slots.keys().all(|at| at % 400 == 0), "{slots:?}");
    let schedules = schedules(&bench, queue);
    let listed = schedules.repeatables(Page::default()).await.unwrap();
    assert_eq!((listed[0].key.as_str(), listed[0].name.as_str(), listed[0].every), (key, "sweep", Some(400)));
    assert!(schedules.remove_repeatable_by_key(key).await.unwrap());
    worker.stop(PATIENCE).await;
    let delayed: i64 = bench.ask(&format!("ZCARD bull:{queue}:delayed")).await;
    assert_eq!(delayed, 0, "its waiting run went with it");
}

#[tokio::test]
async fn a_schedule_that_cannot_go_on_says_why_and_its_job_runs() {
    let bench = Bench::start().await;
    let queue = "hashed";
    let id = "repeat:tick:1";
    let opts = json!({"repeat": {"pattern": "H * * * *", "count": 1}, "attempts": 1});
    redis::pipe()
        .zadd(format!("bull:{queue}:repeat"), "tick", 1)
        .hset_multiple(
            format!("bull:{queue}:{id}"),
            &[
                ("name", "tick"),
                ("data", "{}"),
                ("opts", &opts.to_string()),
                ("timestamp", "1"),
                ("rjk", "tick"),
            ],
        )
        .lpush(format!("bull:{queue}:wait"), &["other", id])
        .hset_multiple(
            format!("bull:{queue}:other"),
            &[("name", "tick"), ("data", "{}"), ("opts", "{}"), ("timestamp", "1")],
        )
        .query_async::<()>(&mut bench.conn().await)
        .await
        .unwrap();
    let worker = bench.worker(queue).handle("tick", echo()).start().unwrap();
    completed_ids(&bench, queue, 2).await;
    let log: Vec<String> = bench.ask(&format!("LRANGE bull:{queue}:{id}:logs 0 -1")).await;
    assert!(log[0].starts_with("the schedule ends with this run: the cron pattern `H * * * *`"), "{log:?}");
    worker.stop(PATIENCE).await;
}
