//! `guardian analyze`: events from log files, without Redis or Postgres. What
//! is found and how is `mpanel-detect`'s business; here are files, output and
//! exit codes.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write as _},
    path::Path,
};

use mpanel_detect::{
    analyze::{Analyzer, Request, RequestError, Summary},
    event::Event,
    fail2ban::FilterError,
    read::{self, LogLines, Skip},
    time::Clock,
};

use crate::{
    cli::AnalyzeArgs,
    exit::{Exit, Failed},
};

impl From<RequestError> for Failed {
    fn from(error: RequestError) -> Self {
        let exit = match &error {
            RequestError::OnlyForFilters(_)
            | RequestError::Rules(_)
            | RequestError::Filter(
                FilterError::Mode { .. } | FilterError::Name(_) | FilterError::MaxLines(_),
            ) => Exit::Usage,
            // Rules that cannot be read are input that cannot be read.
            RequestError::Filter(FilterError::NotFound { .. } | FilterError::Read { .. }) => Exit::NotFound,
            RequestError::Filter(_) => Exit::Configuration,
            RequestError::Dates(_) => Exit::Failure,
        };
        Self::new(exit, error.to_string())
    }
}

/// Writes an event a line, in the order of files and lines; the summary goes to stderr.
///
/// # Errors
/// Exit code 2 for a wrong command line, 3 when a log or the rules could not be read to their end, 78 for a
/// malformed rule file.
pub fn analyze(args: &AnalyzeArgs) -> Result<(), Failed> {
    let usage = |error: String| Failed::new(Exit::Usage, error);
    let clock = Clock::parse(args.assume_now.as_deref(), args.tz.as_deref())
        .map_err(|error| usage(error.to_string()))?;
    let mut options = BTreeMap::new();
    for option in &args.filter_option {
        let (name, value) = option
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| usage(format!("--filter-option `{option}`: NAME=VALUE is wanted")))?;
        options.insert(name.to_owned(), value.to_owned());
    }
    let request = Request {
        service: args.service.clone(),
        rules: args.rules.clone(),
        mode: args.mode.clone(),
        options,
        clock,
    };
    let analyzer = Analyzer::new(&request)?;
    let mut summary = Summary::default();
    let mut out = BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    let json = args.json;
    let mut sink = |event: &Event<'_>| write_event(&mut out, event, json);
    for file in &args.files {
        let written = match open(file) {
            Ok(mut lines) => analyzer.log(file, &mut lines, &mut summary, &mut sink),
            Err(skip) => {
                summary.skip(file, &skip);
                Ok(())
            }
        };
        match written {
            Ok(()) => {}
            // Whoever reads has seen enough (`| head`).
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(unwritten(&error)),
        }
    }
    match out.flush() {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(error) => return Err(unwritten(&error)),
    }
    report(&summary, json)
}

fn unwritten(error: &io::Error) -> Failed {
    Failed::new(Exit::Failure, format!("cannot write to stdout: {error}"))
}

fn open(file: &str) -> Result<LogLines, Skip> {
    if file == "-" {
        return LogLines::new(io::stdin());
    }
    LogLines::new(read::open(Path::new(file), None)?)
}

fn write_event(out: &mut impl io::Write, event: &Event<'_>, json: bool) -> io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, event)?;
        return out.write_all(b"\n");
    }
    let time = event.time.map_or_else(|| "-".to_owned(), |time| time.format("%F %T").to_string());
    // What a client sent is shown without its control characters.
    let shown = |text: Option<&str>| text.unwrap_or("-").escape_debug().to_string();
    let (ip, user) = (shown(event.ip), shown(event.user));
    writeln!(out, "{time}  {ip}  {}  {user}  {}:{}", event.rule, event.file, event.line)
}

fn report(summary: &Summary, json: bool) -> Result<(), Failed> {
    if json {
        let text = serde_json::to_string(&serde_json::json!({ "summary": summary }));
        super::note(&text.unwrap_or_default());
    } else {
        super::note(&format!("{} events in {} lines", summary.events, summary.lines));
        for (count, what) in [
            (summary.truncated_lines, "lines were longer than 64 KiB and were cut"),
            (summary.invalid_utf8_lines, "lines with events are not UTF-8"),
            (summary.rule_budget_exceeded, "lines took a rule too many steps and were given up"),
        ] {
            if count > 0 {
                super::note(&format!("{count} {what}"));
            }
        }
    }
    if summary.skipped.is_empty() {
        return Ok(());
    }
    let skipped = summary.skipped.iter().map(|skipped| format!("{} {}", skipped.file, skipped.reason));
    Err(Failed::new(Exit::NotFound, skipped.collect::<Vec<_>>().join("; ")))
}
