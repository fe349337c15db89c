//! The per-minute counters that workers with metrics write and bull-board draws.

use super::{AdminError, QueueAdmin};

/// Which end is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Completed jobs.
    Completed,
    /// Jobs that failed for good.
    Failed,
}

/// Counters of one end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metrics {
    /// Jobs since counting began.
    pub count: u64,
    /// When the newest point was written, epoch ms.
    pub newest_ms: i64,
    /// `count` at that time.
    pub count_then: u64,
    /// Jobs a minute, newest first.
    pub per_minute: Vec<u64>,
    /// How many points are kept.
    pub points: u64,
}

impl QueueAdmin {
    /// `count` points from the `start`th newest on. Nothing is counted unless a
    /// worker has metrics on.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn metrics(&self, ended: Ended, start: u32, count: u32) -> Result<Metrics, AdminError> {
        let set = match ended {
            Ended::Completed => "completed",
            Ended::Failed => "failed",
        };
        let key = format!("{}metrics:{set}", self.keys.base());
        let data = format!("{key}:data");
        let last = i64::from(start) + i64::from(count) - 1;
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("HMGET").arg(&key).arg("count").arg("prevTS").arg("prevCount");
        pipe.cmd("LRANGE").arg(&data).arg(start).arg(if count == 0 { -1 } else { last });
        pipe.llen(&data);
        type Reply = (Vec<Option<String>>, Vec<String>, u64);
        let (fields, mut per_minute, points): Reply = self.ask_all(&pipe).await?;
        if count == 0 {
            per_minute.clear();
        }
        let whole = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
        let field = |i: usize| fields.get(i).and_then(Option::as_deref).map_or(0, whole);
        Ok(Metrics {
            count: field(0),
            newest_ms: i64::try_from(field(1)).unwrap_or(i64::MAX),
            count_then: field(2),
            per_minute: per_minute.iter().map(|point| whole(point)).collect(),
            points,
        })
    }
}
