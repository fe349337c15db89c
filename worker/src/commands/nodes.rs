//! `cloudpods nodes …`.

use serde_json::json;
use sqlx::PgPool;

use super::{note, print_json, print_table};
use crate::{
    adapters::db::nodes::{self, NewNode, NodeLimits, NodeMove, NodeRecord},
    cli::{NodeAdd, NodeName, NodeSet, Nodes},
    config::proxmox::base_url,
    exit::{Exit, Failed},
};

/// Lists, adds or moves nodes.
///
/// # Errors
/// With the exit code of what went wrong.
pub async fn nodes(db: &PgPool, default_region: &str, command: &Nodes) -> Result<(), Failed> {
    match command {
        Nodes::List(args) => list(&nodes::all(db).await?, default_region, args.json),
        Nodes::Add(args) => add(db, args).await,
        Nodes::Set(args) => set_limits(db, args).await,
        Nodes::Maintenance(args) => set(db, args, NodeMove::Maintenance, "is in maintenance").await,
        Nodes::Drain(args) => set(db, args, NodeMove::Drain, "takes no new pods").await,
        Nodes::Activate(args) => set(db, args, NodeMove::Activate, "takes pods").await,
    }
}

fn list(nodes: &[NodeRecord], default_region: &str, json: bool) -> Result<(), Failed> {
    let region = |node: &NodeRecord| node.region.clone().unwrap_or_else(|| default_region.to_owned());
    if json {
        let rows: Vec<_> = nodes
            .iter()
            .map(|node| {
                json!({
                    "id": node.id, "name": node.name, "provider": node.provider, "apiUrl": node.api_url,
                    "node": node.node_name, "region": region(node), "status": node.status, "drain": node.drain,
                    "pods": node.pods,
                    "total": { "cores": node.total_cpu_cores, "memoryMb": node.total_memory_mb, "diskGb": node.total_disk_gb },
                    "ratio": { "cpu": node.cpu_ratio, "memory": node.mem_ratio, "disk": node.disk_ratio },
                    "reserved": { "cores": node.cpu_reserved, "memoryMb": node.mem_reserved_mb, "diskGb": node.disk_reserved_gb },
                    "used": { "cores": node.used_cores, "memoryMb": node.used_memory_mb, "diskGb": node.used_disk_gb },
                })
            })
            .collect();
        return print_json(&json!({ "version": 1, "nodes": rows }));
    }
    if nodes.is_empty() {
        note("no nodes yet; add one: mpanel-worker cloudpods nodes add --help");
    }
    let rows = nodes
        .iter()
        .map(|node| {
            let status = if node.drain { format!("{}, draining", node.status) } else { node.status.clone() };
            [
                node.id.to_string(),
                node.name.clone(),
                node.node_name.clone(),
                region(node),
                status,
                node.pods.to_string(),
                of(node.used_cores, node.total_cpu_cores, node.cpu_reserved, node.cpu_ratio),
                of(node.used_memory_mb, node.total_memory_mb, node.mem_reserved_mb.into(), node.mem_ratio),
                of(node.used_disk_gb, node.total_disk_gb, node.disk_reserved_gb.into(), node.disk_ratio),
                node.api_url.clone(),
            ]
        })
        .collect();
    let header = ["id", "name", "node", "region", "status", "pods", "cores", "memory MiB", "disk GiB", "API"];
    print_table(header, rows)
}

/// What is promised of what may be.
fn of(used: i64, total: i32, reserved: f64, ratio: f64) -> String {
    format!("{used} / {}", (f64::from(total) - reserved).max(0.0) * ratio)
}

async fn set_limits(db: &PgPool, args: &NodeSet) -> Result<(), Failed> {
    let limits = NodeLimits {
        cpu_ratio: args.cpu_ratio,
        mem_ratio: args.memory_ratio,
        disk_ratio: args.disk_ratio,
        cpu_reserved: args.reserve_cores,
        mem_reserved_mb: args.reserve_memory_mb,
        disk_reserved_gb: args.reserve_disk_gb,
    };
    if limits == NodeLimits::default() {
        return Err(Failed::new(Exit::Usage, "name at least one limit; see `cloudpods nodes set --help`"));
    }
    let rows = nodes::set_limits(db, &args.name, &limits).await?;
    told(rows, &args.name, args.json, "has new limits; pods that are there stay")
}

async fn add(db: &PgPool, args: &NodeAdd) -> Result<(), Failed> {
    base_url(&args.api_url).map_err(|problem| Failed::new(Exit::Usage, format!("--api-url {problem}")))?;
    let node = NewNode {
        name: args.name.clone(),
        api_url: args.api_url.clone(),
        node_name: args.node.clone().unwrap_or_else(|| args.name.clone()),
        cores: args.cores,
        memory_mb: args.memory_mb,
        disk_gb: args.disk_gb,
        region: args.region.clone(),
        cluster: args.cluster.clone(),
    };
    let Some(id) = nodes::add(db, &node).await? else {
        return Err(Failed::new(
            Exit::Precondition,
            format!("there is a node named {} already; choose another name", args.name),
        ));
    };
    if args.json {
        return print_json(&json!({ "version": 1, "id": id, "name": args.name }));
    }
    note(&format!("node {} added with id {id}; it takes pods now", args.name));
    Ok(())
}

async fn set(db: &PgPool, args: &NodeName, to: NodeMove, says: &str) -> Result<(), Failed> {
    let rows = nodes::set_state(db, &args.name, to).await?;
    told(rows, &args.name, args.json, says)
}

fn told(rows: u64, name: &str, json: bool, says: &str) -> Result<(), Failed> {
    if rows == 0 {
        return Err(Failed::new(
            Exit::NotFound,
            format!("no node named {name}; `mpanel-worker cloudpods nodes list` shows all"),
        ));
    }
    if json {
        return print_json(&json!({ "version": 1, "name": name, "rows": rows }));
    }
    note(&format!("node {name} {says}"));
    Ok(())
}
