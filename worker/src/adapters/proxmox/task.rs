//! Tasks: waiting for one, reading its log, finding one whose name was lost.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    client::PveClient,
    error::{Class, PveError},
    types::{LogLine, TaskRow},
    upid::Upid,
};

const POLL_FIRST: Duration = Duration::from_millis(250);
const POLL_MAX: Duration = Duration::from_secs(3);

/// How a task ended, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    /// It did its work.
    Ok,
    /// It did its work and has something to say.
    Warnings(String),
    /// It failed and said why; the log's last lines follow.
    Failed {
        /// The exit status.
        text: String,
        /// Last lines of the log.
        log: String,
    },
    /// It is over and nobody knows how: its node died, or the name is unknown.
    Lost(String),
    /// It had not ended at the deadline. That is no failure.
    Running,
}

/// A task found by what it works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundTask {
    /// Its name.
    pub upid: Upid,
    /// Whether it is over.
    pub ended: bool,
}

/// The exit status as an end; pure.
#[must_use]
fn read_exit(exit: &str) -> TaskEnd {
    let exit = exit.trim();
    if exit == "OK" {
        TaskEnd::Ok
    } else if exit.starts_with("WARNINGS:") {
        TaskEnd::Warnings(exit.to_owned())
    } else if exit.is_empty() || exit.starts_with("unexpected status") {
        TaskEnd::Lost("the task is over, and Proxmox does not know how it ended".to_owned())
    } else {
        TaskEnd::Failed { text: exit.to_owned(), log: String::new() }
    }
}

/// The wait after `last`: half as long again, at most 3 s, ±20 % by `random` in 0..1.
fn next_poll(last: Duration, random: f64) -> (Duration, Duration) {
    let base = last.mul_f64(1.5).min(POLL_MAX);
    (base, base.mul_f64(0.8 + 0.4 * random))
}

impl PveClient {
    /// Waits for a task to end, at most until `deadline`; meanwhile the API may be
    /// away for as long as `patience`.
    ///
    /// # Errors
    /// [`PveError`] when the API refuses us, or stays away too long to go on watching.
    pub async fn wait_task(
        &self,
        upid: &Upid,
        deadline: Instant,
        patience: Duration,
    ) -> Result<TaskEnd, PveError> {
        let mut base = POLL_FIRST;
        let mut wait = POLL_FIRST;
        let mut silent_since: Option<Instant> = None;
        loop {
            match self.task_end(upid).await {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => silent_since = None,
                Err(error) if error.class == Class::NotFound => return Ok(TaskEnd::Lost(error.text)),
                Err(error) if !error.class.is_transient() => return Err(error),
                Err(error) => {
                    let since = *silent_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > patience {
                        return Err(error);
                    }
                }
            }
            if Instant::now() + wait > deadline {
                return Ok(TaskEnd::Running);
            }
            sleep(wait).await;
            (base, wait) = next_poll(base, fastrand::f64());
        }
    }

    /// How a task ended; `None` while it runs.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn task_end(&self, upid: &Upid) -> Result<Option<TaskEnd>, PveError> {
        let row: TaskRow = self.get(&["nodes", &upid.node, "tasks", upid.as_str(), "status"], &[]).await?;
        if row.status.as_deref() == Some("running") {
            return Ok(None);
        }
        Ok(Some(match read_exit(row.exitstatus.as_deref().unwrap_or_default()) {
            TaskEnd::Failed { text, .. } => {
                let log = self.log_excerpt(upid).await;
                TaskEnd::Failed { text, log }
            }
            end => end,
        }))
    }

    /// The last lines of a task's log, for an error text; empty when it cannot be had.
    async fn log_excerpt(&self, upid: &Upid) -> String {
        let path = ["nodes", &upid.node, "tasks", upid.as_str(), "log"];
        let lines: Vec<LogLine> = self.get(&path, &[("limit", "500")]).await.unwrap_or_default();
        let lines: Vec<&str> =
            lines.iter().map(|line| line.t.trim()).filter(|line| !line.is_empty()).collect();
        let tail = &lines[lines.len().saturating_sub(4)..];
        tail.join(" | ").chars().take(500).collect()
    }

    /// Our tasks of one kind on one guest since a time by the node's clock, newest first.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn find_tasks(
        &self,
        node: &str,
        vmid: u32,
        kind: &str,
        since_s: i64,
    ) -> Result<Vec<FoundTask>, PveError> {
        let (vmid_text, since) = (vmid.to_string(), since_s.max(0).to_string());
        let query = [
            ("vmid", vmid_text.as_str()),
            ("typefilter", kind),
            ("userfilter", self.user()),
            ("since", since.as_str()),
            // The default leaves out running tasks.
            ("source", "all"),
            ("limit", "50"),
        ];
        let rows: Vec<TaskRow> = self.get(&["nodes", node, "tasks"], &query).await?;
        let mut found: Vec<FoundTask> = rows
            .into_iter()
            .filter_map(|row| {
                let upid: Upid = row.upid.parse().ok()?;
                Some(FoundTask { upid, ended: row.endtime.is_some() })
            })
            // Filters of the API are substrings; ours are not.
            .filter(|task| {
                task.upid.kind == kind
                    && task.upid.id == vmid_text
                    && task.upid.user == self.user()
                    && task.upid.started_at_s >= since_s
            })
            .collect();
        found.sort_by_key(|task| std::cmp::Reverse(task.upid.started_at_s));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_texts_are_read() {
        assert_eq!(read_exit("OK"), TaskEnd::Ok);
        assert_eq!(read_exit("WARNINGS: 2"), TaskEnd::Warnings("WARNINGS: 2".to_owned()));
        assert!(matches!(read_exit("unexpected status"), TaskEnd::Lost(_)));
        assert!(matches!(read_exit(""), TaskEnd::Lost(_)));
        assert!(
            matches!(read_exit("command 'x' failed"), TaskEnd::Failed { text, .. } if text == "command 'x' failed")
        );
    }

    #[test]
    fn waits_grow_to_three_seconds_and_stay_near_them() {
        let mut base = POLL_FIRST;
        for _ in 0..20 {
            let (next, low) = next_poll(base, 0.0);
            let (_, high) = next_poll(base, 1.0);
            assert!(next >= base && low < high && high <= POLL_MAX.mul_f64(1.21));
            base = next;
        }
        assert_eq!(base, POLL_MAX);
    }
}
