//! Locks: kept while a job runs, lost without harm; jobs whose worker died are rescued.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::{Bench, Gate, PATIENCE, completed, echo};
use mpanel_engine::{
    Engine, Handler, JobContext, JobError, WorkerBuilder,
    admin::Counts,
    handler::{BoxError, FinalCause},
    handler_fn,
};
use mpanel_producer::EnqueueOptions;
use mpanel_protocol::ids::JobId;
use mpanel_testkit::{BullVersion, NodeSidecar, WorkerProcess, eventually};
use serde_json::{Value, json};

const LOCK: Duration = Duration::from_millis(600);
const SWEEP: Duration = Duration::from_millis(200);

fn short(worker: WorkerBuilder) -> WorkerBuilder {
    worker.lock(LOCK).stalled_interval(SWEEP)
}

/// This test binary once more, as a worker whose jobs never end.
fn holding_worker(bench: &Bench) -> WorkerProcess {
    WorkerProcess::builder(std::env::current_exe().unwrap())
        .args(["--exact", "a_worker_that_never_ends_when_started_as_a_child", "--nocapture"])
        .env("HOLDING_WORKER_REDIS", bench.server.url())
        .start()
        .unwrap()
}

#[tokio::test]
async fn a_worker_that_never_ends_when_started_as_a_child() {
    let Ok(url) = std::env::var("HOLDING_WORKER_REDIS") else { return };
    let hold = handler_fn(|ctx: JobContext, _: Value| async move {
        println!("holding {}", ctx.id());
        std::future::pending::<Result<(), JobError>>().await
    });
    let engine = Engine::connect(&url).await.unwrap();
    let _worker = short(engine.worker("q").unwrap()).handle_any(hold).start().unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_worker_was_killed_is_finished_by_another() {
    let bench = Bench::start().await;
    let job = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new().attempts(2)).await.unwrap();
    let dying = holding_worker(&bench);
    dying.wait_line(&format!("holding {}", job.id()), PATIENCE).await.unwrap();
    dying.kill9();
    let worker = short(bench.worker("q")).handle_any(echo()).start().unwrap();
    bench.counts_become("q", completed(1)).await;
    let detail = bench.job("q", job.id()).await;
    assert_eq!((detail.job.attempts_made, detail.job.attempts_started, detail.stalls), (1, 2, 1));
    bench.each_has_one_event("q", "completed", &[job.id().clone()]).await;
    bench.each_has_one_event("q", "stalled", &[job.id().clone()]).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_node_worker_was_killed_is_finished_by_ours() {
    let bench = Bench::start().await;
    for version in BullVersion::ALL {
        let queue = version.alias().replace('.', "-");
        let node = NodeSidecar::start(&bench.server.url()).await.unwrap();
        let view = node.queue(version, &queue).add("a", json!({}), json!({})).await.unwrap();
        let opts = json!({"lockDuration": LOCK.as_millis(), "stalledInterval": SWEEP.as_millis()});
        let script = json!({"default": {"hold": "ever"}});
        let theirs = node.queue(version, &queue).start_worker(script, opts).await.unwrap();
        theirs.wait_events("active", None, 1, PATIENCE).await.unwrap();
        node.kill9();
        let worker = short(bench.worker(&queue)).handle_any(echo()).start().unwrap();
        bench.counts_become(&queue, completed(1)).await;
        let id = JobId::stored(&view.id);
        let detail = bench.job(&queue, &id).await;
        assert_eq!(
            (detail.job.attempts_made, detail.job.attempts_started, detail.stalls),
            (1, 2, 1),
            "{version:?}"
        );
        bench.each_has_one_event(&queue, "completed", &[id]).await;
        worker.stop(PATIENCE).await;
    }
}

struct Told(Arc<Mutex<Vec<(FinalCause, String)>>>);

impl Handler for Told {
    type Data = Value;
    type Output = ();

    async fn run(&self, _: &JobContext, _: Value) -> Result<(), JobError> {
        panic!("a job that stalled too often must not run");
    }

    async fn on_failed(&self, _: &JobContext, cause: FinalCause, reason: &str) -> Result<(), BoxError> {
        self.0.lock().unwrap().push((cause, reason.to_owned()));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_workers_is_failed_for_good() {
    let bench = Bench::start().await;
    let job = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new().attempts(9)).await.unwrap();
    for _ in 0..2 {
        let dying = holding_worker(&bench);
        dying.wait_line(&format!("holding {}", job.id()), PATIENCE).await.unwrap();
        dying.kill9();
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let worker = short(bench.worker("q")).handle_any(Told(told.clone())).start().unwrap();
    bench.counts_become("q", Counts { failed: 1, ..Counts::default() }).await;
    let reason = "job stalled more than allowable limit";
    let detail = bench.job("q", job.id()).await;
    assert_eq!(detail.failed_reason.as_deref(), Some(reason));
    assert_eq!((detail.stalls, detail.job.attempts_made), (2, 1));
    assert_eq!(*told.lock().unwrap(), [(FinalCause::Deferred, reason.to_owned())]);
    bench.each_has_one_event("q", "failed", &[job.id().clone()]).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lock_cancels_the_attempt_and_nothing_is_written() {
    let bench = Bench::start().await;
    let job = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let (told, mut cancelled) = tokio::sync::mpsc::unbounded_channel();
    let waits = handler_fn(move |ctx: JobContext, _: Value| {
        let told = told.clone();
        async move {
            told.send(None).unwrap();
            ctx.cancelled().cancelled().await;
            told.send(Some(ctx.lock_lost())).unwrap();
            Ok::<_, JobError>("too late")
        }
    });
    // No sweep in the test's time: the job stays as the lost attempt left it.
    let worker = bench.worker("q").lock(LOCK).handle_any(waits).start().unwrap();
    assert_eq!(cancelled.recv().await, Some(None));
    let _: () = bench.ask(&format!("DEL bull:q:{}:lock", job.id())).await;
    assert_eq!(cancelled.recv().await, Some(Some(true)));
    let worker = worker.stop(PATIENCE).await;
    assert_eq!(worker.unfinished, 0);
    let detail = bench.job("q", job.id()).await;
    assert_eq!((detail.return_value, detail.finished_on_ms, detail.job.attempts_made), (None, None, 0));
    bench.counts_become("q", Counts { active: 1, ..Counts::default() }).await;
    assert!(bench.event_ids("q", "completed").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_outlives_its_lock_leaves_the_next_ones_lock_alone() {
    let bench = Bench::start().await;
    let job = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let (first, second) = (Gate::closed(), Gate::closed());
    let (one, two) = (first.stubborn(), second.stubborn());
    let handlers = (Arc::new(one), Arc::new(two));
    let by_attempt = handler_fn(move |ctx: JobContext, data: Value| {
        let (one, two) = handlers.clone();
        async move { if ctx.attempt() == 1 { one.run(&ctx, data).await } else { two.run(&ctx, data).await } }
    });
    let worker = short(bench.worker("q")).concurrency(2).handle_any(by_attempt).start().unwrap();
    first.started(1).await;
    let _: () = bench.ask(&format!("DEL bull:q:{}:lock", job.id())).await;
    second.started(1).await;
    first.open();
    eventually("the end of the first attempt", PATIENCE, || async {
        let active = worker.stats().active;
        if active == 1 { Ok(()) } else { Err(format!("{active} active")) }
    })
    .await
    .unwrap();
    bench.renewed("q", job.id(), 3).await;
    second.open();
    bench.counts_become("q", completed(1)).await;
    let detail = bench.job("q", job.id()).await;
    assert_eq!((detail.job.attempts_started, detail.return_value.as_deref()), (2, Some("2")));
    bench.each_has_one_event("q", "completed", &[job.id().clone()]).await;
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_blocks_its_runtime_keeps_its_lock() {
    let bench = Bench::start().await;
    let job = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let url = bench.server.url();
    let busy = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let engine = Engine::connect(&url).await.unwrap();
            let busy = handler_fn(|_: JobContext, _: Value| async move {
                let began = Instant::now();
                while began.elapsed() < LOCK * 3 {
                    std::hint::spin_loop();
                }
                Ok::<_, JobError>("busy")
            });
            let worker = short(engine.worker("q").unwrap()).handle_any(busy).start().unwrap();
            worker.until_idle().await;
            worker.stop(PATIENCE).await
        })
    });
    bench.counts_become("q", Counts { active: 1, ..Counts::default() }).await;
    let other = short(bench.worker("q")).handle_any(echo()).start().unwrap();
    bench.counts_become("q", completed(1)).await;
    let detail = bench.job("q", job.id()).await;
    assert_eq!(detail.return_value.as_deref(), Some("\"busy\""));
    assert_eq!((detail.job.attempts_started, detail.stalls), (1, 0));
    other.stop(PATIENCE).await;
    busy.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_renewed_while_redis_is_out_of_memory() {
    let bench = Bench::start().await;
    let job = bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let gate = Gate::closed();
    let worker = short(bench.worker("q")).handle_any(gate.stubborn()).start().unwrap();
    gate.started(1).await;
    let _: () = bench.ask("CONFIG SET maxmemory 1").await;
    let refused = bench.queue("other").enqueue("a", &json!({}), EnqueueOptions::new()).await;
    assert!(refused.unwrap_err().to_string().contains("OOM"));
    bench.renewed("q", job.id(), 4).await;
    let _: () = bench.ask("CONFIG SET maxmemory 0").await;
    gate.open();
    bench.counts_become("q", completed(1)).await;
    let detail = bench.job("q", job.id()).await;
    assert_eq!((detail.job.attempts_started, detail.stalls), (1, 0));
    worker.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_cannot_be_renewed_cancels_its_attempt_in_time() {
    let bench = Bench::start().await;
    bench.queue("q").enqueue("a", &json!({}), EnqueueOptions::new()).await.unwrap();
    let (told, mut cancelled) = tokio::sync::mpsc::unbounded_channel();
    let waits = handler_fn(move |ctx: JobContext, _: Value| {
        let told = told.clone();
        async move {
            told.send(Instant::now()).unwrap();
            ctx.cancelled().cancelled().await;
            told.send(Instant::now()).unwrap();
            Ok::<_, JobError>("too late")
        }
    });
    let worker = bench.worker("q").lock(LOCK).handle_any(waits).start().unwrap();
    let began = cancelled.recv().await.unwrap();
    bench.server.sigstop().unwrap();
    let ended = cancelled.recv().await.unwrap() - began;
    bench.server.sigcont().unwrap();
    assert!(ended < LOCK * 4, "the lock lives {LOCK:?}, the attempt was cancelled after {ended:?}");
    worker.stop(PATIENCE).await;
    assert!(bench.event_ids("q", "completed").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_keep_their_locks_over_several_renewals() {
    let bench = Bench::start().await;
    let queue = bench.queue("q");
    let jobs = (0..1100).map(|n| mpanel_producer::BulkJob::new("a", json!(n)));
    let last = queue.enqueue_bulk(jobs).await.unwrap().pop().unwrap();
    let gate = Gate::closed();
    let worker = bench
        .worker("q")
        .lock(LOCK * 3)
        .stalled_interval(SWEEP)
        .concurrency(1100)
        .handle_any(gate.stubborn());
    let worker = worker.start().unwrap();
    gate.started(1100).await;
    bench.renewed("q", last.id(), 2).await;
    gate.open();
    bench.counts_become("q", completed(1100)).await;
    assert!(bench.event_ids("q", "stalled").await.is_empty());
    worker.stop(PATIENCE).await;
}
