//! Layering, completeness of the reports, and what must never be shown.

use std::path::PathBuf;

use secrecy::ExposeSecret;

use super::*;

fn sources(env: &[(&str, &str)]) -> Sources {
    Sources {
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..Sources::default()
    }
}

const FULL: &[(&str, &str)] = &[
    ("DATABASE_URL", "postgresql://u:dbgeheim@h/d"),
    ("REDIS_HOST", "10.0.0.5"),
    ("REDIS_PASSWORD", "re/dis@geheim"),
    ("PROXMOX_API_URL", "https://10.1.10.10:8006/api2/json"),
    ("PROXMOX_TOKEN_ID", "mpanel@pve!fleet"),
    ("PROXMOX_TOKEN_SECRET", "pvegeheim"),
];

fn with(extra: &[(&'static str, &'static str)]) -> Sources {
    let all: Vec<_> = FULL.iter().chain(extra).copied().collect();
    sources(&all)
}

fn problems(sources: &Sources) -> String {
    Config::from_sources(sources, Needs::All).unwrap_err().to_string()
}

#[test]
fn mpanels_own_variables_are_enough() {
    let config = Config::from_sources(&with(&[]), Needs::All).unwrap();
    let redis = config.redis.unwrap();
    assert_eq!(redis.url.expose_secret(), "redis://:re%2Fdis%40geheim@10.0.0.5:6379");
    assert_eq!(redis.shown, "redis://***@10.0.0.5:6379");
    let proxmox = config.proxmox.unwrap();
    assert_eq!(proxmox.api_url.unwrap().as_str(), "https://10.1.10.10:8006/");
    assert_eq!(proxmox.trust, TlsTrust::System);
    assert_eq!(config.cloudpods.pool.as_deref(), Some("ClientPods"));
    assert_eq!(config.cloudpods.default_region, "migra-us-east-1");
}

#[test]
fn everything_missing_is_reported_at_once_with_name_and_example() {
    let text = problems(&sources(&[]));
    for variable in ["DATABASE_URL", "PROXMOX_TOKEN_ID", "PROXMOX_TOKEN_SECRET"] {
        assert!(text.contains(&format!("{variable}=")), "{variable} in {text}");
    }
    assert!(text.starts_with("configuration: 3 problems"), "{text}");
}

#[test]
fn a_command_that_needs_only_the_database_ignores_the_rest() {
    let config =
        Config::from_sources(&sources(&[("DATABASE_URL", "postgres://h/d")]), Needs::Database).unwrap();
    assert!(config.redis.is_none() && config.proxmox.is_none());
}

#[test]
fn file_is_below_environment_and_environment_below_flag() {
    let mut sources = with(&[("MPANEL_FLEET_CLOUDPODS__BRIDGE", "vmbr7")]);
    sources.toml = Some((
        PathBuf::from("/etc/mpanel/fleet.toml"),
        "[cloudpods]\nbridge = \"vmbr1\"\nstorage = \"fast\"\n[run]\nconcurrency = 3\nqueues = [\"a\", \"b\"]\n".to_owned(),
    ));
    sources.flags.insert("run.concurrency", "9".to_owned());
    let config = Config::from_sources(&sources, Needs::All).unwrap();
    assert_eq!((config.cloudpods.bridge.as_str(), config.cloudpods.storage.as_str()), ("vmbr7", "fast"));
    assert_eq!(config.run.concurrency, Some(9));
    assert_eq!(config.run.queues.unwrap(), ["a", "b"]);
}

#[test]
fn an_unknown_key_is_refused_with_its_neighbour() {
    let mut sources = with(&[]);
    sources.toml = Some((PathBuf::from("/f.toml"), "[cloudpods]\ntemplat = \"x\"\n".to_owned()));
    let text = problems(&sources);
    assert!(
        text.contains("cloudpods.templat in /f.toml is not a setting; did you mean `cloudpods.template`?"),
        "{text}"
    );
}

#[test]
fn redis_by_url_and_host_must_agree() {
    let text = problems(&with(&[("REDIS_URL", "redis://10.0.0.6:6380")]));
    assert!(text.contains("10.0.0.6:6380") && text.contains("10.0.0.5:6379"), "{text}");
    let same = with(&[("REDIS_URL", "redis://10.0.0.5/0")]);
    assert!(Config::from_sources(&same, Needs::All).is_ok());
    let local = sources(&[
        ("REDIS_HOST", "localhost"),
        ("REDIS_PORT", "6380"),
        ("REDIS_URL", "redis://127.0.0.1:6380/2"),
        ("DATABASE_URL", "postgres://h/d"),
        ("PROXMOX_TOKEN_ID", "a@pve!b"),
        ("PROXMOX_TOKEN_SECRET", "x"),
    ]);
    assert!(Config::from_sources(&local, Needs::All).is_ok());
}

#[test]
fn sentinels_become_one_url() {
    let sources = sources(&[
        ("FLEET_REDIS_SENTINELS", "127.0.0.1:1,127.0.0.1:2"),
        ("FLEET_REDIS_SENTINEL_MASTER", "fleet"),
        ("DATABASE_URL", "postgres://h/d"),
        ("PROXMOX_TOKEN_ID", "a@pve!b"),
        ("PROXMOX_TOKEN_SECRET", "x"),
    ]);
    let config = Config::from_sources(&sources, Needs::All).unwrap();
    assert_eq!(config.redis.unwrap().url.expose_secret(), "redis+sentinel://127.0.0.1:1,127.0.0.1:2/fleet");
}

