//! `mpanel-worker`: parse, configure, run, exit code.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::Parser;
use mpanel_worker::{
    adapters::db,
    api, app,
    cli::{Cli, Cloudpods, Command, Guardian},
    commands,
    config::{Config, LogConfig, Needs, Sources},
    exit::{Exit, Failed},
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return end(Err(Failed::new(Exit::Failure, format!("cannot start: {error}")))),
    };
    let result = runtime.block_on(Box::pin(dispatch(&cli)));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    end(result)
}

fn end(result: Result<(), Failed>) -> ExitCode {
    let Err(failed) = result else { return ExitCode::SUCCESS };
    // Nobody reads stderr: the code still tells.
    let _ = writeln!(std::io::stderr(), "mpanel-worker: {failed}");
    ExitCode::from(failed.exit as u8)
}

async fn dispatch(cli: &Cli) -> Result<(), Failed> {
    let sources = Sources::gather(cli.config.as_deref(), cli.flags());
    if let Command::CheckConfig(args) = &cli.command {
        return commands::check_config(&sources, args.json);
    }
    if let Command::Guardian(Guardian::Analyze(args)) = &cli.command {
        return commands::analyze(args);
    }
    let needs = match cli.command {
        Command::Run(_) => Needs::All,
        Command::Cloudpods(Cloudpods::Plan(_)) => Needs::Proxmox,
        _ => Needs::Database,
    };
    let config = Config::from_sources(&sources, needs)?;
    log(&config.log)?;
    match &cli.command {
        Command::Run(args) => Box::pin(app::run(config, args.drain)).await,
        Command::Api(args) => Box::pin(api::serve(config, args.listen, &args.tokens)).await,
        Command::Migrate(args) => commands::migrate(&config, args).await,
        Command::Cloudpods(command) => {
            let db = db::pool(config.database.options.clone(), config.database.max_connections);
            match command {
                Cloudpods::Plan(args) => commands::plan(&config, args).await,
                Cloudpods::Nodes(command) => {
                    commands::nodes(&db, &config.cloudpods.default_region, command).await
                }
                Cloudpods::Pools(command) => commands::pools(&db, command).await,
                Cloudpods::Drift(args) => commands::drift(&db, args.json).await,
            }
        }
        // Done above, before the configuration had to be right.
        Command::CheckConfig(_) | Command::Guardian(_) => Ok(()),
    }
}

fn log(config: &LogConfig) -> Result<(), Failed> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| {
        Failed::new(Exit::Configuration, format!("log.level `{}`: {error}", config.filter))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if config.json {
        builder.json().init()
    } else {
        builder.init()
    }
    Ok(())
}
