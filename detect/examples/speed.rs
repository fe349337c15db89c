//! How many lines a second, on one core, beside `grep` and, where it is
//! unpacked, Debian's `fail2ban-regex` on the same file in the same run.
//!
//! ```text
//! cargo run --release -p mpanel-detect --example speed [LINES]
//! ```
//!
//! Prints CPU time too: on a busy machine only that can be compared.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use mpanel_detect::{
    analyze::{Analyzer, Request, Summary},
    read::LogLines,
    time::Clock,
};

/// Of a hundred lines of a mail server that is scanned all day: deliveries, and every fifth an attempt.
fn generate(path: &Path, lines: u64) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for n in 0..lines {
        let (minute, second) = (n / 60 % 60, n % 60);
        let (a, b, pid) = (n % 250, n * 7 % 250, 1000 + n % 900);
        write!(
            out,
            "Nov {:2} {:02}:{minute:02}:{second:02} mx1 postfix/",
            1 + n / 86_400 % 28,
            n / 3600 % 24
        )?;
        match n % 20 {
            0 => writeln!(
                out,
                "smtpd[{pid}]: warning: unknown[192.0.{a}.{b}]: SASL LOGIN authentication failed: UGFzc3dvcmQ6"
            )?,
            5 => writeln!(
                out,
                "smtpd[{pid}]: NOQUEUE: reject: RCPT from unknown[198.51.{a}.{b}]: 554 5.7.1 <u{n}@example.net>: Relay access denied; from=<s{n}@example.org> to=<u{n}@example.net> proto=ESMTP helo=<host{n}>"
            )?,
            10 => writeln!(out, "smtpd[{pid}]: lost connection after CONNECT from unknown[203.0.{a}.{b}]")?,
            15 => writeln!(
                out,
                "smtpd[{pid}]: disconnect from unknown[192.0.{a}.{b}] ehlo=1 auth=0/1 rset=1 commands=2/3"
            )?,
            k if k % 5 == 1 => {
                writeln!(out, "smtpd[{pid}]: connect from mail{n}.example.com[192.0.{b}.{a}]")?
            }
            k if k % 5 == 2 => {
                writeln!(out, "cleanup[{pid}]: 4AbC{n:08X}: message-id=<{n}.{pid}@mail.example.com>")?
            }
            k if k % 5 == 3 => writeln!(
                out,
                "qmgr[{pid}]: 4AbC{n:08X}: from=<list{n}@example.com>, size={}, nrcpt=1 (queue active)",
                n % 90_000
            )?,
            _ => writeln!(
                out,
                "smtp[{pid}]: 4AbC{n:08X}: to=<user{n}@example.net>, relay=mx.example.net[198.51.{b}.{a}]:25, delay=0.8, delays=0.1/0/0.3/0.4, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as {n:X})"
            )?,
        }
    }
    out.flush()
}

fn cpu_seconds(who: &str) -> f64 {
    // utime, stime; cutime, cstime for children: fields 14 to 17, after the name in brackets.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().filter_map(|f| f.parse().ok()).collect();
    // The state, a letter, is not among them.
    let at = if who == "self" { 10 } else { 12 };
    fields.get(at..at + 2).map_or(0.0, |times| times.iter().sum::<f64>() / 100.0)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn row(name: &str, lines: u64, events: u64, cpu: f64) {
    println!(
        "{name:<34} {events:>9} events  {cpu:>7.2} s CPU  {:>9.0} lines/s",
        lines as f64 / cpu.max(0.005)
    );
}

fn ours(
    name: &str,
    service: &str,
    rules: Option<PathBuf>,
    log: &Path,
    lines: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let request = Request {
        service: service.to_owned(),
        rules,
        mode: None,
        options: BTreeMap::new(),
        clock: Clock::parse(None, None)?,
    };
    let analyzer = Analyzer::new(&request)?;
    let before = cpu_seconds("self");
    let mut summary = Summary::default();
    let mut out = BufWriter::new(File::create("/dev/null")?);
    let mut reader = LogLines::new(File::open(log)?)?;
    analyzer.log("log", &mut reader, &mut summary, &mut |event| {
        serde_json::to_writer(&mut out, event)?;
        out.write_all(b"\n")
    })?;
    row(name, lines, summary.events, cpu_seconds("self") - before);
    Ok(())
}

fn theirs(name: &str, command: &mut Command, lines: u64) {
    let before = cpu_seconds("children");
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let events = output.map_or(0, |output| output.stdout.iter().filter(|byte| **byte == b'\n').count());
    row(name, lines, events as u64, cpu_seconds("children") - before);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let lines: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(200_000);
    let log = std::env::temp_dir().join(format!("mpanel-detect-speed-{}.log", std::process::id()));
    generate(&log, lines)?;
    println!("{lines} lines, {} bytes", fs::metadata(&log)?.len());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/fail2ban/root");
    let rules = root.join("etc/fail2ban");
    ours("own rules, one service", "postfix", None, &log, lines)?;
    ours("own rules, all", "auto", None, &log, lines)?;
    theirs(
        "grep -cE",
        Command::new("grep")
            .args(["-E", "SASL [A-Z]+ authentication failed|reject: |lost connection after|auth=0/"])
            .arg(&log),
        lines,
    );
    if rules.is_dir() {
        ours("filter postfix, aggressive", "postfix", Some(rules.clone()), &log, lines)?;
        let python = root.join("usr/lib/python3/dist-packages");
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", python).arg(root.join("usr/bin/fail2ban-regex")).arg("-c").arg(&rules);
        theirs(
            "fail2ban-regex, the same",
            command.args(["-r", "-o", "ip"]).arg(&log).arg("postfix[mode=aggressive]"),
            lines,
        );
    }
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    }
    fs::remove_file(&log)?;
    Ok(())
}
