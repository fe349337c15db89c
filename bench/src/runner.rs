//! Runs every case on all sides in turn, on one server, and checks what each run leaves.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{
    BoxError,
    adapter::{Adapter, QUEUE, Served},
    cases::{Case, Leaves, Who, Work},
    contract::Answer,
    layout::{Layout, Left},
    redis_cpu::{Meter, ServerCost},
    report::progress,
    sides::FLEET,
};

/// How long the server of empty queues is watched.
const IDLE: Duration = Duration::from_secs(10);
/// How long before that the workers may settle.
const SETTLING: Duration = Duration::from_secs(2);
/// Pause between two looks at a queue that is drained by several processes.
const LOOK: Duration = Duration::from_millis(20);
/// Longest drain by processes.
const PATIENCE: Duration = Duration::from_secs(600);

/// One measured run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The case.
    pub case: &'static str,
    /// Which repetition, from 1.
    pub repetition: u32,
    /// Whose.
    pub side: String,
    /// What the clients measured, together.
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
        1000.0 / self.per_job(self.answer.wall_ms).max(f64::MIN_POSITIVE)
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

    /// Redis commands a second and queue (where `n` counts queues).
    #[must_use]
    pub fn idle_commands(&self) -> f64 {
        self.commands() / (self.answer.wall_ms / 1000.0).max(f64::MIN_POSITIVE)
    }
}

/// How often cases are run.
#[derive(Debug, Clone, Copy)]
pub struct Repetitions {
    /// Most of them.
    pub most: u32,
    /// The large ones.
    pub large: u32,
}

impl Repetitions {
    /// How often this one is run.
    #[must_use]
    pub fn of(self, case: &Case) -> u32 {
        if case.is_large { self.large } else { self.most }
    }
}

/// Runs `cases` so many times, the sides in turn. Answers the runs, and which runs
/// of peers failed.
///
/// # Errors
/// The first run of ours that fails, or that leaves something else than it must. A
/// peer that does so is told, and left out of that repetition.
pub async fn run_all(
    cases: &[Case],
    adapters: &[Adapter],
    repetitions: Repetitions,
    meter: &mut Meter,
) -> Result<(Vec<Run>, Vec<String>), BoxError> {
    let fleet = adapters.iter().find(|adapter| adapter.side.key == FLEET).ok_or("our side is missing")?;
    let (mut runs, mut failures) = (Vec::new(), Vec::new());
    for repetition in 1..=repetitions.most.max(repetitions.large) {
        for case in cases.iter().filter(|case| repetition <= repetitions.of(case)) {
            let mut order: Vec<&Adapter> = adapters.iter().filter(|adapter| serves(adapter, case)).collect();
            // Who goes first changes, so that drift of the machine favours nobody.
            let first = repetition as usize % order.len().max(1);
            order.rotate_left(first);
            for adapter in order {
                let mut bench = Bench { case, adapter, fleet, meter };
                let (answer, server) = match bench.run().await {
                    Ok(done) => done,
                    Err(error) => {
                        let failure = format!("{} by {}: {error}", case.name, adapter.name);
                        if adapter.side.key == FLEET {
                            return Err(failure.into());
                        }
                        progress(&format!("FAILED {failure}"));
                        failures.push(failure);
                        continue;
                    }
                };
                let side = adapter.side.key.to_owned();
                let run = Run { case: case.name, repetition, side, answer, server };
                progress(&said(case, adapter, &run, repetitions.of(case)));
                runs.push(run);
            }
        }
    }
    Ok((runs, failures))
}

fn serves(adapter: &Adapter, case: &Case) -> bool {
    match case.who {
        Who::Everyone => adapter.side.refusal(case.name).is_none(),
        Who::Fleet => adapter.side.key == FLEET,
    }
}

/// One run of one side.
struct Bench<'a> {
    case: &'a Case,
    adapter: &'a Adapter,
    /// Fills the queues of all who read BullMQ's keys: it is the fastest.
    fleet: &'a Adapter,
    meter: &'a mut Meter,
}

