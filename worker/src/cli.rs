//! The command line: what can be said, and the help that teaches it. What the
//! commands do is in [`crate::commands`] and [`crate::app`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

/// mPanel's fleet: workers beside mPanel's own, on the same Redis and Postgres.
#[derive(Debug, Parser)]
#[command(
    name = "mpanel-worker",
    version,
    about,
    long_about = "mPanel's fleet: workers beside mPanel's own, on the same Redis and Postgres.\n\n\
        First time:\n  \
        export DATABASE_URL=postgresql://mpanel:password@127.0.0.1:5432/mpanel\n  \
        export REDIS_HOST=127.0.0.1 PROXMOX_TOKEN_ID='mpanel@pve!fleet' PROXMOX_TOKEN_SECRET=…\n  \
        mpanel-worker check-config      # what is set, from where\n  \
        mpanel-worker migrate           # adds our tables, changes none of mPanel's\n  \
        mpanel-worker run --queues cloudpods-create\n\n\
        Settings: built-in default < /etc/mpanel/fleet.toml < environment < flag.\n\
        Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 do something else first, 69 service\n\
        unreachable, 75 try later, 77 credentials or privileges, 78 configuration, 130 interrupted."
)]
pub struct Cli {
    /// Read this configuration file instead of /etc/mpanel/fleet.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to log, such as `debug` or `info,mpanel_worker=trace`
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve queues until told to stop
    #[command(
        long_about = "Serve queues until SIGTERM or Ctrl-C; running jobs are then given time to end, a \
        second signal stops at once. SIGTSTP makes the worker quiet: it takes no new jobs and goes on with those it \
        has, until SIGCONT or SIGTERM.\n\nExample: mpanel-worker run --queues cloudpods-create --concurrency 4"
    )]
    Run(RunArgs),
    /// Bring the database up to date (additive; safe to run twice and by several at once)
    #[command(
        long_about = "Bring the database of DATABASE_URL up to date. Adds tables that begin with fleet_ and, \
        where mPanel has not made them, the five Phase 3 tables; changes no table of mPanel's. A database without \
        mPanel's tables is refused.\n\nExample: mpanel-worker migrate && mpanel-worker migrate status"
    )]
    Migrate(MigrateArgs),
    /// Nodes, address pools and placement of CloudPods
    #[command(subcommand)]
    Cloudpods(Cloudpods),
    /// Find attacks in logs, mail, web and DNS
    #[command(subcommand)]
    Guardian(Guardian),
    /// Serve the HTTP routes that a reverse proxy mounts where mPanel's are missing
    #[command(
        long_about = "Serve POST /api/cloudpods, POST /api/cloudpods/:id/actions, the reads beside them, /livez, \
        /readyz and /openapi.json. It needs Postgres only: jobs go through the outbox, which every \
        `mpanel-worker run` empties.\n\nFILE has one token a line, hashed, and mode 0600:\n  \
        sha256:<hex> tenant:<uuid>|admin [user:<uuid>] [name]\n\nExample:\n  \
        t=$(openssl rand -hex 24); echo \"sha256:$(printf %s $t | sha256sum | cut -d' ' -f1) admin\" > tokens; chmod 600 tokens\n  \
        mpanel-worker api --listen 127.0.0.1:8790 --tokens tokens\n  \
        curl -H \"Authorization: Bearer $t\" http://127.0.0.1:8790/api/cloudpods\n\nSIGHUP reads FILE again."
    )]
    Api(ApiArgs),
    /// Check the configuration and show where each value comes from
    #[command(
        long_about = "Check the configuration without using the network, and show each value with its origin; \
        secrets are not shown. Every problem is reported at once; then the exit code is 78.\n\n\
        Example: mpanel-worker check-config --config ./fleet.toml"
    )]
    CheckConfig(JsonArgs),
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Queues to serve, comma list; all that we know when absent
    #[arg(long, value_name = "A,B")]
    pub queues: Option<String>,
    /// Refuse to start while Node workers serve the same queues
    #[arg(long)]
    pub exclusive: bool,
    /// Jobs at once in each queue; mPanel's own figures when absent
    #[arg(long, value_name = "N")]
    pub concurrency: Option<u32>,
    /// Stop when the queues are empty
    #[arg(long)]
    pub drain: bool,
}

/// Flags of `api`.
#[derive(Debug, Args)]
pub struct ApiArgs {
    /// Where to listen; a proxy in front of it speaks TLS
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8790")]
    pub listen: SocketAddr,
    /// The token file
    #[arg(long, value_name = "FILE")]
    pub tokens: PathBuf,
}

