//! Runs the Proxmox VE simulator as a process of its own.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mpanel_testkit::pve::{PveSim, PveSimConfig, parse_faults};
use tokio::signal::unix::{SignalKind, signal};

/// Proxmox VE simulator: HTTPS API of a small cluster for development and tests.
#[derive(Debug, Parser)]
#[command(name = "pve-sim")]
struct Arguments {
    /// Address of the HTTPS API; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8006")]
    listen: SocketAddr,
    /// API token.
    #[arg(long, value_name = "USER@REALM!ID=UUID")]
    token: String,
    /// Number of nodes, called pve1, pve2, …
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Names of the nodes, instead of --nodes.
    #[arg(long, value_delimiter = ',')]
    node_names: Vec<String>,
    /// Folder for `ca.pem` and `fingerprint`.
    #[arg(long)]
    cert_dir: Option<PathBuf>,
    /// Address of the control listener (plain HTTP); none without it.
    #[arg(long)]
    control: Option<SocketAddr>,
    /// Duration of every task in milliseconds.
    #[arg(long, default_value_t = 100)]
    task_ms: u64,
    /// Wait before a 401 in milliseconds.
    #[arg(long, default_value_t = 3000)]
    auth_delay_ms: u64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// JSON file of faults to arm.
    #[arg(long)]
    faults: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pve-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    // Before anything is announced, so that a signal is never missed.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let faults = match &arguments.faults {
        Some(file) => {
            let text =
                std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            parse_faults(&text).map_err(|error| format!("{}: {error}", file.display()))?
        }
        None => Vec::new(),
    };
    let sim = PveSim::start(PveSimConfig {
        listen: arguments.listen,
        control: arguments.control,
        token: arguments.token,
        nodes: arguments.nodes,
        node_names: arguments.node_names,
        task_ms: arguments.task_ms,
        auth_delay_ms: arguments.auth_delay_ms,
        seed: arguments.seed,
        faults,
        ..PveSimConfig::default()
    })
    .await?;
    if let Some(folder) = &arguments.cert_dir {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("ca.pem"), sim.ca_pem())?;
        std::fs::write(folder.join("fingerprint"), format!("{}\n", sim.fingerprint()))?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening {} fingerprint {}", sim.url(), sim.fingerprint())?;
    if !sim.control_url().is_empty() {
        writeln!(out, "control {}", sim.control_url())?;
    }
    out.flush()?;
    drop(out);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
