//! What each command does, `run` aside. Data goes to stdout, messages to stderr.

mod check;
mod drift;
mod guardian;
mod migrate;
mod nodes;
mod plan;
mod pools;

use std::io::{self, Write as _};

use comfy_table::{Table, presets};
use serde_json::Value;

pub use self::{
    check::check_config, drift::drift, guardian::analyze, migrate::migrate, nodes::nodes, plan::plan,
    pools::pools,
};
use crate::exit::{Exit, Failed};

/// Writes a line of data.
fn print(text: &str) -> Result<(), Failed> {
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => Ok(()),
        // Whoever reads has seen enough (`| head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failed::new(Exit::Failure, format!("cannot write to stdout: {error}"))),
    }
}

/// Writes JSON, one document.
fn print_json(value: &Value) -> Result<(), Failed> {
    print(&format!("{value:#}"))
}

/// Writes a message for the person at the terminal.
fn note(text: &str) {
    // Nobody reads stderr: nothing else to tell it to.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes a table.
fn print_table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> Result<(), Failed> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    print(&table.to_string())
}