/// Flags of `migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// What to do; `up` when absent
    #[command(subcommand)]
    pub command: Option<Migrate>,
}

/// What `migrate` does.
#[derive(Debug, Subcommand)]
pub enum Migrate {
    /// Apply what is missing
    Up,
    /// Show what is applied and what is not; exit code 4 when something is missing
    Status(JsonArgs),
}

/// `--json`.
#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// What `cloudpods` is about.
#[derive(Debug, Subcommand)]
pub enum Cloudpods {
    /// Proxmox nodes that pods are placed on
    #[command(subcommand)]
    Nodes(Nodes),
    /// Pools that addresses come from (autoIp); without one pods use DHCP
    #[command(subcommand)]
    Pools(Pools),
    /// Show on which node a pod would go now, and why; reserves nothing
    #[command(
        long_about = "Show on which node a pod would go now: every node that can take it with its score and the \
        parts of it, and every other with the reason. Asks Postgres and Proxmox, reserves nothing.\n\n\
        Scores are sums of weighted parts from 0 to 1; fit, balance and tenant count for a node, in flight, heat and \
        failures against it. Exit codes: 0 there is a node, 3 no node is in that region, 75 none can take it now.\n\n\
        Example: mpanel-worker cloudpods plan --cores 2 --memory-mb 2048 --disk-gb 20"
    )]
    Plan(PlanArgs),
    /// Show where pods and Proxmox differ, since when, what was mended and what to do
    #[command(
        long_about = "Show where pods and Proxmox differ, as the workers found it (every minute; cloudpods.\
        reconcile_seconds): guests without a row, rows without a guest, guests that are not ours, locks, memory that the \
        books do not know, sums, holds, leases, addresses, counters. What was mended or went away in the last day is \
        shown too. Asks Postgres alone.\n\n\
        Exit codes: 0 nothing waits for you, 4 something does.\n\n\
        Example: mpanel-worker cloudpods drift --json"
    )]
    Drift(JsonArgs),
}

/// A pod to be placed.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// CPU cores
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cores: u32,
    /// Memory, MiB
    #[arg(long, value_parser = clap::value_parser!(u32).range(16..=4_194_304))]
    pub memory_mb: u32,
    /// Disk, GiB
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub disk_gb: u32,
    /// Region, when not the default one
    #[arg(long)]
    pub region: Option<String>,
    /// Whose pod it would be: pods of one tenant are spread over nodes
    #[arg(long, value_name = "UUID")]
    pub tenant: Option<Uuid>,
    /// Template, when not the configured one
    #[arg(long, value_name = "VOLUME")]
    pub template: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What `guardian` does.
#[derive(Debug, Subcommand)]
pub enum Guardian {
    /// Find events in log files; needs neither Redis nor Postgres nor any configuration
    #[command(
        long_about = "Find events (refused logins, rejected mail, probes) in log files. Needs neither Redis nor \
        Postgres nor any configuration, and writes nothing but its output.\n\n\
        Without --rules our own rules for the service are used: apache, dovecot, exim, nginx, postfix, sshd, \
        wordpress, or `auto` for all of them. With --rules DIR the service names one of fail2ban's filters there, \
        read as it is published: DIR/SERVICE.conf or DIR/filter.d/SERVICE.conf.\n\n\
        With --json one object a line: {\"file\",\"line\",\"category\",\"ip\",\"time\",\"rule\",\"user\",\"confidence\"}; \
        time is UTC, or null when the line has no date; host names are not resolved. Last, on stderr, \
        {\"summary\":{\"lines\",\"events\",\"truncated_lines\",\"invalid_utf8_lines\",\"rule_budget_exceeded\",\"skipped\"}}.\n\n\
        Exit codes: 0 all was read, with or without events; 2 wrong command line; 3 a file or the rules could not \
        be read to the end (the others were); 78 a rule file is malformed.\n\n\
        Examples:\n  \
        mpanel-worker guardian analyze --service postfix --json /var/log/mail.log /var/log/mail.log.2.gz\n  \
        mpanel-worker guardian analyze --service sshd --rules /etc/fail2ban --mode normal --json /var/log/auth.log\n  \
        zcat old.gz | mpanel-worker guardian analyze --service sshd --assume-now 2019-08-14T12:00:00+02:00 \\\n    \
        --tz Europe/Zurich --json -"
    )]
    Analyze(AnalyzeArgs),
}

