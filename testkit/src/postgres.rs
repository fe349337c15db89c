//! A private Postgres: own cluster in a temp dir, own port, gone when dropped.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;

use crate::TestkitError;
use crate::child::{Guarded, GuardedDir, log_tail, tied};
use crate::pg_install::Installation;
use crate::ports::free_port;
use crate::wait::eventually;

/// Longest wait for initdb, for the first connection, and for the end after SIGINT.
const PATIENCE: Duration = Duration::from_secs(60);
/// mPanel's database as mPanel leaves it.
const MPANEL_SCHEMA: &str = include_str!("../data/mpanel-schema.sql");
const TEMPLATE: &str = "mpanel_template";

/// Settings of a [`Postgres`] to be started.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `start`"]
pub struct PostgresBuilder {
    fsync: bool,
    settings: Vec<(String, String)>,
}

impl PostgresBuilder {
    /// Durable writes; off by default, on for crash tests.
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// One setting of postgresql.conf; later ones win.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Makes the cluster, starts the server and waits until it takes connections.
    ///
    /// # Errors
    /// [`TestkitError::Missing`] without Postgres or its account, [`TestkitError::Failed`] with the end of the
    /// log when initdb or the server fails.
    pub async fn start(self) -> Result<Postgres, TestkitError> {
        let installation = Installation::find()?;
        let dir = GuardedDir::create("fleet-pg-")?;
        if let Some(account) = &installation.account {
            std::os::unix::fs::chown(dir.path(), Some(account.uid), Some(account.gid))
                .map_err(TestkitError::file("give to the account postgres", dir.path()))?;
        }
        let mut server = Postgres {
            process: Mutex::new(None),
            log: dir.path().join("postgres.log"),
            installation,
            port: 0,
            options: self.options(),
            template: OnceCell::new(),
            databases: AtomicU32::new(0),
            dir,
        };
        server.initdb().await?;
        // Between `free_port` and the server's own bind another process may take the port.
        for attempt in 1..=5 {
            server.port = free_port()?;
            match server.launch().await {
                Err(TestkitError::Failed { detail, .. })
                    if attempt < 5 && detail.contains("Address already in use") => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(server)
    }

    fn options(self) -> Vec<String> {
        let mut options = vec!["listen_addresses=127.0.0.1".into(), "max_connections=200".to_owned()];
        if !self.fsync {
            options.extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"].map(String::from));
        }
        options.extend(self.settings.into_iter().map(|(name, value)| format!("{name}={value}")));
        options
    }
}

/// A running private Postgres. Killed, and its directory removed, on drop.
#[derive(Debug)]
pub struct Postgres {
    // Fields drop in order: the process ends before its directory goes.
    process: Mutex<Option<Guarded>>,
    installation: Installation,
    log: PathBuf,
    port: u16,
    options: Vec<String>,
    template: OnceCell<()>,
    databases: AtomicU32,
    dir: GuardedDir,
}

impl Postgres {
    /// A server with the default settings, fsync off.
    ///
    /// # Errors
    /// As [`PostgresBuilder::start`].
    pub async fn start() -> Result<Self, TestkitError> {
        Self::builder().start().await
    }

    /// Settings other than the default ones.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder { fsync: false, settings: Vec::new() }
    }

    /// One server for all tests of this process; each takes its own database. It ends with the process.
    ///
    /// # Errors
    /// As [`PostgresBuilder::start`]; the next call tries again.
    pub async fn shared() -> Result<&'static Self, TestkitError> {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// The port on 127.0.0.1; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Creates an empty database whose name begins with `name`, and gives its URL.
    ///
    /// # Errors
    /// [`TestkitError::Postgres`] when the server refuses.
    pub async fn database(&self, name: &str) -> Result<String, TestkitError> {
        self.create(name, "template1").await
    }

    /// Creates a database as mPanel leaves it: its 28 tables, no rows.
    ///
    /// # Errors
    /// [`TestkitError::Postgres`] when the server refuses.
    pub async fn mpanel_database(&self) -> Result<String, TestkitError> {
        self.template.get_or_try_init(|| self.make_template()).await?;
        self.create("mpanel", TEMPLATE).await
    }

    /// Ends it in order (fast shutdown) and waits; the data stay for [`Postgres::restart`].
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when the signal cannot be sent.
    pub async fn stop(&self) -> Result<(), TestkitError> {
        match self.take() {
            Some(process) => process.end("INT", PATIENCE).await,
            None => Ok(()),
        }
    }

    /// Ends it without a checkpoint (immediate shutdown): the next start recovers from the log, as after a
    /// crash. Start it with fsync on where the data must survive.
    ///
    /// # Errors
    /// [`TestkitError::Failed`] when the signal cannot be sent.
    pub async fn crash(&self) -> Result<(), TestkitError> {
        match self.take() {
            Some(process) => process.end("QUIT", PATIENCE).await,
            None => Ok(()),
        }
    }

    /// Ends it if it runs and starts it again on the same port with the same data.
    ///
    /// # Errors
    /// As [`PostgresBuilder::start`].
    pub async fn restart(&self) -> Result<(), TestkitError> {
        self.stop().await?;
        self.launch().await
    }

    fn take(&self) -> Option<Guarded> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    async fn initdb(&self) -> Result<(), TestkitError> {
        let account = self.installation.account.as_ref();
        let mut command = tied(&self.installation.bin.join("initdb"), "KILL", account)?;
        command.args(["-A", "trust", "--no-sync", "-U", "postgres", "-E", "UTF8", "--locale=C"]);
        command.arg("-D").arg(self.dir.path().join("data")).current_dir("/");
        self.log_to_file(&mut command)?;
        let status = Guarded::start("initdb", command)?.wait(PATIENCE).await?;
        self.check(status.success(), "initdb", || status.to_string())
    }

    async fn launch(&self) -> Result<(), TestkitError> {
        // QUIT is Postgres's immediate shutdown: unlike KILL it frees the shared memory.
        let account = self.installation.account.as_ref();
        let mut command = tied(&self.installation.bin.join("postgres"), "QUIT", account)?;
        command.arg("-D").arg(self.dir.path().join("data")).current_dir("/");
        command.arg("-k").arg(self.dir.path()).args(["-p", &self.port.to_string()]);
        command.args(self.options.iter().flat_map(|option| ["-c", option]));
        self.log_to_file(&mut command)?;
        let process = Guarded::start("postgres", command)?.ending_with("QUIT");
        let url = self.url("postgres");
        let answered = eventually("a connection to Postgres", PATIENCE, || async {
            if let Some(status) = process.exited() {
                return Ok(Err(status));
            }
            let connection = PgConnection::connect(&url).await.map_err(|error| error.to_string())?;
            connection.close().await.map(Ok).map_err(|error| error.to_string())
        })
        .await?;
        if let Err(status) = answered {
            return self.check(false, "postgres", || status.to_string());
        }
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    fn log_to_file(&self, command: &mut std::process::Command) -> Result<(), TestkitError> {
        let open = std::fs::File::options().create(true).append(true).open(&self.log);
        let log = open.map_err(TestkitError::file("open", &self.log))?;
        let copy = log.try_clone().map_err(TestkitError::file("open", &self.log))?;
        command.stdin(Stdio::null()).stdout(log).stderr(copy).env("LC_ALL", "C");
        Ok(())
    }

    fn check(&self, fine: bool, what: &str, status: impl FnOnce() -> String) -> Result<(), TestkitError> {
        if fine {
            return Ok(());
        }
        let detail = format!("{}\n{}", status(), log_tail(&self.log));
        Err(TestkitError::Failed { what: what.into(), detail })
    }

    async fn make_template(&self) -> Result<(), TestkitError> {
        self.run("postgres", "create the template", format!("CREATE DATABASE {TEMPLATE}")).await?;
        self.run(TEMPLATE, "load mPanel's schema", MPANEL_SCHEMA.into()).await
    }

    async fn create(&self, name: &str, template: &str) -> Result<String, TestkitError> {
        let clean: String =
            name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect();
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let database = format!("{}_{number}", clean.to_ascii_lowercase());
        let statement = format!("CREATE DATABASE \"{database}\" TEMPLATE {template}");
        self.run("postgres", "create a database", statement).await?;
        Ok(self.url(&database))
    }

    async fn run(&self, database: &str, action: &'static str, sql: String) -> Result<(), TestkitError> {
        let fail = |source| TestkitError::Postgres { action, source };
        let mut connection = PgConnection::connect(&self.url(database)).await.map_err(fail)?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.map_err(fail)?;
        connection.close().await.map_err(fail)
    }
}
