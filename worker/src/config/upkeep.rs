//! How often books and Proxmox are compared and figures collected, how long
//! those are kept, and when a pod is in want. Pure parsing.

use std::time::Duration;

use super::resolve::Layers;

/// How the reconciler works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReconcileConfig {
    /// From the beginning of one round to that of the next; zero: never.
    pub every: Duration,
    /// How long a guest without a row must have been there to be believed an orphan.
    pub orphan: Duration,
    /// Whether such guests are removed.
    pub orphan_delete: bool,
}

/// How figures are collected and kept. A pod has `raw_h` hours of single
/// figures, then five-minute averages, then hourly ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsConfig {
    /// From tick to tick; zero: never.
    pub every: Duration,
    /// Age at which figures become five-minute averages, hours.
    pub raw_h: i32,
    /// Age at which those become hourly averages, hours.
    pub five_min_h: i32,
    /// Age at which those go, hours.
    pub hourly_h: i32,
}

/// From which use on a pod is in want, per cent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// mPanel's `warning`.
    pub warning: u32,
    /// mPanel's `critical`.
    pub critical: u32,
}

/// When a pod is in want, and when that is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthLimits {
    /// Of its cores.
    pub cpu: Threshold,
    /// Of its memory.
    pub memory: Threshold,
    /// Of its disk.
    pub disk: Threshold,
    /// How far below a threshold it must be to be well again, points.
    pub margin: u32,
    /// How many ticks in a row must say so.
    pub samples: u32,
}

/// Reads the settings; problems go into `layers`.
pub(super) fn metrics(layers: &mut Layers) -> Option<MetricsConfig> {
    let every = layers.number("cloudpods.metrics_seconds", 0, 86_400);
    let raw = layers.number("cloudpods.metrics_raw_hours", 1, 8760);
    let five = layers.number("cloudpods.metrics_5min_days", 1, 3650);
    let hourly = layers.number("cloudpods.metrics_hourly_days", 1, 3650);
    if let (Some(raw), Some(five), Some(hourly)) = (raw, five, hourly)
        && (raw > five * 24 || five > hourly)
    {
        layers.problem(
            "cloudpods.metrics_hourly_days",
            "must not be less than cloudpods.metrics_5min_days, nor that less than cloudpods.metrics_raw_hours",
        );
    }
    let hours = |days: u64| i32::try_from(days * 24).ok();
    Some(MetricsConfig {
        every: Duration::from_secs(every?),
        raw_h: i32::try_from(raw?).ok()?,
        five_min_h: hours(five?)?,
        hourly_h: hours(hourly?)?,
    })
}

/// Reads the settings; problems go into `layers`.
pub(super) fn health(layers: &mut Layers) -> Option<HealthLimits> {
    let cpu = layers.parsed("cloudpods.health_cpu", threshold);
    let memory = layers.parsed("cloudpods.health_memory", threshold);
    let disk = layers.parsed("cloudpods.health_disk", threshold);
    let margin = layers.number("cloudpods.health_margin", 0, 50);
    let samples = layers.number("cloudpods.health_samples", 1, 1000);
    Some(HealthLimits {
        cpu: cpu?,
        memory: memory?,
        disk: disk?,
        margin: u32::try_from(margin?).ok()?,
        samples: u32::try_from(samples?).ok()?,
    })
}

/// `warning,critical`.
fn threshold(text: &str) -> Result<Threshold, String> {
    let parts: Option<Vec<u32>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    match parts.as_deref() {
        Some([warning, critical]) if (1..=*critical).contains(warning) && *critical <= 1000 => {
            Ok(Threshold { warning: *warning, critical: *critical })
        }
        _ => Err(format!("must be two whole numbers warning,critical, per cent; is `{text}`")),
    }
}

/// Reads the settings; problems go into `layers`.
pub(super) fn reconcile(layers: &mut Layers) -> Option<ReconcileConfig> {
    let every = layers.number("cloudpods.reconcile_seconds", 0, 86_400);
    let orphan = layers.number("cloudpods.orphan_minutes", 1, 10_080);
    let orphan_delete = layers.flag("cloudpods.orphan_delete");
    Some(ReconcileConfig {
        every: Duration::from_secs(every?),
        orphan: Duration::from_secs(orphan? * 60),
        orphan_delete: orphan_delete?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_two_numbers_in_order() {
        assert_eq!(threshold("90, 97"), Ok(Threshold { warning: 90, critical: 97 }));
        assert_eq!(threshold("90,90"), Ok(Threshold { warning: 90, critical: 90 }));
        for bad in ["", "90", "97,90", "0,90", "a,b", "1,2,3", "90,1001"] {
            assert!(threshold(bad).is_err(), "{bad}");
        }
    }
}