/// Flags of `guardian analyze`.
#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    /// The service whose log it is; with --rules the filter
    #[arg(long, value_name = "NAME")]
    pub service: String,
    /// Use fail2ban's filters from this directory instead of our own rules
    #[arg(long, value_name = "DIR")]
    pub rules: Option<PathBuf>,
    /// The filter's mode; `aggressive` when absent, if the filter has it
    #[arg(long, value_name = "NAME")]
    pub mode: Option<String>,
    /// Set an option of the filter, such as logtype=journal; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub filter_option: Vec<String>,
    /// Read the log as if it were this time, for dates without a year; now when absent
    #[arg(long, value_name = "RFC3339")]
    pub assume_now: Option<String>,
    /// The zone of dates without one, such as Europe/Zurich; UTC when absent
    #[arg(long, value_name = "ZONE")]
    pub tz: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Log files, plain or gzip; `-` is the standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
}

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub enum Nodes {
    /// Show all nodes with what is promised of them
    List(JsonArgs),
    /// Add a node
    #[command(long_about = "Add a node.\n\nExample: mpanel-worker cloudpods nodes add pod-node-1 \
        --api-url https://10.1.10.11:8006 --node pve1 --cores 32 --memory-mb 65536 --disk-gb 1000")]
    Add(NodeAdd),
    /// Set how much of a node may be promised to pods
    #[command(
        long_about = "Set how much of a node may be promised to pods: (total - reserved) x ratio of each \
        resource. What is not named stays as it is; pods that are there stay.\n\n\
        Example: mpanel-worker cloudpods nodes set pod-node-1 --cpu-ratio 6 --reserve-memory-mb 4096"
    )]
    Set(NodeSet),
    /// Take no new pods; the node is being worked on
    Maintenance(NodeName),
    /// Take no new pods; those that are there stay
    Drain(NodeName),
    /// Take pods again
    Activate(NodeName),
}

/// A node, by the operator's name for it.
#[derive(Debug, Args)]
pub struct NodeName {
    /// The name in cloud_pod_nodes
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A node to be added.
#[derive(Debug, Args)]
pub struct NodeAdd {
    /// A name for it, unique
    pub name: String,
    /// Its API
    #[arg(long, value_name = "URL")]
    pub api_url: String,
    /// Its name in Proxmox, when it differs
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Physical CPU cores
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub cores: i32,
    /// Memory, MiB
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub memory_mb: i32,
    /// Disk for pods, GiB
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub disk_gb: i32,
    /// Its region, when not the default one
    #[arg(long)]
    pub region: Option<String>,
    /// Its Proxmox cluster; made when new
    #[arg(long)]
    pub cluster: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How much of a node may be promised.
#[derive(Debug, Args)]
pub struct NodeSet {
    /// The name in cloud_pod_nodes
    pub name: String,
    /// Cores to promise for each physical one (4 when never set)
    #[arg(long, value_parser = ratio)]
    pub cpu_ratio: Option<f64>,
    /// MiB to promise for each physical one (1 when never set)
    #[arg(long, value_parser = ratio)]
    pub memory_ratio: Option<f64>,
    /// GiB to promise for each physical one (1 when never set); above 1 needs thin storage, and its real use
    /// may then not pass 80 %
    #[arg(long, value_parser = ratio)]
    pub disk_ratio: Option<f64>,
    /// Physical cores kept for the node itself
    #[arg(long, value_parser = cores_kept)]
    pub reserve_cores: Option<f64>,
    /// Memory kept for the node itself, MiB
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    pub reserve_memory_mb: Option<i32>,
    /// Disk kept for the node itself, GiB
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    pub reserve_disk_gb: Option<i32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if (0.1..=64.0).contains(&ratio) => Ok(ratio),
        _ => Err("must be a number from 0.1 to 64".to_owned()),
    }
}

fn cores_kept(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(cores) if (0.0..=4096.0).contains(&cores) => Ok(cores),
        _ => Err("must be a number from 0 to 4096".to_owned()),
    }
}

/// What to do with address pools.
#[derive(Debug, Subcommand)]
pub enum Pools {
    /// Show all pools with their free addresses
    List(JsonArgs),
    /// Show the addresses of a pool that are not free, and what is excluded
    Show(PoolId),
    /// Add a pool
    #[command(
        long_about = "Add a pool. An IPv4 pool hands out every host address of the network but the gateway, or \
        those of --range; an IPv6 pool the 2^32 addresses from the sixteenth on, or --range. What is excluded is never \
        handed out. A pod gets an IPv4 address, and an IPv6 address too when the cluster has an IPv6 pool of the same \
        bridge and VLAN.\n\n\
        Examples:\n  mpanel-worker cloudpods pools add 10.20.0.0/24 --gateway 10.20.0.1 \
        --exclude 10.20.0.2-10.20.0.49\n  mpanel-worker cloudpods pools add 2001:db8:1::/64 --gateway 2001:db8:1::1"
    )]
    Add(PoolAdd),
    /// Stop handing out a range of a pool; what is in use stays
    Exclude(PoolExclude),
    /// Hand out an excluded range again
    Include(PoolInclude),
    /// Release an address that is quarantined, once you have seen that nothing uses it
    Release(PoolRelease),
    /// Remove a pool of which no address is in use
    Remove(PoolId),
}

