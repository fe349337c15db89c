//! Failed jobs by what they have in common: listed, counted, run again or taken
//! away, page by page.

use std::{ops::RangeInclusive, pin::Pin};

use futures_util::{StreamExt, TryStreamExt, stream};
use mpanel_protocol::{
    calls::manage::{FinalState, Removal, Reprocess},
    ids::JobId,
    outcome::JobOpError,
    time::TimestampMs,
};
use serde_json::Value;

use super::{AdminError, Bulk, JobDetail, QueueAdmin, bulk::Chunked};

/// How many failed jobs one round trip looks at.
const WINDOW: usize = 500;
/// How many bytes of payloads are read at once, unless one alone is larger.
const BYTES: u64 = 8 << 20;
/// How many operations are under way at once.
const SIDE_BY_SIDE: usize = 16;

/// Which failed jobs are meant. What is not set does not matter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeadLetterFilter {
    /// Their name.
    pub name: Option<String>,
    /// Text somewhere in their reason, in any case.
    pub reason: Option<String>,
    /// Failed at or after.
    pub after: Option<TimestampMs>,
    /// Failed at or before.
    pub before: Option<TimestampMs>,
    /// How many attempts were made.
    pub attempts: Option<RangeInclusive<u32>>,
    /// A field of the payload, as JSON pointer (`/tenant/id`), and its value.
    pub data: Option<(String, Value)>,
}

impl DeadLetterFilter {
    fn matches(&self, fields: &[Option<String>]) -> bool {
        let [name, reason, made, old_made] = fields else { return false };
        let made = made.as_ref().or(old_made.as_ref()).and_then(|n| n.parse().ok()).unwrap_or(0);
        self.name.as_ref().is_none_or(|want| name.as_ref() == Some(want))
            && self.attempts.as_ref().is_none_or(|range| range.contains(&made))
            && self.reason.as_ref().is_none_or(|want| {
                let reason = reason.as_deref().unwrap_or_default().to_lowercase();
                reason.contains(&want.to_lowercase())
            })
    }

    fn needs_fields(&self) -> bool {
        self.name.is_some() || self.attempts.is_some() || self.reason.is_some()
    }
}

/// A place among the failed jobs, between two of them. It stays right while jobs
/// come and go.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Position {
    at_ms: f64,
    id: String,
    /// How many with the same time were left behind.
    same: usize,
}

/// Some of the failed jobs that match.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeadLetterPage {
    /// The jobs, oldest first.
    pub jobs: Vec<JobDetail>,
    /// Where to go on; none at the end.
    pub next: Option<Position>,
}

/// What a bulk operation did, or would have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handled {
    /// Failed jobs that matched.
    pub matched: u64,
    /// Run again, or taken away; 0 in a dry run.
    pub done: u64,
    /// Left alone: somebody else was faster, or a worker holds a job of the flow.
    pub skipped: u64,
}

/// Members of `failed` with their times.
type Entries = Vec<(String, f64)>;

#[derive(Debug, Clone, Copy)]
enum Doing {
    Count,
    Retry(Reprocess),
    Remove,
}

/// See [`QueueAdmin::retry_dead_letters`].
#[derive(Debug)]
pub struct DeadLetters {
    filter: DeadLetterFilter,
    doing: Doing,
    from: Option<Position>,
    until: Option<TimestampMs>,
    handled: Handled,
}

impl Chunked for DeadLetters {
    type Output = Handled;

    fn chunk<'a>(
        &'a mut self,
        admin: &'a QueueAdmin,
        done: &'a mut u64,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Handled>, AdminError>> + Send + 'a>> {
        Box::pin(async move {
            let now = match self.until {
                Some(now) => now,
                None => *self.until.insert(admin.now().await?),
            };
            // What fails meanwhile, the retried ones too, is for another time.
            let before = self.filter.before.map_or(now, |before| before.min(now));
            let filter = DeadLetterFilter { before: Some(before), ..self.filter.clone() };
            let (ids, _, next) = admin.matching(&filter, self.from.as_ref(), WINDOW).await?;
            self.handled.matched += ids.len() as u64;
            let doing = self.doing;
            let did: Vec<bool> = stream::iter(ids)
                .map(|id| async move { admin.handle(&id, doing).await })
                .buffer_unordered(SIDE_BY_SIDE)
                .try_collect()
                .await?;
            let did_now = did.iter().filter(|did| **did).count() as u64;
            self.handled.done += did_now;
            if !matches!(doing, Doing::Count) {
                self.handled.skipped += did.len() as u64 - did_now;
            }
            *done = self.handled.matched;
            self.from = next;
            Ok(self.from.is_none().then_some(self.handled))
        })
    }
}

