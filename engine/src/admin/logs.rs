//! The log lines of a job.

use mpanel_protocol::{calls::manage, ids::JobId};

use super::{AdminError, QueueAdmin, script};

/// Some lines, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobLogs {
    /// The lines asked for.
    pub lines: Vec<String>,
    /// How many the job has.
    pub total: u64,
}

impl QueueAdmin {
    /// `count` log lines from the `start`th on; with `newest_first` counted from
    /// the end. A job without lines, or none at all, has none.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn logs(
        &self,
        id: &JobId,
        start: u64,
        count: u32,
        newest_first: bool,
    ) -> Result<JobLogs, AdminError> {
        let key = self.keys.logs(id);
        let start = i64::try_from(start).unwrap_or(i64::MAX / 2);
        let last = start + i64::from(count) - 1;
        let mut pipe = redis::pipe();
        pipe.atomic().llen(&key);
        if newest_first {
            pipe.cmd("LRANGE").arg(&key).arg(-last - 1).arg(-start - 1);
        } else {
            pipe.cmd("LRANGE").arg(&key).arg(start).arg(last);
        }
        let (total, lines): (u64, Vec<Vec<u8>>) = self.ask_all(&pipe).await?;
        let mut lines: Vec<String> =
            lines.into_iter().map(|line| String::from_utf8_lossy(&line).into_owned()).collect();
        let past = u64::try_from(start).is_ok_and(|start| start >= total);
        if count == 0 || past {
            lines.clear();
        }
        if newest_first {
            lines.reverse();
        }
        Ok(JobLogs { lines, total })
    }

    /// Adds a line to a job's log, of which the `keep` newest stay; gives back how
    /// many there are.
    ///
    /// # Errors
    /// [`AdminError::Job`] when the job is gone.
    pub async fn add_log(&self, id: &JobId, line: &str, keep: Option<u32>) -> Result<u64, AdminError> {
        let lines = script!(self, |conn| manage::update_job(
            conn,
            &self.keys,
            id,
            manage::Update::Log { line, keep }
        ))?;
        Ok(u64::try_from(lines).unwrap_or(0))
    }

    /// Drops a job's log lines but the `keep` newest.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn clear_logs(&self, id: &JobId, keep: u32) -> Result<(), AdminError> {
        let key = self.keys.logs(id);
        if keep == 0 {
            return self.ask(redis::cmd("DEL").arg(key)).await;
        }
        self.ask(redis::cmd("LTRIM").arg(key).arg(-i64::from(keep)).arg(-1)).await
    }
}