#[test]
fn redis_settings_that_cannot_work_are_refused_with_a_sentence() {
    for (url, more, why) in [
        ("redis+cluster://a/1", &[][..], "database 0 only"),
        ("redis+cluster://a,b", &[], "needs a hash tag in a Redis Cluster: `{bull}`"),
        ("rediss://a?cert=f", &[], "`cert` needs `key`"),
        ("redis://a?timeout=1", &[], "`timeout` is not known here"),
        ("redis+sentinel://a", &[], "lacks the name"),
        (
            "redis://b",
            &[("FLEET_REDIS_SENTINELS", "a:1")],
            "names b:6379, but FLEET_REDIS_SENTINELS names a:1",
        ),
    ] {
        let mut sources = with(&[("REDIS_URL", url)]);
        sources.env.remove("REDIS_HOST");
        sources.env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let text = problems(&sources);
        assert!(
            text.contains(why) && text.contains("REDIS_URL") != why.contains("hash tag"),
            "{url}: {text}"
        );
    }
}

#[test]
fn the_topology_is_told_without_secrets() {
    let mut sources =
        with(&[("REDIS_URL", "rediss+cluster://user@b,c:7001"), ("MPANEL_FLEET_REDIS__PREFIX", "{bull}")]);
    sources.env.remove("REDIS_HOST");
    sources.env.insert("REDIS_URL".to_owned(), "rediss+cluster://u:geheim@b,c:7001".to_owned());
    let redis = Config::from_sources(&sources, Needs::All).unwrap().redis.unwrap();
    assert_eq!(redis.topology, "Cluster b:6379,c:7001");
    assert!(!format!("{redis:?}").contains("geheim"));
}

fn token_secret(config: Config) -> String {
    match config.proxmox.unwrap().login {
        Login::Token { secret, .. } => secret.expose_secret().to_owned(),
        Login::Password { .. } => panic!("no token"),
    }
}

#[test]
fn a_password_is_taken_only_where_no_token_is_named() {
    let user = ("MPANEL_FLEET_PROXMOX__USERNAME", "mpanel@pve");
    let mut sources = with(&[user, ("MPANEL_FLEET_PROXMOX__PASSWORD", "wort")]);
    assert_eq!(token_secret(Config::from_sources(&sources, Needs::All).unwrap()), "pvegeheim");
    sources.env.remove("PROXMOX_TOKEN_ID");
    let config = Config::from_sources(&sources, Needs::All).unwrap();
    assert!(matches!(config.proxmox.unwrap().login, Login::Password { user, .. } if user == "mpanel@pve"));
    sources.env.remove("MPANEL_FLEET_PROXMOX__PASSWORD");
    assert!(problems(&sources).contains("MPANEL_FLEET_PROXMOX__PASSWORD"));
}

#[test]
fn a_secret_comes_from_a_file_and_the_variable_wins_over_it() {
    let mut sources = with(&[]);
    sources.secret_files.push((
        "proxmox.token_secret",
        "PROXMOX_TOKEN_SECRET_FILE (/f)".to_owned(),
        "file".to_owned(),
    ));
    let config = Config::from_sources(&sources, Needs::All).unwrap();
    assert_eq!(token_secret(config), "pvegeheim");
    sources.env.remove("PROXMOX_TOKEN_SECRET");
    let config = Config::from_sources(&sources, Needs::All).unwrap();
    assert_eq!(token_secret(config), "file");
}

#[test]
fn an_empty_pool_sends_none() {
    let config = Config::from_sources(&with(&[("MPANEL_FLEET_CLOUDPODS__POOL", "")]), Needs::All).unwrap();
    assert_eq!(config.cloudpods.pool, None);
}

#[test]
fn no_secret_is_ever_shown() {
    let config = Config::from_sources(&with(&[]), Needs::All).unwrap();
    let shown = format!("{config:?} {:?} {:?}", Layers::of(&with(&[])).shown(), with(&[]));
    for secret in ["dbgeheim", "geheim@", "pvegeheim", "dis%40"] {
        assert!(!shown.contains(secret), "{secret}");
    }
    let broken = with(&[("PROXMOX_TOKEN_ID", "no token"), ("REDIS_URL", "http://:urlgeheim@h")]);
    let text = problems(&broken);
    assert!(text.contains("user@realm!name") && !text.contains("urlgeheim"), "{text}");
}

#[test]
fn figures_are_kept_in_order_of_their_age() {
    let text = problems(&with(&[
        ("MPANEL_FLEET_CLOUDPODS__METRICS_RAW_HOURS", "200"),
        ("MPANEL_FLEET_CLOUDPODS__HEALTH_DISK", "97,90"),
    ]));
    assert!(text.contains("must not be less than cloudpods.metrics_5min_days"), "{text}");
    assert!(text.contains("MPANEL_FLEET_CLOUDPODS__HEALTH_DISK must be two whole numbers"), "{text}");
    let config = Config::from_sources(&with(&[]), Needs::All).unwrap().cloudpods;
    assert_eq!((config.metrics.raw_h, config.metrics.five_min_h, config.metrics.hourly_h), (24, 168, 2160));
    assert_eq!(config.health.memory, Threshold { warning: 95, critical: 98 });
}
