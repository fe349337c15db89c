//! What is measured: a table of cases.

/// One case: how the queue is filled, and what is measured on it.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name for the table and `--only`.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    /// What is measured.
    pub work: Work,
    /// Its options.
    pub options: Vec<String>,
    /// How many jobs are measured.
    pub n: u64,
    /// What is in the queue before.
    pub preload: Option<Preload>,
    /// What must be there afterwards; none: it depends on when the workers stopped.
    pub leaves: Option<Leaves>,
    /// Who is measured.
    pub who: Who,
    /// So many queues; none: the one without a number.
    pub queues: Option<u64>,
    /// So expensive that `--repetitions-large` says how often it is run.
    pub is_large: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A verb of the adapters, run to its end.
    Verb(&'static str),
    /// So many processes with the verb `serve`, begun together, so many times on a queue
    /// filled anew.
    Serve {
        /// Processes.
        processes: u32,
        /// Times.
        rounds: u32,
    },
    /// The same verb on empty queues, for a fixed time.
    Idle,
}

/// What is in the queue before.
#[derive(Debug, Clone)]
pub struct Preload {
    /// How many jobs.
    pub n: u64,
    /// Options of `enqueue`.
    pub options: Vec<String>,
}

/// What a case leaves in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaves {
    /// Jobs in line.
    pub waiting: u64,
    /// Jobs that wait for their children.
    pub parents: u64,
    /// Completed jobs.
    pub completed: u64,
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// All, with a reason of those who cannot.
    Everyone,
    /// Ours alone: it is compared with itself.
    Fleet,
}

impl Case {
    /// Whether the figures of merit are waits, not rates.
    #[must_use]
    pub fn is_latency(&self) -> bool {
        self.work == Work::Verb("latency")
    }

