//! What the fleet does for mPanel, one module a service. They never import each other.

pub mod cloudpods;
pub mod telemetry;
