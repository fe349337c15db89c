//! What other writers may leave in a queue: broken texts, keys of wrong types, jobs
//! without a hash, circles. The job that is hit ends with a reason or is dropped, the
//! others are done, and the queue is never blocked.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::time::Duration;

use common::{Bench, PATIENCE, echo};
use mpanel_engine::{JobContext, JobError, admin::Counts, handler_fn};
use mpanel_protocol::{calls::manage::Removal, ids::JobId, state::JobState};
use mpanel_testkit::eventually;
use serde_json::Value;

impl Bench {
    /// A job as a careless producer writes it; `None` leaves a field out.
    async fn plant(&self, queue: &str, id: &str, fields: &[(&str, &str)]) {
        let mut conn = self.conn().await;
        if !fields.is_empty() {
            let key = format!("bull:{queue}:{id}");
            redis::cmd("HSET").arg(key).arg(fields).query_async::<()>(&mut conn).await.unwrap();
        }
        let wait = format!("bull:{queue}:wait");
        redis::cmd("LPUSH").arg(wait).arg(id).query_async::<()>(&mut conn).await.unwrap();
        let marker = format!("bull:{queue}:marker");
        redis::cmd("ZADD").arg(marker).arg(0).arg("0").query_async::<()>(&mut conn).await.unwrap();
    }

    async fn run(&self, command: &[&str]) -> redis::Value {
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut self.conn().await).await.unwrap()
    }

    /// The state in which a job ends.
    async fn ends(&self, queue: &str, id: &str) -> Option<JobState> {
        let admin = self.admin(queue);
        eventually(&format!("end of {queue}:{id}"), PATIENCE, || async {
            let state = admin.state(&JobId::stored(id)).await.map_err(|e| e.to_string())?;
            match state {
                Some(JobState::Completed | JobState::Failed) | None => Ok(state),
                other => Err(format!("{other:?}")),
            }
        })
        .await
        .unwrap()
    }

    /// A job added now is done: the queue is not blocked.
    async fn still_works(&self, queue: &str, after: &str) {
        let id = self.queue(queue).enqueue("good", &(), Default::default()).await.unwrap();
        let ended = self.ends(queue, id.id().as_str()).await;
        assert_eq!(ended, Some(JobState::Completed), "after {after}");
    }
}

const SOUND: [(&str, &str); 6] =
    [("name", "n"), ("data", "{}"), ("opts", "{}"), ("timestamp", "1"), ("delay", "0"), ("priority", "0")];