    /// Whether only the server's commands are of interest.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.work == Work::Idle
    }

    fn new(name: &'static str, what: &'static str, work: Work, options: &str, n: u64) -> Self {
        let leaves = Some(Leaves { waiting: 0, parents: 0, completed: 0 });
        Self {
            name,
            what,
            work,
            options: words(options),
            n,
            preload: None,
            leaves,
            who: Who::Everyone,
            queues: None,
            is_large: false,
        }
    }

    fn verb(name: &'static str, what: &'static str, verb: &'static str, options: &str, n: u64) -> Self {
        Self::new(name, what, Work::Verb(verb), options, n)
    }

    /// On a queue that holds the jobs that are measured, added with these options.
    fn on(self, options: &str) -> Self {
        let n = self.n;
        self.on_more(n, options)
    }

    fn on_more(mut self, n: u64, options: &str) -> Self {
        self.preload = Some(Preload { n, options: words(options) });
        self
    }

    fn leaving(mut self, waiting: u64, parents: u64, completed: u64) -> Self {
        self.leaves = Some(Leaves { waiting, parents, completed });
        self
    }

    fn leaving_some(mut self) -> Self {
        self.leaves = None;
        self
    }

    fn of_fleet(mut self) -> Self {
        self.who = Who::Fleet;
        self
    }

    fn large(mut self) -> Self {
        self.is_large = true;
        self
    }

    fn in_queues(mut self, queues: u64) -> Self {
        self.queues = Some(queues);
        self
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Children of each parent of the flows.
const CHILDREN: u64 = 5;
const BULK: &str = "--mode bulk --batch 1000";
const FLOWS: &str = "--children 5 --batch 240";

/// All cases; `jobs` is the size of most of them.
#[must_use]
pub fn all(jobs: u64) -> Vec<Case> {
    [adding(jobs), draining(jobs), features(jobs), growing(jobs)].concat()
}

fn adding(jobs: u64) -> Vec<Case> {
    let flows = (jobs / 2 / (CHILDREN + 1)).max(10);
    let each = |name, what, options, n: u64| Case::verb(name, what, "enqueue", options, n).leaving(n, 0, 0);
    vec![
        each("enqueue-bulk", "enqueue in bulks of 1000", BULK, jobs),
        each(
            "enqueue-single",
            "enqueue from 200 callers, one job a call",
            "--mode single --window 200",
            jobs,
        ),
        each(
            "enqueue-pipelined",
            "enqueue by one caller, 1000 calls of one job each at a time",
            "--mode pipelined --batch 1000",
            jobs,
        ),
        each(
            "enqueue-one",
            "enqueue by one caller, each call awaited",
            "--mode single --window 1",
            jobs / 10,
        ),
        Case::verb(
            "enqueue-flows",
            "enqueue parents with 5 children each, 40 flows a call",
            "enqueue",
            FLOWS,
            flows * (CHILDREN + 1),
        )
        .leaving(flows * CHILDREN, flows, 0),
    ]
}

fn draining(jobs: u64) -> Vec<Case> {
    let small = (jobs / 5).max(100);
    let kept = jobs.min(1000);
    let drain = |name, what, options| Case::verb(name, what, "drain", options, jobs).on(BULK);
    let few = jobs.min(20_000);
    vec![
        drain("drain-50-remove", "drain, concurrency 50, remove", "--concurrency 50 --keep 0"),
        drain("drain-50-keep", "drain, concurrency 50, keep 1000", "--concurrency 50 --keep 1000")
            .leaving(0, 0, kept),
        drain("drain-200-remove", "drain, concurrency 200, remove", "--concurrency 200 --keep 0"),
        drain("drain-200-keep", "drain, concurrency 200, keep 1000", "--concurrency 200 --keep 1000")
            .leaving(0, 0, kept),
        Case::verb(
            "drain-all-kept",
            "drain, concurrency 50, keep all",
            "drain",
            "--concurrency 50 --keep 1000000000",
            few,
        )
        .on(BULK)
        .leaving(0, 0, few),
        Case::verb("drain-1", "drain, concurrency 1, remove", "drain", "--concurrency 1 --keep 0", small)
            .on(BULK),
        Case::verb("retry", "each job fails once, no backoff", "retry", "--concurrency 50", small)
            .on("--mode bulk --batch 1000 --attempts 2"),
        Case::verb("retry-backoff", "each job fails once, backoff 1 ms", "retry", "--concurrency 50", small)
            .on("--mode bulk --batch 1000 --attempts 2 --backoff 1"),
        Case::verb(
            "latency",
            "one job every 5 ms, add to handler start",
            "latency",
            "--interval-ms 5 --concurrency 50",
            (jobs / 50).clamp(100, 1000),
        ),
    ]
}

fn features(jobs: u64) -> Vec<Case> {
    let n = (jobs / 2 / (CHILDREN + 1)).max(10) * (CHILDREN + 1);
    let drain = |name, what, options| Case::verb(name, what, "drain", options, n);
    let plain = "--concurrency 50 --keep 0";
    vec![
        drain("flows", "drain parents with 5 children each", plain).on(FLOWS),
        drain("priorities", "drain jobs of 10 priorities", plain)
            .on("--mode bulk --batch 1000 --priorities 10"),
        drain("metrics", "drain with metrics", "--concurrency 50 --keep 0 --metrics 60").on(BULK),
        drain(
            "limit",
            "drain with a rate limit that is never reached",
            "--concurrency 50 --keep 0 --limit 1000000",
        )
        .on(BULK),
        drain(
            "features",
            "drain flows of 10 priorities with metrics and a rate limit",
            "--concurrency 50 --keep 0 --metrics 60 --limit 1000000",
        )
        .on("--children 5 --batch 240 --priorities 10"),
        Case::verb(
            "delayed-1m",
            "promote delayed jobs that are all due, and drain them",
            "drain",
            "--concurrency 50 --keep 0",
            jobs * 25,
        )
        .on("--mode bulk --batch 1000 --delay 1")
        .large(),
    ]
}

fn growing(jobs: u64) -> Vec<Case> {
    let plain = "--concurrency 50 --keep 0";
    let serve = |name, what, processes, rounds, n: u64| {
        Case::new(name, what, Work::Serve { processes, rounds }, plain, n).on(BULK)
    };
    let some = (jobs / 2).min(20_000);
    vec![
        serve("processes-1", "drain by 1 worker process of concurrency 50", 1, 1, jobs),
        serve("processes-2", "drain by 2 worker processes of concurrency 50", 2, 1, jobs),
        serve("processes-4", "drain by 4 worker processes of concurrency 50", 4, 1, jobs),
        serve("processes-8", "drain by 8 worker processes of concurrency 50", 8, 1, jobs).of_fleet(),
        serve("waiting-1k", "drain from a queue of 1,000", 1, 10, 1000).of_fleet(),
        serve("waiting-10k", "drain from a queue of 10,000", 1, 1, 10_000).of_fleet(),
        serve("waiting-100k", "drain from a queue of 100,000", 1, 1, some)
            .on_more(100_000, BULK)
            .leaving_some()
            .of_fleet(),
        serve("waiting-1m", "drain from a queue of 1,000,000", 1, 1, some)
            .on_more(1_000_000, BULK)
            .leaving_some()
            .large(),
        serve("queues-1", "drain 1 queue by 1 process", 1, 1, jobs * 2).in_queues(1).of_fleet(),
        serve("queues-20", "drain 20 queues by 1 process", 1, 1, jobs * 2).in_queues(20).of_fleet(),
        serve("queues-200", "drain 200 queues by 1 process", 1, 1, jobs * 2)
            .on("--mode bulk --batch 100")
            .in_queues(200)
            .of_fleet(),
        Case::new("idle", "20 empty queues, one process, 10 s", Work::Idle, plain, 20).in_queues(20).large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_sizes_are_not_nothing() {
        let cases = all(1000);
        let mut names: Vec<_> = cases.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cases.len());
        assert!(cases.iter().all(|case| case.n > 0));
    }

    #[test]
    fn flows_are_whole() {
        for jobs in [1000, 50_000, 12_345] {
            for case in all(jobs).iter().filter(|case| case.name.contains("flows") || case.name == "features")
            {
                assert_eq!(case.n % (CHILDREN + 1), 0, "{}", case.name);
            }
        }
    }

    #[test]
    fn what_is_measured_is_there_before() {
        for case in all(1000) {
            let Some(preload) = &case.preload else { continue };
            assert!(preload.n >= case.n, "{}", case.name);
        }
    }
}
