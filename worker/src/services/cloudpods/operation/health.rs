//! How pods are: one by one, or all of them by one question to each cluster.
//! Reads only; what is written are `last_health_*` and events.

use std::collections::HashMap;

use mpanel_protocol::payload::cloudpods::HealthTrigger;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    super::metrics::{
        gauges,
        level::{Gauges, Level},
        sample::used,
    },
    EFFECT, OpError, OperationService, Target,
    find::Seen,
};
use crate::{
    adapters::{
        db::{
            self, changes,
            jobs::{self, Adopted, Ending},
            ledger::{self, Fence},
            metrics, nodes,
            operations::{self, PodRecord},
            pods,
        },
        proxmox::{GuestAt, GuestKind, PveClient, PveError, Usage, first_address},
    },
    config::HealthLimits,
};

const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;

/// A pod's health, with mPanel's fields.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    vmid: i32,
    hostname: String,
    /// `running`, `stopped`, `paused`, `missing`, `unknown`.
    status: String,
    ip: Option<String>,
    cpu_pct: f64,
    mem_mb: f64,
    mem_max_mb: f64,
    mem_pct: f64,
    disk_gb: f64,
    disk_max_gb: f64,
    disk_pct: f64,
    uptime_sec: i64,
    healthy: bool,
    issues: Vec<String>,
    /// The worst level of what it uses.
    #[serde(skip)]
    use_level: Level,
}

/// What a pod's use is judged by: what the figures of the last ticks have made
/// believed, or else this one look.
#[derive(Debug, Clone, Copy)]
struct Judge<'a> {
    limits: &'a HealthLimits,
    believed: Option<Gauges>,
}

impl Health {
    /// Judges what was seen of a pod; `at_rest` is one whose owner has stopped it.
    fn of(pod: &PodRecord, status: &str, usage: Usage, at_rest: bool, judge: Judge<'_>) -> Self {
        let (cpu_pct, mem_pct, disk_pct) = used(usage);
        let mut health = Self {
            vmid: pod.vmid,
            hostname: pod.hostname.clone(),
            status: status.to_owned(),
            ip: pod.ip.clone(),
            cpu_pct,
            mem_mb: rounded(number(usage.mem) / MIB),
            mem_max_mb: rounded(number(usage.maxmem) / MIB),
            mem_pct,
            disk_gb: rounded(number(usage.disk) / GIB),
            disk_max_gb: rounded(number(usage.maxdisk) / GIB),
            disk_pct,
            uptime_sec: usage.uptime.unwrap_or_default(),
            healthy: false,
            issues: Vec::new(),
            use_level: Level::Ok,
        };
        match status {
            "running" => {
                let Judge { limits, believed } = judge;
                for (what, share, limit, believed) in [
                    ("cpu", cpu_pct, limits.cpu, believed.map(|gauges| gauges.cpu.level)),
                    ("memory", mem_pct, limits.memory, believed.map(|gauges| gauges.memory.level)),
                    ("disk", disk_pct, limits.disk, believed.map(|gauges| gauges.disk.level)),
                ] {
                    let level = believed.unwrap_or_else(|| Level::of(share, limit));
                    if level > Level::Ok {
                        health.issues.push(format!("{what} at {share} %"));
                    }
                    health.use_level = health.use_level.max(level);
                }
            }
            "stopped" | "paused" if at_rest => {}
            "unknown" => health.issues.push("its node does not answer".to_owned()),
            "missing" => health.issues.push("no guest on Proxmox".to_owned()),
            status => health.issues.push(format!("is {status}")),
        }
        health.healthy = health.issues.is_empty();
        health
    }