/// The fields of a sound job with one of them changed.
fn with<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut fields = SOUND.to_vec();
    fields.retain(|(n, _)| *n != name);
    fields.push((name, value));
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_fields_end_the_job_that_has_them() {
    let bench = Bench::start().await;
    let worker = bench.worker("q").concurrency(4).handle_any(echo()).start().unwrap();
    let long = "n".repeat(10_000);
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    // Field, value, and how the job ends.
    let completed = Some(JobState::Completed);
    let failed = Some(JobState::Failed);
    let cases: Vec<(&str, &str, Option<JobState>)> = vec![
        ("data", "{broken", failed),
        ("data", "", failed),
        ("data", "\u{feff}{}", failed),
        ("data", &deep, failed),
        ("opts", "{broken", failed),
        ("opts", "[]", failed),
        ("opts", "null", failed),
        ("opts", "{\"attempts\":\"many\",\"backoff\":{\"type\":7}}", completed),
        ("opts", "{\"attempts\":1e400}", failed),
        ("opts", "{\"removeOnComplete\":{\"age\":-1,\"count\":-5}}", completed),
        ("name", &long, completed),
        ("name", "", completed),
        ("timestamp", "yesterday", completed),
        ("timestamp", "1e308", completed),
        ("delay", "-5", completed),
        ("delay", "NaN", completed),
        ("priority", "-3", completed),
        ("priority", "99999999999999999999", completed),
        ("priority", "inf", completed),
        ("atm", "-2", completed),
        ("atm", "x", completed),
        ("ats", "9223372036854775807", completed),
        ("stc", "nan", completed),
        ("attemptsMade", "oops", completed),
        ("stacktrace", "no json", completed),
        ("progress", "no json", completed),
        ("returnvalue", "no json", completed),
        ("parent", "{broken", completed),
        ("parent", "[1,2]", completed),
        ("parentKey", "", completed),
        ("parentKey", "nowhere", completed),
        ("parentKey", "bull:other:missing", completed),
        ("parentKey", "bull:q:wait", completed),
        ("rjk", "a scheduler that is gone", completed),
        ("deid", "never claimed", completed),
        ("foreign", "field", completed),
    ];
    for (i, (field, value, expected)) in cases.iter().enumerate() {
        let id = format!("case-{i}");
        bench.plant("q", &id, &with(field, value)).await;
        let ended = bench.ends("q", &id).await;
        let shown: String = value.chars().take(40).collect();
        // A job option may have removed it at its end.
        assert!(
            ended == *expected || ended.is_none() && *expected == completed,
            "{field}={shown}: {ended:?}"
        );
        if ended == failed {
            let detail = bench.job("q", &JobId::stored(id)).await;
            assert!(!detail.failed_reason.unwrap().is_empty(), "{field}={shown} says why");
        }
    }
    bench.still_works("q", "broken fields").await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_ids_of_other_producers_are_served() {
    let bench = Bench::start().await;
    let worker = bench.worker("q").concurrency(4).handle_any(echo()).start().unwrap();
    let long = "i".repeat(10_000);
    for id in
        ["a:b", "a:b:c:d", ":", "::", "repeat:x", "repeat:x:y:1", "7", "-1", "01", "ü 😀", "a b", "*", &long]
    {
        bench.plant("q", id, &SOUND).await;
        assert_eq!(bench.ends("q", id).await, Some(JobState::Completed), "{id:.40}");
    }
    // Markers of BullMQ 3 and 4, and ids without a hash, are dropped.
    for id in ["0:0", "0:1700000000000", "gone"] {
        bench.plant("q", id, &[]).await;
        assert_eq!(bench.ends("q", id).await, None, "{id}");
    }
    bench.still_works("q", "odd ids").await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_keys_of_wrong_types_hit_one_job_only() {
    let bench = Bench::start().await;
    let worker = bench.worker("q").concurrency(8).handle_any(echo()).start().unwrap();
    for (i, suffix) in
        [":lock", ":logs", ":dependencies", ":processed", ":failed", ":unsuccessful"].into_iter().enumerate()
    {
        for (j, make) in [["SET", "text"], ["RPUSH", "text"], ["SADD", "text"]].into_iter().enumerate() {
            let id = format!("job-{i}-{j}");
            let key = format!("bull:q:{id}{suffix}");
            bench.run(&[make[0], &key, make[1]]).await;
            // Neighbours in the same batch.
            bench.plant("q", &format!("{id}-before"), &SOUND).await;
            bench.plant("q", &id, &SOUND).await;
            bench.plant("q", &format!("{id}-after"), &SOUND).await;
            for neighbour in ["-before", "-after"] {
                let ended = bench.ends("q", &format!("{id}{neighbour}")).await;
                assert_eq!(ended, Some(JobState::Completed), "{key} {}", make[0]);
            }
            // A dependency that is a set is one the job really waits for.
            if suffix != ":dependencies" || make[0] != "SADD" {
                assert_eq!(bench.ends("q", &id).await, Some(JobState::Completed), "{key} {}", make[0]);
            }
        }
    }
    // The job itself is something else.
    for (i, make) in ["SET", "RPUSH", "SADD"].into_iter().enumerate() {
        let id = format!("no-job-{i}");
        bench.run(&[make, &format!("bull:q:{id}"), "text"]).await;
        bench.plant("q", &id, &[]).await;
        assert_eq!(bench.ends("q", &id).await, None, "{make}");
    }
    bench.still_works("q", "wrong job keys").await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_keys_of_wrong_types_harm_nobody_else_and_can_be_mended() {
    let bench = Bench::start().await;
    let other = bench.worker("other").handle_any(echo()).start().unwrap();
    for key in [
        "wait",
        "paused",
        "active",
        "prioritized",
        "pc",
        "delayed",
        "completed",
        "failed",
        "waiting-children",
        "meta",
        "events",
        "stalled",
        "stalled-check",
        "marker",
        "limiter",
        "id",
        "repeat",
    ] {
        let queue = format!("q-{key}");
        let worker = bench
            .worker(&queue)
            .concurrency(4)
            .lock(Duration::from_millis(800))
            .stalled_interval(Duration::from_millis(300))
            .handle_any(echo())
            .start()
            .unwrap();
        bench.still_works(&queue, "nothing").await;
        let name = format!("bull:{queue}:{key}");
        bench.run(&["DEL", &name]).await;
        // A type that the key never has: a set for what is text, list, hash or stream, text for sets.
        let wrong = if key == "stalled" { "SET" } else { "SADD" };
        bench.run(&[wrong, &name, "wrong"]).await;
        // Whatever this does, it answers, and the other queue goes on.
        let ours = bench.queue(&queue).enqueue("during", &(), Default::default()).await;
        bench.still_works("other", key).await;
        // Mended, the queue goes on, with the job that was accepted.
        bench.run(&["DEL", &name]).await;
        bench.run(&["ZADD", &format!("bull:{queue}:marker"), "0", "0"]).await;
        bench.still_works(&queue, key).await;
        if let Ok(during) = ours {
            let ended = bench.ends(&queue, during.id().as_str()).await;
            // What was in the broken key itself is gone with it.
            assert!(
                ended == Some(JobState::Completed) || matches!(key, "wait" | "completed" | "active" | "id"),
                "{key}: {ended:?}"
            );
        }
        worker.stop(PATIENCE).await;
    }
    other.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_of_fifty_megabytes_hits_one_job_only() {
    let bench = Bench::start().await;
    let worker = bench.worker("q").concurrency(4).handle_any(echo()).start().unwrap();
    let data = format!("\"{}\"", "x".repeat(50 * 1024 * 1024));
    bench.plant("q", "before", &SOUND).await;
    bench.plant("q", "large", &with("data", &data)).await;
    bench.plant("q", "after", &SOUND).await;
    for id in ["before", "after"] {
        assert_eq!(bench.ends("q", id).await, Some(JobState::Completed), "{id}");
    }
    assert_eq!(bench.ends("q", "large").await, Some(JobState::Failed));
    let reason = bench.job("q", &JobId::stored("large")).await.failed_reason.unwrap();
    assert!(reason.contains("Limit(Size)"), "{reason}");
    bench.still_works("q", "a large payload").await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn infinite_and_absurd_scores_do_not_stop_the_queue() {
    let bench = Bench::start().await;
    for id in ["never", "past", "huge", "tiny"] {
        let mut conn = bench.conn().await;
        let key = format!("bull:q:{id}");
        redis::cmd("HSET").arg(key).arg(&SOUND[..]).query_async::<()>(&mut conn).await.unwrap();
    }
    bench.run(&["ZADD", "bull:q:delayed", "+inf", "never", "-inf", "past"]).await;
    bench.run(&["ZADD", "bull:q:prioritized", "1e300", "huge", "-1e300", "tiny"]).await;
    bench.run(&["ZADD", "bull:q:marker", "inf", "1"]).await;
    let worker = bench.worker("q").handle_any(echo()).start().unwrap();
    for id in ["huge", "tiny"] {
        assert_eq!(bench.ends("q", id).await, Some(JobState::Completed), "{id}");
    }
    bench.still_works("q", "infinite scores").await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_removed_and_locks_stolen_in_the_middle_hit_one_job_only() {
    let bench = Bench::start().await;
    let server = bench.server.url();
    let handler = handler_fn(move |ctx: JobContext, _: Value| {
        let server = server.clone();
        async move {
            if ctx.name() == "good" {
                return Ok(());
            }
            let client = redis::Client::open(server).unwrap();
            let mut conn = client.get_multiplexed_async_connection().await.unwrap();
            let key = format!("bull:q:{}", ctx.id());
            let mut cmd = match ctx.name() {
                "removed" => redis::cmd("DEL"),
                _ => redis::cmd("SET"),
            };
            match ctx.name() {
                "removed" => cmd.arg(key),
                "becomes-text" => cmd.arg(key).arg("text"),
                _ => cmd.arg(format!("{key}:lock")).arg("a thief"),
            };
            cmd.query_async::<redis::Value>(&mut conn).await.unwrap();
            Ok::<_, JobError>(())
        }
    });
    let worker = bench
        .worker("q")
        .concurrency(4)
        .lock(Duration::from_millis(800))
        .stalled_interval(Duration::from_millis(300))
        .handle_any(handler)
        .start()
        .unwrap();
    for name in ["removed", "becomes-text", "stolen"] {
        bench.queue("q").enqueue(name, &(), Default::default()).await.unwrap();
        bench.still_works("q", name).await;
    }
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn circles_of_parents_are_removed_finished_and_shown() {
    let bench = Bench::start().await;
    // A is B's parent and B is A's; C is its own.
    for (id, parent) in [("a", "b"), ("b", "a"), ("c", "c")] {
        let key = format!("bull:q:{parent}");
        let json = format!("{{\"id\":\"{parent}\",\"queueKey\":\"bull:q\",\"fpof\":true}}");
        let mut fields = SOUND.to_vec();
        fields.extend([("parentKey", key.as_str()), ("parent", json.as_str())]);
        let mut conn = bench.conn().await;
        let own = format!("bull:q:{id}");
        redis::cmd("HSET").arg(&own).arg(&fields).query_async::<()>(&mut conn).await.unwrap();
        bench.run(&["SADD", &format!("{key}:dependencies"), &own]).await;
        bench.run(&["ZADD", "bull:q:waiting-children", "1", id]).await;
    }
    let admin = bench.admin("q");
    for id in ["a", "c"] {
        assert!(admin.job(&JobId::stored(id)).await.unwrap().is_some());
        assert_eq!(admin.remove(&JobId::stored(id)).await.unwrap(), Removal::Removed);
    }
    assert_eq!(admin.counts().await.unwrap(), Counts::default());

    // Run instead of removed: each waits for the other, and says so.
    let worker = bench.worker("q").handle_any(echo()).start().unwrap();
    for (id, parent) in [("a", "b"), ("b", "a"), ("c", "c")] {
        let key = format!("bull:q:{parent}");
        let json = format!("{{\"id\":\"{parent}\",\"queueKey\":\"bull:q\",\"fpof\":true}}");
        let mut fields = SOUND.to_vec();
        fields.extend([("parentKey", key.as_str()), ("parent", json.as_str())]);
        bench.run(&["SADD", &format!("{key}:dependencies"), &format!("bull:q:{id}")]).await;
        bench.plant("q", id, &fields).await;
    }
    bench.still_works("q", "circles").await;
    worker.stop(PATIENCE).await;
}