impl QueueAdmin {
    /// Failed jobs that match, oldest first, about `count`, from a page's
    /// [`next`](DeadLetterPage::next) on.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        from: Option<&Position>,
        count: u32,
    ) -> Result<DeadLetterPage, AdminError> {
        let mut page = DeadLetterPage { jobs: Vec::new(), next: from.cloned() };
        let mut begun = false;
        while page.jobs.len() < count as usize && (page.next.is_some() || !begun) {
            begun = true;
            let left = count as usize - page.jobs.len();
            let (mut ids, entries, mut next) = self.matching(filter, page.next.as_ref(), WINDOW).await?;
            if ids.len() > left {
                ids.truncate(left);
                let last = ids.last().map_or("", JobId::as_str);
                let read = entries.iter().position(|(id, _)| id == last).map_or(0, |i| i + 1);
                next = place_after(&entries[..read], page.next.as_ref());
            }
            page.next = next;
            for chunk in ids.chunks(50) {
                page.jobs.extend(self.details(chunk, false).await?.into_iter().flatten());
            }
        }
        Ok(page)
    }

    /// How many failed jobs match.
    pub fn count_dead_letters(&self, filter: DeadLetterFilter) -> Bulk<'_, DeadLetters> {
        self.over_dead_letters(filter, Doing::Count)
    }

    /// Runs every failed job again that matches; in a dry run only counts them.
    pub fn retry_dead_letters(
        &self,
        filter: DeadLetterFilter,
        how: Reprocess,
        dry_run: bool,
    ) -> Bulk<'_, DeadLetters> {
        self.over_dead_letters(filter, if dry_run { Doing::Count } else { Doing::Retry(how) })
    }

    /// Takes every failed job away that matches, with what is below it in a flow;
    /// in a dry run only counts them.
    pub fn remove_dead_letters(&self, filter: DeadLetterFilter, dry_run: bool) -> Bulk<'_, DeadLetters> {
        self.over_dead_letters(filter, if dry_run { Doing::Count } else { Doing::Remove })
    }

    fn over_dead_letters(&self, filter: DeadLetterFilter, doing: Doing) -> Bulk<'_, DeadLetters> {
        Bulk::new(self, DeadLetters { filter, doing, from: None, until: None, handled: Handled::default() })
    }

    /// Whether it was done; not when the job is elsewhere by now.
    async fn handle(&self, id: &JobId, doing: Doing) -> Result<bool, AdminError> {
        let result = match doing {
            Doing::Count => return Ok(false),
            Doing::Retry(how) => self.retry(id, FinalState::Failed, how).await.map(|()| true),
            Doing::Remove => self.remove(id).await.map(|removal| removal == Removal::Removed),
        };
        match result {
            Err(AdminError::Job(JobOpError::Refused { .. })) => Ok(false),
            other => other,
        }
    }

    /// The ids that match among the next `window` failed jobs, those jobs with their
    /// times, and where to go on.
    async fn matching(
        &self,
        filter: &DeadLetterFilter,
        from: Option<&Position>,
        window: usize,
    ) -> Result<(Vec<JobId>, Entries, Option<Position>), AdminError> {
        let (entries, more) = self.failed_after(filter, from, window).await?;
        let next = more.then(|| place_after(&entries, from)).flatten();
        let mut ids: Vec<JobId> = entries.iter().map(|(id, _)| JobId::stored(id.clone())).collect();
        if filter.needs_fields() && !ids.is_empty() {
            let mut pipe = redis::pipe();
            for id in &ids {
                pipe.cmd("HMGET").arg(self.keys.job(id)).arg(&[
                    "name",
                    "failedReason",
                    "atm",
                    "attemptsMade",
                ]);
            }
            pipe.ignore_errors();
            // A key of another type matches nothing.
            let rows: Vec<redis::RedisResult<Vec<Option<String>>>> = self.ask_all(&pipe).await?;
            let mut rows = rows.into_iter();
            ids.retain(|_| rows.next().and_then(Result::ok).is_some_and(|row| filter.matches(&row)));
        }
        if let Some((pointer, wanted)) = &filter.data {
            ids = self.with_data(ids, pointer, wanted).await?;
        }
        Ok((ids, entries, next))
    }

    /// Up to `window` entries of `failed` behind a place, in the filter's time, and
    /// whether there may be more.
    async fn failed_after(
        &self,
        filter: &DeadLetterFilter,
        from: Option<&Position>,
        window: usize,
    ) -> Result<(Entries, bool), AdminError> {
        #[expect(clippy::cast_precision_loss, reason = "a time in ms")]
        let bound =
            |t: Option<TimestampMs>, open: &str| t.map_or(open.to_owned(), |t| (t.0 as f64).to_string());
        let last = bound(filter.before, "+inf");
        let first = match from {
            Some(place) => place.at_ms.to_string(),
            None => bound(filter.after, "-inf"),
        };
        let mut skip = from.map_or(0, |place| place.same.saturating_sub(1));
        loop {
            let mut range = redis::cmd("ZRANGEBYSCORE");
            range.arg(self.keys.failed()).arg(&first).arg(&last).arg("WITHSCORES");
            range.arg("LIMIT").arg(skip).arg(window + 1);
            let mut entries: Vec<(String, f64)> = match self.ask(&range).await {
                Ok(entries) => entries,
                Err(error) => return Err(self.explained(error).await),
            };
            let more = entries.len() > window;
            let Some(place) = from else {
                entries.truncate(window);
                return Ok((entries, more));
            };
            let behind = |(id, at): &(String, f64)| {
                *at > place.at_ms || (*at >= place.at_ms && id.as_bytes() > place.id.as_bytes())
            };
            // Some that were passed over are gone: the place is further in front.
            if skip > 0 && entries.first().is_none_or(behind) {
                skip /= 2;
                continue;
            }
            let read = entries.len();
            entries.retain(behind);
            entries.truncate(window);
            if entries.is_empty() && more {
                // One is read twice: it shows whether others went meanwhile.
                skip += read - 1;
                continue;
            }
            return Ok((entries, more));
        }
    }

    /// Those whose payload has the value at the pointer.
    async fn with_data(
        &self,
        ids: Vec<JobId>,
        pointer: &str,
        wanted: &Value,
    ) -> Result<Vec<JobId>, AdminError> {
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for id in &ids {
            pipe.cmd("HSTRLEN").arg(self.keys.job(id)).arg("data");
        }
        if ids.is_empty() {
            return Ok(ids);
        }
        let sizes: Vec<redis::RedisResult<u64>> = self.ask_all(&pipe).await?;
        let mut found = Vec::new();
        let mut batch: Vec<JobId> = Vec::new();
        let mut bytes = 0;
        for (id, size) in ids.into_iter().zip(sizes) {
            let size = size.unwrap_or(0);
            if bytes + size > BYTES && !batch.is_empty() {
                found.extend(self.having(std::mem::take(&mut batch), pointer, wanted).await?);
                bytes = 0;
            }
            bytes += size;
            batch.push(id);
        }
        found.extend(self.having(batch, pointer, wanted).await?);
        Ok(found)
    }

    async fn having(&self, ids: Vec<JobId>, pointer: &str, wanted: &Value) -> Result<Vec<JobId>, AdminError> {
        if ids.is_empty() {
            return Ok(ids);
        }
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for id in &ids {
            pipe.hget(self.keys.job(id), "data");
        }
        let rows: Vec<redis::RedisResult<Option<Vec<u8>>>> = self.ask_all(&pipe).await?;
        let has = |row: redis::RedisResult<Option<Vec<u8>>>| {
            let data: Value = serde_json::from_slice(&row.ok().flatten()?).ok()?;
            Some(data.pointer(pointer)? == wanted)
        };
        Ok(ids.into_iter().zip(rows).filter_map(|(id, row)| (has(row) == Some(true)).then_some(id)).collect())
    }
}

