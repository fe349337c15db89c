//! How often books and Proxmox are compared, and what may be done by itself. Pure parsing.

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
