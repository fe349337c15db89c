//! The machine's own time zone, as Node finds it.

use mpanel_protocol::schedule::Zone;

/// The zone that cron patterns without one are read in: `TZ`, else the system's,
/// else UTC.
#[must_use]
pub fn local_zone() -> Zone {
    // TZ is the C library's variable, not a setting of ours.
    let named = std::env::var("TZ").ok().filter(|name| !name.is_empty());
    let name = named.or_else(|| iana_time_zone::get_timezone().ok()).unwrap_or_default();
    Zone::named(name.trim_start_matches(':'), Zone::utc()).unwrap_or_default()
}
