//! `cloudpods plan`: where a pod would go now, and why. Reserves nothing.

use serde_json::{Value, json};

use super::{note, print_json, print_table};
use crate::{
    adapters::{db, proxmox::Pve},
    cli::PlanArgs,
    config::Config,
    exit::{Exit, Failed},
    services::cloudpods::{
        Ask, Choice, CreateError, Sites, choose,
        placement::{Decision, Passed, Ranked, Refusal, Size},
    },
};

/// Shows the decision for a request.
///
/// # Errors
/// Exit 3 for an unknown region, 75 when no node can take the pod now, and
/// those of the database and of Proxmox.
pub async fn plan(config: &Config, args: &PlanArgs) -> Result<(), Failed> {
    let Some(proxmox) = &config.proxmox else {
        return Err(Failed::new(Exit::Configuration, "Proxmox is not configured"));
    };
    let sites = Sites::new(Pve::new(proxmox)?, proxmox);
    let db = db::pool(config.database.options.clone(), config.database.max_connections);
    let pods = &config.cloudpods;
    let ask = Ask {
        region: args.region.clone().unwrap_or_else(|| pods.default_region.clone()),
        size: Size {
            cores: args.cores.into(),
            memory_mb: args.memory_mb.into(),
            disk_gb: args.disk_gb.into(),
        },
        tenant_id: args.tenant,
        template: args.template.clone().unwrap_or_else(|| pods.template.clone()),
        storage: pods.storage.clone(),
    };
    let Choice { outcome, .. } = choose(&db, &sites, pods, &ask).await.map_err(of_choosing)?;
    let (ranked, passed): (&[Ranked], &[(String, Passed)]) = match &outcome {
        Ok(Decision { ranked, passed }) => (ranked, passed),
        Err(Refusal::NoNode { passed }) => (&[], passed),
        Err(Refusal::UnknownRegion { known }) => {
            let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
            let text = format!("no node is in region {}; regions with nodes: {known}", ask.region);
            return Err(Failed::new(Exit::NotFound, text));
        }
    };
    if args.json {
        print_json(&document(&ask, ranked, passed))?;
    } else {
        table(ranked, passed)?;
    }
    match ranked.first() {
        Some(first) => {
            note(&format!("the pod would go to {}; nothing was reserved", first.name));
            Ok(())
        }
        None => Err(Failed::new(
            Exit::Temporary,
            format!("no node of region {} can take the pod now", ask.region),
        )),
    }
}

fn of_choosing(error: CreateError) -> Failed {
    match error {
        CreateError::Db(error) => error.into(),
        CreateError::Pve(error) => error.into(),
        error => Failed::new(Exit::Failure, error.to_string()),
    }
}

fn table(ranked: &[Ranked], passed: &[(String, Passed)]) -> Result<(), Failed> {
    let percent = |part: f64| format!("{:.0} %", part * 100.0);
    let part = |part: f64| format!("{part:.2}");
    let mut rows: Vec<[String; 11]> = Vec::new();
    for (place, node) in (1..).zip(ranked) {
        let score = &node.score;
        rows.push([
            place.to_string(),
            node.name.clone(),
            format!("{:.3}", score.total),
            part(score.fit),
            part(score.balance),
            part(score.tenant),
            part(score.in_flight),
            part(score.heat),
            part(score.failures),
            [score.after.cpu, score.after.memory, score.after.disk].map(percent).join(" / "),
            String::new(),
        ]);
    }
    for (name, reason) in passed {
        let mut row = std::array::from_fn(|_| String::new());
        row[0] = "-".to_owned();
        row[1].clone_from(name);
        row[10] = reason.to_string();
        rows.push(row);
    }
    let header = [
        "",
        "node",
        "score",
        "fit",
        "balance",
        "tenant",
        "in flight",
        "heat",
        "failures",
        "CPU / memory / disk then",
        "passed over because",
    ];
    print_table(header, rows)
}

fn document(ask: &Ask, ranked: &[Ranked], passed: &[(String, Passed)]) -> Value {
    let ranked: Vec<Value> = ranked
        .iter()
        .map(|node| {
            let score = &node.score;
            json!({
                "nodeId": node.id, "node": node.name, "score": score.total,
                "parts": {
                    "fit": score.fit, "balance": score.balance, "tenant": score.tenant,
                    "inFlight": score.in_flight, "heat": score.heat, "failures": score.failures,
                },
                "usedThen": { "cpu": score.after.cpu, "memory": score.after.memory, "disk": score.after.disk },
            })
        })
        .collect();
    let passed: Vec<Value> = passed
        .iter()
        .map(|(name, reason)| json!({ "node": name, "reason": reason.code(), "text": reason.to_string() }))
        .collect();
    json!({
        "version": 1,
        "request": {
            "region": ask.region, "cores": ask.size.cores, "memoryMb": ask.size.memory_mb,
            "diskGb": ask.size.disk_gb, "tenantId": ask.tenant_id, "template": ask.template,
            "storage": ask.storage,
        },
        "chosen": ranked.first().map(|node| node["node"].clone()),
        "ranked": ranked, "passed": passed,
    })
}
