//! The table at the end, and how to look for oneself.

use std::collections::BTreeMap;

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};

use crate::pve::{FaultAction, RequestView};

use super::{stage::Stage, watch::PodRow};

/// Which fault the creation of which VMID met.
fn faults_met(requests: &[RequestView]) -> BTreeMap<String, &'static str> {
    let vmid_of = |request: &RequestView| {
        let in_path = request.path.split('/').skip_while(|part| *part != "lxc").nth(1).map(str::to_owned);
        in_path.or_else(|| request.params.get("vmid").cloned())
    };
    let words = |fault: FaultAction| match fault {
        FaultAction::Delay | FaultAction::DelayAfter => "slow",
        FaultAction::DropBefore => "connection cut before Proxmox saw it",
        FaultAction::DropAfter => "connection cut after Proxmox took it",
        FaultAction::Status | FaultAction::StatusAfter => "refused: lock timeout",
        FaultAction::TaskError => "task failed",
        FaultAction::NodeDown => "node died",
    };
    requests.iter().filter_map(|request| Some((vmid_of(request)?, words(request.fault?)))).collect()
}

/// The table of all pods.
#[must_use]
pub fn table(rows: &[PodRow], stage: &Stage) -> String {
    let faults = faults_met(&stage.pve.requests());
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "pod",
        "node",
        "VMID",
        "IP",
        "attempts",
        "status",
        "fault met",
    ]);
    for row in rows {
        table.add_row([
            row.hostname.clone(),
            row.node.clone().unwrap_or_default(),
            row.vmid.to_string(),
            row.ip.clone().unwrap_or_default(),
            row.attempts.map(|a| a.to_string()).unwrap_or_default(),
            row.status.clone(),
            faults.get(&row.vmid.to_string()).copied().unwrap_or_default().to_owned(),
        ]);
    }
    table.to_string()
}

/// One line of figures: pods, guests on Proxmox, faults overcome.
#[must_use]
pub fn summary(rows: &[PodRow], stage: &Stage) -> String {
    let active = rows.iter().filter(|r| r.status == "active").count();
    let retried = rows.iter().filter(|r| r.attempts.unwrap_or(0) > 1).count();
    let guests = stage.pve.guests().len();
    let faults = faults_met(&stage.pve.requests()).len();
    format!(
        "{active} of {} pods active, {guests} guests on Proxmox; {faults} creations met a fault, {retried} needed a \
         second attempt",
        rows.len()
    )
}

/// Commands for the reader, while the demo still runs.
#[must_use]
pub fn commands(stage: &Stage) -> String {
    let redis = format!("redis-cli -p {}", stage.redis.port());
    let psql = format!("psql '{}'", stage.database_url);
    let id = "$(".to_owned() + &redis + " zrange bull:cloudpods-create:completed 0 0)";
    format!(
        "Look for yourself:\n  \
         {redis} zrange bull:cloudpods-create:completed 0 -1 withscores\n  \
         {redis} hgetall bull:cloudpods-create:{id}\n  \
         {redis} xrevrange bull:cloudpods-create:events + - count 5\n  \
         {psql} -c 'select hostname, vmid, ip, status from cloud_pods order by vmid'\n  \
         {psql} -c 'select type, status, attempts, error from cloud_pod_jobs order by created_at'\n  \
         curl -sk {}/api2/json/cluster/resources?type=vm -H 'Authorization: PVEAPIToken={}={}'",
        stage.pve.url(),
        stage.pve.token_id(),
        stage.pve.token_secret()
    )
}
