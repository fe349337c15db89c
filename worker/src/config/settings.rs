//! Every setting there is, once: where it may come from, what it means, an example.
//!
//! The list is the single source for parsing, for `check-config`, for the
//! example file and for error texts. It holds no value.

/// One setting. Its key in the TOML file is `section.name`; beside the listed
/// variables each can be set as `MPANEL_FLEET_<SECTION>__<NAME>`.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// `section.name`.
    pub key: &'static str,
    /// mPanel's own variable for it, if mPanel has one.
    pub env: Option<&'static str>,
    /// Whether the value must never be shown.
    pub secret: bool,
    /// The built-in default.
    pub default: Option<&'static str>,
    /// A value that would work.
    pub example: &'static str,
    /// What it does.
    pub help: &'static str,
}

const fn setting(
    key: &'static str,
    env: Option<&'static str>,
    default: Option<&'static str>,
    example: &'static str,
    help: &'static str,
) -> Setting {
    Setting { key, env, secret: false, default, example, help }
}

const fn secret(key: &'static str, env: &'static str, example: &'static str, help: &'static str) -> Setting {
    Setting { key, env: Some(env), secret: true, default: None, example, help }
}

/// All settings, in the order in which `check-config` shows them.
pub const SETTINGS: &[Setting] = &[
    secret(
        "database.url",
        "DATABASE_URL",
        "postgresql://mpanel:password@127.0.0.1:5432/mpanel",
        "mPanel's Postgres database; Prisma's own parameters are understood",
    ),
    setting("database.max_connections", None, Some("10"), "10", "most connections this process opens"),
    secret(
        "redis.url",
        "REDIS_URL",
        "redis://:password@127.0.0.1:6379",
        "Redis by URL: redis://, rediss://, redis+sentinel://, redis+cluster://",
    ),
    setting("redis.host", Some("REDIS_HOST"), None, "127.0.0.1", "Redis by host, when no URL is given"),
    setting("redis.port", Some("REDIS_PORT"), None, "6379", "Redis port, beside redis.host"),
    secret("redis.password", "REDIS_PASSWORD", "password", "Redis password, beside redis.host"),
    setting(
        "redis.sentinels",
        Some("FLEET_REDIS_SENTINELS"),
        None,
        "10.0.0.1:26379,10.0.0.2:26379",
        "Sentinels, comma list",
    ),
    setting(
        "redis.sentinel_master",
        Some("FLEET_REDIS_SENTINEL_MASTER"),
        None,
        "mymaster",
        "the name that the Sentinels give the master",
    ),
    setting("redis.prefix", None, Some("bull"), "bull", "what all queue keys begin with"),
    setting("redis.peer", None, Some("v5"), "v5", "which BullMQ line works beside us: v5 (mPanel's) or v6"),
    setting(
        "proxmox.api_url",
        Some("PROXMOX_API_URL"),
        None,
        "https://10.1.10.10:8006",
        "the Proxmox API; overrides api_url of every node row",
    ),
    setting(
        "proxmox.host",
        Some("PROXMOX_HOST"),
        None,
        "10.1.10.10",
        "Proxmox host for node rows without a usable api_url",
    ),
    setting(
        "proxmox.token_id",
        Some("PROXMOX_TOKEN_ID"),
        None,
        "mpanel@pve!fleet",
        "API token, user@realm!name",
    ),
    secret(
        "proxmox.token_secret",
        "PROXMOX_TOKEN_SECRET",
        "5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11",
        "the token's secret, a UUID",
    ),
    setting(
        "proxmox.username",
        None,
        None,
        "mpanel@pve",
        "user@realm to log in with by password, where no token is set",
    ),
    Setting {
        key: "proxmox.password",
        env: None,
        secret: true,
        default: None,
        example: "password",
        help: "the password of proxmox.username",
    },
    setting(
        "proxmox.tls_fingerprint",
        Some("PROXMOX_TLS_FINGERPRINT"),
        None,
        "AA:BB:…:99 (32 pairs)",
        "SHA-256 of the API's certificate, comma list; pins exactly these",
    ),
    setting(
        "proxmox.ca_file",
        Some("PROXMOX_CA_FILE"),
        None,
        "/etc/mpanel/pve-root-ca.pem",
        "PEM file with the CA that signed the API's certificate",
    ),
    setting(
        "proxmox.settle_seconds",
        None,
        Some("35"),
        "35",
        "how long a request of unknown outcome may still take effect (relay timeout and skew)",
    ),
    setting(
        "cloudpods.template",
        None,
        Some("local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"),
        "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst",
        "LXC template for pods whose blueprint names none",
    ),
    setting(
        "cloudpods.vm_template_vmid",
        None,
        None,
        "9000",
        "VM template that virtual machines are cloned from",
    ),
    setting(
        "cloudpods.health_minutes",
        Some("HEALTH_CHECK_INTERVAL"),
        Some("5"),
        "5",
        "minutes between health sweeps of all pods, scheduled by who serves cloudpods-health; 0 leaves the schedule as it is",
    ),
    setting("cloudpods.storage", None, Some("clients-main"), "clients-main", "storage of the root disk"),
    setting("cloudpods.bridge", None, Some("vmbr0"), "vmbr0", "bridge of the first network card"),
    setting(
        "cloudpods.pool",
        None,
        Some("ClientPods"),
        "ClientPods",
        "Proxmox resource pool; empty sends none",
    ),
    setting(
        "cloudpods.default_region",
        None,
        Some("migra-us-east-1"),
        "migra-us-east-1",
        "region of nodes that were given none",
    ),
    setting("cloudpods.backup_storage", None, None, "backups", "storage for backups"),
    setting(
        "cloudpods.address_seconds",
        None,
        Some("90"),
        "90",
        "how long a started pod may take to show its DHCP address",
    ),
    setting(
        "cloudpods.placement",
        None,
        Some("pack"),
        "pack",
        "pack fills nodes one after the other, spread takes the emptiest first",
    ),
    setting(
        "cloudpods.reconcile_seconds",
        None,
        Some("60"),
        "60",
        "how often pods are compared with what is on Proxmox; 0 is never",
    ),
    setting(
        "cloudpods.orphan_minutes",
        None,
        Some("15"),
        "15",
        "how long a guest with our tag must be without a row to count as an orphan",
    ),
    setting(
        "cloudpods.orphan_delete",
        None,
        Some("false"),
        "true",
        "whether orphans are stopped and destroyed, and not only reported",
    ),
    setting(
        "cloudpods.metrics_seconds",
        None,
        Some("60"),
        "60",
        "how often what pods use is written to cloud_pod_metrics; 0 is never",
    ),
    setting(
        "cloudpods.metrics_raw_hours",
        None,
        Some("24"),
        "24",
        "age at which such figures become five-minute averages",
    ),
    setting("cloudpods.metrics_5min_days", None, Some("7"), "7", "age at which those become hourly averages"),
    setting("cloudpods.metrics_hourly_days", None, Some("90"), "90", "age at which those are removed"),
    setting(
        "cloudpods.health_cpu",
        None,
        Some("95,100"),
        "95,100",
        "use of its cores from which a pod is warning,critical, per cent",
    ),
    setting("cloudpods.health_memory", None, Some("95,98"), "95,98", "the same for memory"),
    setting("cloudpods.health_disk", None, Some("90,97"), "90,97", "the same for disk"),
    setting(
        "cloudpods.health_margin",
        None,
        Some("5"),
        "5",
        "points below a threshold at which a pod is well again",
    ),
    setting(
        "cloudpods.health_samples",
        None,
        Some("3"),
        "3",
        "ticks in a row that must say so before a pod's health changes",
    ),
    setting(
        "dns.zone",
        None,
        None,
        "pods.example.net",
        "zone in which pods get names from PowerDNS; without it no names are kept",
    ),
    setting("dns.api_url", Some("PDNS_API_URL"), None, "http://127.0.0.1:8081", "PowerDNS's HTTP API"),
    secret("dns.api_key", "PDNS_API_KEY", "its api-key", "the key of PowerDNS's HTTP API"),
    setting(
        "dns.nameservers",
        None,
        None,
        "ns1.example.net,ns2.example.net",
        "the zone's name servers, comma list; with them a missing zone is made",
    ),
    setting("dns.ttl_seconds", None, Some("300"), "300", "how long pods' records may be cached"),
    setting(
        "telemetry.interval_seconds",
        Some("TELEMETRY_INTERVAL_SECONDS"),
        Some("30"),
        "30",
        "seconds between two looks at everything",
    ),
    setting(
        "telemetry.mpanel_core_url",
        Some("NODE_MPANEL_CORE_URL"),
        None,
        "https://panel.example.net/health",
        "page that shows the panel's health; service mpanel-core",
    ),
    setting(
        "telemetry.srv1_web_url",
        Some("NODE_SRV1_WEB_URL"),
        None,
        "https://srv1.example.net/health",
        "the same of the web node; service srv1-web",
    ),
    setting(
        "telemetry.mail_core_url",
        Some("NODE_MAIL_CORE_URL"),
        None,
        "https://mail.example.net/health",
        "the same of the mail node; service mail-core",
    ),
    setting(
        "telemetry.dns_core_url",
        Some("NODE_DNS_CORE_URL"),
        None,
        "https://dns.example.net/health",
        "the same of the DNS node; service dns-core",
    ),
    setting(
        "telemetry.db_core_host",
        Some("NODE_DB_CORE_HOST"),
        None,
        "10.1.10.13",
        "host (port 5432) or host:port of the database node; service db-core",
    ),
    setting(
        "telemetry.targets",
        None,
        None,
        "api=https://api.example.net/health|body=ok|slow=500,smtp=mail.example.net:25",
        "further targets, comma list of name=address with |body=TEXT and |slow=MS",
    ),
    setting("telemetry.timeout_ms", None, Some("5000"), "5000", "longest look at one target"),
    setting("telemetry.slow_ms", None, Some("1000"), "1000", "a page that takes longer is degraded"),
    setting(
        "telemetry.tcp_slow_ms",
        None,
        Some("250"),
        "250",
        "a connection that takes longer to open is degraded",
    ),
    setting(
        "telemetry.certificate_days",
        None,
        Some("14"),
        "14",
        "a certificate that ends sooner makes its target degraded",
    ),
    setting(
        "telemetry.ca_file",
        None,
        None,
        "/etc/mpanel/internal-ca.pem",
        "PEM file with a CA to believe beside the system's",
    ),
    Setting {
        key: "telemetry.pg_url",
        env: None,
        secret: true,
        default: None,
        example: "postgresql://mpanel_telemetry:password@127.0.0.1:5432/mpanel",
        help: "the Postgres that is looked into, by a role with pg_monitor; default DATABASE_URL",
    },
    setting(
        "telemetry.slow_query_ms",
        None,
        Some("100"),
        "100",
        "a statement is slow from this mean duration on (or when it takes 5 % of all time)",
    ),
    setting(
        "telemetry.query_window_seconds",
        None,
        Some("3600"),
        "3600",
        "over how long calls and mean duration of a slow statement are counted",
    ),
    setting("telemetry.query_top", None, Some("50"), "50", "most slow statements noted in one look"),
    setting(
        "telemetry.queues",
        None,
        None,
        "cloudpods-create,cloudpods-destroy",
        "queues to look at, comma list; default those that Redis has",
    ),
    setting(
        "telemetry.queue_age_seconds",
        None,
        Some("0"),
        "300",
        "a queue whose oldest waiting job is older is degraded; 0: no status rows of queues",
    ),
    setting(
        "telemetry.row_seconds",
        None,
        Some("0"),
        "300",
        "seconds between rows of a service whose status stays; 0 writes one each time",
    ),
    setting(
        "telemetry.keep_days",
        None,
        Some("30"),
        "30",
        "days that status rows (then kept as hours) and slow queries are kept",
    ),
    setting("run.queues", None, None, "cloudpods-create", "queues to serve, comma list; default all"),
    setting(
        "run.exclusive",
        None,
        Some("false"),
        "true",
        "refuse to start while Node workers serve the same queues",
    ),
    setting("run.concurrency", None, None, "2", "jobs at once in each queue; default mPanel's own figures"),
    setting(
        "run.drain_seconds",
        None,
        Some("300"),
        "300",
        "how long running jobs may take to end after SIGTERM",
    ),
    setting("run.lock_ms", None, Some("30000"), "30000", "how long a job's lock lives without renewal"),
    setting("run.stalled_ms", None, Some("30000"), "30000", "how often jobs of dead workers are looked for"),
    setting(
        "run.stalls_allowed",
        None,
        Some("10"),
        "10",
        "how often a job may lose its worker before it is failed; every step may be entered again, so a crash is not the job's fault",
    ),
    setting(
        "log.level",
        Some("RUST_LOG"),
        Some("info,sqlx=warn"),
        "info,mpanel_worker=debug",
        "what to log (tracing filter)",
    ),
    setting("log.format", None, Some("text"), "json", "text or json"),
];