impl Bench<'_> {
    async fn run(&mut self) -> Result<(Answer, ServerCost), BoxError> {
        match self.case.work {
            Work::Verb(verb) => {
                self.fill().await?;
                self.meter.begin().await?;
                let answer = self.adapter.run(verb, self.case.n, &self.case.options).await?;
                let server = self.meter.end().await?;
                self.check(&answer).await?;
                Ok((answer, server))
            }
            Work::Serve { processes, rounds } => {
                let mut total: Option<(Answer, ServerCost)> = None;
                for _ in 0..rounds.max(1) {
                    let round = self.serve(processes).await?;
                    total = Some(match total {
                        None => round,
                        Some((answer, server)) => (one_after_other(answer, &round.0), server.and(round.1)),
                    });
                }
                total.ok_or_else(|| "nothing was run".into())
            }
            Work::Idle => self.idle().await,
        }
    }

    fn layout(&self) -> Layout {
        self.adapter.side.layout
    }

    fn queues(&self) -> Vec<String> {
        match self.case.queues {
            None => vec![QUEUE.to_owned()],
            Some(count) => (0..count).map(|i| format!("{QUEUE}-{i}")).collect(),
        }
    }

    /// The option that says so.
    fn queue_option(&self) -> Vec<String> {
        self.case.queues.map_or_else(Vec::new, |count| vec!["--queues".to_owned(), count.to_string()])
    }

    async fn fill(&mut self) -> Result<(), BoxError> {
        self.meter.clear().await?;
        let Some(preload) = &self.case.preload else { return Ok(()) };
        let by = if self.layout() == Layout::BullMq { self.fleet } else { self.adapter };
        let ready = ["--preload", "1"].map(str::to_owned);
        let options = [preload.options.clone(), self.queue_option(), ready.to_vec()].concat();
        by.run("enqueue", preload.n, &options).await?;
        Ok(())
    }

    async fn processes(&self, count: u32) -> Result<Vec<Served>, BoxError> {
        let options = [self.case.options.clone(), self.queue_option()].concat();
        let mut processes = Vec::new();
        for _ in 0..count {
            processes.push(self.adapter.serve(&options).await?);
        }
        Ok(processes)
    }

    async fn serve(&mut self, processes: u32) -> Result<(Answer, ServerCost), BoxError> {
        self.fill().await?;
        let processes = self.processes(processes).await?;
        self.meter.begin().await?;
        for process in &processes {
            process.go()?;
        }
        self.until_done(&processes).await?;
        for process in &processes {
            process.end()?;
        }
        let mut answers = Vec::new();
        for process in &processes {
            answers.push(process.answer().await?);
        }
        let server = self.meter.end().await?;
        let answer = side_by_side(&answers);
        self.check(&answer).await?;
        Ok((answer, server))
    }

    /// Until the queues are empty, or so many are gone as are measured.
    async fn until_done(&mut self, processes: &[Served]) -> Result<(), BoxError> {
        let rest = self.case.preload.as_ref().map_or(0, |preload| preload.n.saturating_sub(self.case.n));
        let (layout, mut queues, began) = (self.layout(), self.queues(), Instant::now());
        // One queue at a time, so that looking costs the server next to nothing.
        while let Some(queue) = queues.last() {
            let Left { waiting, elsewhere, .. } =
                layout.count(self.meter.conn(), std::slice::from_ref(queue)).await?;
            let is_done = if rest > 0 { waiting <= rest } else { waiting + elsewhere == 0 };
            if is_done {
                queues.pop();
                continue;
            }
            if let Some(ended) = processes.iter().find(|process| !process.is_running()) {
                return Err(format!("a worker process ended: {:?}", ended.answer().await).into());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{queue} still has {waiting} jobs after {PATIENCE:?}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn idle(&mut self) -> Result<(Answer, ServerCost), BoxError> {
        self.fill().await?;
        let processes = self.processes(1).await?;
        let [process] = processes.as_slice() else { return Err("one process was asked for".into()) };
        process.go()?;
        tokio::time::sleep(SETTLING).await;
        self.meter.begin().await?;
        let began = Instant::now();
        tokio::time::sleep(IDLE).await;
        let wall_ms = began.elapsed().as_secs_f64() * 1000.0;
        let server = self.meter.end().await?;
        process.end()?;
        let answer = process.answer().await?;
        Ok((Answer { n: self.case.n, wall_ms, ..answer }, server))
    }

    /// What is left must be what the case leaves; a fast run that lost jobs is no result.
    async fn check(&mut self, answer: &Answer) -> Result<(), BoxError> {
        let Some(leaves) = self.case.leaves else { return Ok(()) };
        if answer.n != self.case.n {
            return Err(format!("{} jobs instead of {}", answer.n, self.case.n).into());
        }
        let (layout, queues) = (self.layout(), self.queues());
        let conn = self.meter.conn();
        let found = layout.count(conn, &queues).await?;
        let Leaves { waiting, parents, completed } = leaves;
        let wanted = Left { waiting, parents, completed, elsewhere: 0 };
        if found != wanted {
            return Err(format!("left {found:?}, expected {wanted:?}").into());
        }
        // Hashes of the jobs, and a handful of keys of each queue itself; no lock, no orphan.
        let keys: u64 = redis::cmd("DBSIZE").query_async(conn).await?;
        if keys > layout.keys_of(found) + 14 * queues.len() as u64 {
            return Err(format!("left {keys} keys for {found:?}").into());
        }
        Ok(())
    }
}

/// The processes of one round as one client.
fn side_by_side(answers: &[Answer]) -> Answer {
    let sum = |of: fn(&Answer) -> f64| answers.iter().map(of).sum::<f64>();
    let began = answers.iter().filter_map(|answer| answer.began_ms).fold(f64::INFINITY, f64::min);
    let ended = answers.iter().filter_map(|answer| answer.ended_ms).fold(0.0, f64::max);
    Answer {
        adapter: answers.first().map(|answer| answer.adapter.clone()).unwrap_or_default(),
        n: answers.iter().map(|answer| answer.n).sum(),
        wall_ms: (ended - began).max(0.0),
        cpu_ms: sum(|answer| answer.cpu_ms),
        // Of one process: what each of them needs.
        rss_kb: answers.iter().map(|answer| answer.rss_kb).max().unwrap_or(0),
        rss_idle_kb: answers.iter().filter_map(|answer| answer.rss_idle_kb).max(),
        ..Answer::default()
    }
}

/// Two rounds as one.
fn one_after_other(first: Answer, second: &Answer) -> Answer {
    Answer {
        n: first.n + second.n,
        wall_ms: first.wall_ms + second.wall_ms,
        cpu_ms: first.cpu_ms + second.cpu_ms,
        rss_kb: first.rss_kb.max(second.rss_kb),
        ..first
    }
}

fn said(case: &Case, adapter: &Adapter, run: &Run, repetitions: u32) -> String {
    let figure = match (run.answer.p50_ms, run.answer.p99_ms) {
        (Some(p50), Some(p99)) => format!("p50 {p50:.2} ms, p99 {p99:.2} ms"),
        _ if case.is_idle() => format!("{:.2} commands a second and queue", run.idle_commands()),
        _ => format!("{:.0} jobs/s", run.rate()),
    };
    format!(
        "[{}/{repetitions}] {:<17} {:<22} {figure}; Redis {:.1} µs, client {:.1} µs a job",
        run.repetition,
        case.name,
        adapter.name,
        run.redis_micros(),
        run.client_micros()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(n: u64, began: f64, ended: f64) -> Answer {
        Answer {
            n,
            began_ms: Some(began),
            ended_ms: Some(ended),
            wall_ms: ended - began,
            cpu_ms: 5.0,
            rss_kb: n,
            ..Answer::default()
        }
    }

    #[test]
    fn processes_side_by_side_last_from_the_first_start_to_the_last_end() {
        let both = side_by_side(&[answer(10, 100.0, 180.0), answer(30, 110.0, 200.0)]);
        assert_eq!((both.n, both.rss_kb), (40, 30));
        assert!((both.wall_ms - 100.0).abs() < 1e-9 && (both.cpu_ms - 10.0).abs() < 1e-9);
    }

    #[test]
    fn rounds_add_up() {
        let both = one_after_other(answer(10, 0.0, 50.0), &answer(10, 500.0, 530.0));
        assert_eq!(both.n, 20);
        assert!((both.wall_ms - 80.0).abs() < 1e-9);
    }
}
