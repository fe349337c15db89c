//! Child processes that cannot outlive the test process.
//!
//! Three measures, none of which needs unsafe code:
//! - `Drop` of the owner kills by pid, the ordinary case;
//! - `setpriv --pdeathsig` has the kernel signal the child when its parent dies, even by SIGKILL. "Parent"
//!   means the *thread* that started it, and test threads end before the process does: so one thread that
//!   lives as long as the process starts every child;
//! - a janitor shell holds the read end of a pipe and removes the temp dir when the other end closes.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use crate::TestkitError;
use crate::wait::eventually;

type Start = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts `command` on the thread that lives as long as the process.
pub(crate) fn spawn(what: &str, command: Command) -> Result<Child, TestkitError> {
    static STARTER: OnceLock<Mutex<mpsc::Sender<Start>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (send, receive) = mpsc::channel::<Start>();
        std::thread::spawn(move || {
            for (mut command, reply) in receive {
                // The asker may have gone; its child then dies with the dropped handle's owner.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(send)
    });
    let (reply, started) = mpsc::channel();
    let asked = starter.lock().unwrap_or_else(PoisonError::into_inner).send((command, reply));
    let started = match asked {
        Ok(()) => started.recv().unwrap_or_else(|_| Err(io::Error::other("the starter thread has ended"))),
        Err(_) => Err(io::Error::other("the starter thread has ended")),
    };
    started.map_err(|source| TestkitError::Spawn { what: what.into(), source })
}

/// Account a server runs under when the tests run as root.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A command whose process gets `death_signal` when this process dies.
pub(crate) fn tied(
    program: &Path,
    death_signal: &str,
    account: Option<&Account>,
) -> Result<Command, TestkitError> {
    let setpriv = find_program("setpriv", "run `make setup` or `apt-get install util-linux`")?;
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", death_signal]);
    if let Some(account) = account {
        command.arg(format!("--reuid={}", account.uid)).arg(format!("--regid={}", account.gid));
        command.arg("--clear-groups");
    }
    command.arg("--").arg(program).stdin(Stdio::null());
    Ok(command)
}

/// First executable called `name` on PATH.
pub(crate) fn find_program(name: &str, remedy: &'static str) -> Result<PathBuf, TestkitError> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()).ok_or_else(|| {
        TestkitError::Missing { what: name.into(), looked: path.to_string_lossy().into_owned(), remedy }
    })
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Sends a signal by name, for example `STOP`.
pub(crate) fn signal(pid: u32, name: &str) -> Result<(), TestkitError> {
    let what = || format!("kill -{name} {pid}");
    let status = Command::new("sh")
        .args(["-c", "kill -\"$1\" \"$2\"", "kill", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .map_err(|source| TestkitError::Spawn { what: what(), source })?;
    if status.success() {
        Ok(())
    } else {
        Err(TestkitError::Failed { what: what(), detail: "no such process".into() })
    }
}

/// A child that is killed when dropped and can be signalled through a shared reference.
#[derive(Debug)]
pub(crate) struct Guarded {
    what: String,
    pid: u32,
    child: Mutex<Child>,
    farewell: Option<&'static str>,
}

impl Guarded {
    pub(crate) fn start(what: &str, command: Command) -> Result<Self, TestkitError> {
        Ok(Self::adopt(what, spawn(what, command)?))
    }

    pub(crate) fn adopt(what: &str, child: Child) -> Self {
        Self { what: what.into(), pid: child.id(), child: Mutex::new(child), farewell: None }
    }

    /// On drop this signal is sent and its effect awaited, in place of SIGKILL. Only for programs that are
    /// sure to end soon after it.
    pub(crate) fn ending_with(mut self, signal: &'static str) -> Self {
        self.farewell = Some(signal);
        self
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// `None` while it runs.
    pub(crate) fn exited(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }

    /// Signals it unless it has ended: an ended child is not reaped elsewhere, so the pid is still its own.
    pub(crate) fn signal(&self, name: &str) -> Result<(), TestkitError> {
        if let Some(status) = self.exited() {
            let detail = format!("cannot send {name}: already ended, {status}");
            return Err(TestkitError::Failed { what: self.what.clone(), detail });
        }
        signal(self.pid, name)
    }

    pub(crate) async fn wait(&self, within: Duration) -> Result<ExitStatus, TestkitError> {
        eventually(&format!("end of {}", self.what), within, || async {
            self.exited().ok_or_else(|| format!("pid {} still runs", self.pid))
        })
        .await
    }

    /// Sends `name`, waits, and kills what has not ended by then.
    pub(crate) async fn end(&self, name: &str, within: Duration) -> Result<(), TestkitError> {
        if self.exited().is_some() {
            return Ok(());
        }
        self.signal(name)?;
        // A frozen process acts on the first signal only after this one.
        self.signal("CONT").ok();
        if self.wait(within).await.is_err() {
            self.kill();
        }
        Ok(())
    }

    /// SIGKILL, and reaps it.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Both fail only when the child has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(farewell) = self.farewell
            && self.signal(farewell).is_ok()
            && self.signal("CONT").is_ok()
        {
            let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
            if child.wait().is_ok() {
                return;
            }
        }
        self.kill();
    }
}

/// A temp dir that is removed even when this process is killed.
#[derive(Debug)]
pub(crate) struct GuardedDir {
    dir: tempfile::TempDir,
    janitor: Child,
}

impl GuardedDir {
    pub(crate) fn create(prefix: &str) -> Result<Self, TestkitError> {
        const CLEAN: &str = "read -r _; for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; \
                             rm -rf -- \"$1\" && [ ! -e \"$1\" ] && exit 0; done";
        let dir = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir()
            .map_err(TestkitError::file("create a temp dir in", std::env::temp_dir()))?;
        let mut command = Command::new("sh");
        // Its own process group: a Ctrl-C in the terminal must not end it before it has cleaned up.
        command.args(["-c", CLEAN, "janitor"]).arg(dir.path()).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { janitor: spawn("sh", command)?, dir })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for GuardedDir {
    fn drop(&mut self) {
        // A killed Postgres may still be writing its last file: the janitor removes what is left then.
        if std::fs::remove_dir_all(self.dir.path()).is_ok() {
            let _ = self.janitor.kill();
        } else {
            drop(self.janitor.stdin.take());
        }
        let _ = self.janitor.wait();
    }
}

/// The last lines of a log file, for error messages.
pub(crate) fn log_tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
