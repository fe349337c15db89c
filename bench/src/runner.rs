//! Runs every case on both sides in turn, on one server, and checks what each
//! run leaves.

use mpanel_connect::Conn;
use serde::Serialize;

use crate::{
    BoxError,
    adapter::{Adapter, QUEUE},
    cases::{Case, Leaves},
    contract::Answer,
    redis_cpu::{Meter, ServerCost},
    report::progress,
};

/// One measured run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The case.
    pub case: &'static str,
    /// Which repetition, from 1.
    pub repetition: u32,
    /// Whose.
    pub side: String,
    /// What the client measured.
    pub answer: Answer,
    /// What the server spent.
    pub server: ServerCost,
}

impl Run {
    #[expect(clippy::cast_precision_loss, reason = "a count of jobs")]
    fn per_job(&self, total: f64) -> f64 {
        total / self.answer.n.max(1) as f64
    }

    /// Jobs a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        Case::rate(&self.answer)
    }

    /// Server CPU a job, µs.
    #[must_use]
    pub fn redis_micros(&self) -> f64 {
        self.per_job(self.server.cpu_micros)
    }

    /// Client CPU a job, µs.
    #[must_use]
    pub fn client_micros(&self) -> f64 {
        self.per_job(self.answer.cpu_ms * 1000.0)
    }

    /// Redis commands a job.
    #[must_use]
    pub fn commands(&self) -> f64 {
        self.per_job(self.server.commands)
    }

    /// Script calls a job.
    #[must_use]
    pub fn script_calls(&self) -> f64 {
        self.per_job(self.server.script_calls)
    }
}

/// Runs `cases` so many times, the sides in turn.
///
/// # Errors
/// The first run that fails, or that leaves something else than it must.
pub async fn run_all(
    cases: &[Case],
    sides: &[Adapter],
    repetitions: u32,
    meter: &mut Meter,
) -> Result<Vec<Run>, BoxError> {
    let mut runs = Vec::new();
    for repetition in 1..=repetitions {
        for case in cases {
            let mut order: Vec<&Adapter> = sides.iter().filter(|side| side.serves(case)).collect();
            // Who goes first changes, so that drift of the machine favours nobody.
            let first = repetition as usize % order.len().max(1);
            order.rotate_left(first);
            for adapter in order {
                let run = run_one(case, adapter, repetition, meter).await?;
                progress(&said(case, adapter, &run, repetitions));
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

async fn run_one(
    case: &Case,
    adapter: &Adapter,
    repetition: u32,
    meter: &mut Meter,
) -> Result<Run, BoxError> {
    meter.clear().await?;
    if let Some(preload) = &case.preload {
        adapter.run("enqueue", case.n, preload).await?;
    }
    meter.begin().await?;
    let answer = adapter.run(case.verb, case.n, &case.options).await?;
    let server = meter.end().await?;
    if answer.n != case.n {
        return Err(
            format!("{} by {}: {} jobs instead of {}", case.name, adapter.name, answer.n, case.n).into()
        );
    }
    check(case, meter.conn()).await.map_err(|e| format!("{} by {}: {e}", case.name, adapter.name))?;
    Ok(Run { case: case.name, repetition, side: adapter.key.clone(), answer, server })
}

/// What is left must be what the case leaves; a fast run that lost jobs is no result.
async fn check(case: &Case, conn: &mut Conn) -> Result<(), BoxError> {
    let (waiting, completed) = match case.leaves {
        Leaves::Waiting => (case.n, 0),
        Leaves::Completed(n) => (0, n),
    };
    let key = |name: &str| format!("bull:{QUEUE}:{name}");
    let mut pipe = redis::pipe();
    for list in ["wait", "active", "paused"] {
        pipe.llen(key(list));
    }
    for set in ["delayed", "prioritized", "failed", "completed"] {
        pipe.zcard(key(set));
    }
    let found: Vec<u64> = pipe.query_async(conn).await?;
    let expected = [waiting, 0, 0, 0, 0, 0, completed];
    if found != expected {
        return Err(format!(
            "left [wait, active, paused, delayed, prioritized, failed, completed] {found:?}, expected {expected:?}"
        )
        .into());
    }
    // Hashes of the jobs, and a handful of keys of the queue itself; no lock, no orphan.
    let keys: u64 = redis::cmd("DBSIZE").query_async(conn).await?;
    if keys > waiting + completed + 10 {
        return Err(format!("left {keys} keys for {} jobs", waiting + completed).into());
    }
    Ok(())
}

fn said(case: &Case, adapter: &Adapter, run: &Run, repetitions: u32) -> String {
    let figure = match (run.answer.p50_ms, run.answer.p99_ms) {
        (Some(p50), Some(p99)) => format!("p50 {p50:.2} ms, p99 {p99:.2} ms"),
        _ => format!("{:.0} jobs/s", run.rate()),
    };
    format!(
        "[{}/{repetitions}] {:<16} {:<20} {figure}; Redis {:.1} µs, client {:.1} µs a job",
        run.repetition,
        case.name,
        adapter.name,
        run.redis_micros(),
        run.client_micros()
    )
}
