//! Where each kind of peer keeps its jobs: only to check what a run left, and to see
//! when a queue is empty.

use mpanel_connect::Conn;

/// The keys of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `bull:<queue>:…`.
    BullMq,
    /// apalis-redis.
    Apalis,
    /// rusty-sidekiq.
    Sidekiq,
    /// oxana.
    Oxana,
}

/// How many jobs are where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// In line.
    pub waiting: u64,
    /// Waiting for their children.
    pub parents: u64,
    /// Completed and kept.
    pub completed: u64,
    /// Running, delayed, failed, given up.
    pub elsewhere: u64,
}

#[derive(Clone, Copy)]
enum Counted {
    Waiting,
    Parents,
    Completed,
    Elsewhere,
}

impl Layout {
    /// The keys that hold ids of jobs: how each is counted, and as what.
    fn keys(self, queue: &str) -> Vec<(&'static str, String, Counted)> {
        use Counted::{Completed, Elsewhere, Parents, Waiting};
        let rows: &[(&str, &str, Counted)] = match self {
            Self::BullMq => &[
                ("LLEN", "bull:{}:wait", Waiting),
                ("ZCARD", "bull:{}:prioritized", Waiting),
                ("ZCARD", "bull:{}:waiting-children", Parents),
                ("ZCARD", "bull:{}:completed", Completed),
                ("LLEN", "bull:{}:active", Elsewhere),
                ("LLEN", "bull:{}:paused", Elsewhere),
                ("ZCARD", "bull:{}:delayed", Elsewhere),
                ("ZCARD", "bull:{}:failed", Elsewhere),
            ],
            Self::Apalis => &[
                ("LLEN", "{}:active", Waiting),
                ("ZCARD", "{}:scheduled", Waiting),
                ("SCARD", "{}:done", Completed),
                ("SCARD", "{}:inflight:bench", Elsewhere),
                ("SCARD", "{}:dead", Elsewhere),
            ],
            Self::Sidekiq => &[
                ("LLEN", "queue:{}", Waiting),
                ("ZCARD", "schedule", Elsewhere),
                ("ZCARD", "retry", Elsewhere),
                ("ZCARD", "dead", Elsewhere),
            ],
            Self::Oxana => &[
                ("LLEN", "oxanus:queue:{}", Waiting),
                ("ZCARD", "oxanus:schedule", Elsewhere),
                ("ZCARD", "oxanus:retry", Elsewhere),
                ("LLEN", "oxanus:dead", Elsewhere),
            ],
        };
        rows.iter().map(|(command, key, counted)| (*command, key.replace("{}", queue), *counted)).collect()
    }

    /// Counts the jobs of these queues.
    ///
    /// # Errors
    /// Those of Redis.
    pub async fn count(self, conn: &mut Conn, queues: &[String]) -> redis::RedisResult<Left> {
        let keys: Vec<_> = queues.iter().flat_map(|queue| self.keys(queue)).collect();
        let mut pipe = redis::pipe();
        for (command, key, _) in &keys {
            pipe.cmd(command).arg(key);
        }
        let counts: Vec<u64> = pipe.query_async(conn).await?;
        let mut left = Left::default();
        for ((_, _, counted), count) in keys.into_iter().zip(counts) {
            let sum = match counted {
                Counted::Waiting => &mut left.waiting,
                Counted::Parents => &mut left.parents,
                Counted::Completed => &mut left.completed,
                Counted::Elsewhere => &mut left.elsewhere,
            };
            *sum += count;
        }
        Ok(left)
    }

    /// Keys that a job may leave beside the counted ones: its hash, and of a parent the
    /// set of its children.
    #[must_use]
    pub fn keys_of(self, left: Left) -> u64 {
        match self {
            Self::BullMq | Self::Apalis => left.waiting + left.completed + 2 * left.parents,
            Self::Sidekiq | Self::Oxana => 0,
        }
    }
}
