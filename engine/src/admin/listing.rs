//! Jobs of one state, page by page, in the order Node lists them.

use mpanel_protocol::{ids::JobId, state::JobState};
use redis::{FromRedisValue, RedisResult, Value};

use super::{
    AdminError, JobDetail, QueueAdmin,
    job::{is_wrong_type, lossy},
};

/// How many jobs one round trip reads.
const READ: usize = 100;
/// Most jobs of a page.
const PAGE_MAX: u32 = 1000;

/// Fields of a job without its payload, result and traces.
const SMALL: [&str; 22] = [
    "name",
    "timestamp",
    "delay",
    "priority",
    "parentKey",
    "parent",
    "rjk",
    "nrjid",
    "deid",
    "processedOn",
    "finishedOn",
    "ats",
    "atm",
    "attemptsMade",
    "pb",
    "stc",
    "stalledCounter",
    "failedReason",
    "progress",
    "defa",
    "tm",
    "opts",
];

/// In which order jobs are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As Node's `getJobs` does by itself: newest, or latest due, first.
    #[default]
    Descending,
    /// Next to run, or oldest, first.
    Ascending,
}

/// Which jobs to list.
#[derive(Debug, Clone, Copy)]
pub struct Listing {
    state: JobState,
    pub(super) start: u64,
    pub(super) count: u32,
    order: Order,
    payloads: bool,
}

impl Listing {
    /// The first 100 jobs of a state. [`JobState::Waiting`] and
    /// [`JobState::Paused`] are the two lists of a queue that may be paused.
    #[must_use]
    pub fn of(state: JobState) -> Self {
        Self { state, start: 0, count: 100, order: Order::Descending, payloads: true }
    }

    /// How many jobs, at most 1000 a page.
    #[must_use]
    pub fn first(mut self, count: u32) -> Self {
        self.count = count.min(PAGE_MAX);
        self
    }

    /// Passes over so many; [`JobPage::next`] says where the next page begins.
    #[must_use]
    pub fn skip(mut self, start: u64) -> Self {
        self.start = start;
        self
    }

    /// The order.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Leaves out payload, result and stack traces, which may be large.
    #[must_use]
    pub fn without_payloads(mut self) -> Self {
        self.payloads = false;
        self
    }
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<JobDetail>,
    /// Ids that are listed but have no hash.
    pub orphans: Vec<JobId>,
    /// How many are in the state in all.
    pub total: u64,
    /// Where the next page begins; none after the last.
    pub next: Option<u64>,
}

impl QueueAdmin {
    /// A page of the jobs of one state. Jobs that move meanwhile may be missed or
    /// come twice, as in Node.
    ///
    /// # Errors
    /// [`AdminError`]; [`AdminError::WrongType`] names a key that is not the queue's.
    pub async fn list(&self, listing: Listing) -> Result<JobPage, AdminError> {
        let ids = match self.ids(&listing).await {
            Ok(ids) => ids,
            Err(error) => return Err(self.explained(error).await),
        };
        let (total, ids) = ids;
        let end = listing.start + u64::from(listing.count);
        let mut page = JobPage { total, next: (end < total).then_some(end), ..JobPage::default() };
        // BullMQ 3 and 4 kept a marker in the list; it is no job.
        let ids: Vec<JobId> = ids.into_iter().filter(|id| !id.starts_with("0:")).map(JobId::stored).collect();
        for chunk in ids.chunks(READ) {
            for (id, detail) in chunk.iter().zip(self.details(chunk, listing.payloads).await?) {
                match detail {
                    Some(detail) => page.jobs.push(detail),
                    None => page.orphans.push(id.clone()),
                }
            }
        }
        Ok(page)
    }

    async fn ids(&self, listing: &Listing) -> Result<(u64, Vec<String>), AdminError> {
        let k = &self.keys;
        let (key, is_list) = match listing.state {
            JobState::Waiting => (k.wait(), true),
            JobState::Paused => (k.paused(), true),
            JobState::Active => (k.active(), true),
            JobState::Prioritized => (k.prioritized(), false),
            JobState::Delayed => (k.delayed(), false),
            JobState::WaitingChildren => (k.waiting_children(), false),
            JobState::Completed => (k.completed(), false),
            JobState::Failed => (k.failed(), false),
        };
        let start = i64::try_from(listing.start).unwrap_or(i64::MAX / 2);
        let last = start + i64::from(listing.count) - 1;
        let mut pipe = redis::pipe();
        pipe.atomic().cmd(if is_list { "LLEN" } else { "ZCARD" }).arg(&key);
        if listing.count == 0 {
            let (total,): (u64,) = self.ask_all(&pipe).await?;
            return Ok((total, Vec::new()));
        }
        match (is_list, listing.order) {
            // The tail of a list is next.
            (true, Order::Ascending) => pipe.cmd("LRANGE").arg(&key).arg(-last - 1).arg(-start - 1),
            (true, Order::Descending) => pipe.cmd("LRANGE").arg(&key).arg(start).arg(last),
            (false, Order::Ascending) => pipe.cmd("ZRANGE").arg(&key).arg(start).arg(last),
            (false, Order::Descending) => pipe.cmd("ZREVRANGE").arg(&key).arg(start).arg(last),
        };
        let (total, mut ids): (u64, Vec<String>) = self.ask_all(&pipe).await?;
        if is_list && listing.order == Order::Ascending {
            // A range that begins before the list is cut off at its head.
            if listing.start >= total {
                ids.clear();
            }
            ids.reverse();
        }
        Ok((total, ids))
    }

    /// The jobs with these ids; none where there is no hash.
    pub(super) async fn details(
        &self,
        ids: &[JobId],
        payloads: bool,
    ) -> Result<Vec<Option<JobDetail>>, AdminError> {
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for id in ids {
            if payloads {
                pipe.cmd("HGETALL").arg(self.keys.job(id));
            } else {
                pipe.cmd("HMGET").arg(self.keys.job(id)).arg(&SMALL);
            }
        }
        let replies: Vec<RedisResult<Value>> = self.ask_all(&pipe).await?;
        let mut details = Vec::with_capacity(ids.len());
        for (id, reply) in ids.iter().zip(replies) {
            let fields: RedisResult<Vec<(Vec<u8>, Vec<u8>)>> = reply.and_then(|value| {
                if payloads {
                    return Ok(FromRedisValue::from_redis_value(value)?);
                }
                let values: Vec<Option<Vec<u8>>> = FromRedisValue::from_redis_value(value)?;
                let named = SMALL.iter().zip(values);
                Ok(named.filter_map(|(name, value)| Some((name.as_bytes().to_vec(), value?))).collect())
            });
            details.push(match fields.map_err(AdminError::from) {
                Ok(fields) if fields.is_empty() => None,
                Ok(fields) => Some(JobDetail::from_fields(id.clone(), lossy(fields), !payloads)),
                Err(error) if is_wrong_type(&error) => self.job(id).await?,
                Err(error) => return Err(error),
            });
        }
        Ok(details)
    }
}