/// A pool to be added.
#[derive(Debug, Args)]
pub struct PoolAdd {
    /// Its network, such as 10.20.0.0/24 or 2001:db8:1::/64
    pub cidr: String,
    /// The gateway that pods get
    #[arg(long, value_name = "IP")]
    pub gateway: Option<String>,
    /// Addresses to hand out
    #[arg(long, value_name = "FIRST-LAST")]
    pub range: Option<String>,
    /// Addresses that are never handed out, one or a range; may be repeated
    #[arg(long, value_name = "FIRST-LAST")]
    pub exclude: Vec<String>,
    /// How long a released address rests before another pod gets it, hours
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(i32).range(0..=8760))]
    pub rest_hours: i32,
    /// Bridge, when not the default one
    #[arg(long)]
    pub bridge: Option<String>,
    /// VLAN tag
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=4094))]
    pub vlan: Option<i32>,
    /// The cluster whose pods get them
    #[arg(long, default_value = "default")]
    pub cluster: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A range of a pool.
#[derive(Debug, Args)]
pub struct PoolExclude {
    /// The id that `pools list` shows
    pub id: i32,
    /// One address or a range
    #[arg(value_name = "FIRST-LAST")]
    pub range: String,
    /// What it is kept for
    #[arg(long)]
    pub note: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// An excluded range of a pool, by its first address.
#[derive(Debug, Args)]
pub struct PoolInclude {
    /// The id that `pools list` shows
    pub id: i32,
    /// The first address of the excluded range
    pub first: IpAddr,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// An address of a pool.
#[derive(Debug, Args)]
pub struct PoolRelease {
    /// The id that `pools list` shows
    pub id: i32,
    /// The address
    pub ip: IpAddr,
    /// Let it not rest first
    #[arg(long)]
    pub now: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A pool, by its id.
#[derive(Debug, Args)]
pub struct PoolId {
    /// The id that `pools list` shows
    pub id: i32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Cli {
    /// The settings that flags give, by key.
    #[must_use]
    pub fn flags(&self) -> BTreeMap<&'static str, String> {
        let mut flags = BTreeMap::new();
        if let Some(filter) = &self.log {
            flags.insert("log.level", filter.clone());
        }
        if let Command::Run(run) = &self.command {
            if let Some(queues) = &run.queues {
                flags.insert("run.queues", queues.clone());
            }
            if run.exclusive {
                flags.insert("run.exclusive", "true".to_owned());
            }
            if let Some(concurrency) = run.concurrency {
                flags.insert("run.concurrency", concurrency.to_string());
            }
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_forms_that_are_fixed_parse() {
        for line in [
            "mpanel-worker migrate",
            "mpanel-worker migrate up",
            "mpanel-worker migrate status --json",
            "mpanel-worker run",
            "mpanel-worker run --queues a,b --exclusive --concurrency 3 --drain",
            "mpanel-worker cloudpods nodes list --json",
            "mpanel-worker cloudpods nodes drain n1 --json",
            "mpanel-worker cloudpods nodes set n1 --cpu-ratio 2.5 --reserve-disk-gb 20",
            "mpanel-worker cloudpods pools remove 3",
            "mpanel-worker cloudpods plan --cores 2 --memory-mb 2048 --disk-gb 20 --json",
            "mpanel-worker cloudpods drift --json",
            "mpanel-worker check-config --config /x",
            "mpanel-worker guardian analyze --service postfix --json a.log b.log.gz",
            "mpanel-worker guardian analyze --service sshd --rules d --mode m --filter-option a=b --filter-option \
             c=d --assume-now 2005-08-14T12:00:00+02:00 --tz Europe/Zurich --json -",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        let cli = Cli::try_parse_from("mpanel-worker run --queues a,b --exclusive".split(' ')).unwrap();
        assert_eq!(cli.flags().get("run.queues").map(String::as_str), Some("a,b"));
        assert_eq!(cli.flags().get("run.exclusive").map(String::as_str), Some("true"));
    }
}
