//! What stands around handlers, and workers that are paused, resized, limited in
//! starts, or made from a kind of job; and the testing module.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Bench, Gate, PATIENCE, completed, echo};
use mpanel_engine::{
    Handler, JobContext, JobError,
    admin::Counts,
    handler::{BoxError, ErrorKind, FinalCause, Yield},
    handler_fn,
    middleware::{ErrorReporter, Middleware, Next, ReturnValue, Timing},
    testing::{FakeJob, Outcome, drain, run},
};
use mpanel_producer::{Backoff, BulkJob, EnqueueOptions, JobKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

type Notes = Arc<Mutex<Vec<String>>>;

/// Notes when the attempt goes in and out.
struct Layer(&'static str, Notes);

impl Middleware for Layer {
    async fn around(&self, ctx: &JobContext, next: Next) -> Result<ReturnValue, JobError> {
        self.1.lock().unwrap().push(format!("{} in", self.0));
        if ctx.name() == "closed" {
            return Err(JobError::never("closed today"));
        }
        let ran = next.run(ctx).await;
        self.1.lock().unwrap().push(format!("{} out {}", self.0, ran.is_ok()));
        ran
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn middleware_stands_around_handlers_in_the_order_it_was_given() {
    let bench = Bench::start().await;
    let (notes, errors, times) = (Notes::default(), Notes::default(), Notes::default());
    let handler = handler_fn({
        let notes = notes.clone();
        move |ctx: JobContext, _: u32| {
            notes.lock().unwrap().push(ctx.name().to_owned());
            async move {
                match ctx.name() {
                    "good" => Ok(1),
                    "panics" => panic!("oh"),
                    "later" if ctx.attempt() == 1 => Err(JobError::snooze(Duration::from_millis(1))),
                    "later" => Ok(2),
                    _ => Err(JobError::never("bad").because("disk full")),
                }
            }
        }
    });
    let (told, timed) = (errors.clone(), times.clone());
    let worker = bench
        .worker("q")
        .middleware(Timing::told(move |ctx: &JobContext, _, ok| {
            timed.lock().unwrap().push(format!("{} {ok}", ctx.name()));
        }))
        .middleware(Timing::logged())
        .middleware(ErrorReporter::new(move |ctx: &JobContext, error: &JobError| {
            let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            told.lock().unwrap().push(format!("{} {error} {cause}", ctx.name()));
        }))
        .middleware(Layer("a", notes.clone()))
        .middleware(Layer("b", notes.clone()))
        .handle_any(handler)
        .start()
        .unwrap();
    for (name, data) in [
        ("good", json!(1)),
        ("bad", json!(1)),
        ("panics", json!(1)),
        ("good", json!("x")),
        ("closed", json!(1)),
        ("later", json!(1)),
    ] {
        bench.queue("q").enqueue(name, &data, EnqueueOptions::new()).await.unwrap();
    }
    bench.counts_become("q", Counts { completed: 2, failed: 4, ..Counts::default() }).await;
    worker.stop(PATIENCE).await;
    let notes = notes.lock().unwrap().clone();
    assert_eq!(notes[..5], ["a in", "b in", "good", "b out true", "a out true"]);
    assert_eq!(notes[5..10], ["a in", "b in", "bad", "b out false", "a out false"]);
    let errors = errors.lock().unwrap().clone();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert_eq!(errors[0], "bad bad disk full");
    assert!(errors[1].starts_with("panics handler panicked: oh"), "{errors:?}");
    assert!(errors[2].starts_with("good the payload cannot be decoded"), "{errors:?}");
    assert_eq!(errors[3], "closed closed today ");
    let times = times.lock().unwrap().clone();
    assert_eq!(
        times,
        ["good true", "bad false", "panics false", "good false", "closed false", "later false", "later true"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_worker_takes_nothing_until_it_goes_on_and_others_do() {
    let bench = Bench::start().await;
    let gate = Gate::closed();
    let worker = bench.worker("q").concurrency(2).handle_any(gate.stubborn()).start().unwrap();
    bench.asleep(1).await;
    bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    gate.started(1).await;
    worker.pause();
    assert!(worker.is_paused());
    // It listens no more: nobody takes the marker for it.
    bench.asleep(0).await;
    bench.queue("q").enqueue("b", &json!({}), EnqueueOptions::new()).await.unwrap();
    gate.open();
    worker.until_quiet().await;
    bench.counts_become("q", Counts { completed: 1, waiting: 1, ..Counts::default() }).await;
    let other = bench.worker("q").handle_any(echo()).start().unwrap();
    bench.counts_become("q", completed(2)).await;
    other.stop(PATIENCE).await;
    bench.queue("q").enqueue("c", &json!({}), EnqueueOptions::new()).await.unwrap();
    worker.resume();
    bench.counts_become("q", completed(3)).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_worker_gets_more_or_fewer_slots() {
    let bench = Bench::start().await;
    bench.queue("q").enqueue_bulk((0..6).map(|n| BulkJob::new("a", json!(n)))).await.unwrap();
    let gate = Gate::closed();
    let worker = bench.worker("q").handle_any(gate.stubborn()).start().unwrap();
    gate.started(1).await;
    worker.set_concurrency(4);
    gate.started(4).await;
    bench.counts_become("q", Counts { active: 4, waiting: 2, ..Counts::default() }).await;
    worker.set_concurrency(0);
    gate.open();
    bench.counts_become("q", completed(6)).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_started_too_often_fails() {
    let bench = Bench::start().await;
    let id = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new().attempts(9)).await.unwrap();
    let tired = handler_fn(|_: JobContext, _: Value| async { Err::<(), _>(JobError::back_in_line()) });
    let worker = bench.worker("q").starts_allowed(3).handle_any(tired).start().unwrap();
    bench.counts_become("q", Counts { failed: 1, ..Counts::default() }).await;
    let detail = bench.job("q", id.id()).await;
    assert_eq!(detail.failed_reason.as_deref(), Some("job started more than allowable limit"));
    assert_eq!((detail.job.attempts_started, detail.job.attempts_made), (4, 1));
    worker.stop(PATIENCE).await;
}

#[derive(Serialize, Deserialize)]
struct Square {
    n: u32,
}

impl JobKind for Square {
    const QUEUE: &'static str = "squares";
    const NAME: &'static str = "square";
    type Output = u32;
}

struct Squares;

impl Handler for Squares {
    type Data = Square;
    type Output = u32;

    async fn run(&self, ctx: &JobContext, square: Square) -> Result<u32, JobError> {
        match square.n {
            0 => Err(JobError::bad_payload("nothing to square")),
            1 => Err(JobError::retry("one")),
            2 => Err(JobError::rate_limited(Duration::from_secs(1))),
            3 => {
                ctx.wait_for_children().await?;
                Ok(ctx.children_values::<u32>().await.unwrap().values().sum())
            }
            4 => panic!("four"),
            n => {
                ctx.progress(&n).await.unwrap();
                ctx.log("squaring").await.unwrap();
                ctx.update_data(&Square { n: n + 1 }).await.unwrap();
                Ok(n * n)
            }
        }
    }

    async fn on_failed(&self, _: &JobContext, _: FinalCause, reason: &str) -> Result<(), BoxError> {
        if reason.contains("one") { Err("no place to note it".into()) } else { Ok(()) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_one_kind_is_worked_off_inline() {
    let bench = Bench::start().await;
    for n in [5, 6, 0] {
        bench.producer.enqueue_kind(&Square { n }).await.unwrap();
    }
    let done = drain(bench.engine.worker_of::<Square, _>(Squares).unwrap()).await.unwrap();
    assert_eq!((done.completed, done.failed), (2, 1));
    bench.counts_become("squares", Counts { completed: 2, failed: 1, ..Counts::default() }).await;
}

#[tokio::test]
async fn a_handler_is_tried_without_redis() {
    let job = |n: u32| FakeJob::new("square", &Square { n });
    let tried = run(Squares, job(5)).await;
    assert_eq!(tried.outcome, Outcome::Completed(json!(25)));
    assert_eq!((tried.progress, tried.log), (vec![json!(5)], vec!["squaring".to_owned()]));
    assert_eq!(tried.new_data, Some(json!({"n": 6})));

    let failed = |cause, reason: &str, trouble: Option<&str>| Outcome::Failed {
        cause,
        reason: reason.into(),
        trouble: trouble.map(str::to_owned),
    };
    let outcome = async |job| run(Squares, job).await.outcome;
    assert_eq!(outcome(job(0)).await, failed(FinalCause::BadPayload, "nothing to square", None));
    let one = failed(FinalCause::Exhausted, "one", Some("no place to note it"));
    assert_eq!(outcome(job(1)).await, one);
    assert_eq!(outcome(job(1).attempts(2).attempts_made(1)).await, one);
    let options =
        mpanel_producer::JobOptions { attempts: 3, backoff: Some(Backoff::fixed(250)), ..Default::default() };
    let again = Outcome::Retried { reason: "one".into(), after: Duration::from_millis(250) };
    assert_eq!(outcome(job(1).options(options)).await, again);
    assert_eq!(outcome(job(2)).await, Outcome::Yielded(Yield::RateLimited(Duration::from_secs(1))));
    assert_eq!(outcome(job(3).pending_children()).await, Outcome::Yielded(Yield::WaitsForChildren));
    let key = "bull:squares:";
    let parent = job(3).child(&format!("{key}1"), &4).child(&format!("{key}2"), &5);
    assert_eq!(outcome(parent).await, Outcome::Completed(json!(9)));
    let panicked = failed(FinalCause::Exhausted, "handler panicked: four", None);
    assert_eq!(outcome(job(4)).await, panicked);
    let Outcome::Failed { cause: FinalCause::BadPayload, reason, .. } =
        outcome(FakeJob::raw("square", "{not json")).await
    else {
        panic!("it cannot be decoded");
    };
    assert!(reason.starts_with("the payload cannot be decoded"), "{reason}");
    assert_eq!(JobError::bad_payload("x").kind(), ErrorKind::BadPayload);
}
