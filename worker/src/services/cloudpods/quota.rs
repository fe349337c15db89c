//! Whether a tenant may have one more pod. Pure; the caller holds the lock.

use std::fmt;

/// What a tenant may have; below zero means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pods.
    pub pods: i64,
    /// CPU cores.
    pub cores: i64,
    /// Memory, MiB.
    pub memory_mb: i64,
    /// Disk, GiB.
    pub disk_gb: i64,
}

/// What mPanel's check assumes for a tenant without a row. (A row made on
/// demand gets other figures: the table's defaults.)
pub const WITHOUT_ROW: Limits = Limits { pods: 2, cores: 4, memory_mb: 8192, disk_gb: 200 };

/// What is used, or wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// Pods.
    pub pods: i64,
    /// CPU cores.
    pub cores: i64,
    /// Memory, MiB.
    pub memory_mb: i64,
    /// Disk, GiB.
    pub disk_gb: i64,
}

/// A limit that one more pod would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    /// mPanel's code for it.
    pub code: &'static str,
    /// What would be used.
    pub wanted: i64,
    /// What may be used.
    pub limit: i64,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} of {})", self.code, self.wanted, self.limit)
    }
}

/// The limits that the pod would pass; none means that it may be made.
#[must_use]
pub fn check(limits: Limits, used: Amount, wanted: Amount) -> Vec<Exceeded> {
    [
        ("MAX_PODS_EXCEEDED", used.pods + wanted.pods, limits.pods),
        ("MAX_CPU_EXCEEDED", used.cores + wanted.cores, limits.cores),
        ("MAX_MEMORY_EXCEEDED", used.memory_mb + wanted.memory_mb, limits.memory_mb),
        ("MAX_DISK_EXCEEDED", used.disk_gb + wanted.disk_gb, limits.disk_gb),
    ]
    .into_iter()
    .filter(|(_, wanted, limit)| *limit >= 0 && wanted > limit)
    .map(|(code, wanted, limit)| Exceeded { code, wanted, limit })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Amount = Amount { pods: 0, cores: 0, memory_mb: 0, disk_gb: 0 };

    #[test]
    fn a_pod_that_just_fits_fits() {
        let wanted = Amount { pods: 1, cores: 4, memory_mb: 8192, disk_gb: 200 };
        assert_eq!(check(WITHOUT_ROW, NOTHING, wanted), []);
    }

    #[test]
    fn each_limit_has_its_code() {
        let used = Amount { pods: 2, cores: 4, memory_mb: 8192, disk_gb: 200 };
        let wanted = Amount { pods: 1, cores: 1, memory_mb: 1, disk_gb: 1 };
        let codes: Vec<&str> =
            check(WITHOUT_ROW, used, wanted).iter().map(|exceeded| exceeded.code).collect();
        let all = ["MAX_PODS_EXCEEDED", "MAX_CPU_EXCEEDED", "MAX_MEMORY_EXCEEDED", "MAX_DISK_EXCEEDED"];
        assert_eq!(codes, all);
    }

    #[test]
    fn below_zero_is_unlimited_and_zero_is_nothing() {
        let unlimited = Limits { pods: -1, cores: -1, memory_mb: -1, disk_gb: -1 };
        let wanted = Amount { pods: 99, cores: 999, memory_mb: 1 << 40, disk_gb: 1 << 40 };
        assert_eq!(check(unlimited, NOTHING, wanted), []);
        let none = Limits { pods: 0, ..unlimited };
        assert_eq!(check(none, NOTHING, wanted).len(), 1);
    }
}
