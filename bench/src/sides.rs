//! Who is measured: how each is started, where it keeps its jobs, and what it cannot do.

use crate::layout::Layout;

/// Key of our side.
pub const FLEET: &str = "fleet";
/// Key of the bare ceiling.
pub const CEILING: &str = "ceiling";
/// Key of npm bullmq 5.81.5; other versions have theirs.
pub const NODE: &str = "bullmq-5";
/// Key of the crate bullmq-official.
pub const OFFICIAL: &str = "bullmq-official";

/// How an adapter is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// By this program itself, with this first argument.
    Own(&'static str),
    /// By `bench/node/adapter.mjs`, which reads the key.
    Node,
    /// A program of `bench/peers` named as the key.
    Crate,
}

/// One of those who are measured.
#[derive(Debug)]
pub struct Side {
    /// For `--peers`, JSON and file names.
    pub key: &'static str,
    /// How it is started.
    pub start: Start,
    /// Where it keeps its jobs.
    pub layout: Layout,
    /// Whether `--peers` has it when nothing is said.
    pub by_default: bool,
    /// Beginnings of names of cases, and why it does not run them.
    pub cannot: &'static [(&'static str, &'static str)],
}

impl Side {
    /// Why it does not run this case; none: it does.
    #[must_use]
    pub fn refusal(&self, case: &str) -> Option<&'static str> {
        self.cannot.iter().find(|(start, _)| case.starts_with(start)).map(|(_, why)| *why)
    }
}

const REFERENCE: &str = "a reference for adding and draining, not a product";
const NO_FLOWS: &str = "has no parents and children";
const NO_PRIORITIES: &str = "orders by queue, not by priority";
const NO_METRICS: &str = "has no metrics that can be switched on and off";
const NO_LIMIT: &str = "has no rate limit of a queue";
const FORGETS: &str = "keeps no completed job";

/// All of them, in the order of the tables.
pub const SIDES: [Side; 9] = [
    Side {
        key: FLEET,
        start: Start::Own(crate::adapter::AS_ADAPTER),
        layout: Layout::BullMq,
        by_default: true,
        cannot: &[],
    },
    Side {
        key: CEILING,
        start: Start::Own(crate::adapter::AS_CEILING),
        layout: Layout::BullMq,
        by_default: true,
        cannot: &[
            ("enqueue-one", REFERENCE),
            ("enqueue-pipelined", REFERENCE),
            ("enqueue-flows", REFERENCE),
            ("retry", REFERENCE),
            ("latency", REFERENCE),
            ("flows", REFERENCE),
            ("priorities", REFERENCE),
            ("metrics", REFERENCE),
            ("limit", REFERENCE),
            ("features", REFERENCE),
            ("delayed", REFERENCE),
            ("processes", REFERENCE),
            ("idle", REFERENCE),
            ("waiting", REFERENCE),
        ],
    },
    node("bullmq-5.28", false),
    node(NODE, true),
    node("bullmq-6", false),
    Side { key: OFFICIAL, start: Start::Crate, layout: Layout::BullMq, by_default: true, cannot: &[] },
    Side {
        key: "apalis-redis",
        start: Start::Crate,
        layout: Layout::Apalis,
        by_default: true,
        cannot: &[
            ("drain-50-remove", "keeps every completed job"),
            ("drain-200-remove", "keeps every completed job"),
            ("drain-1", "keeps every completed job"),
            ("drain-50-keep", "keeps every completed job, not the newest 1000"),
            ("drain-200-keep", "keeps every completed job, not the newest 1000"),
            ("retry", "its finish script sets its own pause of whole seconds"),
            ("latency", "a worker learns of a job only when it polls; the interval is the latency"),
            ("enqueue-flows", NO_FLOWS),
            ("flows", NO_FLOWS),
            ("priorities", NO_PRIORITIES),
            ("metrics", NO_METRICS),
            ("limit", NO_LIMIT),
            ("features", NO_FLOWS),
            ("delayed", "moves all due jobs in one script call, which fails above 7,999"),
            ("processes", "keeps every completed job"),
            ("idle", "asks at an interval that is yours to choose"),
            ("waiting", "moves all due jobs in one script call, which fails above 7,999"),
        ],
    },
    Side {
        key: "rusty-sidekiq",
        start: Start::Crate,
        layout: Layout::Sidekiq,
        by_default: true,
        cannot: &[
            ("enqueue-bulk", "has no call for many jobs"),
            ("drain-50-keep", FORGETS),
            ("drain-200-keep", FORGETS),
            ("drain-all-kept", FORGETS),
            ("retry", "retries after 15 s or more"),
            ("enqueue-flows", NO_FLOWS),
            ("flows", NO_FLOWS),
            ("priorities", NO_PRIORITIES),
            ("metrics", NO_METRICS),
            ("limit", NO_LIMIT),
            ("features", NO_FLOWS),
            ("delayed", "moves 10 due jobs every 5 s"),
            ("idle", "its workers block on all queues together, so there is no figure for one queue"),
            ("waiting", "has no call for many jobs, so filling takes too long"),
        ],
    },
    Side {
        key: "oxana",
        start: Start::Crate,
        layout: Layout::Oxana,
        by_default: true,
        cannot: &[
            ("drain-50-keep", FORGETS),
            ("drain-200-keep", FORGETS),
            ("drain-all-kept", FORGETS),
            ("retry-backoff", "counts its pauses in whole seconds"),
            ("enqueue-flows", NO_FLOWS),
            ("flows", NO_FLOWS),
            ("priorities", NO_PRIORITIES),
            ("metrics", NO_METRICS),
            ("limit", "limits starts of a queue by a throttle that is polled"),
            ("features", NO_FLOWS),
            ("delayed", "adds delayed jobs one a call and in whole seconds"),
            ("idle", "its queues are types; the adapter has one"),
        ],
    },
];

const fn node(key: &'static str, by_default: bool) -> Side {
    Side { key, start: Start::Node, layout: Layout::BullMq, by_default, cannot: &[] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_of_a_case_that_exists() {
        let names: Vec<_> = crate::cases::all(1000).iter().map(|case| case.name).collect();
        for side in &SIDES {
            for (start, _) in side.cannot {
                assert!(names.iter().any(|name| name.starts_with(start)), "{}: {start}", side.key);
            }
        }
    }

    #[test]
    fn our_side_refuses_nothing() {
        assert!(crate::cases::all(1000).iter().all(|case| SIDES[0].refusal(case.name).is_none()));
    }
}
