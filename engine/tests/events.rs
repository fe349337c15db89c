//! The typed event reader and waits for jobs to end, beside Node and over outages.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, PATIENCE};
use mpanel_engine::{
    JobContext, JobError,
    events::{EventId, Finished, Notice, QueueEvent, QueueEvents, Start, WaitError},
    handler_fn,
};
use mpanel_producer::{BulkJob, EnqueueOptions, KeepJobs};
use mpanel_protocol::{ids::JobId, options::JobOptions};
use mpanel_testkit::{BullVersion, NodeSidecar};
use serde_json::{Value, json};
use tokio::time::timeout;

async fn next(events: &mut QueueEvents) -> Notice {
    tokio::time::timeout(PATIENCE, events.next()).await.expect("no event comes").unwrap()
}

/// Event names in order, until one of this name was seen so many times.
async fn names_until(events: &mut QueueEvents, last: &str, times: usize) -> Vec<String> {
    let mut names = Vec::new();
    while names.iter().filter(|n| *n == last).count() < times {
        let Notice::Event(entry) = next(events).await else { panic!("a gap") };
        let text = format!("{:?}", entry.event);
        let end = text.find([' ', '{']).unwrap_or(text.len());
        names.push(text[..end].trim().to_owned());
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_node_writes_is_typed() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    for version in BullVersion::ALL {
        let name = format!("q-{}", version.alias().replace('.', "-"));
        let queue = node.queue(version, &name);
        queue.open().await.unwrap();
        let mut events = bench.engine.events(&name, Start::Now).unwrap();
        events.ready().await.unwrap();
        queue.add("a", json!({}), json!({"jobId": "one-1"})).await.unwrap();
        queue.add("a", json!({}), json!({"jobId": "one-1"})).await.unwrap();
        queue.add("later", json!({}), json!({"delay": 500_000})).await.unwrap();
        let dedup = json!({"deduplication": {"id": "d"}});
        queue.add("a", json!({}), dedup.clone()).await.unwrap();
        queue.add("a", json!({}), dedup).await.unwrap();
        let bad = json!({"jobId": "bad-1", "attempts": 2});
        queue.add("bad", json!({}), bad).await.unwrap();
        let script =
            json!({"default": {"progress": {"p": 1}, "return": "ü"}, "byName": {"bad": {"throw": "boom"}}});
        let worker = queue.start_worker(script, json!({})).await.unwrap();
        worker.wait_events("failed", Some("bad-1"), 2, PATIENCE).await.unwrap();
        worker.close(false).await.unwrap();
        queue.pause().await.unwrap();
        queue.resume().await.unwrap();
        queue.queue_call("remove", vec![json!("one-1")]).await.unwrap();
        queue.queue_call("clean", vec![json!(0), json!(0), json!("completed")]).await.unwrap();

        let mut seen = Vec::new();
        loop {
            let Notice::Event(entry) = next(&mut events).await else { panic!("a gap") };
            let last = matches!(entry.event, QueueEvent::Cleaned { .. });
            seen.push(entry.event);
            if last {
                break;
            }
        }
        let id = |text: &str| JobId::stored(text);
        let has = |what: &str, test: &dyn Fn(&QueueEvent) -> bool| {
            assert!(seen.iter().any(test), "{version:?}: no {what} in {seen:#?}");
        };
        has("added", &|e| *e == QueueEvent::Added { id: id("one-1"), name: "a".into() });
        has("duplicated", &|e| *e == QueueEvent::Duplicated { id: id("one-1") });
        has("delayed", &|e| matches!(e, QueueEvent::Delayed { until, .. } if until.0 > 1_700_000_000_000));
        has("deduplicated", &|e| matches!(e, QueueEvent::Deduplicated { dedup_id, .. } if dedup_id == "d"));
        has("active", &|e| matches!(e, QueueEvent::Active { prev: Some(prev), .. } if prev == "waiting"));
        has("progress", &|e| matches!(e, QueueEvent::Progress { data, .. } if data == "{\"p\":1}"));
        has(
            "completed",
            &|e| matches!(e, QueueEvent::Completed { return_value, .. } if return_value == "\"ü\""),
        );
        has(
            "failed",
            &|e| matches!(e, QueueEvent::Failed { id: f, reason, .. } if *f == id("bad-1") && reason == "boom"),
        );
        has("exhausted", &|e| *e == QueueEvent::RetriesExhausted { id: id("bad-1"), attempts: 2 });
        has("paused", &|e| *e == QueueEvent::Paused);
        has("resumed", &|e| *e == QueueEvent::Resumed);
        has(
            "removed",
            &|e| matches!(e, QueueEvent::Removed { id: r, prev: Some(prev) } if *r == id("one-1") && prev == "completed"),
        );
        has("cleaned", &|e| matches!(e, QueueEvent::Cleaned { count: 1.. }));
        assert!(!seen.iter().any(|e| matches!(e, QueueEvent::Other { .. })), "{version:?}: {seen:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_goes_on_over_an_outage_and_from_an_id() {
    let bench = Bench::start().await;
    let queue = bench.queue("q");
    let mut events = bench.engine.events("q", Start::Oldest).unwrap();
    let add = async |n: u64| queue.enqueue("n", &json!({ "n": n }), EnqueueOptions::default()).await.unwrap();
    add(1).await;
    assert_eq!(names_until(&mut events, "Waiting", 1).await, ["Added", "Waiting"]);
    let reader = tokio::spawn(async move { (names_until(&mut events, "Waiting", 3).await, events) });
    bench.server.restart().await.unwrap();
    for n in 2..5 {
        let added = mpanel_testkit::eventually("enqueued", PATIENCE, || async {
            queue.enqueue("n", &json!({ "n": n }), EnqueueOptions::default()).await.map_err(|e| e.to_string())
        });
        added.await.unwrap();
    }
    let (names, _) = reader.await.unwrap();
    assert_eq!(names, ["Added", "Waiting"].repeat(3));

    // From an id that was kept: only what came after it.
    let mut oldest = bench.engine.events("q", Start::Oldest).unwrap();
    let mut kept: Option<EventId> = None;
    for _ in 0..6 {
        let Notice::Event(entry) = next(&mut oldest).await else { panic!("a gap") };
        kept = Some(entry.id);
    }
    let kept: EventId = kept.unwrap().to_string().parse().unwrap();
    let mut rest = bench.engine.events("q", Start::After(kept)).unwrap();
    assert_eq!(names_until(&mut rest, "Waiting", 1).await, ["Added", "Waiting"]);
}

#[tokio::test]
async fn trimmed_and_foreign_entries_are_told() {
    let bench = Bench::start().await;
    let mut events = bench.engine.events("q", Start::Now).unwrap();
    events.ready().await.unwrap();
    for command in [
        "XADD bull:q:events * nonsense 1",
        "XADD bull:q:events * event completed",
        "XADD bull:q:events * event custom jobId 7",
        "XADD bull:q:events * event waiting jobId 8",
    ] {
        bench.ask::<String>(command).await;
    }
    assert_eq!(names_until(&mut events, "Waiting", 1).await, ["Other", "Other", "Other", "Waiting"]);

    // 500 more, of which the newest 120 are left when the reader comes back.
    let mut pipe = redis::pipe();
    for n in 0..500 {
        pipe.cmd("XADD")
            .arg("bull:q:events")
            .arg("*")
            .arg("event")
            .arg("stalled")
            .arg("jobId")
            .arg(n)
            .ignore();
    }
    pipe.cmd("XTRIM").arg("bull:q:events").arg("MAXLEN").arg(120).ignore();
    pipe.query_async::<()>(&mut bench.conn().await).await.unwrap();
    let Notice::Gap { missed, .. } = next(&mut events).await else { panic!("no gap") };
    assert_eq!(missed, Some(380));
    for n in 380..500 {
        let Notice::Event(entry) = next(&mut events).await else { panic!("another gap") };
        assert_eq!(entry.event, QueueEvent::Stalled { id: JobId::stored(n.to_string()) });
    }
    // Everything was read, then trimmed: nothing is missing.
    bench.ask::<i64>("XTRIM bull:q:events MAXLEN 0").await;
    bench.ask::<String>("XADD bull:q:events * event drained").await;
    let Notice::Event(entry) = next(&mut events).await else { panic!("a gap that is none") };
    assert_eq!(entry.event, QueueEvent::Drained);
}

fn keep(options: JobOptions) -> EnqueueOptions {
    EnqueueOptions::from(options)
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_end_with_the_job_whoever_runs_it() {
    let bench = Bench::start().await;
    let watch = bench.engine.finish_watch("q").unwrap();
    let queue = bench.queue("q");
    let gone = JobOptions { remove_on_complete: Some(KeepJobs::Remove(true)), ..JobOptions::default() };
    let early = queue.enqueue("echo", &json!(0), keep(gone.clone())).await.unwrap().id().clone();
    let handler = handler_fn(|_: JobContext, data: Value| async move {
        if data == json!("bad") { Err(JobError::never("as told")) } else { Ok(json!({ "echo": data })) }
    });
    let waits: Vec<_> = {
        let mut ids = Vec::new();
        for n in 1..50 {
            let options = if n % 2 == 0 { gone.clone() } else { JobOptions::default() };
            ids.push((n, queue.enqueue("echo", &json!(n), keep(options)).await.unwrap().id().clone()));
        }
        ids.into_iter()
            .map(|(n, id)| {
                let watch = watch.clone();
                tokio::spawn(async move { (n, watch.wait_for::<Value>(&id, PATIENCE).await) })
            })
            .collect()
    };
    let bad = queue.enqueue("echo", &json!("bad"), EnqueueOptions::default()).await.unwrap().id().clone();
    let worker = bench.worker("q").concurrency(8).handle("echo", handler).start().unwrap();
    for wait in waits {
        let (n, value) = wait.await.unwrap();
        assert_eq!(value.unwrap(), json!({ "echo": n }));
    }
    let Finished::Failed(reason) = watch.wait(&bad, PATIENCE).await.unwrap() else { panic!("completed") };
    assert!(reason.contains("as told"), "{reason}");
    assert!(matches!(watch.wait_for::<Value>(&bad, PATIENCE).await, Err(WaitError::Failed { .. })));
    // It is long gone, its end stands in the stream only.
    assert_eq!(watch.wait_for::<Value>(&early, PATIENCE).await.unwrap(), json!({ "echo": 0 }));
    assert!(matches!(watch.wait_for::<Vec<u8>>(&early, PATIENCE).await, Err(WaitError::Result { .. })));
    let nobody = watch.wait(&JobId::stored("nobody"), PATIENCE).await;
    assert!(matches!(nobody, Err(WaitError::Missing { .. })), "{nobody:?}");
    worker.stop(PATIENCE).await;

    // One reader for all of them.
    assert_eq!(bench.admin("q").event_readers().await.unwrap().len(), 1);
    let again = bench.engine.finish_watch("q").unwrap();
    assert_eq!(again.wait_for::<Value>(&early, PATIENCE).await.unwrap(), json!({ "echo": 0 }));
    assert_eq!(bench.admin("q").event_readers().await.unwrap().len(), 1);

    // A deadline, and jobs that are taken away while somebody waits.
    let late = queue.enqueue("echo", &json!(1), EnqueueOptions::default()).await.unwrap().id().clone();
    let short = watch.wait(&late, Duration::from_millis(50)).await;
    assert!(matches!(short, Err(WaitError::Deadline { .. })), "{short:?}");
    let waiting = tokio::spawn({
        let (watch, late) = (watch.clone(), late.clone());
        async move { watch.wait(&late, PATIENCE).await }
    });
    let admin = bench.admin("q");
    tokio::task::yield_now().await;
    admin.remove(&late).await.unwrap();
    let removed = waiting.await.unwrap();
    assert!(matches!(removed, Err(WaitError::Removed { .. } | WaitError::Missing { .. })), "{removed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_on_nodes_jobs_and_thousands_at_once() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    for version in BullVersion::ALL {
        let name = format!("q-{}", version.alias().replace('.', "-"));
        let watch = bench.engine.finish_watch(&name).unwrap();
        let jobs: Vec<_> = (0..2000u32).map(|n| BulkJob::new("n", json!({ "n": n }))).collect();
        let added = bench.queue(&name).enqueue_bulk(jobs).await.unwrap();
        let waits: Vec<_> = added
            .iter()
            .map(|job| {
                let (watch, id) = (watch.clone(), job.id().clone());
                tokio::spawn(async move { watch.wait_for::<String>(&id, PATIENCE * 2).await })
            })
            .collect();
        let script = json!({"default": {"return": "done"}});
        let options = json!({"concurrency": 50, "removeOnComplete": {"count": 10}});
        let worker = node.queue(version, &name).start_worker(script, options).await.unwrap();
        for wait in waits {
            assert_eq!(wait.await.unwrap().unwrap(), "done", "{version:?}");
        }
        assert_eq!(bench.admin(&name).event_readers().await.unwrap().len(), 1);
        worker.close(true).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_next_leaves_its_read_to_the_next_one() {
    const JOBS: u64 = 100;
    let bench = Bench::start().await;
    let mut events = bench.engine.events("q", Start::Now).unwrap();
    events.ready().await.unwrap();
    let before = bench.calls("xread").await;
    for _ in 0..200 {
        assert!(timeout(Duration::from_millis(1), events.next()).await.is_err());
    }
    let queue = bench.queue("q");
    let mut expected =
        vec![queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap().id().clone()];
    let mut seen = Vec::new();
    let mut take = |notice| {
        let Notice::Event(entry) = notice else { panic!("{notice:?}") };
        if let QueueEvent::Waiting { id, .. } = entry.event {
            seen.push((id, Instant::now()));
        }
        seen.len()
    };
    while take(next(&mut events).await) < 1 {}
    // The dropped calls waited by one read, not by one each.
    let reads = bench.calls("xread").await - before;
    assert!(reads <= 3, "{reads} reads");

    let mut added = vec![Instant::now()];
    let empty = json!({});
    for n in 1..JOBS {
        // The event comes while a call is being dropped; sooner or later by a little.
        let heard = timeout(Duration::from_micros(100 + n * 30), events.next());
        let (heard, job) = tokio::join!(heard, queue.enqueue("a", &empty, EnqueueOptions::new()));
        added.push(Instant::now());
        expected.push(job.unwrap().id().clone());
        let mut count = heard.map_or(0, |notice| take(notice.unwrap()));
        while count < expected.len() {
            count = take(next(&mut events).await);
        }
    }
    let (ids, times): (Vec<JobId>, Vec<Instant>) = seen.into_iter().unzip();
    assert_eq!(ids, expected);
    for (id, (added, heard)) in ids.iter().zip(added.into_iter().zip(times)) {
        let waited = heard.saturating_duration_since(added);
        // A read that nobody answers ends after 5 s.
        assert!(waited < Duration::from_secs(3), "{id} was heard of after {waited:?}");
    }
}