    /// mPanel's word. A node that does not answer says nothing about the pod.
    fn level(&self) -> &'static str {
        match (self.healthy, self.status.as_str()) {
            (true, _) => "ok",
            (false, "running") => self.use_level.as_str(),
            (false, "unknown") => "warning",
            (false, _) => "critical",
        }
    }

    /// The word of a sweep. mPanel's own knows `ok` and `warning` only, and so
    /// does ours of what it sees by itself; but it takes nothing back that the
    /// figures or the reconciler have found to be critical.
    fn sweep_level(&self, lost: bool) -> &'static str {
        match self.healthy {
            true => "ok",
            false if lost || self.use_level == Level::Critical => "critical",
            false => "warning",
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "bytes of a guest are below 2^52")]
fn number(value: Option<i64>) -> f64 {
    value.unwrap_or_default() as f64
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

impl OperationService {
    /// A row that mPanel has made for the job says `running`; an operator's
    /// cancellation is honoured.
    pub(super) async fn begin_health(&self, fence: &Fence, job: &super::JobRef) -> Result<(), OpError> {
        let mut tx = db::begin(&self.db).await?;
        let record = ledger::hold_fence(&mut tx, fence).await?;
        let kind = super::Operation::Health.row_kind();
        let adopted = jobs::start(&mut tx, fence, record.own_row_id, kind, job.attempt).await?;
        if adopted == Some(Adopted::Cancelled) {
            return Err(OpError::Cancelled);
        }
        Ok(db::commit(tx).await?)
    }

    /// A row that mPanel has made for the job says how it ended; one that comes
    /// later finds the outcome.
    pub(super) async fn end_health(
        &self,
        fence: &Fence,
        pod_id: Option<Uuid>,
        result: Result<&Value, &str>,
    ) -> Result<(), OpError> {
        let mut tx = db::begin(&self.db).await?;
        ledger::hold_fence(&mut tx, fence).await?;
        end_rows(&mut tx, fence, pod_id, result).await?;
        Ok(db::commit(tx).await?)
    }

    pub(super) async fn health(
        &self,
        fence: &Fence,
        target: Target,
        trigger: HealthTrigger,
    ) -> Result<Value, OpError> {
        let mut tx = db::begin(&self.db).await?;
        ledger::hold_fence(&mut tx, fence).await?;
        let pod = self.target(&mut tx, target).await?;
        let row = operations::instance_of(&mut tx, pod.id).await?;
        let in_our_books = operations::is_in_our_books(&mut tx, pod.id).await?;
        db::commit(tx).await?;
        if pod.deleted {
            let status = "deleted".to_owned();
            return Err(OpError::NotActive { pod: pod.id, status, what: "a health check" });
        }
        let at_rest = changes::not_to_run(&self.db).await?.contains(&pod.id);
        let instance = row.and_then(|row| super::Instance::of(row).ok());
        let health = self.look_after(pod.clone(), instance, in_our_books, fence, at_rest).await?;
        let result = json!({ "success": true, "health": health });
        let level = health.level();
        let message = if health.healthy {
            format!("CloudPod {} is well ({})", pod.hostname, health.status)
        } else {
            format!("CloudPod {}: {}", pod.hostname, health.issues.join("; "))
        };
        let data = json!({ "health": health, "level": level, "triggeredBy": trigger.as_str(), "jobId": fence.job_id });
        let mut tx = db::begin(&self.db).await?;
        ledger::hold_fence(&mut tx, fence).await?;
        ledger::insert_effect(&mut tx, fence, EFFECT, &result).await?;
        changes::set_health(&mut tx, &[pod.id], &[level]).await?;
        pods::event(&mut tx, pod.tenant_id, Some(pod.id), "HEALTH_CHECK", &message, &data).await?;
        end_rows(&mut tx, fence, Some(pod.id), Ok(&result)).await?;
        db::commit(tx).await?;
        Ok(result)
    }

    /// Looks at one pod. An API or node that is away is an answer too.
    async fn look_after(
        &self,
        pod: PodRecord,
        instance: Option<super::Instance>,
        in_our_books: bool,
        fence: &Fence,
        at_rest: bool,
    ) -> Result<Health, OpError> {
        let judge = Judge {
            limits: &self.defaults.health,
            believed: gauges(&self.db, &[pod.id], &self.defaults.metrics).await?.get(&pod.id).copied(),
        };
        let begun = operations::Begun {
            pod_id: pod.id,
            prior_status: pod.status.clone(),
            prior_cores: pod.cores,
            prior_memory_mb: pod.memory_mb,
            began_ms: 0,
            age_s: 0.0,
        };
        let operation = super::Operation::Health;
        let fence = fence.clone();
        let work = super::Work {
            service: self,
            operation,
            fence,
            pod,
            instance,
            in_our_books,
            begun,
            requested_by: None,
        };
        let seen = match work.find().await {
            Ok((Some(client), Seen::Ours(at, _))) => look(&client, &at).await.map(Some),
            Ok((_, Seen::Foreign(by))) => return Err(OpError::Foreign { vmid: work.pod.vmid, by }),
            Ok(_) => Ok(None),
            Err(OpError::Pve(error)) => Err(error),
            Err(OpError::NotYet { .. }) => {
                return Ok(Health::of(&work.pod, "unknown", Usage::default(), at_rest, judge));
            }
            Err(error) => return Err(error),
        };
        Ok(match seen {
            Ok(Some((status, usage, ip))) => {
                let mut health = Health::of(&work.pod, &status, usage, at_rest, judge);
                health.ip = ip.or(health.ip);
                health
            }
            Ok(None) => Health::of(&work.pod, "missing", Usage::default(), false, judge),
            Err(error) if error.class.is_configuration() => return Err(error.into()),
            Err(_) => Health::of(&work.pod, "unknown", Usage::default(), at_rest, judge),
        })
    }

    /// All active pods, by one question to each API; written in one statement.
    pub(super) async fn sweep(&self, fence: &Fence) -> Result<Value, OpError> {
        let result = self.look_at_all().await?;
        self.end_health(fence, None, Ok(&result)).await?;
        Ok(result)
    }

    async fn look_at_all(&self) -> Result<Value, OpError> {
        let active = operations::active_pods(&self.db).await?;
        if active.is_empty() {
            return Ok(json!({ "success": true, "total": 0, "healthy": 0 }));
        }
        let at_rest = changes::not_to_run(&self.db).await?;
        let all: Vec<Uuid> = active.iter().map(|pod| pod.id).collect();
        let believed = gauges(&self.db, &all, &self.defaults.metrics).await?;
        let lost = metrics::lost(&self.db).await?;
        let survey = self.sites.survey(&nodes::all(&self.db).await?).await?;
        let guests: HashMap<i64, _> =
            survey.guests.iter().filter_map(|(_, guest)| Some((guest.vmid?, guest))).collect();
        let found: Vec<(&PodRecord, Health)> = active
            .iter()
            .map(|pod| {
                let rests = at_rest.contains(&pod.id);
                let judge = Judge { limits: &self.defaults.health, believed: believed.get(&pod.id).copied() };
                let health = match guests.get(&i64::from(pod.vmid)) {
                    Some(guest) => {
                        let status = guest.status.as_deref().unwrap_or("unknown");
                        Health::of(pod, status, guest.usage, rests, judge)
                    }
                    None if survey.is_partial() => Health::of(pod, "unknown", Usage::default(), rests, judge),
                    None => Health::of(pod, "missing", Usage::default(), false, judge),
                };
                (pod, health)
            })
            .collect();
        let healthy = found.iter().filter(|(_, health)| health.healthy).count();
        let ids: Vec<_> = found.iter().map(|(pod, _)| pod.id).collect();
        let levels: Vec<_> =
            found.iter().map(|(pod, health)| health.sweep_level(lost.contains(&pod.id))).collect();
        let mut tx = db::begin(&self.db).await?;
        changes::set_health(&mut tx, &ids, &levels).await?;
        for ((pod, health), level) in found.iter().zip(levels).filter(|((_, health), _)| !health.healthy) {
            let message = format!("CloudPod {}: {}", pod.hostname, health.issues.join("; "));
            let data = json!({ "health": health, "level": level, "triggeredBy": "schedule" });
            pods::event(&mut tx, pod.tenant_id, Some(pod.id), "HEALTH_CHECK", &message, &data).await?;
        }
        db::commit(tx).await?;
        Ok(json!({ "success": true, "total": found.len(), "healthy": healthy }))
    }
}

async fn end_rows(
    tx: &mut db::Tx,
    fence: &Fence,
    pod_id: Option<Uuid>,
    result: Result<&Value, &str>,
) -> Result<(), db::DbError> {
    let ending = result.map_or_else(Ending::Failed, Ending::Success);
    jobs::finish(tx, fence, None, super::Operation::Health.row_kind(), pod_id, ending).await?;
    ledger::note_outcome(tx, fence, result).await
}

/// Status, usage and address of a guest.
async fn look(client: &PveClient, at: &GuestAt) -> Result<(String, Usage, Option<String>), PveError> {
    let status = client.guest_status(at).await?;
    let ip = match client.guest_interfaces(at).await {
        Ok(interfaces) if status.status == "running" => first_address(&interfaces).map(|ip| ip.to_string()),
        // A guest that shows none has none to show.
        _ => None,
    };
    let word =
        if at.kind == GuestKind::Vm && status.is_paused() { "paused".to_owned() } else { status.status };
    Ok((word, status.usage, ip))
}

#[cfg(test)]
mod tests {
    use super::{super::super::metrics::level::Gauge, *};
    use crate::config::Threshold;

    const LIMITS: HealthLimits = HealthLimits {
        cpu: Threshold { warning: 95, critical: 100 },
        memory: Threshold { warning: 95, critical: 98 },
        disk: Threshold { warning: 90, critical: 97 },
        margin: 5,
        samples: 3,
    };
    const AT_ONCE: Judge<'_> = Judge { limits: &LIMITS, believed: None };

    fn pod() -> PodRecord {
        PodRecord {
            id: Uuid::nil(),
            tenant_id: Uuid::nil(),
            vmid: 121,
            hostname: "shop".to_owned(),
            status: "active".to_owned(),
            deleted: false,
            ip: Some("10.0.0.5".to_owned()),
            cores: 2,
            memory_mb: 2048,
            disk_gb: 20,
        }
    }

    #[test]
    fn each_state_has_its_word() {
        let full = Usage { mem: Some(960), maxmem: Some(1000), ..Usage::default() };
        let over = Usage { mem: Some(990), maxmem: Some(1000), ..Usage::default() };
        for (status, usage, at_rest, level) in [
            ("running", Usage::default(), false, "ok"),
            ("running", full, false, "warning"),
            ("running", over, false, "critical"),
            ("unknown", Usage::default(), false, "warning"),
            ("stopped", Usage::default(), false, "critical"),
            ("stopped", Usage::default(), true, "ok"),
            ("missing", Usage::default(), false, "critical"),
        ] {
            let health = Health::of(&pod(), status, usage, at_rest, AT_ONCE);
            assert_eq!(health.level(), level, "{status} {at_rest}");
            assert_eq!(health.healthy, level == "ok");
        }
    }

    #[test]
    fn what_the_ticks_have_made_believed_counts_more_than_one_look() {
        let over = Usage { mem: Some(990), maxmem: Some(1000), ..Usage::default() };
        let well = Judge { limits: &LIMITS, believed: Some(Gauges::default()) };
        assert_eq!(Health::of(&pod(), "running", over, false, well).level(), "ok");
        let critical = Gauge { level: Level::Critical, ..Gauge::default() };
        let ill = Judge { limits: &LIMITS, believed: Some(Gauges { disk: critical, ..Gauges::default() }) };
        let health = Health::of(&pod(), "running", Usage::default(), false, ill);
        assert_eq!((health.level(), health.sweep_level(false)), ("critical", "critical"));
        // Of a guest that does not run no figure tells anything.
        let health = Health::of(&pod(), "stopped", Usage::default(), false, ill);
        assert_eq!(
            (health.level(), health.sweep_level(false), health.sweep_level(true)),
            ("critical", "warning", "critical")
        );
    }

    #[test]
    fn the_fields_are_mpanels() {
        let value =
            serde_json::to_value(Health::of(&pod(), "running", Usage::default(), false, AT_ONCE)).unwrap();
        let mut names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "cpuPct",
                "diskGb",
                "diskMaxGb",
                "diskPct",
                "healthy",
                "hostname",
                "ip",
                "issues",
                "memMaxMb",
                "memMb",
                "memPct",
                "status",
                "uptimeSec",
                "vmid"
            ]
        );
    }
}