/// The place behind the last of `entries`.
fn place_after(entries: &[(String, f64)], from: Option<&Position>) -> Option<Position> {
    let (id, at) = entries.last()?;
    let here = |other: f64| other.to_bits() == at.to_bits();
    let same = entries.iter().rev().take_while(|(_, other)| here(*other)).count();
    let before = from.filter(|place| here(place.at_ms)).map_or(0, |place| place.same);
    Some(Position { at_ms: *at, id: id.clone(), same: same + before })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_looks_at_what_is_set() {
        let row = |name: &str, reason: &str, made: &str| {
            [Some(name.to_owned()), Some(reason.to_owned()), Some(made.to_owned()), None]
        };
        let filter = DeadLetterFilter {
            name: Some("mail".into()),
            reason: Some("TIMEOUT".into()),
            attempts: Some(2..=3),
            ..DeadLetterFilter::default()
        };
        assert!(filter.matches(&row("mail", "a timeout of 3 s", "3")));
        assert!(!filter.matches(&row("mail", "a timeout of 3 s", "4")));
        assert!(!filter.matches(&row("other", "a timeout of 3 s", "3")));
        assert!(!filter.matches(&row("mail", "refused", "3")));
        assert!(DeadLetterFilter::default().matches(&[None, None, None, None]));
    }
}