impl Setting {
    /// The setting with this key.
    #[must_use]
    pub fn find(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// `MPANEL_FLEET_<SECTION>__<NAME>`.
    #[must_use]
    pub fn fleet_env(&self) -> String {
        format!("MPANEL_FLEET_{}", self.key.replace('.', "__").to_ascii_uppercase())
    }

    /// The variable that an operator is told of: mPanel's where there is one.
    #[must_use]
    pub fn variable(&self) -> String {
        self.env.map_or_else(|| self.fleet_env(), str::to_owned)
    }

    /// Both variable names, mPanel's first: it wins where both are set.
    pub fn variables(&self) -> impl Iterator<Item = String> {
        self.env.map(str::to_owned).into_iter().chain([self.fleet_env()])
    }
}

/// The known key that is most like `unknown`, if one is near enough to be meant.
#[must_use]
pub fn nearest_key(unknown: &str) -> Option<&'static str> {
    SETTINGS
        .iter()
        .map(|setting| (distance(unknown, setting.key), setting.key))
        .min()
        .filter(|(distance, key)| *distance <= key.len() / 3 + 1)
        .map(|(_, key)| key)
}

/// Levenshtein distance; the texts are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_derive_from_the_key() {
        let template = Setting::find("cloudpods.template").unwrap();
        assert_eq!(template.fleet_env(), "MPANEL_FLEET_CLOUDPODS__TEMPLATE");
        assert_eq!(template.variable(), "MPANEL_FLEET_CLOUDPODS__TEMPLATE");
        assert_eq!(Setting::find("database.url").unwrap().variable(), "DATABASE_URL");
    }

    #[test]
    fn a_near_miss_finds_its_neighbour_and_nonsense_finds_none() {
        assert_eq!(nearest_key("cloudpods.templat"), Some("cloudpods.template"));
        assert_eq!(nearest_key("proxmox.token-id"), Some("proxmox.token_id"));
        assert_eq!(nearest_key("x"), None);
    }
}
