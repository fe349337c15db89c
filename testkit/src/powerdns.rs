//! A private PowerDNS: Debian's server with the sqlite3 backend in a temp dir, HTTP API and DNS on own ports,
//! gone when dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::TestkitError;
use crate::child::{Guarded, GuardedDir, find_program, log_tail, tied};
use crate::ports::free_port;
use crate::wait::eventually;

const SERVER: &str = "/usr/sbin/pdns_server";
/// Where Debian's packages of the backend have put it.
const SCHEMA: &str = "/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql";
const REMEDY: &str = "run `make setup` or `apt-get install pdns-server pdns-backend-sqlite3`";
/// Longest wait for its first answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Loads a schema into a new file: Python has sqlite built in.
const LOAD: &str = "import sqlite3,sys; sqlite3.connect(sys.argv[1]).executescript(open(sys.argv[2]).read())";

/// A running private PowerDNS.
#[derive(Debug)]
pub struct PowerDnsServer {
    // Fields drop in order: the process ends before its directory goes.
    _process: Guarded,
    api_port: u16,
    dns_port: u16,
    _dir: GuardedDir,
}

impl PowerDnsServer {
    /// The key of its API.
    pub const KEY: &str = "a-key-for-tests";

    /// Starts one without zones and waits until its API answers.
    ///
    /// # Errors
    /// [`TestkitError::Missing`] without the server or its backend, [`TestkitError::Failed`] with the end of its
    /// log when it does not come up.
    pub async fn start() -> Result<Self, TestkitError> {
        for file in [SERVER, SCHEMA] {
            if !Path::new(file).is_file() {
                let (what, looked) = ("PowerDNS with sqlite3".to_owned(), file.to_owned());
                return Err(TestkitError::Missing { what, looked, remedy: REMEDY });
            }
        }
        let mut last = String::new();
        // Between `free_port` and the server's own bind another process may take a port.
        for _ in 0..5 {
            match Self::launch().await {
                Err(TestkitError::Failed { detail, .. }) if detail.contains("in use") => last = detail,
                result => return result,
            }
        }
        Err(TestkitError::failed("pdns_server", last))
    }

    async fn launch() -> Result<Self, TestkitError> {
        let dir = GuardedDir::create("fleet-pdns-")?;
        let (api_port, dns_port) = (free_port()?, free_port()?);
        let database = dir.path().join("pdns.sqlite3");
        make_database(&database)?;
        let log = dir.path().join("pdns.log");
        let configuration = [
            "launch=gsqlite3".to_owned(),
            format!("gsqlite3-database={}", database.display()),
            "local-address=127.0.0.1".to_owned(),
            format!("local-port={dns_port}"),
            "api=yes".to_owned(),
            format!("api-key={}", Self::KEY),
            "webserver=yes".to_owned(),
            "webserver-address=127.0.0.1".to_owned(),
            format!("webserver-port={api_port}"),
            format!("socket-dir={}", dir.path().display()),
            // No caches: a test sees what it wrote.
            "cache-ttl=0".to_owned(),
            "query-cache-ttl=0".to_owned(),
            "negquery-cache-ttl=0".to_owned(),
            "zone-cache-refresh-interval=0".to_owned(),
            "security-poll-suffix=".to_owned(),
        ];
        let file = dir.path().join("pdns.conf");
        std::fs::write(&file, configuration.join("\n") + "\n").map_err(TestkitError::file("write", &file))?;
        let out = std::fs::File::create(&log).map_err(TestkitError::file("create", &log))?;
        let err = out.try_clone().map_err(TestkitError::file("open", &log))?;
        let mut command = tied(&PathBuf::from(SERVER), "KILL", None)?;
        command
            .arg(format!("--config-dir={}", dir.path().display()))
            .args(["--daemon=no", "--guardian=no"])
            .stdout(Stdio::from(out))
            .stderr(Stdio::from(err));
        let process = Guarded::start("pdns_server", command)?;
        let answered = eventually("the API of pdns_server", PATIENCE, || async {
            match process.exited() {
                Some(status) => Ok(Err(status)),
                None => match tokio::net::TcpStream::connect(("127.0.0.1", api_port)).await {
                    Ok(_) => Ok(Ok(())),
                    Err(error) => Err(error.to_string()),
                },
            }
        })
        .await?;
        if let Err(status) = answered {
            return Err(TestkitError::failed("pdns_server", format!("{status}\n{}", log_tail(&log))));
        }
        Ok(Self { _process: process, api_port, dns_port, _dir: dir })
    }

    /// Its API, for example `http://127.0.0.1:8081`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port)
    }

    /// The UDP and TCP port on 127.0.0.1 where it answers queries.
    pub fn dns_port(&self) -> u16 {
        self.dns_port
    }
}

fn make_database(file: &Path) -> Result<(), TestkitError> {
    let python = find_program("python3", "run `make setup` or `apt-get install python3`")?;
    let output = Command::new(python)
        .args(["-c", LOAD])
        .arg(file)
        .arg(SCHEMA)
        .output()
        .map_err(|source| TestkitError::Spawn { what: "python3".into(), source })?;
    if output.status.success() {
        Ok(())
    } else {
        Err(TestkitError::failed("python3 (PowerDNS schema)", String::from_utf8_lossy(&output.stderr)))
    }
}
