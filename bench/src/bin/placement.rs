//! Our placement beside others' over synthetic traces. The output follows from
//! the arguments alone.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use clap::Parser;
use comfy_table::{Table, presets};
use mpanel_bench::placement::{
    Figures, fleet, mean,
    policy::{self, Policy},
    run,
    trace::{Kind, trace},
};
use serde_json::json;

/// Compares ways to place pods: what is rejected, what is stranded.
///
/// Traces: `fill` lets pods come until one is turned away; `churn` and `burst` let them come and go for 240
/// days, of which the last 120 count. Percentages are means over the seeds with the half width of their 95 %
/// intervals. Example: cargo run --release -p mpanel-bench --bin placement -- --nodes 8,32 --seeds 20
#[derive(Debug, Parser)]
struct Args {
    /// Sizes of the fleet
    #[arg(long, value_delimiter = ',', default_value = "8,32,128")]
    nodes: Vec<usize>,
    /// How many traces of each kind
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=10_000))]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Memory wanted on average, as a part of what there is (churn and burst)
    #[arg(long, default_value_t = 0.95)]
    load: f64,
    /// Cores promised for each physical one
    #[arg(long, default_value_t = 4.0)]
    cpu_ratio: f64,
    /// One JSON document a line
    #[arg(long)]
    json: bool,
}

fn main() {
    let args = Args::parse();
    for kind in Kind::ALL {
        for nodes in &args.nodes {
            compare(&args, kind, (*nodes).max(1));
        }
    }
}

fn compare(args: &Args, kind: Kind, nodes: usize) {
    let fleet = fleet(nodes, args.cpu_ratio);
    let memory: f64 = fleet.iter().map(|node| node.capacity.memory_mb).sum();
    let seeds: Vec<u64> = (args.seed..args.seed.saturating_add(args.seeds)).collect();
    let mut results: Vec<(Policy, Vec<Figures>)> = policy::ALL.map(|policy| (policy, Vec::new())).into();
    for seed in seeds {
        let pods = trace(kind, memory, args.load, seed);
        for (policy, figures) in &mut results {
            figures.push(run(&fleet, kind, &pods, policy, seed));
        }
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let last = if kind == Kind::Fill { "memory promised then" } else { "rejected pods" };
    table.set_header([last, "rejected memory", "stranded memory", "of a tenant on one node", "policy"]);
    for (policy, figures) in &results {
        let shown = |of: fn(&Figures) -> f64| {
            let (mean, half) = mean(&figures.iter().map(of).collect::<Vec<_>>());
            (mean * 100.0, half * 100.0)
        };
        let columns = [
            if kind == Kind::Fill { shown(|f| f.full_at) } else { shown(|f| f.rejected) },
            shown(|f| f.rejected_memory),
            shown(|f| f.stranded),
            shown(|f| f.tenant_share),
        ];
        if args.json {
            let [first, rejected_memory, stranded, tenant] = columns.map(|(mean, half)| json!([mean, half]));
            let key = if kind == Kind::Fill { "fullAtPercent" } else { "rejectedPercent" };
            let line = json!({
                "trace": kind.name(), "nodes": nodes, "policy": policy.name(), key: first,
                "rejectedMemoryPercent": rejected_memory, "strandedPercent": stranded,
                "tenantOnOneNodePercent": tenant, "seeds": args.seeds,
            });
            println!("{line}");
        } else {
            let mut row: Vec<String> =
                columns.iter().map(|(mean, half)| format!("{mean:.2} ± {half:.2} %")).collect();
            if kind == Kind::Fill {
                row[1] = "-".to_owned();
            }
            row.push(policy.name().to_owned());
            table.add_row(row);
        }
    }
    if !args.json {
        println!("{}, {nodes} nodes, {} seeds\n{table}\n", kind.name(), args.seeds);
    }
}
