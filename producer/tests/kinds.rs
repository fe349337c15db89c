//! Kinds of jobs, and what tests of programs that enqueue can say of them.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{panic::AssertUnwindSafe, time::Duration};

use common::{PATIENCE, start};
use mpanel_producer::{
    Backoff, BulkJob, Durability, EnqueueError, EnqueueOptions, FlowJob, JobKind, JobOptions, Outcome,
    Producer,
    testing::{self, Expected, Recorder, SeenJob},
};
use mpanel_testkit::{BullVersion, NodeSidecar};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Welcome {
    to: String,
}

impl JobKind for Welcome {
    const QUEUE: &'static str = "mails";
    const NAME: &'static str = "welcome";
    type Output = u32;

    fn options(&self) -> JobOptions {
        JobOptions { attempts: 3, backoff: Some(Backoff::fixed(100)), ..JobOptions::default() }
    }
}

fn to(name: &str) -> Welcome {
    Welcome { to: name.to_owned() }
}

fn welcome(name: &str) -> Expected {
    Expected::new("mails", "welcome").data(json!({"to": name}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_brings_its_queue_name_and_options() {
    let (server, producer, _conn) = start().await;
    let one = producer.enqueue_kind(&to("one")).await.unwrap();
    let urgent = EnqueueOptions::new().priority(1).attempts(9);
    producer.enqueue_kind_with(&to("two"), urgent).await.unwrap();
    let many = producer.enqueue_kinds(&[to("three"), to("four")]).await.unwrap();
    assert_eq!(many.len(), 2);
    let five = to("five");
    let bulk = [&five].map(|job| BulkJob::kind(job).options(EnqueueOptions::of_kind(job).lifo(true)));
    producer.queue("mails").unwrap().enqueue_bulk(bulk).await.unwrap();
    let flow = FlowJob::kind(&to("parent")).unwrap().child(FlowJob::kind(&to("child")).unwrap());
    producer.enqueue_flow(flow).await.unwrap();
    let plain = || EnqueueOptions::of_kind(&to(""));
    let expected = [
        welcome("one").options(plain()).parent(None).delay_ms(0),
        welcome("two").options(EnqueueOptions::new().attempts(9).backoff(Backoff::fixed(100)).priority(1)),
        welcome("three").options(plain()),
        welcome("four").options(plain()),
        welcome("five").options(plain().lifo(true)),
        welcome("parent").options(plain()),
        welcome("child").options(plain()),
    ];
    testing::assert_queue(&producer, "mails", &expected).await;
    // Its result is waited for by its id, from anywhere.
    let theirs = NodeSidecar::start(&server.url()).await.unwrap().queue(BullVersion::V5, "mails");
    let _worker = theirs.start_worker(json!({"default": {"return": 7}}), json!({})).await.unwrap();
    assert_eq!(theirs.wait_until_finished(one.id().as_str(), PATIENCE).await.unwrap(), json!(7));
}

/// The code under test of the next two.
async fn business(producer: &Producer) -> Result<(), EnqueueError> {
    let mails = producer.queue("mails")?;
    let new = EnqueueOptions::new;
    mails.enqueue("plain", &json!({"n": 1}), new()).await?;
    mails.enqueue_in(Duration::from_secs(60), "later", &json!(null), new().job_id("own")).await?;
    mails.enqueue("later", &json!(null), new().job_id("own")).await?;
    for _ in 0..2 {
        mails.enqueue("once", &json!({"vmid": 7}), new().unique_by(&["vmid"])).await?;
    }
    mails.enqueue_bulk((0..2).map(|n| BulkJob::new("bulk", json!({"n": n})))).await?;
    let flow =
        FlowJob::new("parent", "flows").options(new().job_id("p")).child(FlowJob::new("child", "mails"));
    producer.enqueue_flow(flow).await?;
    assert!(mails.enqueue("bad", &1, new().job_id("1")).await.is_err());
    assert!(mails.enqueue("bad", &1, new().priority(u32::MAX)).await.is_err());
    Ok(())
}

fn of_mails() -> [Expected; 6] {
    [
        Expected::new("mails", "plain").field("/n", 1),
        Expected::new("mails", "later").id("own").delay_ms(60_000).data(json!(null)),
        Expected::new("mails", "once"),
        Expected::new("mails", "bulk").data(json!({"n": 1})),
        Expected::new("mails", "bulk"),
        Expected::new("mails", "child").parent(Some("bull:flows:p")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_producer_takes_and_refuses_what_a_real_one_does() {
    let (recording, recorder) = testing::recording();
    let (_server, real, _conn) = start().await;
    business(&recording).await.unwrap();
    business(&real).await.unwrap();
    testing::assert_queue(&real, "mails", &of_mails()).await;
    testing::assert_queue(&recording, "mails", &of_mails()).await;
    let mut all = of_mails().to_vec();
    all.push(Expected::new("flows", "parent").id("p"));
    recorder.assert_enqueued(&all);
    // Job by job the two are the same, but for times and UUIDs.
    let mut ours = testing::jobs_of(&recording, "mails").await.unwrap();
    let mut theirs = testing::jobs_of(&real, "mails").await.unwrap();
    for jobs in [&mut ours, &mut theirs] {
        for job in jobs.iter_mut() {
            job.timestamp_ms = 0;
            if job.id.len() == 36 {
                job.id = String::from("uuid");
            }
        }
        jobs.sort_by_key(|SeenJob { id, name, .. }| (name.clone(), id.clone()));
    }
    assert_eq!(ours, theirs);
    assert_eq!(recorder.drain().len(), 7);
    recorder.assert_enqueued(&[]);
}

#[tokio::test]
async fn a_recording_producer_answers_like_a_real_one() {
    let (producer, _recorder) = testing::recording();
    let queue = producer.queue("q").unwrap();
    let own = || EnqueueOptions::new().job_id("own");
    assert!(queue.enqueue("a", &1, own()).await.unwrap().is_new());
    assert_eq!(queue.enqueue("a", &1, own()).await.unwrap().outcome(), Outcome::Duplicate);
    let safe = queue.clone().durability(Durability::replicated(2, PATIENCE));
    assert_eq!(safe.enqueue("a", &1, EnqueueOptions::new()).await.unwrap().replicas(), Some(2));
    let full = queue.max_waiting(2).enqueue("a", &1, EnqueueOptions::new()).await;
    assert!(matches!(full, Err(EnqueueError::QueueFull { limit: 2, .. })), "{full:?}");
}

/// The words of a failed assertion.
fn panic_of(recorder: &Recorder, expected: &[Expected]) -> String {
    let caught = std::panic::catch_unwind(AssertUnwindSafe(|| recorder.assert_enqueued(expected)));
    *caught.unwrap_err().downcast::<String>().unwrap()
}

#[tokio::test]
async fn a_difference_is_told_by_job_and_field() {
    let (producer, recorder) = testing::recording();
    producer.enqueue_kind(&to("a@example.org")).await.unwrap();
    let text = panic_of(&recorder, &[welcome("b@example.org")]);
    assert_eq!(
        text,
        "1 jobs expected, 1 enqueued\n  differs: `welcome` in `mails`, job 1\n    data: expected \
         {\"to\":\"b@example.org\"}, got {\"to\":\"a@example.org\"}"
    );
    assert!(panic_of(&recorder, &[]).contains("unexpected: `welcome` in `mails`, job 1, with {\"to\""));
    let two = [welcome("a@example.org"), Expected::new("mails", "goodbye")];
    assert_eq!(panic_of(&recorder, &two), "2 jobs expected, 1 enqueued\n  missing: `goodbye` in `mails`");
}
