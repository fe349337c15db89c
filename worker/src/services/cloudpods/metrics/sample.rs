//! From what the clusters list to one sample a running pod. Pure.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::super::plan::ownership_tag;
use crate::adapters::{
    db::{metrics::Sample, operations::PodRecord},
    proxmox::{GuestRow, Usage, tag_set},
};

/// A share as per cent, as `NUMERIC(5,2)` takes it: a figure that no column
/// takes must not cost the others theirs.
#[must_use]
pub fn percent(share: f64) -> f64 {
    if share.is_finite() { ((share * 10_000.0).round() / 100.0).clamp(0.0, 999.99) } else { 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "bytes of a guest are below 2^52")]
fn share(used: Option<i64>, most: Option<i64>) -> f64 {
    match (used, most) {
        (Some(used), Some(most)) if most > 0 => used as f64 / most as f64,
        _ => 0.0,
    }
}

/// What a guest uses, per cent of what it may: cores, memory, disk.
#[must_use]
pub fn used(usage: Usage) -> (f64, f64, f64) {
    (
        percent(usage.cpu.unwrap_or_default()),
        percent(share(usage.mem, usage.maxmem)),
        percent(share(usage.disk, usage.maxdisk)),
    )
}

/// One sample for each pod whose guest runs. Guests of no pod are passed over;
/// so is one that carries another pod's tag, since VMIDs are used again.
#[must_use]
pub fn samples(pods: &[PodRecord], guests: &[GuestRow]) -> Vec<Sample> {
    let by_vmid: BTreeMap<i64, &PodRecord> = pods.iter().map(|pod| (i64::from(pod.vmid), pod)).collect();
    let mut seen: BTreeSet<Uuid> = BTreeSet::new();
    let mut samples = Vec::new();
    for guest in guests {
        let Some(pod) = guest.vmid.and_then(|vmid| by_vmid.get(&vmid)) else { continue };
        let tag = ownership_tag(pod.id);
        let others = tag_set(guest.tags.as_deref()).iter().any(|t| t.starts_with("mpanel-pod-") && *t != tag);
        // Without memory there is no measurement, but a gap of the broadcast.
        let measured = guest.status.as_deref() == Some("running") && guest.usage.mem.is_some();
        // Two members of a cluster tell of the same guest.
        if others || !measured || !seen.insert(pod.id) {
            continue;
        }
        let (cpu, memory, disk) = used(guest.usage);
        samples.push(Sample { pod_id: pod.id, cpu, memory, disk });
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(vmid: i32) -> PodRecord {
        PodRecord {
            id: Uuid::from_u128(u128::from(vmid.unsigned_abs())),
            tenant_id: Uuid::nil(),
            vmid,
            hostname: "shop".to_owned(),
            status: "active".to_owned(),
            deleted: false,
            ip: None,
            cores: 2,
            memory_mb: 2048,
            disk_gb: 20,
        }
    }

    fn guest(vmid: i64, status: &str, tags: &str) -> GuestRow {
        GuestRow {
            vmid: Some(vmid),
            node: "pve1".to_owned(),
            kind: "lxc".to_owned(),
            name: None,
            status: Some(status.to_owned()),
            tags: Some(tags.to_owned()),
            usage: Usage {
                cpu: Some(0.25),
                mem: Some(1),
                maxmem: Some(3),
                disk: Some(0),
                maxdisk: Some(0),
                uptime: None,
            },
        }
    }

    #[test]
    fn every_running_pod_has_one_sample_and_nobody_else() {
        let pods = [pod(121), pod(122), pod(123)];
        let other = format!("mpanel-pod-{}", Uuid::from_u128(9));
        let guests = [
            guest(121, "running", &ownership_tag(pods[0].id)),
            guest(121, "running", ""),
            guest(122, "stopped", ""),
            guest(123, "running", &other),
            guest(900, "running", ""),
            GuestRow { usage: Usage::default(), ..guest(123, "running", "") },
        ];
        let wanted = Sample { pod_id: pods[0].id, cpu: 25.0, memory: 33.33, disk: 0.0 };
        assert_eq!(samples(&pods, &guests), [wanted]);
    }

    #[test]
    fn no_figure_is_beyond_the_column() {
        for (share, wanted) in [
            (1e300, 999.99),
            (-1.0, 0.0),
            (f64::NAN, 0.0),
            (f64::INFINITY, 0.0),
            (9.999_99, 999.99),
            (0.5, 50.0),
        ] {
            assert!((percent(share) - wanted).abs() < 1e-9, "{share}");
        }
    }
}
