//! Attempts that end before their handler would: time limits, jobs cancelled from
//! elsewhere.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::{Bench, PATIENCE, completed};
use mpanel_engine::{
    CancelCause, Handler, JobContext, JobError,
    admin::{AdminError, Cancelling, Counts},
    handler::{BoxError, FinalCause},
    handler_fn,
};
use mpanel_producer::{Backoff, EnqueueOptions, FlowJob};
use mpanel_protocol::{
    calls::manage::{FinalState, Reprocess},
    ids::JobId,
};
use mpanel_testkit::{BullVersion, NodeSidecar, eventually};
use serde_json::{Value, json};
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_millis(150);

#[derive(Debug, Clone, PartialEq)]
enum Heard {
    Started(u32),
    Cancelled(Option<CancelCause>),
    Failed(FinalCause, String, bool),
}

/// The next thing heard, if it comes in time.
async fn next(heard: &mut mpsc::UnboundedReceiver<Heard>) -> Heard {
    tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time").expect("a worker")
}

/// How a handler behaves when it is to end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manners {
    Obeys,
    Completes,
    Ignores,
    /// Holds its thread and never waits.
    Blocks,
}

struct Slow {
    manners: Manners,
    heard: mpsc::UnboundedSender<Heard>,
    limit: Option<Duration>,
}

fn slow(manners: Manners) -> (Slow, mpsc::UnboundedReceiver<Heard>) {
    let (heard, hears) = mpsc::unbounded_channel();
    (Slow { manners, heard, limit: None }, hears)
}

impl Handler for Slow {
    type Data = Value;
    type Output = &'static str;

    async fn run(&self, ctx: &JobContext, _: Value) -> Result<&'static str, JobError> {
        self.heard.send(Heard::Started(ctx.attempt())).unwrap();
        match self.manners {
            Manners::Ignores => std::future::pending().await,
            Manners::Blocks => {
                let until = Instant::now() + Duration::from_secs(2);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
            Manners::Obeys | Manners::Completes => {
                ctx.cancelled().cancelled().await;
                self.heard.send(Heard::Cancelled(ctx.cancel_cause())).unwrap();
            }
        }
        if self.manners == Manners::Obeys {
            Err(JobError::retry("stopped half way"))
        } else {
            Ok("done all the same")
        }
    }

    fn time_limit(&self, _: &JobContext) -> Option<Duration> {
        self.limit
    }

    async fn on_failed(&self, ctx: &JobContext, cause: FinalCause, reason: &str) -> Result<(), BoxError> {
        // What is done here is not cancelled with the handler.
        let may_work = !ctx.cancelled().is_cancelled();
        self.heard.send(Heard::Failed(cause, reason.to_owned(), may_work)).unwrap();
        Ok(())
    }
}

