//! `make demo`: 20 pods from mPanel's own Node producer to running guests, on this
//! machine, with five injected faults.

use std::process::ExitCode;

use clap::Parser;
use mpanel_testkit::{
    TestkitError,
    demo::{
        report::{commands, summary, table},
        stage::Stage,
        watch::until_settled,
    },
};

/// The whole fleet on this machine, privately: Redis, Postgres, a Proxmox VE
/// simulator, the Node producer, the worker. Nothing outside is touched, nothing
/// is left behind.
#[derive(Debug, Parser)]
struct Args {
    /// Leave everything running until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
async fn show(args: &Args) -> Result<bool, TestkitError> {
    let say = |line: &str| println!("- {line}");
    let stage = Stage::start(&say).await?;
    let rows = until_settled(&stage).await?;
    println!("\n{}\n{}\n\n{}", table(&rows, &stage), summary(&rows, &stage), commands(&stage));
    if args.keep {
        println!(
            "\nRunning until Ctrl-C. Enqueue more, kill the worker (pid {}), look around.",
            stage.worker.pid()
        );
        let _ = tokio::signal::ctrl_c().await;
    } else {
        println!("\n(`make demo KEEP=1` leaves it running, so that these commands work.)");
    }
    stage.stop().await?;
    Ok(rows.iter().all(|r| r.status == "active"))
}

#[tokio::main]
async fn main() -> ExitCode {
    match show(&Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the program's error channel")]
            {
                eprintln!("demo: {error}");
            }
            ExitCode::FAILURE
        }
    }
}