async fn enqueue(bench: &Bench, attempts: u32) -> JobId {
    let options = EnqueueOptions::new().attempts(attempts).backoff(Backoff::fixed(10));
    bench.queue("q").enqueue("a", &json!({}), options).await.unwrap().id().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_over_its_time_has_failed_and_is_retried_like_others() {
    let bench = Bench::start().await;
    let id = enqueue(&bench, 2).await;
    let (handler, mut heard) = slow(Manners::Obeys);
    let worker = bench.worker("q").time_limit(LIMIT).handle_any(handler).start().unwrap();
    bench.counts_become("q", Counts { failed: 1, ..Counts::default() }).await;
    let reason = "time limit of 150ms exceeded";
    for attempt in 1..=2 {
        assert_eq!(next(&mut heard).await, Heard::Started(attempt));
        assert_eq!(next(&mut heard).await, Heard::Cancelled(Some(CancelCause::TimeLimit(LIMIT))));
    }
    assert_eq!(next(&mut heard).await, Heard::Failed(FinalCause::Exhausted, reason.into(), true));
    let detail = bench.job("q", &id).await;
    assert_eq!(detail.failed_reason.as_deref(), Some(reason));
    assert_eq!(detail.job.attempts_made, 2);
    let stack = detail.job.stacktrace.unwrap();
    assert!(stack.contains("stopped half way"), "{stack}");
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_is_done_in_the_grace_counts() {
    let bench = Bench::start().await;
    let id = enqueue(&bench, 1).await;
    let (handler, _heard) = slow(Manners::Completes);
    let worker = bench.worker("q").time_limit(LIMIT).handle_any(handler).start().unwrap();
    bench.counts_become("q", completed(1)).await;
    assert_eq!(bench.job("q", &id).await.return_value.as_deref(), Some("\"done all the same\""));
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_ignores_its_end_is_left_behind_even_when_it_holds_its_thread() {
    for manners in [Manners::Ignores, Manners::Blocks] {
        let bench = Bench::start().await;
        let id = enqueue(&bench, 1).await;
        let (mut handler, mut heard) = slow(manners);
        // The handler's own limit goes before the worker's.
        handler.limit = Some(LIMIT);
        let worker = bench.worker("q").time_limit(PATIENCE).cancel_grace(LIMIT).handle_any(handler);
        let worker = worker.start().unwrap();
        assert_eq!(next(&mut heard).await, Heard::Started(1));
        let failed = next(&mut heard).await;
        assert!(matches!(failed, Heard::Failed(FinalCause::Exhausted, _, true)), "{failed:?}");
        bench.counts_become("q", Counts { failed: 1, ..Counts::default() }).await;
        let detail = bench.job("q", &id).await;
        let stack = detail.job.stacktrace.unwrap();
        assert!(stack.contains("ignored its cancellation"), "{stack}");
        // Its slot is free.
        let worker = worker.stop(PATIENCE).await;
        assert_eq!(worker.unfinished, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_that_is_cancelled_ends_within_a_second_and_for_good() {
    for manners in [Manners::Obeys, Manners::Completes, Manners::Ignores] {
        let bench = Bench::start().await;
        let id = enqueue(&bench, 5).await;
        let (handler, mut heard) = slow(manners);
        let worker = bench.worker("q").cancel_grace(LIMIT).handle_any(handler).start().unwrap();
        assert_eq!(next(&mut heard).await, Heard::Started(1));
        // Somebody in another process, who has nothing but the id.
        let asked = Instant::now();
        assert_eq!(bench.admin("q").cancel(&id, "ann").await.unwrap(), Cancelling::Running);
        if manners != Manners::Ignores {
            let by = CancelCause::Requested("cancelled by ann".into());
            assert_eq!(next(&mut heard).await, Heard::Cancelled(Some(by)));
            assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        }
        let told = Heard::Failed(FinalCause::Cancelled, "cancelled by ann".into(), true);
        assert_eq!(next(&mut heard).await, told);
        bench.counts_become("q", Counts { failed: 1, ..Counts::default() }).await;
        let detail = bench.job("q", &id).await;
        assert_eq!(detail.failed_reason.as_deref(), Some("cancelled by ann"));
        assert_eq!(detail.job.attempts_made, 1);
        let left: bool = bench.ask(&format!("HEXISTS bull:q:{id} defa")).await;
        assert!(!left);
        worker.stop(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_do_not_run_yet_are_cancelled_too() {
    let bench = Bench::start().await;
    let queue = bench.queue("q");
    let later = EnqueueOptions::new().delay(Duration::from_secs(3600));
    let waiting = queue.enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap().id().clone();
    let delayed = queue.enqueue("a", &json!({}), later).await.unwrap().id().clone();
    let urgent =
        queue.enqueue("a", &json!({}), EnqueueOptions::new().priority(3)).await.unwrap().id().clone();
    let flow = FlowJob::new("a", "q").child(FlowJob::new("a", "elsewhere"));
    let parent = bench.producer.enqueue_flow(flow).await.unwrap().id.clone();
    let admin = bench.admin("q");
    let all = [waiting, delayed, urgent, parent];
    for id in &all {
        assert_eq!(admin.cancel(id, "ann").await.unwrap(), Cancelling::InLine);
    }
    let (handler, mut heard) = slow(Manners::Obeys);
    let worker = bench.worker("q").concurrency(4).handle_any(handler).start().unwrap();
    bench.counts_become("q", Counts { failed: 4, ..Counts::default() }).await;
    for _ in &all {
        let told = Heard::Failed(FinalCause::Cancelled, "cancelled by ann".into(), true);
        assert_eq!(next(&mut heard).await, told);
    }
    for id in &all {
        assert_eq!(bench.job("q", id).await.failed_reason.as_deref(), Some("cancelled by ann"));
        let again = admin.cancel(id, "ann").await.unwrap_err().to_string();
        assert!(again.contains("not in the expected state"), "{again}");
    }
    assert!(admin.cancel(&JobId::stored("404"), "ann").await.unwrap_err().to_string().contains("gone"));
    for who in ["", "  ", "a\nb"] {
        assert!(matches!(admin.cancel(&all[0], who).await, Err(AdminError::Who)));
    }
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_whose_worker_dies_is_not_run_again() {
    let bench = Bench::start().await;
    let id = enqueue(&bench, 5).await;
    let (handler, mut heard) = slow(Manners::Ignores);
    let short =
        || bench.worker("q").lock(Duration::from_millis(300)).stalled_interval(Duration::from_millis(200));
    let dies = short().handle_any(handler).start().unwrap();
    assert_eq!(next(&mut heard).await, Heard::Started(1));
    drop(dies);
    bench.admin("q").cancel(&id, "ann").await.unwrap();
    let ran = Arc::new(Mutex::new(0));
    let count = ran.clone();
    let other = handler_fn(move |_: JobContext, _: Value| {
        *count.lock().unwrap() += 1;
        async { Ok::<_, JobError>(()) }
    });
    let worker = short().handle_any(other).start().unwrap();
    bench.counts_become("q", Counts { failed: 1, ..Counts::default() }).await;
    assert_eq!(bench.job("q", &id).await.failed_reason.as_deref(), Some("cancelled by ann"));
    assert_eq!(*ran.lock().unwrap(), 0);
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_is_unaffected_and_fails_what_was_cancelled_in_line() {
    let bench = Bench::start().await;
    let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
    for version in [BullVersion::V5, BullVersion::V6] {
        let name = format!("n-{}", version.alias());
        let queue = bench.queue(&name);
        let runs = queue.enqueue("runs", &json!({}), EnqueueOptions::new()).await.unwrap().id().clone();
        let script = json!({"default": {"hold": name, "return": "by node"}});
        let remote = node.queue(version, &name);
        let worker = remote.start_worker(script, json!({})).await.unwrap();
        bench.counts_become(&name, Counts { active: 1, ..Counts::default() }).await;
        let waits =
            queue.enqueue("waits", &json!({}), EnqueueOptions::new().attempts(3)).await.unwrap().id().clone();
        let admin = bench.admin(&name);
        assert_eq!(admin.cancel(&runs, "ann").await.unwrap(), Cancelling::Running);
        assert_eq!(admin.cancel(&waits, "ann").await.unwrap(), Cancelling::InLine);
        node.release(&name).await.unwrap();
        bench.counts_become(&name, Counts { completed: 1, failed: 1, ..Counts::default() }).await;
        assert_eq!(bench.job(&name, &runs).await.return_value.as_deref(), Some("\"by node\""));
        assert_eq!(bench.job(&name, &waits).await.failed_reason.as_deref(), Some("cancelled by ann"));
        // Too late for that run, and no concern of the next one.
        let again = Reprocess::default();
        admin.retry(&runs, FinalState::Completed, again).await.unwrap();
        eventually("the second run", PATIENCE, || async {
            let detail = bench.job(&name, &runs).await;
            let seen = (detail.job.attempts_started, detail.return_value.is_some());
            if seen == (2, true) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await
        .unwrap();
        worker.close(false).await.unwrap();
    }
}
